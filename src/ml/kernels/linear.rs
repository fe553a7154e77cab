//! `y = x W^T`, and the same with a low-rank addition.
//!
//! candle's own product computes and keeps a gradient for both operands, frozen or not. Here an operand
//! that nothing trainable feeds gets none.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::given::with_gradient;
use super::host::{elements, fused, slice};
use super::matmul::{Matrix, Term, Threads, multiply, product_of, product_sum};
use super::product::product;

/// Multiplies `x` (.., inputs) by the transpose of `weight` (outputs, inputs).
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !fused(&[x, weight]) {
        return composed_linear(x, weight);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, Linear)
}

/// The composed form of [`linear`], without gradients for what is frozen.
///
/// The product is that of the weight's dtype, and the result has that of `x`.
pub fn composed_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, inputs, outputs) = extents(x.shape(), weight.shape())?;
    let flat = x.detach().contiguous()?.reshape((rows, inputs))?;
    let out = product(&flat.to_dtype(weight.dtype())?, &weight.detach().t()?)?;
    let out = out.to_dtype(x.dtype())?;
    let out = out.reshape(output_shape(x.shape(), outputs))?;
    with_gradient("linear", out, (x, weight), |x, weight, gradient| {
        let (rows, inputs, outputs) = extents(x.shape(), weight.shape())?;
        let gradient = gradient.contiguous()?.reshape((rows, outputs))?;
        let gradient = gradient.to_dtype(weight.dtype())?;
        let to_x = || {
            let to_x = product(&gradient, weight)?.to_dtype(x.dtype())?;
            to_x.reshape(x.shape())
        };
        let to_weight = || {
            let x = x.contiguous()?.reshape((rows, inputs))?;
            product(&gradient.t()?, &x.to_dtype(weight.dtype())?)
        };
        Ok((
            x.track_op().then(to_x).transpose()?,
            weight.track_op().then(to_weight).transpose()?,
        ))
    })
}

struct Linear;

/// Returns (rows, inputs, outputs) of `x` (.., inputs) and `weight` (outputs, inputs).
fn extents(x: &Shape, weight: &Shape) -> Result<(usize, usize, usize)> {
    let (outputs, inputs) = weight.dims2()?;
    match x.dims().last() {
        Some(&last) if last == inputs && inputs > 0 => {
            Ok((x.elem_count() / inputs, inputs, outputs))
        }
        _ => bail!("linear: input {x:?} does not fit weight {weight:?}"),
    }
}

fn output_shape(x: &Shape, outputs: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    Shape::from(dims)
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs, outputs) = extents(x_layout.shape(), weight_layout.shape())?;
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let x = Matrix::new(x, rows, inputs, inputs);
        let weight = Matrix::new(weight, outputs, inputs, inputs);
        let out = product_of(x, weight.t(), Threads::All)?;
        Ok((
            CpuStorage::F32(out),
            output_shape(x_layout.shape(), outputs),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, inputs, outputs) = extents(x.shape(), weight.shape())?;
        let gradient = gradient.contiguous()?;
        let (gradient, gradient_layout) = gradient.storage_and_layout();
        let gradient = Matrix::new(
            elements(&gradient, gradient_layout)?,
            rows,
            outputs,
            outputs,
        );
        let to_x = if x.track_op() {
            let (weight_storage, layout) = weight.storage_and_layout();
            let weight = Matrix::new(elements(&weight_storage, layout)?, outputs, inputs, inputs);
            Some(product_like(gradient, weight, x)?)
        } else {
            None
        };
        let to_weight = if weight.track_op() {
            let (x_storage, layout) = x.storage_and_layout();
            let x = Matrix::new(elements(&x_storage, layout)?, rows, inputs, inputs);
            Some(product_like(gradient.t(), x, weight)?)
        } else {
            None
        };
        Ok((to_x, to_weight))
    }
}

