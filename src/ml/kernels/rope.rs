//! Rotary position embeddings (Su et al. 2021).

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{Result, Tensor};

use serde::{Deserialize, Serialize};

/// How rotary position embeddings pair the dimensions of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum RopeLayout {
    /// Dimension `i` is rotated with `i + head_size / 2` (Hugging Face checkpoints).
    #[default]
    HalfSplit,
    /// Dimension `2i` is rotated with `2i + 1` (Meta's, llama2.c's and GGUF's order).
    Interleaved,
}

/// Positions whose angles are computed together, once one of them is needed: a model may claim to take millions.
const BLOCK: usize = 512;

/// Cosines and sines of all positions and frequencies.
#[derive(Debug)]
pub struct Rope {
    layout: RopeLayout,
    positions: usize,
    frequencies: Vec<f32>,
    factor: f32,
    blocks: Vec<OnceLock<Angles>>,
    /// What was last asked for by the composed form.
    last: Mutex<Option<Tables>>,
}

/// Cosines and sines of positions.
#[derive(Debug)]
struct Tables {
    of: Vec<u32>,
    pair: [Tensor; 2],
}

/// Of one block: (position, frequency), row-major.
#[derive(Debug, Clone)]
struct Angles {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rope {
    /// Makes the angles of `positions` positions for heads of `head_size` (even) dimensions, all of which are rotated.
    pub fn new(layout: RopeLayout, head_size: usize, positions: usize, theta: f64) -> Self {
        Self::of_frequencies(layout, frequencies(head_size, theta), 1.0, positions)
    }

    /// Makes the angles of `positions` positions from the frequencies (radians a position) of the rotated pairs. They
    /// are the first dimensions of a head; others stay as they are. Rotated numbers are multiplied by `factor`.
    pub fn of_frequencies(
        layout: RopeLayout,
        frequencies: Vec<f32>,
        factor: f32,
        positions: usize,
    ) -> Self {
        Self {
            layout,
            positions,
            frequencies,
            factor,
            blocks: vec![OnceLock::new(); positions.div_ceil(BLOCK)],
            last: Mutex::new(None),
        }
    }

    fn half(&self) -> usize {
        self.frequencies.len()
    }

    /// Returns cosines and sines of a position.
    fn angles(&self, position: usize) -> (&[f32], &[f32]) {
        let block = position / BLOCK;
        let angles = self.blocks[block].get_or_init(|| self.tabulate(block));
        let start = (position % BLOCK) * self.half();
        let row = start..start + self.half();
        (&angles.cosines[row.clone()], &angles.sines[row])
    }

    /// Angles are products in `f32`, as in the public implementations whose checkpoints are loaded.
    fn tabulate(&self, block: usize) -> Angles {
        let first = block * BLOCK;
        let positions = first..(first + BLOCK).min(self.positions);
        let mut cosines = Vec::with_capacity(positions.len() * self.half());
        let mut sines = Vec::with_capacity(positions.len() * self.half());
        for position in positions {
            for frequency in &self.frequencies {
                let angle = f64::from(position as f32 * frequency);
                cosines.push(libm::cos(angle) as f32 * self.factor);
                sines.push(libm::sin(angle) as f32 * self.factor);
            }
        }
        Angles { cosines, sines }
    }

    /// Returns how many positions there are angles for.
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
        let (cosines, sines) = self.angles(position);
        let angles = cosines.iter().zip(sines);
        let head = &mut head[..2 * self.half()];
        match self.layout {
            RopeLayout::HalfSplit => {
                let (first, second) = head.split_at_mut(self.half());
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

    /// Returns the cosines and sines of positions, where `x` lies and in its dtype: (positions, half) each.
    ///
    /// All layers of a pass ask for the same: the last answer is kept.
    fn tables(&self, x: &Tensor, positions: &[u32]) -> Result<[Tensor; 2]> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Tables { of, pair }) = &*last
            && of == positions
            && pair[0].dtype() == x.dtype()
            && pair[0].device().same_device(x.device())
        {
            return Ok(pair.clone());
        }
        let rows = || {
            let angles = positions.iter();
            angles.map(|position| self.angles(*position as usize))
        };
        let table = |picked: Vec<f32>| {
            Tensor::from_vec(picked, (positions.len(), self.half()), x.device())?
                .to_dtype(x.dtype())
        };
        let pair = [
            table(rows().flat_map(|(cosines, _)| cosines).copied().collect())?,
            table(rows().flat_map(|(_, sines)| sines).copied().collect())?,
        ];
        *last = Some(Tables {
            of: positions.to_vec(),
            pair: pair.clone(),
        });
        Ok(pair)
    }

    /// Rotates `x` (batch, heads, time, head size) with plain candle operations.
    ///
    /// `positions` holds one position for each (row, time).
    #[expect(clippy::disallowed_methods, reason = "the composed form")]
    pub(in crate::ml) fn composed(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        let (batch, heads, time, size) = x.dims4()?;
        let (whole, half) = (x, self.half());
        let x = &whole.narrow(3, 0, 2 * half)?;
        let [cosines, sines] = self.tables(x, positions)?;
        let cosines = cosines.reshape((batch, 1, time, half))?;
        let sines = sines.reshape((batch, 1, time, half))?;
        let (first, second) = match self.layout {
            RopeLayout::HalfSplit => (x.narrow(3, 0, half)?, x.narrow(3, half, half)?),
            RopeLayout::Interleaved => {
                let pairs = x.reshape((batch, heads, time, half, 2))?;
                (
                    pairs.narrow(4, 0, 1)?.squeeze(4)?,
                    pairs.narrow(4, 1, 1)?.squeeze(4)?,
                )
            }
        };
        let turned_first = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
        let turned_second = (second.broadcast_mul(&cosines)? + first.broadcast_mul(&sines)?)?;
        let turned = match self.layout {
            RopeLayout::HalfSplit => Tensor::cat(&[turned_first, turned_second], 3)?,
            RopeLayout::Interleaved => Tensor::stack(&[turned_first, turned_second], 4)?
                .reshape((batch, heads, time, 2 * half))?,
        };
        if size == 2 * half {
            return Ok(turned);
        }
        Tensor::cat(&[turned, whole.narrow(3, 2 * half, size - 2 * half)?], 3)
    }
}

/// Returns the frequencies of the rotated pairs of `dimensions` dimensions: `theta^(-2 i / dimensions)`.
pub(in crate::ml) fn frequencies(dimensions: usize, theta: f64) -> Vec<f32> {
    let half = dimensions / 2;
    (0..half)
        .map(|pair| (1.0 / libm::pow(theta, pair as f64 / half as f64)) as f32)
        .collect()
}
