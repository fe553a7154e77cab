//! Copies operands of matrix products into panels, in the order in which tiles read them.
#![expect(
    unsafe_code,
    clippy::inline_always,
    reason = "the loops run over raw pointers, with instructions that they must be inlined into a function for"
)]

use super::tiles::Operand;
use super::vector::{Eight, Vector};

/// Copies `count` vectors of an operand into panels of some widths, (length, width) each; what is left of the last one is
/// zeros.
///
/// # Safety
///
/// The vectors must be valid for reads, the panels for writes, and the processor must have the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn pack<V: Eight>(
    mut to: *mut f32,
    widths: impl Iterator<Item = usize> + Clone,
    mut from: *const f32,
    operand: Operand,
    (mut count, length): (usize, usize),
) {
    unsafe {
        if operand.stride == 1 {
            copy::<V>(to, widths, from, operand.step, (count, length));
            return;
        }
        for width in widths {
            gather::<V>(to, width, from, operand, (count.min(width), length));
            to = to.add(width * length);
            from = from.wrapping_add(width * operand.stride);
            count = count.saturating_sub(width);
        }
    }
}

/// Copies `count` vectors of an operand side by side: (length, width), the rest zeros.
#[inline(always)]
unsafe fn gather<V: Eight>(
    to: *mut f32,
    width: usize,
    from: *const f32,
    operand: Operand,
    (count, length): (usize, usize),
) {
    unsafe {
        let mut done = 0;
        if operand.step == 1 {
            while done + V::LANES <= count {
                turn::<V>(
                    to.add(done),
                    width,
                    from.wrapping_add(done * operand.stride),
                    operand.stride,
                    length,
                );
                done += V::LANES;
            }
        }
        for vector in done..width {
            for k in 0..length {
                *to.add(k * width + vector) = if vector < count {
                    *from.add(vector * operand.stride + k * operand.step)
                } else {
                    0.0
                };
            }
        }
    }
}

/// Steps between what is copied and what is asked for.
const AHEAD: usize = 4;

/// Asks for the lines of some numbers.
#[inline(always)]
fn ask_for(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..count).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // A prefetch reads nothing and is harmless at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}

/// Copies `count` neighbours of each step into panels of some widths; what is left of the last one is zeros.
#[inline(always)]
unsafe fn copy<V: Vector>(
    to: *mut f32,
    widths: impl Iterator<Item = usize> + Clone,
    from: *const f32,
    step: usize,
    (count, length): (usize, usize),
) {
    unsafe {
        for k in 0..length {
            let from = from.add(k * step);
            // The steps lie too far apart for the processor to foresee.
            ask_for(from.wrapping_add(AHEAD * step), count);
            let (mut panel, mut done) = (to, 0);
            for width in widths.clone() {
                let (to, from) = (panel.add(k * width), from.wrapping_add(done));
                let here = width.min(count - done);
                let whole = here / V::LANES * V::LANES;
                for at in (0..whole).step_by(V::LANES) {
                    V::load(from.add(at)).store(to.add(at));
                }
                for at in whole..width {
                    *to.add(at) = if at < here { *from.add(at) } else { 0.0 };
                }
                panel = panel.add(width * length);
                done += here;
            }
        }
    }
}

/// Copies as many rows as a vector has lanes, `length` numbers each, as columns.
#[inline(always)]
unsafe fn turn<V: Eight>(
    to: *mut f32,
    width: usize,
    from: *const f32,
    stride: usize,
    length: usize,
) {
    unsafe {
        let mut k = 0;
        while k + V::LANES <= length {
            for (column, values) in V::turned(from.add(k), stride).into_iter().enumerate() {
                values.store(to.add((k + column) * width));
            }
            k += V::LANES;
        }
        for k in k..length {
            for row in 0..V::LANES {
                *to.add(k * width + row) = *from.add(row * stride + k);
            }
        }
    }
}
