//! Named weights of a model, some of them trainable.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

/// Weights by name, in name order (so that norms and optimiser states have one order).
pub type Weights = BTreeMap<String, Tensor>;

/// Why parameters could not be built, restored, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A needed weight is not there.
    #[error("weight `{name}` is missing")]
    Missing {
        /// The weight's name.
        name: String,
    },
    /// A weight is there that nothing asks for.
    #[error("weight `{name}` is not a trainable parameter here")]
    Unexpected {
        /// The weight's name.
        name: String,
    },
    /// A weight has another shape than its place.
    #[error("weight `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The weight's name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of its place.
        expected: Vec<usize>,
    },
    /// A weight has another dtype than its place.
    #[error("weight `{name}` has dtype {found:?}, expected {expected:?}")]
    DType {
        /// The weight's name.
        name: String,
        /// Its dtype.
        found: DType,
        /// The dtype of its place.
        expected: DType,
    },
    /// Bytes that are not a safetensors file, or one with tensors of an unknown type.
    #[error("not a readable safetensors file: {reason}")]
    Format {
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
}

type Result<T> = std::result::Result<T, ParameterError>;

/// The named weights of a model: frozen tensors and trainable variables.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Frozen(Tensor),
    Trainable(Var),
}

/// Returns where weights lie.
pub fn device_of(weights: &Weights) -> Device {
    let first = weights.values().next();
    first.map_or(Device::Cpu, |tensor| tensor.device().clone())
}

impl Parameters {
    /// Takes `weights`; those whose name `trainable` accepts are copied into variables, the others share
    /// their memory with `weights`.
    pub fn new(weights: &Weights, trainable: impl Fn(&str) -> bool) -> Result<Self> {
        let entries = weights
            .iter()
            .map(|(name, tensor)| {
                let entry = if trainable(name) {
                    Entry::Trainable(Var::from_tensor(&tensor.copy()?)?)
                } else {
                    Entry::Frozen(tensor.detach().contiguous()?)
                };
                Ok((name.clone(), entry))
            })
            .collect::<Result<_>>()?;
        Ok(Self { entries })
    }

    /// Returns the weight `name`, which must have the shape `expected`.
    pub fn get(&self, name: &str, expected: &[usize]) -> Result<&Tensor> {
        let tensor = match self.entries.get(name) {
            Some(Entry::Frozen(tensor)) => tensor,
            Some(Entry::Trainable(var)) => var.as_tensor(),
            None => {
                return Err(ParameterError::Missing { name: name.into() });
            }
        };
        same_shape(name, tensor, expected)?;
        Ok(tensor)
    }

    /// Returns the trainable variables in name order. A clone of a variable is the same variable.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.entries
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::Trainable(var) => Some((name.clone(), var.clone())),
                Entry::Frozen(_) => None,
            })
            .collect()
    }

    /// Returns all weights as they are now; trainable ones are copied, so that later updates do not reach them.
    pub fn weights(&self) -> Result<Weights> {
        self.entries
            .iter()
            .map(|(name, entry)| {
                let tensor = match entry {
                    Entry::Frozen(tensor) => tensor.clone(),
                    Entry::Trainable(var) => var.as_detached_tensor().copy()?,
                };
                Ok((name.clone(), tensor))
            })
            .collect()
    }

    /// Copies the trainable variables.
    pub fn snapshot(&self) -> Result<Weights> {
        self.trainable()
            .into_iter()
            .map(|(name, var)| Ok((name, var.as_detached_tensor().copy()?)))
            .collect()
    }

    /// Sets the trainable variables to the bits of a [`snapshot`](Self::snapshot).
    ///
    /// Names, shapes and dtypes must be exactly those of the variables; on an error nothing is changed.
    pub fn restore(&self, snapshot: &Weights) -> Result<()> {
        let variables = self.trainable();
        for (name, var) in &variables {
            let tensor = snapshot
                .get(name)
                .ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
            same_shape(name, tensor, var.dims())?;
            same_dtype(name, tensor, var.dtype())?;
        }
        if let Some(name) = snapshot
            .keys()
            .find(|name| !matches!(self.entries.get(*name), Some(Entry::Trainable(_))))
        {
            return Err(ParameterError::Unexpected { name: name.clone() });
        }
        for (name, var) in &variables {
            if let Some(tensor) = snapshot.get(name) {
                var.set(&tensor.to_device(var.device())?.copy()?)?;
            }
        }
        Ok(())
    }
}

