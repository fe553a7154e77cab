//! Rotary position embeddings (Su et al. 2021).

use candle_core::{Device, Result, Tensor};

use crate::ml::config::RopeLayout;

/// Cosines and sines of all positions and frequencies.
#[derive(Debug, Clone)]
pub struct Rope {
    layout: RopeLayout,
    half: usize,
    positions: usize,
    /// (position, frequency), row-major.
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rope {
    /// Tabulates `positions` positions for heads of `head_size` (even) dimensions.
    ///
    /// Angles are products in `f32`, as in the public implementations whose checkpoints are loaded.
    pub fn new(layout: RopeLayout, head_size: usize, positions: usize, theta: f64) -> Self {
        let half = head_size / 2;
        let mut cosines = Vec::with_capacity(positions * half);
        let mut sines = Vec::with_capacity(positions * half);
        for position in 0..positions {
            for pair in 0..half {
                let frequency = (1.0 / theta.powf(pair as f64 / half as f64)) as f32;
                let angle = f64::from(position as f32 * frequency);
                cosines.push(angle.cos() as f32);
                sines.push(angle.sin() as f32);
            }
        }
        Self {
            layout,
            half,
            positions,
            cosines,
            sines,
        }
    }

    /// Returns how many positions are tabulated.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Rotates one head at `position`.
    pub(in crate::ml) fn rotate(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, 1.0);
    }

    /// Rotates one head back: the transpose of [`Rope::rotate`], which gradients go through.
    pub(super) fn rotate_back(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, -1.0);
    }

    fn turn(&self, head: &mut [f32], position: usize, sign: f32) {
        let table = position * self.half..(position + 1) * self.half;
        let angles = self.cosines[table.clone()].iter().zip(&self.sines[table]);
        match self.layout {
            RopeLayout::HalfSplit => {
                let (first, second) = head.split_at_mut(self.half);
                for ((a, b), (cosine, sine)) in first.iter_mut().zip(second).zip(angles) {
                    let sine = sign * sine;
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
            RopeLayout::Interleaved => {
                for (pair, (cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let sine = sign * sine;
                    let [a, b] = *pair;
                    *pair = [a * cosine - b * sine, b * cosine + a * sine];
                }
            }
        }
    }

    /// Rotates `x` (batch, heads, time, head size) with plain candle operations.
    ///
    /// `positions` holds one position for each (row, time).
    pub(super) fn naive(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        let (batch, heads, time, size) = x.dims4()?;
        let table = |values: &[f32], device: &Device| {
            let picked: Vec<f32> = positions
                .iter()
                .flat_map(|position| &values[*position as usize * self.half..][..self.half])
                .copied()
                .collect();
            Tensor::from_vec(picked, (batch, 1, time, self.half), device)?.to_dtype(x.dtype())
        };
        let cosines = table(&self.cosines, x.device())?;
        let sines = table(&self.sines, x.device())?;
        let (first, second) = match self.layout {
            RopeLayout::HalfSplit => (
                x.narrow(3, 0, self.half)?,
                x.narrow(3, self.half, self.half)?,
            ),
            RopeLayout::Interleaved => {
                let pairs = x.reshape((batch, heads, time, self.half, 2))?;
                (
                    pairs.narrow(4, 0, 1)?.squeeze(4)?,
                    pairs.narrow(4, 1, 1)?.squeeze(4)?,
                )
            }
        };
        let turned_first = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
        let turned_second = (second.broadcast_mul(&cosines)? + first.broadcast_mul(&sines)?)?;
        match self.layout {
            RopeLayout::HalfSplit => Tensor::cat(&[turned_first, turned_second], 3),
            RopeLayout::Interleaved => Tensor::stack(&[turned_first, turned_second], 4)?
                .reshape((batch, heads, time, size)),
        }
    }
}
