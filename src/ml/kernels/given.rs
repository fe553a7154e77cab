//! What candle's operations give, with a gradient of our own.
//!
//! candle gives every operand of an operation a gradient, frozen or not, and some operations none at all. Here the result
//! is computed without gradients, and an operation that only hands it on has the gradient that is right.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail,
};

/// The gradients of two operands, from the operands and the gradient of the result.
type Backward = fn(&Tensor, &Tensor, &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)>;

/// Returns `out`, which was computed from `a` and `b`, with a gradient.
pub(super) fn with_gradient(
    name: &'static str,
    out: &Tensor,
    (a, b): (&Tensor, &Tensor),
    backward: Backward,
) -> Result<Tensor> {
    if !a.track_op() && !b.track_op() {
        return Ok(out.clone());
    }
    let out = out.detach().contiguous()?;
    a.apply_op2(
        b,
        Given {
            name,
            out,
            backward,
        },
    )
}

struct Given {
    name: &'static str,
    out: Tensor,
    backward: Backward,
}

impl CustomOp2 for Given {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, self.out.shape().clone())),
            _ => bail!("{}: operands on the CPU, their result elsewhere", self.name),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.out.shape().clone())),
            _ => bail!("{}: operands on a GPU, their result elsewhere", self.name),
        }
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        (self.backward)(a, b, gradient)
    }
}
