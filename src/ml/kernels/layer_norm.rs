//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450).

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use super::form::wide;
use super::host::{dot, elements, fold, for_rows, fused, new_rows, slice};
use super::threads;

/// Rows whose weight gradients are summed before they are added to those of other rows.
const ROWS: usize = 64;

/// Normalises the last dimension of `x` (.., width) to mean 0 and variance 1, then applies `weight` and
/// `bias`, both (width).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[x, weight, bias]) {
        return composed_layer_norm(x, weight, bias, eps);
    }
    x.contiguous()?.apply_op3(
        &weight.contiguous()?,
        &bias.contiguous()?,
        LayerNorm { eps: eps as f32 },
    )
}

/// The composed form of [`layer_norm`].
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn composed_layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(wide(dtype))?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .to_dtype(dtype)?
        .broadcast_mul(&weight.to_dtype(dtype)?)?
        .broadcast_add(&bias.to_dtype(dtype)?)
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// Returns a row's mean and the reciprocal of its standard deviation.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let count = row.len() as f32;
        let mean = sum(row.iter().copied()) / count;
        let variance = sum(row.iter().map(|x| (x - mean) * (x - mean))) / count;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

/// Sums in 16 fixed lanes.
fn sum(values: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0f32; 16];
    for (index, value) in values.enumerate() {
        lanes[index % 16] += value;
    }
    fold(&mut lanes)
}

fn width(x: &Shape, weight: &Shape, bias: &Shape) -> Result<usize> {
    match x.dims().last() {
        Some(&width) if width > 0 && weight.dims() == [width] && bias.dims() == [width] => {
            Ok(width)
        }
        _ => bail!("layer norm: input {x:?} does not fit weight {weight:?} and bias {bias:?}"),
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        let width = width(shape, weight_layout.shape(), bias_layout.shape())?;
        let x = slice(x, x_layout)?;
        let weight = slice(weight, weight_layout)?;
        let bias = slice(bias, bias_layout)?;
        let out = new_rows(x.len(), width, |row, out| {
            let row = &x[row * width..][..width];
            let (mean, scale) = self.moments(row);
            for (column, out) in out.iter_mut().enumerate() {
                *out = (row[column] - mean) * scale * weight[column] + bias[column];
            }
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = width(x.shape(), weight.shape(), bias.shape())?;
        let gradient = gradient.contiguous()?;
        let (gradient_storage, layout) = gradient.storage_and_layout();
        let gradient = elements(&gradient_storage, layout)?;
        let (x_storage, layout) = x.storage_and_layout();
        let values = elements(&x_storage, layout)?;
        let (weight_storage, layout) = weight.storage_and_layout();
        let weights = elements(&weight_storage, layout)?;

        // With y = (x - mean) scale, dy = dout weight: dx = scale (dy - mean(dy) - y mean(dy y)).
        let mut to_x = vec![0f32; values.len()];
        if x.track_op() {
            for_rows(&mut to_x, width, |row, to_x| {
                let gradient = &gradient[row * width..][..width];
                let row = &values[row * width..][..width];
                let (mean, scale) = self.moments(row);
                let count = width as f32;
                let normalised: Vec<f32> = row.iter().map(|x| (x - mean) * scale).collect();
                for (to_x, (gradient, weight)) in to_x.iter_mut().zip(gradient.iter().zip(weights))
                {
                    *to_x = gradient * weight;
                }
                let mean_gradient = sum(to_x.iter().copied()) / count;
                let mean_product = dot(to_x, &normalised) / count;
                for (to_x, y) in to_x.iter_mut().zip(&normalised) {
                    *to_x = scale * (*to_x - mean_gradient - y * mean_product);
                }
            });
        }
        let (to_weight, to_bias) = self.parameter_gradients(values, gradient, width);
        let like = |values: Vec<f32>, tensor: &Tensor| {
            let wanted = tensor.track_op();
            let made = wanted.then(|| Tensor::from_vec(values, tensor.shape(), tensor.device()));
            made.transpose()
        };
        Ok((
            like(to_x, x)?,
            like(to_weight, weight)?,
            like(to_bias, bias)?,
        ))
    }
}

impl LayerNorm {
    /// Sums the gradients of weight and bias over rows, in fixed chunks added in order.
    fn parameter_gradients(
        &self,
        x: &[f32],
        gradient: &[f32],
        width: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let parts = x.chunks(ROWS * width).zip(gradient.chunks(ROWS * width));
        let chunks = threads::map(parts, |(x, gradient)| {
            let mut to_weight = vec![0f32; width];
            let mut to_bias = vec![0f32; width];
            for (row, gradient) in x.chunks_exact(width).zip(gradient.chunks_exact(width)) {
                let (mean, scale) = self.moments(row);
                for column in 0..width {
                    to_weight[column] += gradient[column] * (row[column] - mean) * scale;
                    to_bias[column] += gradient[column];
                }
            }
            (to_weight, to_bias)
        });
        let mut total = (vec![0f32; width], vec![0f32; width]);
        for (to_weight, to_bias) in chunks {
            for column in 0..width {
                total.0[column] += to_weight[column];
                total.1[column] += to_bias[column];
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_close, gradients, random};
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_plain_form() {
        let inputs = [random(1, &[150, 19]), random(2, &[19]), random(3, &[19])];
        let [fused, composed] = [layer_norm, composed_layer_norm]
            .map(|form| gradients(&inputs, |[x, weight, bias]| form(x, weight, bias, 1e-5)));
        for (fused, composed) in fused.iter().zip(&composed) {
            assert_close(fused, composed, 2e-5);
        }
    }

    #[test]
    fn frozen_operands_get_no_gradient() {
        let x = candle_core::Var::from_tensor(&random(1, &[3, 4])).unwrap();
        let (weight, bias) = (random(2, &[4]), random(3, &[4]));
        let out = layer_norm(&x, &weight, &bias, 1e-5).unwrap();
        let grads = out.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some());
        assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
    }
}
