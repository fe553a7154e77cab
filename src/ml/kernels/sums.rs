//! Sums along dimensions, and their opposite.
//!
//! candle sums in vectors of whatever width the processor has. Here every sum runs in `f64`, in order, and is
//! rounded once. The composed form is candle's.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, D, Error, Layout, Result, Shape, Tensor, bail,
};

use super::form::{is_composed, must_be_fused};
use super::threads;

/// Returns the sum of all elements, a scalar.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn total(x: &Tensor) -> Result<Tensor> {
    if is_composed(x) {
        return x.sum_all();
    }
    let count = x.elem_count();
    x.contiguous()?
        .reshape((1, count))?
        .apply_op1(Rows)?
        .reshape(())
}

/// Sums along the last dimension: (.., n) to (..).
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn row_sums(x: &Tensor) -> Result<Tensor> {
    if is_composed(x) {
        return x.sum(D::Minus1);
    }
    x.contiguous()?.apply_op1(Rows)
}

/// Takes means over the first of two dimensions: (rows, width) to (width).
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn column_means(x: &Tensor) -> Result<Tensor> {
    if is_composed(x) {
        return x.mean(0);
    }
    let rows = x.dims2()?.0;
    let sums = x.contiguous()?.apply_op1(Columns)?;
    sums.affine(1.0 / rows as f64, 0.0)
}

/// Sums up to each place of the last dimension: `out[.., t] = sum_{i <= t} x[.., i]`.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn cumulative(x: &Tensor) -> Result<Tensor> {
    if is_composed(x) {
        // It is a product, which takes no other layout on a GPU.
        return x.contiguous()?.cumsum(D::Minus1);
    }
    x.contiguous()?.apply_op1(Cumulative { reversed: false })
}

/// Repeats elements along dimensions that `x` lacks or has with length 1, as broadcasting does.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn spread(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    // Dimensions that it lacks come first.
    let mut dims = vec![1; shape.rank().saturating_sub(x.rank())];
    dims.extend(x.dims());
    let x = x.contiguous()?.reshape(dims)?;
    if is_composed(&x) {
        return x.broadcast_as(shape)?.contiguous();
    }
    x.apply_op1(Spread(shape))
}

/// Adds `bias` (n) to each row of `x` (.., n).
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if is_composed(x) {
        return x.broadcast_add(&bias.to_dtype(x.dtype())?);
    }
    x.contiguous()?.apply_op2(&bias.contiguous()?, AddBias)
}

/// Sums products of two tensors (.., n) over all but their last dimension: (n). It has no gradient.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub(super) fn column_sums_of_products(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let products = x.detach().mul(&y.detach())?;
    let width = products.dim(D::Minus1)?;
    let products = products.reshape(((), width))?;
    if is_composed(&products) {
        return products.sum(0);
    }
    products.apply_op1_no_bwd(&Columns)
}

/// Elements of a contiguous operand, in the two dtypes that sums are taken in.
enum Elements<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Elements<'a>> {
    must_be_fused("a sum")?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::RequiresContiguous { op: "a sum" }.bt());
    };
    Ok(match storage {
        CpuStorage::F32(values) => Elements::F32(&values[start..end]),
        CpuStorage::F64(values) => Elements::F64(&values[start..end]),
        _ => bail!("a sum: expected f32 or f64"),
    })
}

/// Runs a function of rows of `f64` on elements of either dtype.
fn with_rows(
    x: Elements<'_>,
    width: usize,
    mut function: impl FnMut(&[f64]) -> Vec<f64>,
) -> CpuStorage {
    let mut out = Vec::new();
    match x {
        Elements::F64(values) => {
            for row in values.chunks(width.max(1)) {
                out.extend(function(row));
            }
            CpuStorage::F64(out)
        }
        Elements::F32(values) => {
            for row in values.chunks(width.max(1)) {
                let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
                out.extend(function(&row));
            }
            CpuStorage::F32(out.into_iter().map(|value| value as f32).collect())
        }
    }
}

fn last_of(shape: &Shape) -> Result<(Vec<usize>, usize)> {
    match shape.dims().split_last() {
        Some((last, dims)) => Ok((dims.to_vec(), *last)),
        None => bail!("a sum along the last dimension of a scalar"),
    }
}

