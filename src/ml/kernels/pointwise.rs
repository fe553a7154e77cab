//! Functions of single numbers, on tensors.
//!
//! candle calls the C library for these, whose last bits are its own. Here `f64` goes through the `libm` crate, and
//! `f32` too, rounded once (within one unit in the last place), but for [`gelu`], which is a loop of its own.

use candle_core::{CpuStorage, CustomOp1, D, Error, Layout, Result, Shape, Tensor};

use super::exponential::{exp as fast_exp, sigmoid};
use super::form::{is_composed, must_be_fused};
use super::simd::vectorised;
use super::sums::{row_sums, spread};
use super::threads;

/// Returns `e^x` of each element.
pub fn exp(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Exp)
}

/// Returns the natural logarithm of each element.
pub fn log(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Log)
}

/// Returns the hyperbolic tangent of each element.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Tanh)
}

/// Returns `x Phi(x)` of each element, with the normal distribution function (Hendrycks and Gimpel 2016).
///
/// In `f32` within 4e-7 of the largest of `|x|` and 1.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Gelu)
}

/// Returns `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2` of each element (Hendrycks and Gimpel 2016, section 2).
///
/// In `f32` within 4e-7 of the largest of `|x|` and 1.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::GeluTanh)
}

/// Returns the logarithm of the softmax of each row: (rows, n) to (rows, n).
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shape = x.shape().clone();
    let most = x.detach().max_keepdim(D::Minus1)?;
    let shifted = (x - spread(&most, shape.clone())?)?;
    let normaliser = log(&row_sums(&exp(&shifted)?)?)?.unsqueeze(1)?;
    shifted - spread(&normaliser, shape)?
}

fn apply(x: &Tensor, function: Function) -> Result<Tensor> {
    if is_composed(x) {
        return function.composed(x);
    }
    x.contiguous()?.apply_op1(function)
}

#[derive(Debug, Clone, Copy)]
enum Function {
    Exp,
    Log,
    Tanh,
    Gelu,
    GeluSlope,
    GeluTanh,
    GeluTanhSlope,
}

impl Function {
    #[expect(clippy::disallowed_methods, reason = "the composed form")]
    fn composed(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Exp => x.exp(),
            Self::Log => x.log(),
            Self::Tanh => x.tanh(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::GeluSlope | Self::GeluTanhSlope => {
                candle_core::bail!("candle has the slope of gelu in its gradient alone")
            }
        }
    }

    fn of(self, x: f64) -> f64 {
        match self {
            Self::Exp => libm::exp(x),
            Self::Log => libm::log(x),
            Self::Tanh => libm::tanh(x),
            Self::Gelu => x * normal_below(x),
            Self::GeluSlope => {
                let density = libm::exp(-0.5 * x * x) * (0.5 * std::f64::consts::FRAC_2_SQRT_PI)
                    / std::f64::consts::SQRT_2;
                normal_below(x) + x * density
            }
            Self::GeluTanh => 0.5 * x * (1.0 + libm::tanh(inner(x))),
            Self::GeluTanhSlope => {
                let tanh = libm::tanh(inner(x));
                let slope = TANH_ROOT * (1.0 + 3.0 * TANH_CUBE * x * x);
                0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope
            }
        }
    }
}

/// `sqrt(2 / pi)`.
const TANH_ROOT: f64 = 0.797_884_560_802_865_4;
const TANH_CUBE: f64 = 0.044_715;

/// What [`gelu_tanh`] takes the hyperbolic tangent of.
fn inner(x: f64) -> f64 {
    TANH_ROOT * (x + TANH_CUBE * x * x * x)
}

/// The probability that a standard normal number is below `x`.
fn normal_below(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

impl CustomOp1 for Function {
    fn name(&self) -> &'static str {
        match self {
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Tanh => "tanh",
            Self::Gelu => "gelu",
            Self::GeluSlope => "gelu slope",
            Self::GeluTanh => "gelu_tanh",
            Self::GeluTanhSlope => "gelu_tanh slope",
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        must_be_fused(self.name())?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::RequiresContiguous { op: self.name() }.bt());
        };
        let out = match storage {
            CpuStorage::F32(values) => {
                let values = &values[start..end];
                let mut out = vec![0f32; values.len()];
                let chunks = out.chunks_mut(CHUNK).zip(values.chunks(CHUNK));
                threads::each(chunks, |(out, values)| match self {
                    Self::Gelu => gelu_of(out, values),
                    Self::GeluSlope => gelu_slope_of(out, values),
                    Self::GeluTanh => gelu_tanh_of(out, values),
                    Self::GeluTanhSlope => gelu_tanh_slope_of(out, values),
                    _ => {
                        for (out, value) in out.iter_mut().zip(values) {
                            *out = self.of(f64::from(*value)) as f32;
                        }
                    }
                });
                CpuStorage::F32(out)
            }
            CpuStorage::F64(values) => {
                CpuStorage::F64(values[start..end].iter().map(|x| self.of(*x)).collect())
            }
            _ => candle_core::bail!("{}: expected f32 or f64", self.name()),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match self {
            Self::Exp => gradient.mul(result)?,
            Self::Log => gradient.div(x)?,
            Self::Tanh => gradient.mul(&result.sqr()?.affine(-1.0, 1.0)?)?,
            Self::Gelu => gradient.mul(&x.contiguous()?.apply_op1_no_bwd(&Self::GeluSlope)?)?,
            Self::GeluTanh => {
                gradient.mul(&x.contiguous()?.apply_op1_no_bwd(&Self::GeluTanhSlope)?)?
            }
            Self::GeluSlope | Self::GeluTanhSlope => {
                candle_core::bail!("the slope of gelu has no gradient")
            }
        }))
    }
}

