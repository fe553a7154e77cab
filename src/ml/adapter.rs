//! Low-rank adapters (LoRA, Hu et al. 2021).

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

/// Shape and constants of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner dimension of the update.
    pub rank: usize,
    /// The update is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Share of a projection's inputs that are dropped on the way into the update, in training.
    #[serde(default)]
    pub dropout: f64,
    /// Last parts of the names of the projections that are adapted, as `q_proj`.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Returns the factor of the update.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Returns the names of the adapted projections among `weights`, without their `.weight`.
    fn modules<'a>(&'a self, weights: &'a Weights) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        weights.iter().filter_map(|(name, tensor)| {
            let module = name.strip_suffix(".weight")?;
            let last = module.rsplit('.').next()?;
            (self.target_modules.iter().any(|target| target == last) && tensor.rank() == 2)
                .then_some((module, tensor))
        })
    }
}

/// Why an adapter could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A value of the configuration is out of range.
    #[error("adapter: {reason}")]
    Config {
        /// Which value, and what is allowed.
        reason: String,
    },
    /// A target names nothing in the model.
    #[error("adapter: no projection of the model is called `{target}`")]
    NoSuchTarget {
        /// The target module.
        target: String,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, AdapterError>;

/// Trainable low-rank updates of some projections of a model, in `f32`.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: LoraConfig,
    parameters: Parameters,
}

/// Returns the name of one factor in the files of the PEFT library.
pub(super) fn factor_name(module: &str, factor: char) -> String {
    format!("base_model.model.{module}.lora_{factor}.weight")
}

impl Adapter {
    /// Makes an adapter that changes nothing yet: B is zero, and A is normal with PEFT's default variance,
    /// `1 / (3 inputs)`.
    pub fn init(
        config: &LoraConfig,
        base: &Weights,
        stream: &Stream,
        device: &Device,
    ) -> Result<Self> {
        check(config, base)?;
        let mut weights = Weights::new();
        for (module, weight) in config.modules(base) {
            let (outputs, inputs) = weight.dims2()?;
            let name = factor_name(module, 'A');
            let mut draws = stream.child(&name).at(0);
            let std = 1.0 / (3.0 * inputs as f64).sqrt();
            let a: Vec<f32> = (0..config.rank * inputs)
                .map(|_| (std * draws.normal()) as f32)
                .collect();
            weights.insert(name, Tensor::from_vec(a, (config.rank, inputs), device)?);
            weights.insert(
                factor_name(module, 'B'),
                Tensor::zeros((outputs, config.rank), DType::F32, device)?,
            );
        }
        Ok(Self {
            config: config.clone(),
            parameters: Parameters::new(&weights, |_| true)?,
        })
    }

    /// Makes an adapter of stored weights, named as in PEFT's files; they must be exactly those that the
    /// configuration adapts in `base`.
    pub fn from_weights(
        config: &LoraConfig,
        base: &Weights,
        stored: &Weights,
        device: &Device,
    ) -> Result<Self> {
        let adapter = Self::init(config, base, &Stream::new(0, "overwritten"), device)?;
        let wide: Weights = stored
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F32)?)))
            .collect::<Result<_>>()?;
        adapter.parameters.restore(&wide)?;
        Ok(adapter)
    }

    /// Returns the configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Returns the trainable factors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns both factors of a projection (module name without `.weight`) of the given shape, if it is adapted.
    pub(super) fn factors(
        &self,
        module: &str,
        (outputs, inputs): (usize, usize),
    ) -> Result<Option<(Tensor, Tensor)>> {
        let rank = self.config.rank;
        match self
            .parameters
            .get(&factor_name(module, 'A'), &[rank, inputs])
        {
            Ok(a) => {
                let b = self
                    .parameters
                    .get(&factor_name(module, 'B'), &[outputs, rank])?;
                Ok(Some((a.clone(), b.clone())))
            }
            Err(ParameterError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds the updates to the weights they adapt: `W + scale B A`, in the weights' dtype.
    pub fn merge(&self, base: &Weights) -> Result<Weights> {
        let mut merged = base.clone();
        for (module, weight) in self.config.modules(base) {
            if let Some((a, b)) = self.factors(module, weight.dims2()?)? {
                let update = b.detach().matmul(&a.detach())?;
                let update = update.affine(self.config.scale(), 0.0)?;
                let sum = (weight.to_dtype(DType::F32)? + update)?.to_dtype(weight.dtype())?;
                merged.insert(format!("{module}.weight"), sum);
            }
        }
        Ok(merged)
    }
}

fn check(config: &LoraConfig, base: &Weights) -> Result<()> {
    let reason = if config.rank == 0 {
        Some("`rank` is 0, expected at least 1".to_owned())
    } else if !config.alpha.is_finite() {
        Some(format!("`alpha` is {}, expected a number", config.alpha))
    } else if !(0.0..1.0).contains(&config.dropout) {
        Some(format!(
            "`dropout` is {}, expected a number from 0 to below 1",
            config.dropout
        ))
    } else if config.target_modules.is_empty() {
        Some("`target_modules` is empty".to_owned())
    } else {
        None
    };
    if let Some(reason) = reason {
        return Err(AdapterError::Config { reason });
    }
    for target in &config.target_modules {
        let suffix = format!(".{target}.weight");
        if !base.keys().any(|name| name.ends_with(&suffix)) {
            return Err(AdapterError::NoSuchTarget {
                target: target.clone(),
            });
        }
    }
    Ok(())
}
