//! AdamW (Loshchilov and Hutter 2019) with parameter groups, clipping and `f32` master weights.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Storage, Tensor, Var};

use super::kernels;
use super::kernels::form::is_composed;
use super::kernels::threads;
use super::parameters::{ParameterError, Weights, same_dtype, same_shape};
use super::recompute::backward;

/// Elements handled at once by one thread; also the length of a partial sum of squares.
const CHUNK: usize = 1 << 14;

/// Why an optimiser could not be built, restored or stepped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// A parameter has no gradient: the loss does not depend on it, or an operation on the way has none.
    #[error("parameter `{name}` has no gradient")]
    NoGradient {
        /// The parameter's name.
        name: String,
    },
    /// Two parameters have one name.
    #[error("parameter `{name}` is in the optimiser twice")]
    Duplicate {
        /// The parameter's name.
        name: String,
    },
    /// A stored state does not fit.
    #[error("optimiser state: {0}")]
    State(#[from] ParameterError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, OptimizerError>;

/// Gradients by parameter name, summed over micro-batches.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    sums: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Adds the gradients of a loss; every parameter must have one.
    pub fn add_of(&mut self, loss: &Tensor, parameters: &[(String, Var)]) -> Result<()> {
        self.add(&backward(loss)?, parameters)
    }

    /// Adds the gradients of one backward pass; every parameter must have one.
    pub fn add(&mut self, store: &GradStore, parameters: &[(String, Var)]) -> Result<()> {
        for (name, var) in parameters {
            let gradient = store
                .get(var)
                .ok_or_else(|| OptimizerError::NoGradient { name: name.clone() })?;
            // candle's gradients of variables remember what they were made of, and with it the whole pass.
            let gradient = gradient.detach();
            let sum = match self.sums.get(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient.contiguous()?,
            };
            self.sums.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// Returns the summed gradient of a parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.sums.get(name)
    }
}

/// The learning rate of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LearningRate {
    /// A multiple of the rate given at each step.
    Multiple(f64),
    /// The same at every step.
    Fixed(f64),
}

/// Parameters that are updated in the same way.
#[derive(Debug, Clone)]
pub struct ParameterGroup {
    /// Parameters by name; names are unique over all groups.
    pub parameters: Vec<(String, Var)>,
    /// Their learning rate.
    pub learning_rate: LearningRate,
    /// Share of the learning rate by which weights shrink at each step; see [`AdamWConfig::decay_vectors`].
    pub weight_decay: f64,
}

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Norm of all gradients together above which they are scaled down to it.
    pub max_grad_norm: Option<f64>,
    /// Whether weight decay shrinks vectors too: norms and biases.
    pub decay_vectors: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: Some(1.0),
            decay_vectors: false,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The parameters were updated.
    Updated {
        /// Norm of all gradients before clipping.
        grad_norm: f64,
    },
    /// A gradient is infinite or not a number; nothing was changed.
    NonFinite {
        /// The first such parameter, in name order.
        parameter: String,
    },
}

/// The optimiser. Its state is `f32` whatever the dtype of the parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: BTreeMap<String, Slot>,
    steps: u64,
}

#[derive(Debug)]
struct Slot {
    var: Var,
    learning_rate: LearningRate,
    weight_decay: f64,
    moments: Moments,
}

/// Running means of the gradient and its square.
#[derive(Debug)]
enum Moments {
    /// For `f32` parameters in the fused form, updated in place in one loop.
    Host { mean: Vec<f32>, square: Vec<f32> },
    /// For others, with the `f32` weights whose rounding a narrower parameter is.
    Tensors {
        mean: Tensor,
        square: Tensor,
        master: Option<Tensor>,
    },
}

impl Moments {
    fn zero(var: &Var) -> candle_core::Result<Self> {
        if !is_composed(var) && var.dtype() == DType::F32 {
            return Ok(Self::Host {
                mean: vec![0.0; var.elem_count()],
                square: vec![0.0; var.elem_count()],
            });
        }
        let zeros = Tensor::zeros(var.shape(), DType::F32, var.device())?;
        let wide = || var.as_detached_tensor().to_dtype(DType::F32);
        Ok(Self::Tensors {
            mean: zeros.clone(),
            square: zeros,
            master: (var.dtype() != DType::F32).then(wide).transpose()?,
        })
    }
}

impl AdamW {
    /// Starts with zero moments.
    pub fn new(groups: Vec<ParameterGroup>, config: AdamWConfig) -> Result<Self> {
        let mut slots = BTreeMap::new();
        for group in groups {
            for (name, var) in group.parameters {
                let decays = config.decay_vectors || var.rank() > 1;
                let slot = Slot {
                    moments: Moments::zero(&var)?,
                    var,
                    learning_rate: group.learning_rate,
                    weight_decay: if decays { group.weight_decay } else { 0.0 },
                };
                if slots.insert(name.clone(), slot).is_some() {
                    return Err(OptimizerError::Duplicate { name });
                }
            }
        }
        Ok(Self {
            config,
            slots,
            steps: 0,
        })
    }

