//! Where the tensors of a stage lie.

use candle_core::Device;

use crate::engine::context::RunContext;
use crate::engine::machine::Products;
use crate::engine::stage::{Problem, StageError};
use crate::ml::placement::{Placement, Precision};

/// Returns where the tensors of a stage lie: on the GPU that it was given, else on the processor.
pub(crate) fn placement(
    ctx: &mut RunContext,
    precision: Precision,
) -> Result<Placement, StageError> {
    let products = match precision {
        Precision::F32 => Products::F32,
        Precision::Bf16 => Products::Bf16,
    };
    #[expect(clippy::disallowed_methods, reason = "the record has been told")]
    let device = if ctx.takes_gpu(products) {
        // As this process sees it, the GPU that it was given is the first.
        Device::new_cuda(0).map_err(|error| {
            StageError::new(format!("the GPU cannot be used: {error}"))
                .hint("`--device cpu` computes on the processor")
        })?
    } else {
        Device::Cpu
    };
    Ok(Placement {
        device,
        precision,
        gradient_checkpointing: false,
    })
}

/// Refuses a precision that is none of weights that are trained.
pub(crate) fn check_precision<T>(
    precision: Precision,
    adapter: Option<&T>,
    problems: &mut Vec<Problem>,
) {
    if precision != Precision::F32 && adapter.is_none() {
        let text = "`precision: bf16` is for weights that are not trained, and without an `adapter` all are trained";
        let problem = Problem::new("precision", text);
        problems.push(problem.hint("train an `adapter`, or leave `precision` out"));
    }
}
