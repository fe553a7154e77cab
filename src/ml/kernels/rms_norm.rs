//! Root-mean-square normalisation (Zhang and Sennrich 2019): `y = x / sqrt(mean(x^2) + eps) * w`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::form::wide;
use super::host::{dot, elements, fused, new_rows, slice};
use super::simd::vectorised;
use super::threads;

/// Rows whose contributions to the weight's gradient are summed before they are added to others.
const ROWS_PER_SUM: usize = 32;

/// Normalises the last dimension of `x` (.., width) and multiplies by `weight` (width).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[x, weight]) {
        return composed_rms_norm(x, weight, eps);
    }
    x.contiguous()?
        .apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })
}

/// The composed form of [`rms_norm`]; computes in `f32` whatever the dtype of `x`.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn composed_rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(wide(dtype))?;
    let mean = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    let normed = x.broadcast_div(&(mean + eps)?.sqrt()?)?;
    // A wider weight is rounded with the product.
    let dtype_of_product = if weight.dtype() == wide(dtype) {
        weight.dtype()
    } else {
        dtype
    };
    normed
        .to_dtype(dtype_of_product)?
        .broadcast_mul(&weight.to_dtype(dtype_of_product)?)?
        .to_dtype(dtype)
}

struct RmsNorm {
    eps: f32,
}

#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be compiled within its callers' instruction sets"
)]
fn inverse_root(row: &[f32], eps: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt()
}

vectorised! {
    fn normalise_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let factor = inverse_root(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

vectorised! {
    /// Writes the gradient of one row of `x`, of which `g` is the gradient of its normalised form.
    fn row_gradient(x: &[f32], weight: &[f32], g: &[f32], eps: f32, out: &mut [f32]) {
        let factor = inverse_root(x, eps);
        for ((out, g), weight) in out.iter_mut().zip(g).zip(weight) {
            *out = g * weight;
        }
        // The factor depends on x too: it contributes -x * factor^2 * mean(g w x).
        let common = dot(out, x) * factor * factor / x.len() as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = factor * (*out - x * common);
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let width = weight.len();
        if x_layout.dims().last() != Some(&width) {
            bail!(
                "rms_norm: input {:?} does not fit weight ({width})",
                x_layout.shape()
            );
        }
        let out = new_rows(x.len(), width, |row, out| {
            normalise_row(&x[row * width..][..width], weight, self.eps, out);
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (gradient_storage, layout) = gradient.storage_and_layout();
        let g = elements(&gradient_storage, layout)?;
        let (x_storage, layout) = x.storage_and_layout();
        let values = elements(&x_storage, layout)?;
        let (weight_storage, layout) = weight.storage_and_layout();
        let w = elements(&weight_storage, layout)?;
        let width = w.len();

        let to_x = if x.track_op() {
            let out = new_rows(values.len(), width, |row, out| {
                let (x, g) = (&values[row * width..][..width], &g[row * width..][..width]);
                row_gradient(x, w, g, self.eps, out);
            });
            Some(Tensor::from_vec(out, x.shape(), x.device())?)
        } else {
            None
        };

        let to_weight = if weight.track_op() {
            let parts = values.chunks(ROWS_PER_SUM * width);
            let partial = threads::map(parts.zip(g.chunks(ROWS_PER_SUM * width)), |(x, g)| {
                let mut sum = vec![0f32; width];
                for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
                    let factor = inverse_root(x, self.eps);
                    for ((sum, x), g) in sum.iter_mut().zip(x).zip(g) {
                        *sum += g * x * factor;
                    }
                }
                sum
            });
            let mut total = vec![0f32; width];
            for sum in &partial {
                for (total, sum) in total.iter_mut().zip(sum) {
                    *total += sum;
                }
            }
            Some(Tensor::from_vec(total, weight.shape(), weight.device())?)
        } else {
            None
        };
        Ok((to_x, to_weight))
    }
}
