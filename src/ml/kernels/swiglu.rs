//! The gate of a SwiGLU feed-forward layer (Shazeer 2020): `silu(gate) * up`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::exponential::sigmoid;
use super::host::{elements, for_rows, fused, slice};
use super::simd::vectorised;

/// Elements handled as one row of a parallel loop.
const BLOCK: usize = 1024;

/// Returns `silu(gate) * up` of two tensors of the same shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !fused(&[gate, up]) {
        return composed_swiglu(gate, up);
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)
}

/// The composed form of [`swiglu`].
#[expect(clippy::disallowed_methods, reason = "the composed form")]
pub fn composed_swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()?.mul(up)
}

vectorised! {
    fn gate_forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

vectorised! {
    /// Multiplies `out`, the gradient, by the derivative: `silu'(x) = s + x s (1 - s)` with `s = sigmoid(x)`.
    fn gate_backward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let s = sigmoid(*gate);
            *out *= up * s * (1.0 + gate * (1.0 - s));
        }
    }
}

struct Swiglu;

/// Runs `body` on blocks of the three slices.
fn for_blocks(
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    body: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
) {
    let whole = out.len() / BLOCK * BLOCK;
    let (blocks, rest) = out.split_at_mut(whole);
    for_rows(blocks, BLOCK, |row, out| {
        let range = row * BLOCK..(row + 1) * BLOCK;
        body(out, &a[range.clone()], &b[range]);
    });
    body(rest, &a[whole..], &b[whole..]);
}

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gate_layout.shape() != up_layout.shape() {
            bail!(
                "swiglu: gate {:?} and up {:?} differ",
                gate_layout.shape(),
                up_layout.shape()
            );
        }
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let mut out = vec![0f32; gate.len()];
        for_blocks(&mut out, gate, up, |out, gate, up| {
            gate_forward(gate, up, out);
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (gradient_storage, layout) = gradient.storage_and_layout();
        let g = elements(&gradient_storage, layout)?;
        let (gate_storage, layout) = gate.storage_and_layout();
        let gate_values = elements(&gate_storage, layout)?;
        let (up_storage, layout) = up.storage_and_layout();
        let up_values = elements(&up_storage, layout)?;

        let mut to_gate = g.to_vec();
        for_blocks(&mut to_gate, gate_values, up_values, |out, gate, up| {
            gate_backward(gate, up, out);
        });
        let mut to_up = vec![0f32; g.len()];
        for_blocks(&mut to_up, gate_values, g, |out, gate, g| {
            gate_forward(gate, g, out);
        });
        Ok((
            Some(Tensor::from_vec(to_gate, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(to_up, up.shape(), up.device())?),
        ))
    }
}
