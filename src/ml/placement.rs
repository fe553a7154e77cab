//! Where a model's tensors lie, how precise the frozen ones are, and which are kept for a gradient.

use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernels::form::Form;

/// The precision of weights that are not trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponent of 32 (bfloat16). On a GPU, products are of such numbers too, summed in 32 bits; the
    /// processor computes with the rounded weights in 32 bits.
    Bf16,
}

/// Where tensors lie, what those that are not trained are made of, and which are kept.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Where all tensors lie.
    pub device: Device,
    /// The precision of weights that are not trained.
    pub precision: Precision,
    /// Whether a training keeps no more than the input of each block for the gradient.
    pub gradient_checkpointing: bool,
}

impl Placement {
    /// All on the processor, in 32 bits.
    pub const HOST: Self = Self {
        device: Device::Cpu,
        precision: Precision::F32,
        gradient_checkpointing: false,
    };

    /// The same, with gradient checkpointing or without.
    #[must_use]
    pub fn with_gradient_checkpointing(self, gradient_checkpointing: bool) -> Self {
        Self {
            gradient_checkpointing,
            ..self
        }
    }

    /// Makes a tensor of a frozen weight's values, on the processor still.
    pub fn weight(&self, values: Vec<f32>, shape: &[usize]) -> candle_core::Result<Tensor> {
        self.frozen(&Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// Brings a frozen weight to its precision.
    pub fn frozen(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        Ok(match self.precision {
            Precision::F32 => tensor.clone(),
            Precision::Bf16 => {
                let rounded = tensor.to_dtype(DType::BF16)?;
                // Our own loops, whose bits are promised, take 32.
                if self.device.is_cpu() && Form::in_use() == Form::Fused {
                    rounded.to_dtype(DType::F32)?
                } else {
                    rounded
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::form::bits_are_promised;
    use super::*;

    #[test]
    fn weights_are_rounded_to_their_precision() {
        let values = vec![1.0f32, 1.003_906_3, -3.140_1, 1e-30];
        let held = |precision| {
            let placement = Placement {
                precision,
                ..Placement::HOST
            };
            placement.weight(values.clone(), &[2, 2]).unwrap()
        };
        assert_eq!(
            held(Precision::F32)
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap(),
            values
        );
        let rounded = held(Precision::Bf16);
        let expected = if bits_are_promised() {
            DType::F32
        } else {
            DType::BF16
        };
        assert_eq!((rounded.dtype(), rounded.dims()), (expected, &[2, 2][..]));
        let rounded = rounded.to_dtype(DType::F32).unwrap();
        // 1 + 2^-8 lies in the middle and goes to the even one.
        let expected = [
            1.0f32,
            1.0,
            -3.140_625,
            half::bf16::from_f32(1e-30).to_f32(),
        ];
        assert_eq!(
            rounded.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            expected
        );
    }
}
