//! The end of a step: AdamW at the step's learning rate, and what is told of it.

use candle_core::Var;

use super::{StepReport, TrainError};
use crate::ml::optimizer::{AdamW, AdamWConfig, Gradients, LearningRate, ParameterGroup, Step};
use crate::ml::schedule::{Decay, Schedule};

/// AdamW and its learning rate over the steps.
#[derive(Debug, Clone)]
pub struct OptimizerOptions {
    /// Peak learning rate.
    pub lr: f64,
    /// Warm-up and decay, of all learning rates alike.
    pub schedule: Schedule,
    /// Weight decay of the model's parameters.
    pub weight_decay: f64,
    /// AdamW's constants.
    pub adamw: AdamWConfig,
}

impl OptimizerOptions {
    /// AdamW's usual constants at one learning rate, without weight decay.
    pub fn constant(lr: f64) -> Self {
        Self {
            lr,
            schedule: Schedule {
                decay: Decay::Constant,
                warmup_steps: 0,
                total_steps: 1,
                floor: 0.0,
            },
            weight_decay: 0.0,
            adamw: AdamWConfig::default(),
        }
    }
}

/// Makes the updates of a training.
pub struct Updater {
    optimizer: AdamW,
    options: OptimizerOptions,
}

impl Updater {
    /// Trains `parameters`, with the options' weight decay, and `others` in groups of their own.
    pub fn new(
        parameters: Vec<(String, Var)>,
        others: Vec<ParameterGroup>,
        options: OptimizerOptions,
    ) -> Result<Self, TrainError> {
        let first = ParameterGroup {
            parameters,
            learning_rate: LearningRate::Multiple(1.0),
            weight_decay: options.weight_decay,
        };
        let groups = std::iter::once(first).chain(others).collect();
        Ok(Self {
            optimizer: AdamW::new(groups, options.adamw)?,
            options,
        })
    }

    /// Returns the optimiser, which holds every trained parameter.
    pub fn optimizer(&mut self) -> &mut AdamW {
        &mut self.optimizer
    }

    /// Lists the trained parameters.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        self.optimizer.parameters()
    }

    /// Returns the learning rate of a step.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.options.lr * self.options.schedule.factor(step)
    }

    /// Makes one update at the learning rate of `step`.
    pub fn update(&mut self, step: u64, gradients: &Gradients) -> Result<Step, TrainError> {
        let lr = self.learning_rate(step);
        Ok(self.optimizer.step(gradients, lr)?)
    }

    /// Makes the one update of a step whose report has its `loss`: adds `grad_norm` and `lr`, or says why the training
    /// has diverged. Returns the norm of the gradient, if it was finite.
    pub fn finish(
        &mut self,
        step: u64,
        gradients: &Gradients,
        report: &mut StepReport,
    ) -> Result<Option<f64>, TrainError> {
        let norm = match self.update(step, gradients)? {
            Step::Updated { grad_norm } => {
                report.metrics.insert("grad_norm", grad_norm);
                if let Some(loss) = report.metrics.get("loss").filter(|loss| !loss.is_finite()) {
                    report.diverged = Some(format!("the loss is {loss} at step {step}"));
                }
                Some(grad_norm)
            }
            Step::NonFinite { parameter } => {
                let loss = report.metrics.get("loss").copied().unwrap_or(f64::NAN);
                report.diverged = Some(not_finite(&parameter, loss));
                None
            }
        };
        report.metrics.insert("lr", self.learning_rate(step));
        Ok(norm)
    }
}

/// Says that the gradient of a parameter is not finite.
pub fn not_finite(parameter: &str, loss: f64) -> String {
    format!("the gradient of `{parameter}` is not finite (loss {loss})")
}
