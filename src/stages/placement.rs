//! Where the tensors of a stage lie.

use candle_core::Device;

use crate::engine::context::RunContext;
use crate::engine::machine::Products;
use crate::engine::stage::{Problem, StageError};
use crate::ml::adapter::LoraConfig;
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
            let said = error.to_string();
            let mut words = said.split(|sign: char| !(sign.is_ascii_uppercase() || sign == '_'));
            let code = words.find(|word| word.starts_with("CUDA_ERROR_"));
            let code = code.unwrap_or(said.lines().next().unwrap_or_default());
            StageError::new(format!("the GPU cannot be used: {code}"))
                .hint("is it free, and in its usual mode? `--device cpu` computes on the processor")
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
pub(crate) fn check_precision(
    precision: Precision,
    adapter: Option<&LoraConfig>,
    problems: &mut Vec<Problem>,
) {
    if precision == Precision::F32 {
        return;
    }
    let problem = match adapter {
        None => Problem::new(
            "precision",
            "`precision: bf16` is for weights that are not trained, and without an `adapter` all of the model's are",
        )
        .hint("train an `adapter`, or leave `precision` out"),
        Some(adapter) if !adapter.modules_to_save.is_empty() => Problem::new(
            "precision",
            "`precision: bf16` is for weights that are not trained, and `adapter.modules_to_save` names some that are",
        )
        .hint("they would begin with rounded weights: leave one of the two out"),
        Some(_) => return,
    };
    problems.push(problem);
}
