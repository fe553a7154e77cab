//! An exponential that vectorises: libm's is called once an element.

use super::host::fold;
use super::simd::vectorised;

/// Returns `e^x` with a relative error below 2e-7; 0 below -87.3, and the value at 88 above it.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let exponent = shifted - ROUND;
    let rest = clamped - exponent * LN_2_HIGH - exponent * LN_2_LOW;
    // Taylor series up to the seventh power on |rest| <= ln(2) / 2.
    let mut sum = 1.0 / 5040.0;
    sum = sum * rest + 1.0 / 720.0;
    sum = sum * rest + 1.0 / 120.0;
    sum = sum * rest + 1.0 / 24.0;
    sum = sum * rest + 1.0 / 6.0;
    sum = sum * rest + 0.5;
    sum = sum * rest + 1.0;
    sum = sum * rest + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { sum * power }
}

/// Returns `1 / (1 + e^-x)`.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be inlined into loops to be vectorised"
)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

vectorised! {
/// Replaces each value by `e^(value - shift)` and returns their sum (in 16 fixed lanes).
pub(in crate::ml) fn exp_shifted(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (blocks, rest) = values.as_chunks_mut::<16>();
    for block in blocks {
        for lane in 0..16 {
            block[lane] = exp(block[lane] - shift);
            lanes[lane] += block[lane];
        }
    }
    for (lane, value) in rest.iter_mut().enumerate() {
        *value = exp(*value - shift);
        lanes[lane] += *value;
    }
    fold(&mut lanes)
}
}

vectorised! {
/// Returns the sum of `e^(value - shift)`, in the order of [`exp_shifted`].
pub(in crate::ml) fn sum_exp(values: &[f32], shift: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for lane in 0..16 {
            lanes[lane] += exp(block[lane] - shift);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] += exp(*value - shift);
    }
    fold(&mut lanes)
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_of_the_exact_value() {
        for step in -87_000..88_000 {
            let x = step as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e30).is_finite());
    }
}