pub(super) fn same_shape(name: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(ParameterError::Shape {
        name: name.into(),
        found: tensor.dims().to_vec(),
        expected: expected.to_vec(),
    })
}

pub(super) fn same_dtype(name: &str, tensor: &Tensor, expected: DType) -> Result<()> {
    if tensor.dtype() == expected {
        return Ok(());
    }
    Err(ParameterError::DType {
        name: name.into(),
        found: tensor.dtype(),
        expected,
    })
}

/// Serialises weights in the safetensors format; equal weights give equal bytes.
pub fn to_safetensors(weights: &Weights) -> Result<Vec<u8>> {
    // Hugging Face's readers want to know the framework whose layout the tensors have.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let contiguous: Weights = weights
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), tensor.contiguous()?)))
        .collect::<Result<_>>()?;
    safetensors::serialize(&contiguous, Some(metadata)).map_err(|error| ParameterError::Format {
        reason: error.to_string(),
    })
}

/// Reads weights in the safetensors format. Damaged bytes are an error, never a panic.
pub fn from_safetensors(bytes: &[u8], device: &Device) -> Result<Weights> {
    let tensors = candle_core::safetensors::load_buffer(bytes, device).map_err(|error| {
        ParameterError::Format {
            // Only the first line: candle appends a backtrace when one is asked for.
            reason: error.to_string().lines().next().unwrap_or_default().into(),
        }
    })?;
    Ok(tensors.into_iter().collect())
}

/// Writes weights to a safetensors file.
pub fn save(weights: &Weights, path: &Path) -> Result<()> {
    Ok(fs_err::write(path, to_safetensors(weights)?)?)
}

/// Reads a safetensors file.
pub fn load(path: &Path, device: &Device) -> Result<Weights> {
    from_safetensors(&fs_err::read(path)?, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Weights {
        let device = Device::Cpu;
        BTreeMap::from([
            (
                "b".to_owned(),
                Tensor::new(&[[1f32, -0.0], [f32::MIN_POSITIVE, 3.5e-42]], &device).unwrap(),
            ),
            ("a".to_owned(), Tensor::new(&[7i64], &device).unwrap()),
        ])
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn safetensors_round_trip_keeps_every_bit() {
        let bytes = to_safetensors(&weights()).unwrap();
        let back = from_safetensors(&bytes, &Device::Cpu).unwrap();
        assert_eq!(bits(&weights()["b"]), bits(&back["b"]));
        assert_eq!(back["a"].to_vec1::<i64>().unwrap(), [7]);
        assert_eq!(bytes, to_safetensors(&back).unwrap());
    }

    #[test]
    fn damaged_safetensors_are_errors() {
        let bytes = to_safetensors(&weights()).unwrap();
        for length in 0..bytes.len() {
            assert!(from_safetensors(&bytes[..length], &Device::Cpu).is_err());
        }
        let mut forged = bytes.clone();
        forged[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(from_safetensors(&forged, &Device::Cpu).is_err());
        for position in 8..bytes.len().min(200) {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x11;
            // Whatever it makes of them, it must return.
            let _ = from_safetensors(&damaged, &Device::Cpu);
        }
    }

    #[test]
    fn restore_undoes_updates_bit_by_bit_and_leaves_snapshots_alone() {
        let parameters = Parameters::new(&weights(), |name| name == "b").unwrap();
        let snapshot = parameters.snapshot().unwrap();
        let (_, var) = &parameters.trainable()[0];
        var.set(&var.ones_like().unwrap()).unwrap();
        assert_eq!(bits(&snapshot["b"]), bits(&weights()["b"]));
        parameters.restore(&snapshot).unwrap();
        assert_eq!(bits(var), bits(&weights()["b"]));
    }

    #[test]
    fn restore_refuses_other_names_and_shapes_and_changes_nothing() {
        let parameters = Parameters::new(&weights(), |name| name == "b").unwrap();
        let mut other = parameters.snapshot().unwrap();
        other.insert("c".into(), other["b"].clone());
        let error = parameters.restore(&other).unwrap_err();
        assert_eq!(
            error.to_string(),
            "weight `c` is not a trainable parameter here"
        );
        other.remove("c");
        other.insert("b".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
        let error = parameters.restore(&other).unwrap_err();
        assert_eq!(
            error.to_string(),
            "weight `b` has shape [1], expected [2, 2]"
        );
        assert!(parameters.restore(&Weights::new()).is_err());
        assert_eq!(
            bits(&parameters.snapshot().unwrap()["b"]),
            bits(&weights()["b"])
        );
    }
}
