//! Where a job computes, and what is said of the GPU that it was given.

use super::hand_over::{self, About, IS_FOR_GPUS};
use super::params;
use super::{Events, Job, Task};
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::machine::{
    DeviceChoice, Driver, Place, Products, Refusal, host_name, is_about_gpu_memory, too_small,
};
use crate::engine::stage::{GpuUse, Registry, StageError, find_kind};
use crate::engine::store::GpuUsed;

/// Says where a job computes, and hands it over to the program for GPUs if that is another.
///
/// Where GPUs were asked for and cannot be had, it computes on the processor if it may, and says why.
pub(super) fn placed(
    registry: &Registry,
    mut job: Job,
    is_handed_over: bool,
    events: &Events,
) -> Result<(Job, Place), StageError> {
    let kind = find_kind(registry, &job.kind);
    let stage = kind.and_then(|kind| params::read(kind, &job.params).ok());
    // What is wrong with a kind or its params is told where they are read for good.
    let gpu_use = stage.map_or(GpuUse::None, |stage| stage.gpu_use());
    if matches!(job.task, Task::Fetch) {
        return Ok((job, Place::Processor));
    }
    if job.gpus.is_empty() {
        if gpu_use == GpuUse::Tensors && job.device == DeviceChoice::Cuda {
            return Err(missing_gpus(&job));
        }
        return Ok((job, Place::Processor));
    }
    let refused = match gpu_use {
        GpuUse::None => return Ok((job, Place::Processor)),
        GpuUse::Program => return Ok((job, Place::Program)),
        GpuUse::Tensors if IS_FOR_GPUS => match hand_over::usable_gpu(&About::this()) {
            Ok(gpu) if gpu.memory_bytes < job.gpu_memory => {
                StageError::new(too_small(&gpu, job.gpu_memory))
            }
            Ok(gpu) => return Ok((job, Place::Gpu(gpu))),
            Err(error) => error,
        },
        GpuUse::Tensors if is_handed_over => {
            let error = StageError::new("the program for GPUs is not built for any");
            error.hint("build it with `cargo build --release --features cuda`")
        }
        GpuUse::Tensors => hand_over::hand_over(&job),
    };
    match refused {
        StageError::Failed { .. } if job.device == DeviceChoice::Auto => {
            events.send(&WorkerEvent::Note {
                importance: Importance::Warning,
                text: format!("computes on the processor: {}", Refusal::from(refused)),
            });
            job.gpus.clear();
            job.gpus_asked_for = 0;
            Ok((job, Place::Processor))
        }
        refused => Err(refused),
    }
}

fn missing_gpus(job: &Job) -> StageError {
    let error = StageError::new(format!("no GPU can be had on {}", host_name()));
    match job.gpu_memory {
        0 => error,
        _ => error.hint("`resources.gpu_memory` of the stage is more than each of them has"),
    }
}

/// Describes the GPU of a place, and what the tensors of this process took of it.
pub(super) fn gpu_used(
    place: &Place,
    products: Option<Products>,
    flops_per_second: f64,
) -> Option<GpuUsed> {
    let Place::Gpu(gpu) = place else { return None };
    let peak = Driver::start().and_then(|driver| driver.peak_memory(0));
    let most = products.and_then(|products| gpu.peak_flops(products));
    Some(GpuUsed {
        gpu: gpu.clone(),
        peak_memory_bytes: peak.ok(),
        utilization: most
            .filter(|_| flops_per_second > 0.0)
            .map(|most| flops_per_second / most),
    })
}

/// Says how much memory a GPU had where that was too little.
pub(super) fn explain_full_gpu(error: StageError) -> StageError {
    let message = match &error {
        StageError::Failed { message, .. } if is_about_gpu_memory(message) => message,
        _ => return error,
    };
    let gibibytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let known =
        Driver::start().and_then(|driver| Ok((driver.free_memory()?, driver.peak_memory(0)?)));
    let room = known.map_or(String::new(), |((free, total), peak)| {
        format!(
            " ({:.2} GiB of {:.2} are free; the tensors of the stage took {:.2} at most)",
            gibibytes(free),
            gibibytes(total),
            gibibytes(peak)
        )
    });
    StageError::new(format!("the GPU is out of memory{room}: {message}")).hint(
        "lower `micro_batch` or set it to `auto`, or `batch_size`; `gradient_checkpointing: true` and `precision: bf16` take \
         less, too",
    )
}
