//! What a low-rank adapter with trained lengths needs beside its product (DoRA, Liu et al. 2024, arXiv 2402.09353).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::host::{for_rows, fused, slice};
use super::linear::{DropoutMask, linear, lora_linear};
use super::sums::column_sums_of_products;
use super::threads;

/// Returns `W + scale B A`: `weight` (outputs, inputs), `a` (rank, inputs), `b` (outputs, rank). It has no gradient.
pub fn adapted_weight(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let update = linear(&b.detach(), &a.detach().t()?)?.affine(scale, 0.0)?;
    weight.detach().to_dtype(update.dtype())? + update
}

/// Returns the Euclidean length of each row of `x` (rows, width): (rows). It has no gradient.
pub fn row_lengths(x: &Tensor) -> Result<Tensor> {
    if !fused(&[x]) {
        return composed_row_lengths(&x.detach());
    }
    x.detach().contiguous()?.apply_op1_no_bwd(&RowLengths)
}

/// The composed form of [`row_lengths`].
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn composed_row_lengths(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.sum(1)?.sqrt()
}

/// Multiplies each row of `x` (.., n) by `factors` (n), element by element.
pub fn scale_columns(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    if !fused(&[x, factors]) {
        return composed_scale_columns(x, factors);
    }
    x.contiguous()?
        .apply_op2(&factors.contiguous()?, ScaleColumns)
}

/// The composed form of [`scale_columns`].
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn composed_scale_columns(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&factors.to_dtype(x.dtype())?)
}

/// Returns `W x + (F - 1) W d(x) + F scale B A d(x)`, where the diagonal matrix `F` is `factors` and `d` is dropout.
///
/// So PEFT has it; without dropout it is `F (W + scale B A) x`.
pub fn dora_linear(
    x: &Tensor,
    weight: &Tensor,
    (a, b): (&Tensor, &Tensor),
    scale: f64,
    factors: &Tensor,
    dropout: Option<DropoutMask>,
) -> Result<Tensor> {
    let adapted = |x: &Tensor| scale_columns(&lora_linear(x, weight, a, b, scale, None)?, factors);
    match dropout {
        None => adapted(x),
        Some(mask) => {
            let kept = x.mul(&mask.to_tensor(x)?)?;
            linear(&(x - &kept)?, weight)? + adapted(&kept)?
        }
    }
}

/// Below this many elements a loop runs on the calling thread.
const PARALLEL_ELEMENTS: usize = 1 << 16;

struct RowLengths;

impl CustomOp1 for RowLengths {
    fn name(&self) -> &'static str {
        "row_lengths"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let x = slice(storage, layout)?;
        let length = |row: usize| {
            let values = x[row * width..(row + 1) * width].iter();
            let squares = values.map(|value| f64::from(*value) * f64::from(*value));
            squares.sum::<f64>().sqrt() as f32
        };
        let out = if x.len() < PARALLEL_ELEMENTS {
            (0..rows).map(length).collect()
        } else {
            threads::map(0..rows, length)
        };
        Ok((CpuStorage::F32(out), Shape::from(rows)))
    }
}

struct ScaleColumns;

impl CustomOp2 for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale_columns"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = factors_layout.shape().dims1()?;
        if x_layout.dims().last() != Some(&width) {
            bail!("{width} factors do not fit {:?}", x_layout.shape());
        }
        let mut out = slice(x, x_layout)?.to_vec();
        let factors = slice(factors, factors_layout)?;
        for_rows(&mut out, width, |_, row| {
            for (out, factor) in row.iter_mut().zip(factors) {
                *out *= factor;
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        factors: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let to_x = x.track_op().then(|| scale_columns(gradient, factors));
        let to_factors = factors
            .track_op()
            .then(|| column_sums_of_products(gradient, x));
        Ok((to_x.transpose()?, to_factors.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ml::adapter::Update;
    use crate::ml::models::fixture::{
        adapter_tensor, difference, largest, numbers, numbers_of, parameter,
    };

    /// Recorded by `tests/fixtures/models/adapters.py`.
    #[test]
    fn dora_with_dropout_is_that_of_peft() {
        let expected = numbers_of("peft_dora_dropout");
        let x = Var::from_tensor(&parameter("x", &[2, 5, 12])).unwrap();
        let weight = parameter("weight", &[10, 12]);
        let trained = |name: &str, shape: &[usize]| Var::from_tensor(&adapter_tensor(name, shape));
        let update = Update {
            a: trained("lora_A", &[3, 12]).unwrap().into_inner(),
            b: trained("lora_B", &[10, 3]).unwrap().into_inner(),
            magnitude: Some(
                trained("lora_magnitude_vector", &[10])
                    .unwrap()
                    .into_inner(),
            ),
            scale: 2.0,
        };
        let mut mask = DropoutMask {
            kept: vec![0; 2],
            scale: 4.0 / 3.0,
        };
        let drawn = numbers("mask", &[120], 1.0, 0.0).to_vec1::<f32>().unwrap();
        for (place, drawn) in drawn.iter().enumerate() {
            mask.kept[place / 64] |= u64::from(*drawn > -0.5) << (place % 64);
        }
        let factors = update.factors(&weight).unwrap().unwrap();
        let factored = (&update.a, &update.b);
        let output =
            dora_linear(&x, &weight, factored, update.scale, &factors, Some(mask)).unwrap();
        assert!(difference(&output, &expected["output"]) < 1e-5);
        let weighted = (&output * parameter("coefficients", &[2, 5, 10])).unwrap();
        let found = weighted.sum_all().unwrap().backward().unwrap();
        let magnitude = update.magnitude.as_ref().unwrap();
        for (name, tensor) in [
            ("x", x.as_tensor()),
            ("lora_A", &update.a),
            ("lora_B", &update.b),
            ("lora_magnitude_vector", magnitude),
        ] {
            let expected = &expected[&format!("gradient.{name}")];
            let off = difference(found.get(tensor).unwrap(), expected) / largest(expected);
            assert!(off < 1e-5, "{name}: off by {off}");
        }
    }
}