struct Rows;

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "row_sums"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (dims, width) = last_of(layout.shape())?;
        let shape = Shape::from(dims);
        if width == 0 {
            let zeros = vec![0.0; shape.elem_count()];
            let zeros = match storage {
                CpuStorage::F64(_) => CpuStorage::F64(zeros),
                _ => CpuStorage::F32(vec![0.0; zeros.len()]),
            };
            return Ok((zeros, shape));
        }
        let sums = with_rows(contiguous(storage, layout)?, width, |row| {
            vec![row.iter().sum()]
        });
        Ok((sums, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.unsqueeze(x.rank() - 1)?;
        Ok(Some(spread(&gradient, x.shape().clone())?))
    }
}

struct Columns;

impl CustomOp1 for Columns {
    fn name(&self) -> &'static str {
        "column_sums"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let out = match contiguous(storage, layout)? {
            Elements::F32(values) => CpuStorage::F32(column_sums(values, width)),
            Elements::F64(values) => {
                let mut sums = vec![0.0; width];
                for row in values.chunks(width.max(1)) {
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(sum, value)| *sum += value);
                }
                CpuStorage::F64(sums)
            }
        };
        Ok((out, Shape::from(width)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(spread(gradient, x.shape().clone())?))
    }
}

/// Columns summed by one task.
const COLUMNS: usize = 64;

/// Sums the columns of rows of `width` elements.
fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0f32; width];
    let sum = |(block, out): (usize, &mut [f32])| {
        let mut sums = [0f64; COLUMNS];
        let sums = &mut sums[..out.len()];
        for row in values.chunks_exact(width) {
            for (sum, value) in sums.iter_mut().zip(&row[block * COLUMNS..]) {
                *sum += f64::from(*value);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = *sum as f32;
        }
    };
    if values.len() < 1 << 16 {
        out.chunks_mut(COLUMNS).enumerate().for_each(sum);
    } else {
        threads::each(out.chunks_mut(COLUMNS).enumerate(), sum);
    }
    out
}

struct Cumulative {
    reversed: bool,
}

impl CustomOp1 for Cumulative {
    fn name(&self) -> &'static str {
        "cumulative"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = last_of(layout.shape())?;
        let sums = with_rows(contiguous(storage, layout)?, width, |row| {
            let mut sum = 0.0;
            let mut add = |value: &f64| {
                sum += value;
                sum
            };
            if self.reversed {
                let mut sums: Vec<f64> = row.iter().rev().map(add).collect();
                sums.reverse();
                sums
            } else {
                row.iter().map(&mut add).collect()
            }
        });
        Ok((sums, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let reversed = !self.reversed;
        let operation = Self { reversed };
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&operation)?))
    }
}

struct Spread(Shape);

impl Spread {
    /// Returns, for each element of the result in order, the place of its source.
    fn sources(&self, from: &Shape) -> Result<Vec<usize>> {
        let (from, to) = (from.dims(), self.0.dims());
        let fits = |(from, to): (&usize, &usize)| from == to || *from == 1;
        if from.len() != to.len() || !from.iter().zip(to).all(fits) {
            bail!("shape {from:?} does not spread to {to:?}");
        }
        let mut sources = vec![0];
        for (from, to) in from.iter().zip(to) {
            let next = |source: usize| {
                (0..*to).map(move |place| source * from + if *from == 1 { 0 } else { place })
            };
            sources = sources.into_iter().flat_map(next).collect();
        }
        Ok(sources)
    }
}

impl CustomOp1 for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sources = self.sources(layout.shape())?;
        let out = match contiguous(storage, layout)? {
            Elements::F32(values) => {
                CpuStorage::F32(sources.iter().map(|at| values[*at]).collect())
            }
            Elements::F64(values) => {
                CpuStorage::F64(sources.iter().map(|at| values[*at]).collect())
            }
        };
        Ok((out, self.0.clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let sources = self.sources(x.shape())?;
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&Gather {
            sources,
            shape: x.shape().clone(),
        })?))
    }
}

