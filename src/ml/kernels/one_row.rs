//! Products of one row, which generation is made of where weights are not [packed](super::packed_weight).
//!
//! Each weight is read once and meets one number, so that the memory sets the pace: neither operand is packed. Some
//! rows of the weight are turned in the registers, to lie across the lanes, and each lane adds its own chain, as
//! everywhere else.
#![expect(
    unsafe_code,
    clippy::inline_always,
    reason = "the loops run over raw pointers, with instructions that they must be inlined into a function for"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256;
use std::ops::Range;

use super::simd::Path;
use super::tiles::{Operand, Out};
use super::vector::Eight;

/// The product of a row, `k` numbers `step` apart, with vectors that lie one after the other.
#[derive(Clone, Copy)]
pub(super) struct RowProduct {
    /// The result: vector `j` at `j * lane`.
    pub(super) out: Out,
    pub(super) row: *const f32,
    pub(super) step: usize,
    /// Vectors whose steps are neighbours.
    pub(super) vectors: Operand,
    pub(super) k: usize,
}

// SAFETY: whoever runs parts of a product on several threads promises that the parts are disjoint.
unsafe impl Send for RowProduct {}
// SAFETY: as above.
unsafe impl Sync for RowProduct {}

impl RowProduct {
    /// Computes the results of `vectors`.
    ///
    /// # Safety
    ///
    /// The operands and the result must be valid for their extents, and no other thread may use that part.
    pub(super) unsafe fn run(&self, path: Path, vectors: Range<usize>) {
        unsafe {
            match path {
                // Sixteen rows cannot be turned as fast as the memory reads them.
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 | Path::Avx2 => avx2(self, vectors),
                _ => run::<[f32; 8]>(self, vectors),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(product: &RowProduct, vectors: Range<usize>) {
    unsafe { run::<__m256>(product, vectors) }
}

#[inline(always)]
unsafe fn run<V: Eight>(product: &RowProduct, vectors: Range<usize>) {
    let RowProduct {
        out,
        row,
        step,
        vectors: operand,
        k,
    } = *product;
    let stride = operand.stride;
    for first in vectors.clone().step_by(V::LANES) {
        let count = (vectors.end - first).min(V::LANES);
        let from = unsafe { operand.at.add(first * stride) };
        let mut sum = unsafe { V::splat(0.0) };
        let mut done = 0;
        if count == V::LANES {
            while done + V::LANES <= k {
                unsafe {
                    let from = from.add(done);
                    ask_ahead::<V>(from, stride);
                    let mut at = row.add(done * step);
                    for column in V::turned(from, stride) {
                        sum = column.fma(V::splat(*at), sum);
                        at = at.wrapping_add(step);
                    }
                }
                done += V::LANES;
            }
        }
        unsafe {
            for k in done..k {
                let mut column = [0f32; 8];
                for (lane, value) in column[..count].iter_mut().enumerate() {
                    *value = *from.add(lane * stride + k);
                }
                sum = V::load(column.as_ptr()).fma(V::splat(*row.add(k * step)), sum);
            }
            let mut results = [0f32; 8];
            sum.store(results.as_mut_ptr());
            for (lane, sum) in results[..count].iter().enumerate() {
                let to = out.at.add((first + lane) * out.lane);
                let sum = out.scale * sum;
                *to = if out.accumulate { *to + sum } else { sum };
            }
        }
    }
}

/// Asks for the lines that lie where the vectors after the next begin: many short streams are too many for the
/// processor to foresee.
#[inline(always)]
unsafe fn ask_ahead<V: Eight>(from: *const f32, stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let ahead = from.wrapping_add(2 * V::LANES * stride);
        for row in 0..V::LANES {
            // A prefetch reads nothing and is harmless at any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(row * stride).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, stride);
}
