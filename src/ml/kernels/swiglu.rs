//! The gate of a SwiGLU feed-forward layer (Shazeer 2020): `silu(gate) * up`.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::exponential::sigmoid;
use super::host::{elements, fused, new_rows, slice};
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
    /// Multiplies the gradient by the derivative: `silu'(x) = s + x s (1 - s)` with `s = sigmoid(x)`.
    fn gate_backward(gate: &[f32], up: &[f32], gradient: &[f32], out: &mut [f32]) {
        for (((out, gradient), gate), up) in out.iter_mut().zip(gradient).zip(gate).zip(up) {
            let s = sigmoid(*gate);
            *out = gradient * (up * s * (1.0 + gate * (1.0 - s)));
        }
    }
}

struct Swiglu;

/// Returns as many numbers as `like` has, which `body(range, out)` writes for each block.
fn blocks(like: &[f32], body: impl Fn(Range<usize>, &mut [f32]) + Sync) -> Vec<f32> {
    new_rows(like.len(), BLOCK, |block, out| {
        let start = block * BLOCK;
        body(start..start + out.len(), out);
    })
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
        let out = blocks(gate, |range, out| {
            gate_forward(&gate[range.clone()], &up[range], out);
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

        let to_gate = blocks(g, |range, out| {
            let [gate, up, g] = [gate_values, up_values, g].map(|values| &values[range.clone()]);
            gate_backward(gate, up, g, out);
        });
        let to_up = blocks(g, |range, out| {
            gate_forward(&gate_values[range.clone()], &g[range], out);
        });
        Ok((
            Some(Tensor::from_vec(to_gate, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(to_up, up.shape(), up.device())?),
        ))
    }
}
