//! Reading exactly the tensors that a configuration implies.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;
use rayon::prelude::*;

use super::FormatError;
use super::error::shortened;
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;

/// Elements of a tensor that is read alone; its elements are decoded in parallel.
const LARGE: usize = 1 << 22;

/// An opened file, or folder of shards, whose tensors can be read one by one.
pub(super) trait TensorSource: Sync {
    /// Returns what error messages should name.
    fn path(&self) -> &Path;

    /// Returns the names of all tensors, in one fixed order.
    fn names(&self) -> impl Iterator<Item = &str>;

    /// Returns the shape of a tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// Reads and decodes a tensor, row-major.
    fn read(&self, name: &str) -> Result<Vec<f32>, FormatError>;

    /// Returns the name that this file has for the Hugging Face name.
    fn stored_name(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// Reads the tensors of a model; anything else in the file must be `ignored`.
///
/// Weights of linear layers come out as (outputs, inputs).
pub(super) fn load_model(
    source: &impl TensorSource,
    architecture: &Architecture,
    placement: &Placement,
    ignored: impl Fn(&str) -> bool,
) -> Result<Weights, FormatError> {
    let expected = architecture.slots().map(|slot| {
        let mut shape = slot.shape;
        if architecture.is_turned(slot.role) {
            shape.reverse();
        }
        (slot.name, shape)
    });
    let mut weights = load_exactly(source, expected, placement, ignored)?;
    turn(&mut weights, architecture).map_err(FormatError::tensor(source.path()))?;
    Ok(weights)
}

/// Exchanges rows and columns of the weights that files of a family hold the other way round.
pub(super) fn turn(weights: &mut Weights, architecture: &Architecture) -> candle_core::Result<()> {
    let slots = architecture.slots();
    for slot in slots.filter(|slot| architecture.is_turned(slot.role)) {
        if let Some(weight) = weights.get_mut(&slot.name) {
            *weight = weight.t()?.contiguous()?;
        }
    }
    Ok(())
}

/// Reads the `expected` weights, all of them finite numbers; anything else in the file must be `ignored`.
///
/// Shapes are checked before anything is read, and `expected` is consumed only up to its first problem.
pub(super) fn load_exactly(
    source: &impl TensorSource,
    expected: impl Iterator<Item = (String, Vec<usize>)>,
    placement: &Placement,
    ignored: impl Fn(&str) -> bool,
) -> Result<Weights, FormatError> {
    read_exactly(source, expected, placement, ignored, |name, values| {
        let place = values.iter().position(|value| !value.is_finite());
        place.map_or(Ok(()), |place| {
            Err(FormatError::malformed(
                source.path(),
                format!(
                    "tensor `{name}` holds {} at place {place} of {}, expected finite numbers alone; the training that \
                     wrote it may have diverged",
                    values[place],
                    values.len()
                ),
            ))
        })
    })
}

/// The same with a check of one's own of each tensor's values.
pub(super) fn read_exactly(
    source: &impl TensorSource,
    expected: impl Iterator<Item = (String, Vec<usize>)>,
    placement: &Placement,
    ignored: impl Fn(&str) -> bool,
    check: impl Fn(&str, &[f32]) -> Result<(), FormatError> + Sync,
) -> Result<Weights, FormatError> {
    let mut wanted = Vec::new();
    let mut stored = BTreeSet::new();
    for (name, shape) in expected {
        let stored_name = source.stored_name(&name);
        match source.shape(&stored_name) {
            None => {
                return Err(FormatError::MissingTensor {
                    path: source.path().to_owned(),
                    name,
                    expected: shape,
                    hint: String::new(),
                });
            }
            Some(found) if found != shape => {
                return Err(FormatError::TensorShape {
                    path: source.path().to_owned(),
                    name,
                    expected: shape,
                    found: found.to_owned(),
                });
            }
            Some(_) => {}
        }
        stored.insert(stored_name.clone());
        wanted.push((name, stored_name, shape));
    }
    if let Some(name) = source
        .names()
        .find(|name| !stored.contains(*name) && !ignored(name))
    {
        return Err(FormatError::UnexpectedTensor {
            path: source.path().to_owned(),
            name: shortened(name.to_owned()),
            found: source.shape(name).unwrap_or_default().to_owned(),
        });
    }
    let read = |(name, stored_name, shape): (String, String, Vec<usize>)| {
        let values = source.read(&stored_name)?;
        check(&name, &values)?;
        let tensor = placement.weight(values, &shape);
        Ok((name, tensor.map_err(FormatError::tensor(source.path()))?))
    };
    // Whatever lies on a GPU is in the order of the thread that put it there: this one.
    let moved = |(name, tensor): (String, Tensor)| {
        let moved = tensor.to_device(&placement.device);
        Ok((name, moved.map_err(FormatError::tensor(source.path()))?))
    };
    // Each is whole and wide for a moment: of large ones no more than one at a time.
    let (large, small): (Vec<_>, Vec<_>) = wanted
        .into_iter()
        .partition(|(_, _, shape)| shape.iter().product::<usize>() >= LARGE);
    let small: Vec<(String, Tensor)> = small
        .into_par_iter()
        .map(read)
        .collect::<Result<_, FormatError>>()?;
    let all = small.into_iter().map(Ok).chain(large.into_iter().map(read));
    all.map(|read| moved(read?)).collect()
}
