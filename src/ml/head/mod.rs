//! Scalar heads on hidden states: rewards, values and flows.

use candle_core::{DType, Device, Tensor, Var};

mod network;

pub use network::{NetworkDropout, ScalarNetwork};

use super::kernels::linear::linear;
use super::kernels::sums::add_bias;
use super::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

/// How a head starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeadInit {
    /// At zero: every state gets 0.
    Zero,
    /// Normal with the given standard deviation; the bias is zero.
    Normal(f64),
}

/// Whether a head's loss trains the model beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadGradient {
    /// Gradients go on into the hidden states.
    Joint,
    /// Only the head is trained.
    Detached,
}

/// A linear map from hidden states to one number each, in `f32`.
#[derive(Debug, Clone)]
pub struct ScalarHead {
    parameters: Parameters,
    weight: Tensor,
    bias: Option<Tensor>,
}

const WEIGHT: &str = "score.weight";
const BIAS: &str = "score.bias";

impl ScalarHead {
    /// Makes a trainable head.
    pub fn init(
        hidden_size: usize,
        bias: bool,
        init: HeadInit,
        stream: &Stream,
        device: &Device,
    ) -> Result<Self, ParameterError> {
        let mut draws = stream.at(0);
        let values: Vec<f32> = (0..hidden_size)
            .map(|_| match init {
                HeadInit::Zero => 0.0,
                HeadInit::Normal(std) => (std * draws.normal()) as f32,
            })
            .collect();
        let mut weights = Weights::new();
        weights.insert(
            WEIGHT.to_owned(),
            Tensor::from_vec(values, (1, hidden_size), device)?,
        );
        if bias {
            weights.insert(BIAS.to_owned(), Tensor::zeros(1, DType::F32, device)?);
        }
        Self::from_weights(hidden_size, &weights, true)
    }

    /// Takes a head out of `weights`: `score.weight` (1, hidden size) and, if there, `score.bias` (1).
    pub fn from_weights(
        hidden_size: usize,
        weights: &Weights,
        trainable: bool,
    ) -> Result<Self, ParameterError> {
        let own: Weights = [WEIGHT, BIAS]
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), weights.get(*name)?)))
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)))
            .collect::<Result<_, ParameterError>>()?;
        let parameters = Parameters::new(&own, |_| trainable)?;
        let weight = parameters.get(WEIGHT, &[1, hidden_size])?.clone();
        let bias = match parameters.get(BIAS, &[1]) {
            Ok(bias) => Some(bias.clone()),
            Err(ParameterError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            parameters,
            weight,
            bias,
        })
    }

    /// Applies the head to every hidden state: (.., hidden size) to (..), in `f32`.
    pub fn apply(&self, hidden: &Tensor, gradient: HeadGradient) -> candle_core::Result<Tensor> {
        let hidden = match gradient {
            HeadGradient::Joint => hidden.clone(),
            HeadGradient::Detached => hidden.detach(),
        };
        let scores = linear(&hidden.to_dtype(DType::F32)?, &self.weight)?;
        let scores = match &self.bias {
            Some(bias) => add_bias(&scores, bias)?,
            None => scores,
        };
        scores.squeeze(scores.rank() - 1)
    }

    /// Returns the head's weights and which are trained.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns the trainable variables in name order, their names behind `prefix`.
    pub fn trainable(&self, prefix: &str) -> Vec<(String, Var)> {
        self.parameters
            .trainable()
            .into_iter()
            .map(|(name, var)| (format!("{prefix}{name}"), var))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(init: HeadInit) -> ScalarHead {
        ScalarHead::init(3, true, init, &Stream::new(1, "head"), &Device::Cpu).unwrap()
    }

    fn hidden() -> Var {
        let states = [[[1f32, 2.0, 3.0], [-1.0, 0.5, 0.0]]];
        Var::new(&states, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_head_is_a_product_plus_its_bias_at_every_state() {
        let weights = Weights::from([
            (
                WEIGHT.to_owned(),
                Tensor::new(&[[2f32, -1.0, 0.5]], &Device::Cpu).unwrap(),
            ),
            (
                BIAS.to_owned(),
                Tensor::new(&[0.25f32], &Device::Cpu).unwrap(),
            ),
        ]);
        let head = ScalarHead::from_weights(3, &weights, false).unwrap();
        let scores = head.apply(&hidden(), HeadGradient::Joint).unwrap();
        assert_eq!(scores.to_vec2::<f32>().unwrap(), [[1.75, -2.25]]);
        assert!(head.trainable("").is_empty());
        let unbiased = weights
            .into_iter()
            .filter(|(name, _)| name == WEIGHT)
            .collect();
        let head = ScalarHead::from_weights(3, &unbiased, false).unwrap();
        let scores = head.apply(&hidden(), HeadGradient::Joint).unwrap();
        assert_eq!(scores.to_vec2::<f32>().unwrap(), [[1.5, -2.5]]);
        assert!(ScalarHead::from_weights(4, &unbiased, false).is_err());
    }

    #[test]
    fn a_zero_head_gives_zero_and_still_learns() {
        let zero = head(HeadInit::Zero);
        let scores = zero.apply(&hidden(), HeadGradient::Joint).unwrap();
        assert_eq!(scores.to_vec2::<f32>().unwrap(), [[0.0, 0.0]]);
        let store = scores.sum_all().unwrap().backward().unwrap();
        for (_, var) in zero.trainable("") {
            let gradient = store.get(&var).unwrap().abs().unwrap().sum_all().unwrap();
            assert!(gradient.to_scalar::<f32>().unwrap() > 0.0);
        }
        let normal = head(HeadInit::Normal(0.1)).apply(&hidden(), HeadGradient::Joint);
        assert_ne!(normal.unwrap().to_vec2::<f32>().unwrap(), [[0.0, 0.0]]);
    }

    #[test]
    fn only_a_joint_head_trains_the_trunk() {
        let head = head(HeadInit::Normal(1.0));
        for (gradient, reaches) in [(HeadGradient::Joint, true), (HeadGradient::Detached, false)] {
            let hidden = hidden();
            let scores = head.apply(&hidden, gradient).unwrap();
            let store = scores.sum_all().unwrap().backward().unwrap();
            assert_eq!(store.get(&hidden).is_some(), reaches);
            let names: Vec<String> = head
                .trainable("value.")
                .into_iter()
                .map(|(n, _)| n)
                .collect();
            assert_eq!(names, ["value.score.bias", "value.score.weight"]);
            assert!(
                head.trainable("")
                    .iter()
                    .all(|(_, var)| store.get(var).is_some())
            );
        }
    }
}