/// Returns `a b` as a tensor of the shape of `like`.
fn product_like(a: Matrix<'_>, b: Matrix<'_>, like: &Tensor) -> Result<Tensor> {
    let out = product_of(a, b, Threads::All)?;
    Tensor::from_vec(out, like.shape(), like.device())
}

/// Which elements of an input dropout keeps: one bit each.
#[derive(Debug, Clone)]
pub struct DropoutMask {
    /// Bit `i % 64` of word `i / 64` is set where element `i` is kept.
    pub kept: Vec<u64>,
    /// `1 / (1 - p)`, by which kept elements are multiplied.
    pub scale: f32,
}

impl DropoutMask {
    fn keeps(&self, index: usize) -> bool {
        self.kept[index / 64] >> (index % 64) & 1 == 1
    }

    fn apply(&self, values: &mut [f32]) {
        for (index, value) in values.iter_mut().enumerate() {
            *value = if self.keeps(index) {
                *value * self.scale
            } else {
                0.0
            };
        }
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        if self.kept.len() * 64 < x.elem_count() {
            bail!("a dropout mask is shorter than its input {:?}", x.shape());
        }
        Ok(())
    }

    /// Returns the factors as a tensor of the shape of `like`.
    pub(super) fn to_tensor(&self, like: &Tensor) -> Result<Tensor> {
        self.check(like)?;
        let (count, device) = (like.elem_count(), like.device());
        // Eight factors for each byte, looked up where they are needed: the bytes alone go there.
        let of_byte = |byte: usize| (0..8).map(move |bit| (byte >> bit & 1) as f32 * self.scale);
        let table: Vec<f32> = (0..256).flat_map(of_byte).collect();
        let table = Tensor::from_vec(table, (256, 8), device)?.to_dtype(like.dtype())?;
        let bytes = self.kept.iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u32> = bytes.take(count.div_ceil(8)).map(u32::from).collect();
        let bytes = Tensor::new(bytes, device)?;
        table
            .index_select(&bytes, 0)?
            .flatten_all()?
            .narrow(0, 0, count)?
            .reshape(like.shape())
    }
}

/// Returns `x W^T + scale * dropout(x) A^T B^T` (LoRA, Hu et al. 2021, equation 3).
///
/// `x` (.., inputs), frozen `weight` (outputs, inputs), `a` (rank, inputs), `b` (outputs, rank).
pub fn lora_linear(
    x: &Tensor,
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout: Option<DropoutMask>,
) -> Result<Tensor> {
    if weight.track_op() {
        bail!("a weight under a low-rank adapter must be frozen");
    }
    if let Some(mask) = &dropout {
        mask.check(x)?;
    }
    if !fused(&[x, weight, a, b]) {
        return composed_lora_linear(x, weight, a, b, scale, dropout.as_ref());
    }
    let operation = LoraLinear {
        weight: weight.contiguous()?,
        scale: scale as f32,
        dropout,
        inner: OnceLock::new(),
    };
    x.contiguous()?
        .apply_op3(&a.contiguous()?, &b.contiguous()?, operation)
}

/// The composed form of [`lora_linear`].
pub fn composed_lora_linear(
    x: &Tensor,
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout: Option<&DropoutMask>,
) -> Result<Tensor> {
    let base = composed_linear(x, weight)?;
    let input = match dropout {
        Some(mask) => x.mul(&mask.to_tensor(x)?)?,
        None => x.clone(),
    }
    .to_dtype(a.dtype())?;
    let update = composed_linear(&composed_linear(&input, a)?, b)?.affine(scale, 0.0)?;
    base + update.to_dtype(x.dtype())?
}

struct LoraLinear {
    weight: Tensor,
    scale: f32,
    dropout: Option<DropoutMask>,
    /// `dropout(x) A^T` of the forward pass: (rows, rank).
    inner: OnceLock<Vec<f32>>,
}