/// Adds each element to the one that it came from.
struct Gather {
    sources: Vec<usize>,
    shape: Shape,
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather sums"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut sums = vec![0f64; self.shape.elem_count()];
        let out = match contiguous(storage, layout)? {
            Elements::F32(values) => {
                for (source, value) in self.sources.iter().zip(values) {
                    sums[*source] += f64::from(*value);
                }
                CpuStorage::F32(sums.into_iter().map(|sum| sum as f32).collect())
            }
            Elements::F64(values) => {
                for (source, value) in self.sources.iter().zip(values) {
                    sums[*source] += value;
                }
                CpuStorage::F64(sums)
            }
        };
        Ok((out, self.shape.clone()))
    }
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = bias_layout.shape().dims1()?;
        if x_layout.dims().last() != Some(&width) {
            bail!("a bias of {width} does not fit {:?}", x_layout.shape());
        }
        let out = match (contiguous(x, x_layout)?, contiguous(bias, bias_layout)?) {
            (Elements::F32(x), Elements::F32(bias)) => {
                let mut out = x.to_vec();
                super::host::for_rows(&mut out, width, |_, row| {
                    row.iter_mut()
                        .zip(bias)
                        .for_each(|(out, bias)| *out += bias);
                });
                CpuStorage::F32(out)
            }
            (Elements::F64(x), Elements::F64(bias)) => {
                let repeated = bias.iter().cycle();
                CpuStorage::F64(x.iter().zip(repeated).map(|(x, bias)| x + bias).collect())
            }
            _ => bail!("a bias of another dtype than what it is added to"),
        };
        Ok((out, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let to_bias = if bias.track_op() {
            let rows = gradient.contiguous()?.reshape(((), bias.dim(0)?))?;
            Some(rows.apply_op1_no_bwd(&Columns)?)
        } else {
            None
        };
        Ok((x.track_op().then(|| gradient.clone()), to_bias))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Compares values and gradients with those of candle's own operation, under a loss that weighs all elements.
    fn assert_same(
        shape: &[usize],
        ours: impl Fn(&Tensor) -> Result<Tensor>,
        candles: impl Fn(&Tensor) -> Result<Tensor>,
    ) {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|place| libm::sin(place as f64)).collect();
        let x = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let run = |operation: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let x = Var::from_tensor(&x).unwrap();
            let out = operation(&x).unwrap();
            let count = out.elem_count();
            let weights: Vec<f64> = (0..count).map(|at| libm::cos(at as f64)).collect();
            let weights = Tensor::from_vec(weights, out.shape(), &Device::Cpu).unwrap();
            let gradients = (&out * weights).unwrap().sum_all().unwrap().backward();
            let gradient = gradients.unwrap().get(&x).unwrap().clone();
            (out, gradient)
        };
        let ((out, gradient), (other_out, other_gradient)) = (run(&ours), run(&candles));
        for (found, expected) in [(out, other_out), (gradient, other_gradient)] {
            assert_eq!(found.dims(), expected.dims());
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for (found, expected) in flat(&found).iter().zip(flat(&expected)) {
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{found} is not {expected}"
                );
            }
        }
    }

    #[test]
    fn sums_and_their_gradients_are_candles() {
        assert_same(&[3, 5], total, Tensor::sum_all);
        assert_same(&[2, 3, 5], row_sums, |x| x.sum(2));
        assert_same(&[4, 3], column_means, |x| x.mean(0));
        assert_same(&[4, 3], cumulative, |x| x.cumsum(1));
        assert_same(&[1], |x| spread(x, 7), |x| x.broadcast_as(7));
        assert_same(
            &[2, 1, 3],
            |x| spread(x, (2, 4, 3)),
            |x| x.broadcast_as((2, 4, 3)),
        );
        assert_same(&[3], |x| spread(x, (2, 3)), |x| x.broadcast_as((2, 3)));
        let bias = Tensor::new(&[0.5f64, -1.0, 2.0], &Device::Cpu).unwrap();
        assert_same(&[4, 3], |x| add_bias(x, &bias), |x| x.broadcast_add(&bias));
        let x = Tensor::ones((2, 4, 3), candle_core::DType::F64, &Device::Cpu).unwrap();
        assert_same(
            &[3],
            |bias| add_bias(&x, bias),
            |bias| x.broadcast_add(bias),
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(spread(&x, (2, 4)).is_err());
        assert!(add_bias(&x, &x.get(0).unwrap().narrow(0, 0, 2).unwrap()).is_err());
    }
}
