//! Strided `f32` matrix products.

use candle_core::{Error, Result};

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
#[derive(Clone, Copy)]
pub(super) enum Threads {
    /// On the calling thread.
    One,
    /// On all threads of the pool. Rows and columns of the result are split, never the sum over the
    /// inner dimension, so the bits do not depend on their number.
    All,
}

/// Computes `out = scale * a b`, or `out += scale * a b` with `accumulate`.
///
/// Rows of `out` are `out_stride` elements apart.
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
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    #[expect(unsafe_code, reason = "gemm takes raw pointers")]
    // SAFETY: the three strided matrices lie within their slices, as checked above, and `out` is
    // borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// Computes `out = scale * x weight^T` (or adds it) for `x` (rows, inputs) and `weight` (outputs, inputs), such
/// that a row's bits do not depend on how many rows there are.
///
/// gemm sums in another order for one row, for results of at most 256 elements, and, with a long inner
/// dimension, for results of at most 64 x 64; rows of zeros are added to stay clear of these.
pub(super) fn multiply_rows(
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    (inputs, outputs): (usize, usize),
    scale: f32,
    accumulate: bool,
) -> Result<()> {
    if inputs == 0 || outputs == 0 {
        return Ok(());
    }
    let rows = x.len() / inputs;
    let least = if outputs <= 64 && inputs > 512 {
        65.max(256 / outputs + 1)
    } else {
        2.max(256 / outputs + 1)
    };
    let product = |out: &mut [f32], x: &[f32], rows: usize| {
        multiply(
            out,
            outputs,
            Matrix::new(x, rows, inputs, inputs),
            Matrix::new(weight, outputs, inputs, inputs).t(),
            scale,
            accumulate,
            Threads::All,
        )
    };
    if rows >= least {
        return product(out, x, rows);
    }
    let mut more_x = x.to_vec();
    more_x.resize(least * inputs, 0.0);
    let mut more_out = out.to_vec();
    more_out.resize(least * outputs, 0.0);
    product(&mut more_out, &more_x, least)?;
    out.copy_from_slice(&more_out[..rows * outputs]);
    Ok(())
}
