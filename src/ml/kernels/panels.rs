//! Products of few rows, for generation.
//!
//! A decoding step multiplies each weight with one vector per sequence. General matrix products spend most of
//! such a step on repacking weights. Here rows are kept in panels of 16, feature by feature, so that a weight
//! element is broadcast once and meets 16 rows. A row's sum runs over its own lane in feature order: its bits
//! depend neither on the other rows nor on their number.

use rayon::prelude::*;

use super::exponential::sigmoid;
use super::simd::vectorised;

/// Rows of a panel.
pub(in crate::ml) const LANES: usize = 16;

/// Outputs computed at once: as many sums as hide the latency of a fused product.
const TILE: usize = 8;

/// Numbers in a cache line.
const LINE: usize = 16;

/// Multiplications below which a product runs on the calling thread.
const PARALLEL_PRODUCTS: usize = 1 << 19;

type Lanes = [f32; LANES];

/// Rows of numbers, in panels of 16 rows: (panel, feature, lane).
#[derive(Debug, Clone)]
pub(in crate::ml) struct Panels {
    rows: usize,
    width: usize,
    data: Vec<Lanes>,
}

impl Panels {
    /// Makes rows of zeros.
    pub(in crate::ml) fn zeros(rows: usize, width: usize) -> Self {
        Self {
            rows,
            width,
            data: vec![[0.0; LANES]; rows.div_ceil(LANES) * width],
        }
    }

    /// Packs rows of `width` elements.
    pub(in crate::ml) fn from_rows(values: &[f32], width: usize) -> Self {
        let mut panels = Self::zeros(values.len() / width, width);
        for (row, values) in values.chunks_exact(width).enumerate() {
            panels.set_row(row, values);
        }
        panels
    }

    /// Replaces a row.
    pub(in crate::ml) fn set_row(&mut self, row: usize, values: &[f32]) {
        let panel = &mut self.data[row / LANES * self.width..][..self.width];
        for (lanes, value) in panel.iter_mut().zip(values) {
            lanes[row % LANES] = *value;
        }
    }

    /// Copies a row out.
    pub(in crate::ml) fn row(&self, row: usize) -> Vec<f32> {
        let panel = &self.data[row / LANES * self.width..][..self.width];
        panel.iter().map(|lanes| lanes[row % LANES]).collect()
    }

    /// Unpacks all rows: (rows, width).
    pub(in crate::ml) fn into_rows(self) -> Vec<f32> {
        let width = self.width;
        let mut out = vec![0f32; self.rows * width];
        let panels = self.data.chunks_exact(width.max(1));
        for (out, panel) in out.chunks_mut((LANES * width).max(1)).zip(panels) {
            for (feature, lanes) in panel.iter().enumerate() {
                for (out, value) in out[feature..].iter_mut().step_by(width).zip(lanes) {
                    *out = *value;
                }
            }
        }
        out
    }

    /// Adds `other` element by element.
    pub(in crate::ml) fn add(&mut self, other: &Self) {
        for (lanes, other) in self.data.iter_mut().zip(&other.data) {
            for lane in 0..LANES {
                lanes[lane] += other[lane];
            }
        }
    }

    /// Adds `scale * other` element by element.
    pub(in crate::ml) fn add_scaled(&mut self, other: &Self, scale: f32) {
        for (lanes, other) in self.data.iter_mut().zip(&other.data) {
            for lane in 0..LANES {
                lanes[lane] += scale * other[lane];
            }
        }
    }

    /// Normalises each row by its root mean square and multiplies by `weight`.
    pub(in crate::ml) fn rms_norm(&self, weight: &[f32], eps: f32) -> Self {
        let mut out = self.clone();
        for panel in out.data.chunks_exact_mut(self.width) {
            normalise(panel, weight, eps);
        }
        out
    }

    /// Returns `silu(self) * up`.
    pub(in crate::ml) fn swiglu(mut self, up: &Self) -> Self {
        gate(&mut self.data, &up.data);
        self
    }
}

vectorised! {
    fn normalise(panel: &mut [Lanes], weight: &[f32], eps: f32) {
        let mut squares = [0f32; LANES];
        for lanes in panel.iter() {
            for lane in 0..LANES {
                squares[lane] += lanes[lane] * lanes[lane];
            }
        }
        let factors = squares.map(|sum| 1.0 / (sum / weight.len() as f32 + eps).sqrt());
        for (lanes, weight) in panel.iter_mut().zip(weight) {
            for lane in 0..LANES {
                lanes[lane] = lanes[lane] * factors[lane] * weight;
            }
        }
    }
}

