//! Strided `f32` matrix products.

use candle_core::{Error, Result};
use rayon::prelude::*;

use super::one_row::RowProduct;
use super::simd::Path;
use super::tiles::{Operand, Out, Product, Shape};

/// Multiplications below which a product runs on the calling thread.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// Weights below which a product with one row runs on the calling thread.
const PARALLEL_WEIGHTS: usize = 1 << 16;

/// A borrowed matrix with strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Views `data` as `rows` x `columns`, rows `row_stride` elements apart.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// Transposes the view.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        span(self.rows, self.columns, self.row_stride, self.column_stride) <= self.data.len()
    }
}

/// Returns how many elements a strided matrix reaches over.
fn span(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    (rows - 1) * row_stride + (columns - 1) * column_stride + 1
}

/// Where a product is computed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Threads {
    /// On the calling thread.
    One,
    /// On all threads of the pool.
    All,
}

/// Computes `out = scale * a b`, or `out += scale * a b` with `accumulate`.
///
/// Rows of `out` are `out_stride` elements apart. An element's bits depend on its row of `a` and column of `b` alone:
/// they are multiplied in one chain of fused products, in order, on any number of threads and on any processor.
pub(super) fn multiply(
    out: &mut [f32],
    out_stride: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
    threads: Threads,
) -> Result<()> {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if k != b.rows || !a.fits() || !b.fits() || span(m, n, out_stride, 1) > out.len() {
        return Err(Error::Msg(format!(
            "matrix product of {m} x {k} and {} x {n}: operands do not fit",
            b.rows
        ))
        .bt());
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    let rows = Operand {
        at: a.data.as_ptr(),
        count: m,
        stride: a.row_stride,
        step: a.column_stride,
    };
    let lanes = Operand {
        at: b.data.as_ptr(),
        count: n,
        stride: b.column_stride,
        step: b.row_stride,
    };
    let out = Out {
        at: out.as_mut_ptr(),
        row: out_stride,
        lane: 1,
        scale,
        accumulate,
    };
    if let Some((product, count)) = one_row(out, rows, lanes, k) {
        run_one_row(&product, count, threads);
        return Ok(());
    }
    let shape = Shape::of(Path::in_use());
    let straight = Product {
        out,
        rows,
        lanes,
        k,
        shape,
    };
    let turned = Product {
        out: Out {
            row: 1,
            lane: out_stride,
            ..out
        },
        rows: lanes,
        lanes: rows,
        ..straight
    };
    let product = if turned.cost() < straight.cost() {
        turned
    } else {
        straight
    };
    run(&product, threads);
    Ok(())
}

/// Returns the product with one row (or column), if it is one whose vectors need not be gathered, and how many
/// vectors there are.
fn one_row(out: Out, rows: Operand, lanes: Operand, k: usize) -> Option<(RowProduct, usize)> {
    let (row, vectors, lane) = match (rows.count, lanes.count) {
        (1, _) if lanes.step == 1 => (rows, lanes, out.lane),
        (_, 1) if rows.step == 1 => (lanes, rows, out.row),
        _ => return None,
    };
    let product = RowProduct {
        out: Out { lane, ..out },
        row: row.at,
        step: row.step,
        vectors,
        k,
    };
    Some((product, vectors.count))
}

/// Runs a product of one row, in parts if it is large.
fn run_one_row(product: &RowProduct, count: usize, threads: Threads) {
    /// Vectors of a part are a multiple of this.
    const TILE: usize = 32;
    let workers = rayon::current_num_threads();
    let path = Path::in_use();
    let part = if threads == Threads::One || workers == 1 || count * product.k < PARALLEL_WEIGHTS {
        count
    } else {
        count.div_ceil(4 * workers).next_multiple_of(TILE)
    };
    let task = |part_index: usize| {
        let first = part_index * part;
        #[expect(unsafe_code, reason = "the loops take raw pointers")]
        // SAFETY: as for other products; each task has its own part of the result.
        unsafe {
            product.run(path, first..(first + part).min(count));
        }
    };
    match count.div_ceil(part) {
        1 => task(0),
        parts => (0..parts).into_par_iter().for_each(task),
    }
}

/// Runs a product, in parts if it is large.
fn run(product: &Product, threads: Threads) {
    let (rows, lanes) = (product.rows.count, product.lanes.count);
    let workers = rayon::current_num_threads();
    if threads == Threads::One || workers == 1 || rows * lanes * product.k < PARALLEL_PRODUCTS {
        #[expect(unsafe_code, reason = "the loops take raw pointers")]
        // SAFETY: the strided operands and the result lie within their slices, as `multiply` has checked, and the
        // result is borrowed mutably, so it overlaps neither operand.
        unsafe {
            product.run(0..rows, 0..lanes);
        }
        return;
    }
    // Some more parts than threads, as a thread may be held up.
    let block = lanes.div_ceil(2 * workers);
    let block = block
        .next_multiple_of(product.shape.lanes())
        .min(product.block());
    let blocks = lanes.div_ceil(block);
    let most = rows.div_ceil(4 * product.shape.rows);
    let parts = (4 * workers).div_ceil(blocks).clamp(1, most);
    let part = rows.div_ceil(parts).next_multiple_of(product.shape.rows);
    let parts = rows.div_ceil(part);
    (0..blocks * parts).into_par_iter().for_each(|task| {
        let (row, lane) = (task % parts * part, task / parts * block);
        #[expect(unsafe_code, reason = "the loops take raw pointers")]
        // SAFETY: as above, and each task has its own part of the result.
        unsafe {
            product.run(row..(row + part).min(rows), lane..(lane + block).min(lanes));
        }
    });
}

/// Computes `out = scale * x weight^T` (or adds it) for `x` (rows, inputs) and `weight` (outputs, inputs).
pub(super) fn multiply_rows(
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    (inputs, outputs): (usize, usize),
    scale: f32,
    accumulate: bool,
) -> Result<()> {
    multiply(
        out,
        outputs,
        Matrix::new(x, x.len() / inputs.max(1), inputs, inputs),
        Matrix::new(weight, outputs, inputs, inputs).t(),
        scale,
        accumulate,
        Threads::All,
    )
}
