//! Weights that are 16-bit numbers, packed for products with few rows, which generation is made of.
//!
//! There the memory sets the pace: every weight is read for every token. Most checkpoints are stored in bfloat16, whose
//! numbers have sixteen zero bits at their end when they are `f32`. Without these a weight is as exact in half the bytes.
#![expect(
    unsafe_code,
    clippy::inline_always,
    reason = "the loops run over raw pointers, with instructions that they must be inlined into a function for"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};
use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::host::{elements, fused};
use super::matmul::{Matrix, Threads, multiply, product_of};
use super::simd::Path;
use super::threads;
use super::vector::Vector;

/// Outputs of a panel.
const PANEL: usize = 32;

/// Words of a step of a panel.
const WORDS: usize = PANEL / 2;

/// Most lanes of a vector.
const MOST: usize = 16;

/// Words, each time that a row meets them, below which a product runs on the calling thread.
const PARALLEL_WORDS: usize = 1 << 15;

/// The weight (outputs, inputs) of a linear layer, of 16-bit numbers.
///
/// Panels of 32 outputs lie one after the other, and in each its inputs; a step has 16 words, of which word `i` holds
/// output `i` in its lower and output `i + 16` in its upper half.
pub(in crate::ml) struct PackedWeight {
    words: Vec<u32>,
    outputs: usize,
    inputs: usize,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PackedWeight({}, {})", self.outputs, self.inputs)
    }
}

impl PackedWeight {
    /// Most rows of an input that a product with it is faster for.
    pub(in crate::ml) const MOST_ROWS: usize = 64;

    /// Packs a weight, if the fused operations take it and 16 bits hold its numbers.
    pub(in crate::ml) fn of(weight: &Tensor) -> Result<Option<Self>> {
        let (outputs, inputs) = weight.dims2()?;
        if !fused(&[weight]) || outputs * inputs == 0 {
            return Ok(None);
        }
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let weight = elements(&storage, layout)?;
        let is_long = |value: &f32| value.to_bits() << 16 != 0;
        if weight.iter().take(1 << 12).any(is_long) {
            return Ok(None);
        }
        let mut words = vec![0; outputs.div_ceil(PANEL) * inputs * WORDS];
        let panels = words.chunks_exact_mut(inputs * WORDS);
        let is_lossless = threads::map(
            panels.zip(weight.chunks(PANEL * inputs)),
            |(panel, rows)| {
                let mut lost = 0;
                for (output, row) in rows.chunks_exact(inputs).enumerate() {
                    let column = panel[output % WORDS..].iter_mut().step_by(WORDS);
                    for (word, value) in column.zip(row) {
                        let bits = value.to_bits();
                        lost |= bits << 16;
                        *word |= if output < WORDS {
                            bits >> 16
                        } else {
                            bits & 0xffff_0000
                        };
                    }
                }
                lost == 0
            },
        );
        if is_lossless.contains(&false) {
            return Ok(None);
        }
        Ok(Some(Self {
            words,
            outputs,
            inputs,
        }))
    }

    /// Multiplies `x` (.., inputs) by the transpose of the weight, with the bits of [`linear`](super::linear::linear), or
    /// of [`lora_linear`](super::linear::lora_linear) with an update of `a` (rank, inputs), `b` (outputs, rank) and a
    /// scale. There is no gradient.
    pub(in crate::ml) fn multiply(
        &self,
        x: &Tensor,
        update: Option<(&Tensor, &Tensor, f64)>,
    ) -> Result<Tensor> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == inputs && fused(&[x]) => *last = outputs,
            _ => bail!(
                "a packed weight ({outputs}, {inputs}) does not take {:?} of {:?} on {:?}",
                x.shape(),
                x.dtype(),
                x.device()
            ),
        }
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let values = elements(&storage, layout)?;
        let rows = values.len() / inputs;
        let mut out = vec![0f32; rows * outputs];
        self.run(&mut out, values, rows);
        if let Some((a, b, scale)) = update {
            let (a, b) = (a.contiguous()?, b.contiguous()?);
            let rank = a.dims2()?.0;
            let (a_storage, layout) = a.storage_and_layout();
            let a = Matrix::new(elements(&a_storage, layout)?, rank, inputs, inputs);
            let (b_storage, layout) = b.storage_and_layout();
            let b = Matrix::new(elements(&b_storage, layout)?, outputs, rank, rank);
            let inner = product_of(
                Matrix::new(values, rows, inputs, inputs),
                a.t(),
                Threads::All,
            )?;
            let inner = Matrix::new(&inner, rows, rank, rank);
            let scale = scale as f32;
            multiply(&mut out, outputs, inner, b.t(), scale, true, Threads::All)?;
        }
        Tensor::from_vec(out, shape, x.device())
    }

    /// Computes all outputs of `rows` rows.
    fn run(&self, out: &mut [f32], x: &[f32], rows: usize) {
        assert!(
            x.len() == rows * self.inputs && out.len() == rows * self.outputs,
            "BUG: a packed product whose operands do not fit"
        );
        let product = Product {
            words: self.words.as_ptr(),
            x: x.as_ptr(),
            out: out.as_mut_ptr(),
            rows,
            inputs: self.inputs,
            outputs: self.outputs,
            path: Path::in_use(),
        };
        let panels = self.outputs.div_ceil(PANEL);
        let workers = rayon::current_num_threads();
        let part = if workers == 1 || self.words.len() * rows < PARALLEL_WORDS {
            panels
        } else {
            // Some more parts than threads, as a thread may be held up.
            panels.div_ceil(4 * workers)
        };
        let task = |index: usize| {
            let first = index * part;
            // SAFETY: the operands have the lengths that were checked, and each task has its own panels.
            unsafe { product.run(first..(first + part).min(panels)) }
        };
        threads::each(0..panels.div_ceil(part), task);
    }
}

