//! Products of matrices by candle, for the composed form.

use candle_core::{Layout, Result, Tensor, bail};

/// Multiplies matrices (.., m, k) and (.., k, n).
///
/// candle's product takes fewer layouts on a GPU than on the processor. What a GPU would refuse is an error everywhere, so
/// that it is found where there is none.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub(in crate::ml) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    for (name, layout) in [("first", a.layout()), ("second", b.layout())] {
        if !is_taken_by_gpus(layout) {
            bail!("product: a GPU does not take the {name} operand as it lies: {layout:?}");
        }
    }
    a.matmul(b)
}

/// Whether each matrix lies row by row or column by column, without gaps, and one behind the other at equal distances
/// (`gemm_config` in candle-core 0.11.1, src/cuda_backend/mod.rs).
fn is_taken_by_gpus(layout: &Layout) -> bool {
    let (dims, strides) = (layout.dims(), layout.stride());
    let Some(batch) = dims.len().checked_sub(2) else {
        return false;
    };
    let ([rows, columns], [by_row, by_column]) = (
        [dims[batch], dims[batch + 1]],
        [strides[batch], strides[batch + 1]],
    );
    let by_rows = (by_column == 1 || columns == 1) && (by_row == columns || rows == 1);
    let by_columns = (by_column == rows || columns == 1) && (by_row == 1 || rows == 1);
    let is_even = match strides[..batch] {
        [] | [_] => true,
        [outer, inner] => outer == inner * dims[1] || dims[0] == 1 || dims[1] == 1,
        _ => false,
    };
    (by_rows || by_columns) && is_even
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn layouts_that_a_gpu_refuses_are_refused() {
        let x = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (a, b) = (x(&[2, 3, 4, 6]), x(&[2, 3, 6, 5]));
        assert_eq!(product(&a, &b).unwrap().dims(), [2, 3, 4, 5]);
        // Turned, and a part of each matrix that begins with its first row.
        let turned = x(&[2, 3, 6, 4]).t().unwrap();
        assert!(product(&turned, &b).is_ok());
        let part = x(&[2, 3, 9, 5]).narrow(2, 0, 6).unwrap();
        assert!(product(&a, &part).is_ok());
        assert!(product(&a, &x(&[2, 3, 5, 9]).narrow(3, 0, 6).unwrap().t().unwrap()).is_err());
        // A part of each row.
        assert!(product(&x(&[2, 3, 4, 9]).narrow(3, 0, 6).unwrap(), &b).is_err());
        // Exchanged batches.
        let exchanged = x(&[3, 2, 4, 6]).transpose(0, 1).unwrap();
        assert!(product(&exchanged, &b).is_err());
        assert!(product(&x(&[4]), &x(&[4])).is_err());
    }
}