vectorised! {
    fn gate(gate: &mut [Lanes], up: &[Lanes]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            for lane in 0..LANES {
                gate[lane] = gate[lane] * sigmoid(gate[lane]) * up[lane];
            }
        }
    }
}

vectorised! {
    /// Computes the outputs of consecutive rows of `weight` (outputs, inputs) for one panel.
    fn multiply_panel(out: &mut [Lanes], x: &[Lanes], weight: &[f32]) {
        let inputs = x.len();
        let (tiles, rest) = out.as_chunks_mut::<TILE>();
        let whole = tiles.len() * TILE * inputs;
        for (tile, weight) in tiles.iter_mut().zip(weight[..whole].chunks_exact(TILE * inputs)) {
            let mut rows = [&weight[..inputs]; TILE];
            for (row, values) in rows.iter_mut().zip(weight.chunks_exact(inputs)) {
                *row = values;
            }
            let mut sums = [[0f32; LANES]; TILE];
            for (block, x) in x.chunks(LINE).enumerate() {
                for row in &rows {
                    // The next tile's line of this row: eight short streams are too many for the processor to foresee.
                    prefetch(row.as_ptr().wrapping_add(TILE * inputs + block * LINE));
                }
                for (place, lanes) in x.iter().enumerate() {
                    for (sum, row) in sums.iter_mut().zip(&rows) {
                        let value = row[block * LINE + place];
                        for lane in 0..LANES {
                            sum[lane] = value.mul_add(lanes[lane], sum[lane]);
                        }
                    }
                }
            }
            *tile = sums;
        }
        for (out, row) in rest.iter_mut().zip(weight[whole..].chunks_exact(inputs)) {
            let mut sum = [0f32; LANES];
            for (value, lanes) in row.iter().zip(x) {
                for lane in 0..LANES {
                    sum[lane] = value.mul_add(lanes[lane], sum[lane]);
                }
            }
            *out = sum;
        }
    }
}

/// Asks for a cache line ahead of its use.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[expect(unsafe_code, reason = "the instruction takes a raw pointer")]
        // SAFETY: a prefetch reads nothing and is harmless at any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Some outputs of one weight: the rows of the weight and, for each panel, where their results go.
struct Task<'a> {
    weight: &'a [f32],
    out: Vec<&'a mut [Lanes]>,
}

/// Multiplies the rows of `x` by the transposes of several weights (outputs, inputs).
pub(in crate::ml) fn multiply<const N: usize>(x: &Panels, weights: [&[f32]; N]) -> [Panels; N] {
    let inputs = x.width;
    let mut results = weights.map(|weight| Panels::zeros(x.rows, weight.len() / inputs.max(1)));
    if inputs == 0 || x.rows == 0 {
        return results;
    }
    let products = x.data.len() * LANES * results.iter().map(|out| out.width).sum::<usize>();
    if products < PARALLEL_PRODUCTS {
        for (out, weight) in results.iter_mut().zip(weights) {
            let width = out.width.max(1);
            for (out, x) in out
                .data
                .chunks_exact_mut(width)
                .zip(x.data.chunks_exact(inputs))
            {
                multiply_panel(out, x, weight);
            }
        }
        return results;
    }
    // Tasks of about the same size; a few more than threads, as threads may be held up.
    let outputs: usize = results.iter().map(|out| out.width).sum();
    let chunk = outputs
        .div_ceil(rayon::current_num_threads() * 4)
        .next_multiple_of(TILE);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for (out, weight) in results.iter_mut().zip(weights) {
        if out.width == 0 {
            continue;
        }
        let first = tasks.len();
        tasks.extend(weight.chunks(chunk * inputs).map(|weight| Task {
            weight,
            out: Vec::new(),
        }));
        for panel in out.data.chunks_exact_mut(out.width) {
            for (task, out) in tasks[first..].iter_mut().zip(panel.chunks_mut(chunk)) {
                task.out.push(out);
            }
        }
    }
    tasks.par_iter_mut().for_each(|task| {
        for (out, x) in task.out.iter_mut().zip(x.data.chunks_exact(inputs)) {
            multiply_panel(out, x, task.weight);
        }
    });
    results
}