    /// Returns all parameters in name order.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        self.slots
            .iter()
            .map(|(name, slot)| (name.clone(), slot.var.clone()))
            .collect()
    }

    /// Returns how many updates were made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Clips the gradients and updates the parameters at learning rate `lr`.
    ///
    /// Every parameter must have a gradient.
    pub fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<Step> {
        let mut all = Vec::with_capacity(self.slots.len());
        for name in self.slots.keys() {
            let gradient = gradients.get(name);
            all.push(gradient.ok_or_else(|| OptimizerError::NoGradient { name: name.clone() })?);
        }
        let mut squares = 0.0;
        for (name, square) in self.slots.keys().zip(sums_of_squares(&all)?) {
            if !square.is_finite() {
                return Ok(Step::NonFinite {
                    parameter: name.clone(),
                });
            }
            squares += square;
        }
        let grad_norm = squares.sqrt();
        let clip = match self.config.max_grad_norm {
            // The constant is PyTorch's clip_grad_norm_.
            Some(most) => (most / (grad_norm + 1e-6)).min(1.0),
            None => 1.0,
        };
        self.steps += 1;
        let count = self.steps as f64;
        for (name, slot) in &mut self.slots {
            let Some(gradient) = gradients.get(name) else {
                continue;
            };
            let lr = match slot.learning_rate {
                LearningRate::Multiple(multiple) => lr * multiple,
                LearningRate::Fixed(lr) => lr,
            };
            let update = Update {
                keep: 1.0 - lr * slot.weight_decay,
                clip,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                size: lr / (1.0 - libm::pow(self.config.beta1, count)),
                root: (1.0 - libm::pow(self.config.beta2, count)).sqrt(),
                eps: self.config.eps,
            };
            update.apply(&slot.var, gradient, &mut slot.moments)?;
        }
        Ok(Step::Updated { grad_norm })
    }

    /// Returns moments, master weights and the number of steps, by name.
    pub fn state(&self) -> Result<Weights> {
        let mut state = Weights::new();
        state.insert(
            STEPS.to_owned(),
            Tensor::new(&[self.steps as i64], &Device::Cpu)?,
        );
        for (name, slot) in &self.slots {
            let shape = slot.var.shape();
            match &slot.moments {
                Moments::Host { mean, square } => {
                    let tensor = |values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu);
                    state.insert(format!("{MEAN}{name}"), tensor(mean)?);
                    state.insert(format!("{SQUARE}{name}"), tensor(square)?);
                }
                Moments::Tensors {
                    mean,
                    square,
                    master,
                } => {
                    let both = [(MEAN, mean), (SQUARE, square)];
                    let master = master.iter().map(|master| (MASTER, master));
                    for (kind, tensor) in both.into_iter().chain(master) {
                        state.insert(format!("{kind}{name}"), tensor.to_device(&Device::Cpu)?);
                    }
                }
            }
        }
        Ok(state)
    }

    /// Takes up a [`state`](Self::state); it must be of the same parameters. The parameters themselves are
    /// restored by [`Parameters::restore`](super::parameters::Parameters::restore).
    pub fn restore(&mut self, state: &Weights) -> Result<()> {
        let find = |name: String, dims: &[usize], dtype: DType| -> Result<Tensor> {
            let tensor = state
                .get(&name)
                .ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
            same_shape(&name, tensor, dims)?;
            same_dtype(&name, tensor, dtype)?;
            Ok(tensor.clone())
        };
        let steps = find(STEPS.to_owned(), &[1], DType::I64)?.to_vec1::<i64>()?[0];
        let mut found = BTreeMap::new();
        for (name, slot) in &self.slots {
            let part = |kind: &str| find(format!("{kind}{name}"), slot.var.dims(), DType::F32);
            let moments = match &slot.moments {
                Moments::Host { .. } => Moments::Host {
                    mean: part(MEAN)?.flatten_all()?.to_vec1()?,
                    square: part(SQUARE)?.flatten_all()?.to_vec1()?,
                },
                Moments::Tensors { .. } => {
                    let device = slot.var.device();
                    Moments::Tensors {
                        mean: part(MEAN)?.to_device(device)?,
                        square: part(SQUARE)?.to_device(device)?,
                        master: (slot.var.dtype() != DType::F32)
                            .then(|| Ok::<_, OptimizerError>(part(MASTER)?.to_device(device)?))
                            .transpose()?,
                    }
                }
            };
            found.insert(name.clone(), moments);
        }
        for (name, moments) in found {
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.moments = moments;
            }
        }
        self.steps = steps.max(0) as u64;
        Ok(())
    }
}

const STEPS: &str = "steps";
const MEAN: &str = "mean.";
const SQUARE: &str = "square.";
const MASTER: &str = "master.";

