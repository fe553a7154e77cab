//! The inner loops of matrix products: tiles of the result that stay in registers.
//!
//! A tile is some *rows* of one operand times some *lanes* of the other: each step along the sum takes one
//! number of each row, spreads it over a vector, and multiplies it with the vectors of lanes. Which operand
//! gives the rows, how wide tiles are and how the sum is cut into blocks changes no bit: every element is
//! the one chain `sum = fma(row[k], lane[k], sum)`, `k` ascending from 0, `sum` at first 0.
#![expect(
    unsafe_code,
    clippy::inline_always,
    reason = "the loops run over raw pointers, with instructions that they must be inlined into a function for"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "arrays of registers are best read by their indices"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};
use std::cell::RefCell;
use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use super::packing::pack;
use super::simd::Path;
use super::vector::{Eight, Vector};

/// Vectors of an operand along the sum: number `i`, step `k` lies at `i * stride + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub(super) at: *const f32,
    pub(super) count: usize,
    pub(super) stride: usize,
    pub(super) step: usize,
}

/// The result: row `i`, lane `j` lies at `i * row + j * lane`; one of the two is 1.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) at: *mut f32,
    pub(super) row: usize,
    pub(super) lane: usize,
    pub(super) scale: f32,
    pub(super) accumulate: bool,
}

/// A product of `rows` and `lanes` over `k` steps.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) out: Out,
    pub(super) rows: Operand,
    pub(super) lanes: Operand,
    pub(super) k: usize,
    pub(super) shape: Shape,
}

// SAFETY: whoever runs parts of a product on several threads promises that the parts are disjoint.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

/// Tiles of a path.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) path: Path,
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Lanes of a vector.
    pub(super) vector: usize,
    /// Most vectors of a tile.
    pub(super) most: usize,
}

impl Shape {
    pub(super) fn of(path: Path) -> Self {
        // As many sums as hide the latency of a fused product and fit the registers.
        let (rows, vector, most) = match path {
            Path::Avx512 => (8, 16, 3),
            Path::Avx2 | Path::Scalar => (6, 8, 2),
        };
        Self {
            path,
            rows,
            vector,
            most,
        }
    }

    /// Lanes of a tile.
    pub(super) fn lanes(self) -> usize {
        self.vector * self.most
    }
}

/// Numbers of packed lanes that are used together; they should stay in the second cache.
const PACKED: usize = 100 << 10;

/// Longest part of a sum whose lanes are packed at once.
const DEPTH: usize = 640;

/// A line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// Buffers of a thread.
#[derive(Default)]
struct Buffers {
    lanes: Vec<Line>,
    rows: Vec<Line>,
    sums: Vec<Line>,
}

fn room(buffer: &mut Vec<Line>, elements: usize) -> *mut f32 {
    let lines = elements.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    buffer.as_mut_ptr().cast()
}

thread_local!(static BUFFERS: RefCell<Buffers> = RefCell::default());

impl Product {
    /// Lanes that are packed together.
    pub(super) fn block(&self) -> usize {
        let panel = self.shape.lanes();
        (PACKED / self.depth().max(1) / panel * panel).clamp(panel, 10 * panel)
    }

    /// Steps of the sum that are taken together: even parts, as each loads and stores all sums, a short one for little.
    fn depth(&self) -> usize {
        self.k.div_ceil(self.k.div_ceil(DEPTH).max(1))
    }

    /// What the product costs, in cycles as far as they can be told.
    pub(super) fn cost(&self) -> usize {
        let Shape { rows, vector, .. } = self.shape;
        let padded_lanes = self.lanes.count.next_multiple_of(vector);
        let padded_rows = self.rows.count.next_multiple_of(rows);
        let sums = padded_lanes * padded_rows * self.k / (2 * vector);
        let pack_lanes = self.lanes.count * self.k / if self.lanes.stride == 1 { 16 } else { 4 };
        let pack_rows = if self.rows.step == 1 {
            0
        } else {
            self.rows.count * self.k / 8 * self.lanes.count.div_ceil(self.block())
        };
        let size = self.rows.count * self.lanes.count;
        let write = if self.out.lane == 1 { size / 16 } else { size };
        sums + pack_lanes + pack_rows + write
    }

    /// Computes the part of the result in `rows` and `lanes`.
    ///
    /// # Safety
    ///
    /// The operands and the result must be valid for their extents, and no other thread may use that part.
    pub(super) unsafe fn run(&self, rows: Range<usize>, lanes: Range<usize>) {
        BUFFERS.with_borrow_mut(|buffers| unsafe {
            match self.shape.path {
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 => avx512(self, rows, lanes, buffers),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => avx2(self, rows, lanes, buffers),
                _ => run::<Narrow<[f32; 8]>>(self, rows, lanes, buffers),
            }
        });
    }
}

/// Tiles of one path.
trait Tiles {
    /// What operands are copied by.
    type Copied: Eight;

