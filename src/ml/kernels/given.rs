//! What candle's operations give, with a gradient of our own.
//!
//! candle gives every operand of an operation a gradient, frozen or not. Here the result is computed without gradients, and
//! an operation that only hands it on has those that are wanted.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail,
};

/// The gradients of two operands, from the operands and the gradient of the result.
type Backward =
    dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> + Send + Sync;

/// Returns `out`, which was computed from `a` and `b`, with a gradient.
pub(in crate::ml) fn with_gradient(
    name: &'static str,
    out: Tensor,
    (a, b): (&Tensor, &Tensor),
    backward: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    if !a.track_op() && !b.track_op() {
        return Ok(out);
    }
    let out = match out.layout().contiguous_offsets() {
        Some((0, _)) => out,
        // The whole storage is handed on.
        _ => out.force_contiguous()?,
    };
    a.apply_op2(
        b,
        Given {
            name,
            out: Mutex::new(Some(out)),
            backward: Box::new(backward),
        },
    )
}

/// The same of one operand: the gradient to it is worked out of it and of that of the result.
pub(in crate::ml) fn with_gradient_to(
    name: &'static str,
    out: Tensor,
    x: &Tensor,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let nothing = Tensor::zeros((), x.dtype(), x.device())?;
    with_gradient(name, out, (x, &nothing), move |x, _, gradient| {
        Ok((backward(x, gradient)?, None))
    })
}

struct Given {
    name: &'static str,
    /// Taken when it is handed on: the graph would keep it until the backward pass.
    out: Mutex<Option<Tensor>>,
    backward: Box<Backward>,
}

impl Given {
    fn take(&self) -> Result<Tensor> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        match out.take() {
            Some(out) => Ok(out),
            None => bail!("BUG: {} has handed on its result before", self.name),
        }
    }
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
        let out = self.take()?;
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, out.shape().clone())),
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
        let out = self.take()?;
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, out.shape().clone())),
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
        let (to_a, to_b) = (self.backward)(a, b, gradient)?;
        // Without what they were made of: a gradient that is kept would keep the whole pass.
        Ok((to_a.map(|to| to.detach()), to_b.map(|to| to.detach())))
    }
}