/// Sums the squares of each tensor; not finite where an element is not. On a device they are read back together.
fn sums_of_squares(tensors: &[&Tensor]) -> candle_core::Result<Vec<f64>> {
    if !tensors.iter().any(|tensor| is_composed(tensor)) {
        return tensors
            .iter()
            .map(|tensor| sum_of_squares(tensor))
            .collect();
    }
    let sums = tensors.iter().map(|tensor| {
        let squares = tensor.to_dtype(DType::F64)?.sqr()?;
        kernels::sums::total(&squares)
    });
    let sums = sums.collect::<candle_core::Result<Vec<_>>>()?;
    if sums.is_empty() {
        return Ok(Vec::new());
    }
    Tensor::stack(&sums, 0)?.to_vec1()
}

/// Sums squares in `f64`, in fixed chunks; not finite where an element is not.
fn sum_of_squares(tensor: &Tensor) -> candle_core::Result<f64> {
    let tensor = tensor.to_dtype(DType::F32)?.flatten_all()?;
    let sum = |values: &[f32]| -> f64 {
        let parts: Vec<f64> = threads::map(values.chunks(CHUNK), |values| {
            let mut lanes = [0f64; 8];
            let (blocks, rest) = values.as_chunks::<8>();
            for block in blocks {
                for lane in 0..8 {
                    lanes[lane] += f64::from(block[lane]) * f64::from(block[lane]);
                }
            }
            for (lane, value) in rest.iter().enumerate() {
                lanes[lane] += f64::from(*value) * f64::from(*value);
            }
            lanes.iter().sum()
        });
        parts.iter().sum()
    };
    let contiguous = tensor.contiguous()?;
    let (storage, layout) = contiguous.storage_and_layout();
    if let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(sum(&storage.as_slice::<f32>()?[start..end]));
    }
    Ok(sum(&contiguous.to_vec1::<f32>()?))
}

/// One update with its constants.
#[derive(Clone, Copy)]
struct Update {
    keep: f64,
    clip: f64,
    beta1: f64,
    beta2: f64,
    /// Learning rate over the bias correction of the mean.
    size: f64,
    /// Root of the bias correction of the mean square.
    root: f64,
    eps: f64,
}

impl Update {
    fn apply(self, var: &Var, gradient: &Tensor, moments: &mut Moments) -> candle_core::Result<()> {
        match moments {
            Moments::Host { mean, square } => {
                let operation = InPlace {
                    update: self,
                    moments: Mutex::new((mean, square)),
                };
                var.inplace_op2(&gradient.contiguous()?, &operation)
            }
            Moments::Tensors {
                mean,
                square,
                master,
            } => {
                let gradient = gradient.to_dtype(DType::F32)?.affine(self.clip, 0.0)?;
                *mean =
                    (mean.affine(self.beta1, 0.0)? + gradient.affine(1.0 - self.beta1, 0.0)?)?;
                *square = (square.affine(self.beta2, 0.0)?
                    + gradient.sqr()?.affine(1.0 - self.beta2, 0.0)?)?;
                let root = square.sqrt()?.affine(1.0 / self.root, self.eps)?;
                let change = mean.div(&root)?.affine(self.size, 0.0)?;
                let updated = |old: &Tensor| old.affine(self.keep, 0.0)? - &change;
                match master {
                    None => var.set(&updated(&var.as_detached_tensor())?),
                    Some(master) => {
                        *master = updated(master)?;
                        var.set(&master.to_dtype(var.dtype())?)
                    }
                }
            }
        }
    }
}

/// The update of one parameter as one loop over it, its gradient and its moments.
struct InPlace<'a> {
    update: Update,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (Some((start, end)), Some((gradient_start, gradient_end))) = (
            layout.contiguous_offsets(),
            gradient_layout.contiguous_offsets(),
        ) else {
            candle_core::bail!("adamw: a parameter or its gradient is not contiguous");
        };
        let CpuStorage::F32(values) = values else {
            candle_core::bail!("adamw: a parameter is not f32");
        };
        let gradient = &gradient.as_slice::<f32>()?[gradient_start..gradient_end];
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (mean, square) = &mut *moments;
        let constants = &self.update;
        let [keep, clip, beta1, beta2, size, root, eps] = [
            constants.keep,
            constants.clip,
            constants.beta1,
            constants.beta2,
            constants.size,
            constants.root,
            constants.eps,
        ]
        .map(|constant| constant as f32);
        let (beta1_rest, beta2_rest) = (
            (1.0 - constants.beta1) as f32,
            (1.0 - constants.beta2) as f32,
        );
        let parts = values[start..end]
            .chunks_mut(CHUNK)
            .zip(gradient.chunks(CHUNK));
        let moments = mean.chunks_mut(CHUNK).zip(square.chunks_mut(CHUNK));
        threads::each(
            parts.zip(moments),
            |((values, gradient), (mean, square))| {
                for (((value, gradient), mean), square) in
                    values.iter_mut().zip(gradient).zip(mean).zip(square)
                {
                    let gradient = gradient * clip;
                    *mean = *mean * beta1 + gradient * beta1_rest;
                    *square = *square * beta2 + gradient * gradient * beta2_rest;
                    *value = *value * keep - size * *mean / (square.sqrt() / root + eps);
                }
            },
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
