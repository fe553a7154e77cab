//! Slices of contiguous CPU tensors, and loops over their rows.

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};

use super::form::{is_composed, must_be_fused};
use super::simd::vectorised;
use super::threads;

/// Below this many elements a loop runs on the calling thread.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// Tells whether the fused form applies: all tensors are `f32` on the CPU, and nothing else was asked for.
pub(super) fn fused(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|tensor| !is_composed(tensor) && tensor.dtype() == DType::F32)
}

/// Returns the elements of an operand; it must be contiguous.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    must_be_fused("an operation")?;
    let elements: &[f32] = storage.as_slice()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&elements[start..end]),
        None => Err(Error::RequiresContiguous {
            op: "a fused operation",
        }
        .bt()),
    }
}

/// Returns the elements of a tensor from its storage guard.
pub(in crate::ml) fn elements<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => slice(storage, layout),
        _ => Err(Error::Msg("a fused operation got a tensor of another device".into()).bt()),
    }
}

/// Runs `body(row, out_row)` for every row of `width` elements.
pub(super) fn for_rows(out: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    if out.len() < PARALLEL_ELEMENTS {
        for (row, values) in out.chunks_exact_mut(width).enumerate() {
            body(row, values);
        }
        return;
    }
    let rows = (PARALLEL_ELEMENTS / 4).div_ceil(width);
    threads::each(
        out.chunks_mut(rows * width).enumerate(),
        |(chunk, values)| {
            for (row, values) in values.chunks_exact_mut(width).enumerate() {
                body(chunk * rows + row, values);
            }
        },
    );
}

/// Returns `len` numbers: zeros in rows of `width`, the last perhaps shorter, that `body(row, out_row)` has changed.
pub(super) fn new_rows(
    len: usize,
    width: usize,
    body: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    if len < PARALLEL_ELEMENTS {
        let mut out = vec![0f32; len];
        for (row, values) in out.chunks_mut(width.max(1)).enumerate() {
            body(row, values);
        }
        return out;
    }
    let mut out = Vec::with_capacity(len);
    let rows = (PARALLEL_ELEMENTS / 4).div_ceil(width.max(1));
    let chunks = out.spare_capacity_mut()[..len].chunks_mut(rows * width.max(1));
    // Each thread clears what it writes next: all at once would go through the memory once more.
    threads::each(chunks.enumerate(), |(chunk, values)| {
        for value in values.iter_mut() {
            value.write(0.0);
        }
        #[expect(unsafe_code, reason = "each thread clears its part")]
        // SAFETY: all of them have just been written.
        let values = unsafe { values.assume_init_mut() };
        for (row, values) in values.chunks_mut(width.max(1)).enumerate() {
            body(chunk * rows + row, values);
        }
    });
    #[expect(unsafe_code, reason = "each thread clears its part")]
    // SAFETY: the chunks were all of them, and each has been written.
    unsafe {
        out.set_len(len);
    }
    out
}

/// Sums products in 16 fixed lanes, so that the order is the same however the loop is vectorised.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be compiled within its callers' instruction sets"
)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_blocks, a_rest) = a.as_chunks::<16>();
    let (b_blocks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] += a * b;
    }
    fold(&mut lanes)
}

/// Adds 16 lanes as a binary tree.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be compiled within its callers' instruction sets"
)]
pub(super) fn fold(lanes: &mut [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

vectorised! {
    /// Returns the largest element, or negative infinity of nothing; NaN elements are skipped.
    pub(in crate::ml) fn maximum(values: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (blocks, rest) = values.as_chunks::<16>();
        for block in blocks {
            for lane in 0..16 {
                lanes[lane] = if block[lane] > lanes[lane] {
                    block[lane]
                } else {
                    lanes[lane]
                };
            }
        }
        let most = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        rest.iter().copied().fold(most, f32::max)
    }
}