/// Elements handled at once.
const CHUNK: usize = 1 << 12;

/// Returns the complementary error function of `z` (0 or more) with a relative error below 1e-6.
///
/// The Chebyshev fit of Press et al., Numerical Recipes in C, section 6.2 (1.2e-7 in exact arithmetic).
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be inlined into loops to be vectorised"
)]
fn erfc(z: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut sum = 0.170_872_77;
    sum = sum * t - 0.822_152_23;
    sum = sum * t + 1.488_515_9;
    sum = sum * t - 1.135_204;
    sum = sum * t + 0.278_868_07;
    sum = sum * t - 0.186_288_06;
    sum = sum * t + 0.096_784_18;
    sum = sum * t + 0.374_091_96;
    sum = sum * t + 1.000_023_7;
    sum = sum * t - 1.265_512_2;
    t * fast_exp(sum - z * z)
}

/// The probability that a standard normal number is below `x`.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be inlined into loops to be vectorised"
)]
fn normal_below_of(x: f32) -> f32 {
    let tail = 0.5 * erfc(x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    if x < 0.0 { tail } else { 1.0 - tail }
}

vectorised! {
    fn gelu_of(out: &mut [f32], values: &[f32]) {
        for (out, x) in out.iter_mut().zip(values) {
            *out = x * normal_below_of(*x);
        }
    }
}

vectorised! {
    fn gelu_slope_of(out: &mut [f32], values: &[f32]) {
        const ROOT: f32 = 0.398_942_3;
        for (out, x) in out.iter_mut().zip(values) {
            *out = normal_below_of(*x) + x * ROOT * fast_exp(-0.5 * x * x);
        }
    }
}

// With tanh(u) = 2 sigmoid(2 u) - 1 the function is x sigmoid(2 u).
vectorised! {
    fn gelu_tanh_of(out: &mut [f32], values: &[f32]) {
        for (out, x) in out.iter_mut().zip(values) {
            let u = TANH_ROOT as f32 * (x + TANH_CUBE as f32 * x * x * x);
            *out = x * sigmoid(2.0 * u);
        }
    }
}

vectorised! {
    fn gelu_tanh_slope_of(out: &mut [f32], values: &[f32]) {
        for (out, x) in out.iter_mut().zip(values) {
            let u = TANH_ROOT as f32 * (x + TANH_CUBE as f32 * x * x * x);
            let s = sigmoid(2.0 * u);
            let slope = TANH_ROOT as f32 * (1.0 + 3.0 * TANH_CUBE as f32 * x * x);
            *out = s + 2.0 * x * s * sigmoid(-2.0 * u) * slope;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::ml::kernels::form::bits_are_promised;

    #[test]
    fn functions_and_slopes_are_those_of_f64() {
        let values: Vec<f32> = (-800..800).map(|step| step as f32 * 0.01 + 0.003).collect();
        for function in [
            Function::Exp,
            Function::Log,
            Function::Tanh,
            Function::Gelu,
            Function::GeluTanh,
        ] {
            let positive = |x: &f32| !matches!(function, Function::Log) || *x > 0.0;
            let values: Vec<f32> = values.iter().copied().filter(positive).collect();
            let x = Var::from_tensor(&Tensor::new(&*values, &Device::Cpu).unwrap()).unwrap();
            let out = apply(&x, function).unwrap();
            let slopes = out.backward().unwrap().get(&x).unwrap().to_vec1().unwrap();
            let out: Vec<f32> = out.to_vec1().unwrap();
            for ((x, found), slope) in values.iter().zip(&out).zip::<Vec<f32>>(slopes) {
                let x = f64::from(*x);
                let exact = function.of(x);
                let allowed = match function {
                    Function::Gelu | Function::GeluTanh => 4e-7 * x.abs().max(1.0),
                    // candle asks the C library, in `f32`.
                    _ if !bits_are_promised() => 3e-7 * exact.abs(),
                    _ => 6e-8 * exact.abs(),
                };
                let error = (f64::from(*found) - exact).abs();
                assert!(error <= allowed, "{function:?}({x}) is off by {error:e}");
                let exact = (function.of(x + 1e-6) - function.of(x - 1e-6)) / 2e-6;
                let error = (f64::from(slope) - exact).abs() / exact.abs().max(1.0);
                assert!(
                    error < 1e-6,
                    "the slope of {function:?}({x}) is off by {error:e}"
                );
            }
        }
    }
}
