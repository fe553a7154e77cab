//! Strided `f32` matrix products.

use std::ops::Range;

use candle_core::{Error, Result};

use super::one_row::RowProduct;
use super::simd::Path;
use super::threads;
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
    /// On all threads of the pool that help.
    All,
}

/// A product that is added to others: `scale * a b`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub(super) a: Matrix<'a>,
    pub(super) b: Matrix<'a>,
    pub(super) scale: f32,
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
    let term = Term { a, b, scale };
    let (rows, columns) = extents(&[term])?;
    if span(rows, columns, out_stride, 1) > out.len() {
        return Err(do_not_fit(term));
    }
    let out = Out {
        at: out.as_mut_ptr(),
        row: out_stride,
        lane: 1,
        scale,
        accumulate,
    };
    sum(out, &[term], threads);
    Ok(())
}

/// Returns the sum of products of one shape, row by row: the first, to which the others are added in order.
pub(super) fn product_sum(terms: &[Term<'_>], threads: Threads) -> Result<Vec<f32>> {
    let (rows, columns) = extents(terms)?;
    let Some(count) = rows.checked_mul(columns) else {
        candle_core::bail!("matrix product of {rows} x {columns} numbers: too many");
    };
    let mut values = Vec::with_capacity(count);
    let out = Out {
        at: values.as_mut_ptr(),
        row: columns,
        lane: 1,
        scale: 1.0,
        accumulate: false,
    };
    sum(out, terms, threads);
    #[expect(unsafe_code, reason = "large results are not written twice")]
    // SAFETY: the first product has written every element.
    unsafe {
        values.set_len(count);
    }
    Ok(values)
}

/// Returns `a b`, row by row.
pub(super) fn product_of(a: Matrix<'_>, b: Matrix<'_>, threads: Threads) -> Result<Vec<f32>> {
    product_sum(&[Term { a, b, scale: 1.0 }], threads)
}

fn do_not_fit(Term { a, b, .. }: Term<'_>) -> Error {
    Error::Msg(format!(
        "matrix product of {} x {} and {} x {}: operands do not fit",
        a.rows, a.columns, b.rows, b.columns
    ))
    .bt()
}

/// Returns the rows and columns of the terms, which must all have the same.
fn extents(terms: &[Term<'_>]) -> Result<(usize, usize)> {
    let mut extents = None;
    for term in terms {
        let Term { a, b, .. } = *term;
        let own = (a.rows, b.columns);
        if a.columns != b.rows || !a.fits() || !b.fits() || *extents.get_or_insert(own) != own {
            return Err(do_not_fit(*term));
        }
    }
    Ok(extents.unwrap_or((0, 0)))
}

/// Computes the sum of some products, whose operands and result have been checked.
fn sum(out: Out, terms: &[Term<'_>], threads: Threads) {
    let Some(Term { a, b, .. }) = terms.first() else {
        return;
    };
    let (m, n) = (a.rows, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    let mut products = Vec::with_capacity(terms.len());
    for (index, Term { a, b, scale }) in terms.iter().enumerate() {
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
            scale: *scale,
            accumulate: out.accumulate || index > 0,
            ..out
        };
        let k = a.columns;
        if let Some((product, count)) = one_row(out, rows, lanes, k) {
            // They come one after the other: such results are small.
            run_parts(&std::mem::take(&mut products), (m, n), threads);
            run_one_row(&product, count, threads);
        } else {
            products.push(Part::of(out, rows, lanes, k));
        }
    }
    run_parts(&products, (m, n), threads);
}

/// A product, and which of its operands are the result's rows.
#[derive(Clone, Copy)]
struct Part {
    product: Product,
    /// Whether the lanes of the product are rows of the result.
    is_turned: bool,
}

impl Part {
    /// Chooses what costs less.
    fn of(out: Out, rows: Operand, lanes: Operand, k: usize) -> Self {
        let straight = Product {
            out,
            rows,
            lanes,
            k,
            shape: Shape::of(Path::in_use()),
        };
        let turned = Product {
            out: Out {
                row: out.lane,
                lane: out.row,
                ..out
            },
            rows: lanes,
            lanes: rows,
            ..straight
        };
        let is_turned = turned.cost() < straight.cost();
        Self {
            product: if is_turned { turned } else { straight },
            is_turned,
        }
    }

    /// Returns the rows and lanes of rows and columns of the result, or those of rows and lanes.
    fn turned(&self, rows: Range<usize>, columns: Range<usize>) -> (Range<usize>, Range<usize>) {
        if self.is_turned {
            (columns, rows)
        } else {
            (rows, columns)
        }
    }
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
    threads::each(0..count.div_ceil(part), task);
}

/// Runs products one after the other, in parts if they are large: what one has written of a part is still in the cache
/// when the next adds to it.
fn run_parts(parts: &[Part], (m, n): (usize, usize), threads: Threads) {
    /// Rows of a part of a sum.
    const ROWS: usize = 512;
    let Some(lead) = parts.iter().max_by_key(|part| part.product.k) else {
        return;
    };
    let Product {
        rows: Operand { count: rows, .. },
        lanes: Operand { count: lanes, .. },
        k,
        shape,
        ..
    } = lead.product;
    let workers = if threads == Threads::One || m * n * k < PARALLEL_PRODUCTS {
        1
    } else {
        rayon::current_num_threads()
    };
    let (row_part, lane_part) = match (workers, parts.len()) {
        (1, 1) => (rows, lanes),
        (1, _) => {
            let part = ROWS.next_multiple_of(shape.rows);
            (part.min(rows), lead.product.block().min(lanes))
        }
        // Some more parts than threads, as a thread may be held up.
        _ => {
            let block = lanes.div_ceil(2 * workers);
            let block = block
                .next_multiple_of(shape.lanes())
                .min(lead.product.block());
            let blocks = lanes.div_ceil(block);
            let most = rows.div_ceil(4 * shape.rows);
            let parts = (4 * workers).div_ceil(blocks).clamp(1, most);
            let part = rows.div_ceil(parts).next_multiple_of(shape.rows);
            (part, block)
        }
    };
    let across = rows.div_ceil(row_part);
    let task = |index: usize| {
        let (row, lane) = (index % across * row_part, index / across * lane_part);
        let rows = row..(row + row_part).min(rows);
        let lanes = lane..(lane + lane_part).min(lanes);
        let (rows, columns) = lead.turned(rows, lanes);
        for part in parts {
            let (rows, lanes) = part.turned(rows.clone(), columns.clone());
            #[expect(unsafe_code, reason = "the loops take raw pointers")]
            // SAFETY: the strided operands and the result lie within their memory, as has been checked, the result is
            // borrowed mutably or new, so it overlaps neither operand, and each task has its own part of it.
            unsafe {
                part.product.run(rows, lanes);
            }
        }
    };
    let tasks = across * lanes.div_ceil(lane_part);
    if workers == 1 {
        (0..tasks).for_each(task);
    } else {
        threads::each(0..tasks, task);
    }
}