impl LoraLinear {
    /// Returns `x` with dropout applied, or nothing where there is none.
    fn dropped(&self, x: &[f32]) -> Option<Vec<f32>> {
        self.dropout.as_ref().map(|mask| {
            let mut x = x.to_vec();
            mask.apply(&mut x);
            x
        })
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs, outputs) = extents(x_layout.shape(), self.weight.shape())?;
        let rank = a_layout.shape().dims2()?.0;
        let x = slice(x, x_layout)?;
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let weight = elements(&weight, weight_layout)?;
        let dropped = self.dropped(x);
        let (a, b) = (slice(a, a_layout)?, slice(b, b_layout)?);
        let input = Matrix::new(dropped.as_deref().unwrap_or(x), rows, inputs, inputs);
        let a = Matrix::new(a, rank, inputs, inputs);
        let inner = product_of(input, a.t(), Threads::All)?;
        let out = product_sum(
            &[
                Term {
                    a: Matrix::new(x, rows, inputs, inputs),
                    b: Matrix::new(weight, outputs, inputs, inputs).t(),
                    scale: 1.0,
                },
                Term {
                    a: Matrix::new(&inner, rows, rank, rank),
                    b: Matrix::new(b, outputs, rank, rank).t(),
                    scale: self.scale,
                },
            ],
            Threads::All,
        )?;
        // An operation runs forward once; a second run would find the same numbers.
        let _ = self.inner.set(inner);
        Ok((
            CpuStorage::F32(out),
            output_shape(x_layout.shape(), outputs),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, inputs, outputs) = extents(x.shape(), self.weight.shape())?;
        let rank = a.dims2()?.0;
        let gradient = gradient.contiguous()?;
        let (gradient, layout) = gradient.storage_and_layout();
        let gradient = Matrix::new(elements(&gradient, layout)?, rows, outputs, outputs);
        let (a_storage, layout) = a.storage_and_layout();
        let a_matrix = Matrix::new(elements(&a_storage, layout)?, rank, inputs, inputs);
        let (b_storage, layout) = b.storage_and_layout();
        let b_matrix = Matrix::new(elements(&b_storage, layout)?, outputs, rank, rank);
        let (x_storage, layout) = x.storage_and_layout();
        let x_values = elements(&x_storage, layout)?;
        let dropped = self.dropped(x_values);
        let input = Matrix::new(dropped.as_deref().unwrap_or(x_values), rows, inputs, inputs);

        // scale * g B, which A's and the input's gradients share: (rows, rank)
        let scale = self.scale;
        let by_b = Term {
            a: gradient,
            b: b_matrix,
            scale,
        };
        let inner_gradient = product_sum(&[by_b], Threads::All)?;
        let inner_gradient = Matrix::new(&inner_gradient, rows, rank, rank);
        let to_a = product_like(inner_gradient.t(), input, a)?;

        let Some(inner) = self.inner.get() else {
            bail!("BUG: a gradient before its forward pass");
        };
        let inner: Vec<f32> = inner.iter().map(|value| value * scale).collect();
        let to_b = product_like(gradient.t(), Matrix::new(&inner, rows, rank, rank), b)?;

        let to_x = if x.track_op() {
            let (weight, layout) = self.weight.storage_and_layout();
            let by_update = Term {
                a: inner_gradient,
                b: a_matrix,
                scale: 1.0,
            };
            let by_weight = Term {
                a: gradient,
                b: Matrix::new(elements(&weight, layout)?, outputs, inputs, inputs),
                scale: 1.0,
            };
            let out = match &self.dropout {
                Some(mask) => {
                    let mut out = product_sum(&[by_update], Threads::All)?;
                    mask.apply(&mut out);
                    let Term { a, b, scale } = by_weight;
                    multiply(&mut out, inputs, a, b, scale, true, Threads::All)?;
                    out
                }
                None => product_sum(&[by_update, by_weight], Threads::All)?,
            };
            Some(Tensor::from_vec(out, x.shape(), x.device())?)
        } else {
            None
        };
        Ok((to_x, Some(to_a), Some(to_b)))
    }
}