/// A product with all of its extents.
#[derive(Clone, Copy)]
struct Product {
    words: *const u32,
    /// (rows, inputs)
    x: *const f32,
    /// (rows, outputs)
    out: *mut f32,
    rows: usize,
    inputs: usize,
    outputs: usize,
    path: Path,
}

// SAFETY: whoever runs parts of a product on several threads promises that the parts are disjoint.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Product {
    /// Computes the outputs of some panels.
    ///
    /// # Safety
    ///
    /// The operands must be valid for their extents, and no other thread may use these outputs.
    unsafe fn run(&self, panels: Range<usize>) {
        unsafe {
            match self.path {
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 => avx512(self, panels),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => avx2(self, panels),
                _ => run::<[f32; 8], 2>(self, panels, 4),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(product: &Product, panels: Range<usize>) {
    unsafe { run::<__m512, 1>(product, panels, 8) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(product: &Product, panels: Range<usize>) {
    unsafe { run::<__m256, 2>(product, panels, 6) }
}

/// Computes some panels, of which a step has `S` vectors of words, for at most `most` rows at a time.
#[inline(always)]
unsafe fn run<V: Vector, const S: usize>(product: &Product, panels: Range<usize>, most: usize) {
    let groups = product.rows.div_ceil(most);
    for panel in panels {
        for group in 0..groups {
            // Even groups: a single row left over would cost as much as several.
            let first = product.rows * group / groups;
            let count = product.rows * (group + 1) / groups - first;
            unsafe {
                match count {
                    1 => pass::<V, 1, S>(product, panel, first, 0),
                    2 => pass::<V, 2, S>(product, panel, first, 0),
                    3 => many::<V, 3, S>(product, panel, first),
                    4 => many::<V, 4, S>(product, panel, first),
                    5 => many::<V, 5, S>(product, panel, first),
                    6 => many::<V, 6, S>(product, panel, first),
                    7 => many::<V, 7, S>(product, panel, first),
                    8 => many::<V, 8, S>(product, panel, first),
                    _ => unreachable!("BUG: {count} rows at a time"),
                }
            }
        }
    }
}

/// Computes a panel for several rows, whose sums leave registers for one vector of words at a time.
#[inline(always)]
unsafe fn many<V: Vector, const R: usize, const S: usize>(
    product: &Product,
    panel: usize,
    first: usize,
) {
    for vector in 0..S {
        unsafe { pass::<V, R, 1>(product, panel, first, vector * V::LANES) }
    }
}

/// Multiplies `R` rows with `S` vectors of words of a panel.
#[inline(always)]
unsafe fn pass<V: Vector, const R: usize, const S: usize>(
    product: &Product,
    panel: usize,
    first: usize,
    word: usize,
) {
    let Product {
        inputs, outputs, ..
    } = *product;
    unsafe {
        let mut sums = [[[V::splat(0.0); 2]; S]; R];
        let mut words = product.words.add(panel * inputs * WORDS + word);
        let mut x = product.x.add(first * inputs);
        for _ in 0..inputs {
            let mut weights = [[V::splat(0.0); 2]; S];
            for (vector, weights) in weights.iter_mut().enumerate() {
                *weights = V::widened(words.add(vector * V::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*x.add(row * inputs));
                for (sums, weights) in sums.iter_mut().zip(&weights) {
                    sums[0] = factor.fma(weights[0], sums[0]);
                    sums[1] = factor.fma(weights[1], sums[1]);
                }
            }
            words = words.wrapping_add(WORDS);
            x = x.add(1);
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = product.out.add((first + row) * outputs);
            for (vector, halves) in sums.iter().enumerate() {
                for (half, sum) in halves.iter().enumerate() {
                    let output = panel * PANEL + half * WORDS + word + vector * V::LANES;
                    if output + V::LANES <= outputs {
                        sum.store(out.add(output));
                    } else {
                        let mut lanes = [0f32; MOST];
                        sum.store(lanes.as_mut_ptr());
                        let left = outputs.saturating_sub(output);
                        out.wrapping_add(output)
                            .copy_from_nonoverlapping(lanes.as_ptr(), left);
                    }
                }
            }
        }
    }
}