    /// Computes a tile of some vectors of lanes.
    ///
    /// # Safety
    ///
    /// As for [`tile`], inlined into a function that is compiled for the instructions of the path.
    unsafe fn compute(vectors: usize, tile: Tile);
}

/// Tiles of 32 registers of 16 lanes.
#[cfg(target_arch = "x86_64")]
struct Wide;

/// Tiles of 16 registers of 8 lanes.
struct Narrow<V>(PhantomData<V>);

#[cfg(target_arch = "x86_64")]
impl Tiles for Wide {
    type Copied = __m256;

    #[inline(always)]
    unsafe fn compute(vectors: usize, t: Tile) {
        unsafe {
            match vectors {
                3 => tile::<__m512, 8, 3>(t),
                2 => tile::<__m512, 8, 2>(t),
                _ => tile::<__m512, 8, 1>(t),
            }
        }
    }
}

impl<V: Eight> Tiles for Narrow<V> {
    type Copied = V;

    #[inline(always)]
    unsafe fn compute(vectors: usize, t: Tile) {
        unsafe {
            match vectors {
                2 => tile::<V, 6, 2>(t),
                _ => tile::<V, 6, 1>(t),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(
    product: &Product,
    rows: Range<usize>,
    lanes: Range<usize>,
    buffers: &mut Buffers,
) {
    unsafe { run::<Wide>(product, rows, lanes, buffers) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(product: &Product, rows: Range<usize>, lanes: Range<usize>, buffers: &mut Buffers) {
    unsafe { run::<Narrow<__m256>>(product, rows, lanes, buffers) }
}

/// Most rows of a tile.
const MOST_ROWS: usize = 8;

/// Where a tile starts and ends.
#[derive(Clone, Copy)]
struct Tile {
    /// Where the rows start.
    rows: [*const f32; MOST_ROWS],
    /// Whether the numbers of a step are neighbours, `step` behind those of the step before; the numbers of each row are
    /// neighbours otherwise, and `step` is not used.
    side_by_side: bool,
    step: usize,
    /// Packed lanes, (k, lanes).
    lanes: *const f32,
    k: usize,
    /// Sums of an earlier part.
    before: Option<*const f32>,
    /// Where the sums go, rows `after_stride` apart.
    after: *mut f32,
    after_stride: usize,
    /// What happens to them there.
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Keep,
    Scale(f32),
    Add(f32),
}

/// Steps between two looks at the counter.
const UNROLLED: usize = 4;

/// Adds the products of one step to the sums, with the numbers of each row `at` behind its start.
#[inline(always)]
unsafe fn step<V: Vector, const R: usize, const C: usize>(
    sums: &mut [[V; C]; R],
    rows: [*const f32; R],
    at: usize,
    lanes: *const f32,
) {
    unsafe {
        let mut values = [V::splat(0.0); C];
        for column in 0..C {
            values[column] = V::load(lanes.add(column * V::LANES));
        }
        for row in 0..R {
            let factor = V::splat(*rows[row].wrapping_add(at));
            for column in 0..C {
                sums[row][column] = factor.fma(values[column], sums[row][column]);
            }
        }
    }
}

/// Adds the products of `left` steps to the sums.
#[inline(always)]
unsafe fn add_products<V: Vector, const R: usize, const C: usize>(
    sums: &mut [[V; C]; R],
    mut rows: [*const f32; R],
    step_size: usize,
    mut lanes: *const f32,
    mut left: usize,
) {
    unsafe {
        while left >= UNROLLED {
            for at in 0..UNROLLED {
                // No step's lanes are read before its turn: there are hardly more registers than one step needs.
                compiler_fence(Ordering::SeqCst);
                step(sums, rows, at * step_size, lanes);
                lanes = lanes.add(C * V::LANES);
            }
            rows = rows.map(|row| row.wrapping_add(UNROLLED * step_size));
            left -= UNROLLED;
        }
        while left > 0 {
            step(sums, rows, 0, lanes);
            lanes = lanes.add(C * V::LANES);
            rows = rows.map(|row| row.wrapping_add(step_size));
            left -= 1;
        }
    }
}

/// Computes one tile.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const C: usize>(tile: Tile) {
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        if let Some(before) = tile.before {
            for row in 0..R {
                for column in 0..C {
                    sums[row][column] = V::load(before.add((row * C + column) * V::LANES));
                }
            }
        }
        if tile.side_by_side {
            let rows = std::array::from_fn(|row| tile.rows[0].wrapping_add(row));
            add_products(&mut sums, rows, tile.step, tile.lanes, tile.k);
        } else {
            let rows = std::array::from_fn(|row| tile.rows[row]);
            add_products(&mut sums, rows, 1, tile.lanes, tile.k);
        }
        for row in 0..R {
            for column in 0..C {
                let after = tile.after.add(row * tile.after_stride + column * V::LANES);
                let sum = sums[row][column];
                match tile.end {
                    End::Keep => sum,
                    End::Scale(scale) => sum.mul(V::splat(scale)),
                    End::Add(scale) => sum.mul(V::splat(scale)).add(V::load(after)),
                }
                .store(after);
            }
        }
    }
}

/// Cuts a number of vectors into panels of at most `most`.
#[inline(always)]
fn panels(mut vectors: usize, most: usize) -> impl Iterator<Item = usize> + Clone {
    std::iter::from_fn(move || {
        let take = match vectors {
            0 => return None,
            // Two and two rather than three and one: one vector has too few sums to hide a latency.
            4 if most == 3 => 2,
            _ => vectors.min(most),
        };
        vectors -= take;
        Some(take)
    })
}

/// Computes a part of a product in tiles.
#[inline(always)]
unsafe fn run<T: Tiles>(
    product: &Product,
    row_range: Range<usize>,
    lane_range: Range<usize>,
    buffers: &mut Buffers,
) {
    let Product {
        out,
        rows: rows_of,
        lanes: lanes_of,
        k,
        shape,
    } = *product;
    let Shape {
        rows: tile_rows,
        vector,
        most,
        ..
    } = shape;
    let (block, depth) = (product.block(), product.depth());
    let tile_size = tile_rows * vector * most;
    let end = if out.accumulate {
        End::Add(out.scale)
    } else {
        End::Scale(out.scale)
    };
    let mut first = lane_range.start;
    while first < lane_range.end {
        let last = (first + block).min(lane_range.end);
        let vectors = (last - first).div_ceil(vector);
        let mut start = 0;
        loop {
            let length = (k - start).min(depth);
            let packed = room(&mut buffers.lanes, vectors * vector * length);
            let widths = panels(vectors, most).map(|vectors| vectors * vector);
            unsafe {
                let from = lanes_of.at;
                let from = from.wrapping_add(first * lanes_of.stride + start * lanes_of.step);
                pack::<T::Copied>(packed, widths, from, lanes_of, (last - first, length));
            }
            let ends = start + length == k;
            let in_one = ends && start == 0;
            let kept_of_row = vectors.div_ceil(most) * tile_size + tile_size;
            let kept = if in_one {
                tile_size
            } else {
                row_range.len().div_ceil(tile_rows) * kept_of_row
            };
            let kept = room(&mut buffers.sums, kept);
            for (index, row) in row_range.clone().step_by(tile_rows).enumerate() {
                let count = tile_rows.min(row_range.end - row);
                let mut from = rows_of
                    .at
                    .wrapping_add(row * rows_of.stride + start * rows_of.step);
                let (mut stride, mut step) = (rows_of.stride, rows_of.step);
                // Rows whose steps lie apart are read where they are if they are read a few times only.
                let far = step != 1 && (stride != 1 || vectors > 2 * most);
                if count < tile_rows || far {
                    let copy = room(&mut buffers.rows, tile_rows * length);
                    let width = std::iter::once(tile_rows);
                    unsafe { pack::<T::Copied>(copy, width, from, rows_of, (count, length)) };
                    (from, stride, step) = (copy, 1, tile_rows);
                }
                assert!(stride == 1 || step == 1, "BUG: rows of a tile in pieces");
                let rows = std::array::from_fn(|row| from.wrapping_add(row * stride));
                // The compiler must not know that they lie evenly apart: it would work out each address from the one before,
                // and the sums would wait for these additions.
                let rows = if stride == 1 { rows } else { black_box(rows) };
                let (mut at, mut lane) = (packed, first);
                for (panel, vectors) in panels(vectors, most).enumerate() {
                    let width = vectors * vector;
                    let lanes = width.min(last - lane);
                    unsafe {
                        let sums = if in_one {
                            kept
                        } else {
                            kept.add(index * kept_of_row + panel * tile_size)
                        };
                        let before = (start > 0).then_some(sums.cast_const());
                        let whole = ends && out.lane == 1 && lanes == width && count == tile_rows;
                        let (after, after_stride, how) = if whole {
                            (out.at.add(row * out.row + lane), out.row, end)
                        } else {
                            (sums, width, End::Keep)
                        };
                        T::compute(
                            vectors,
                            Tile {
                                rows,
                                side_by_side: stride == 1,
                                step,
                                lanes: at,
                                k: length,
                                before,
                                after,
                                after_stride,
                                end: how,
                            },
                        );
                        if ends && !whole {
                            write(out, (row, lane), sums, width, (count, lanes));
                        }
                        at = at.add(width * length);
                    }
                    lane += width;
                }
            }
            start += length;
            if start >= k {
                break;
            }
        }
        first = last;
    }
}

/// Writes a part of a tile's sums to the result.
#[inline(always)]
unsafe fn write(
    out: Out,
    (row, lane): (usize, usize),
    sums: *const f32,
    width: usize,
    (rows, lanes): (usize, usize),
) {
    unsafe {
        let at = out.at.add(row * out.row + lane * out.lane);
        for r in 0..rows {
            for l in 0..lanes {
                let to = at.add(r * out.row + l * out.lane);
                let sum = out.scale * *sums.add(r * width + l);
                *to = if out.accumulate { *to + sum } else { sum };
            }
        }
    }
}
