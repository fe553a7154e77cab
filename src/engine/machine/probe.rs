//! Whether tensors can lie on a GPU here, asked of another process: a driver may take its time, hang or crash.

use std::process::Command;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::{DeviceChoice, Gpu, Place, numerics_class, visible_gpus};
use crate::engine::processes::{PATIENCE, answer_of};
use crate::engine::stage::{GpuUse, Resources, StageError};

/// The command of this program that answers.
pub const ABOUT_GPU: &str = "about-gpu";

/// Why tensors cannot lie on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<StageError> for Refusal {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Failed { message, hint } => Self { message, hint },
            StageError::Interrupted => Self {
                message: "interrupted".to_owned(),
                hint: None,
            },
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// What this machine offers to the tensors of stages.
#[derive(Debug)]
pub struct Machine {
    device: DeviceChoice,
    gpus: Vec<(String, OnceLock<AboutGpu>)>,
    is_cluster: bool,
}

/// What the command [`ABOUT_GPU`] answers of the first GPU that it sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutGpu {
    /// The GPU, as its driver describes it.
    pub gpu: Result<Gpu, Refusal>,
    /// Why tensors cannot lie there.
    pub refusal: Option<Refusal>,
}

impl AboutGpu {
    fn nothing(why: Refusal) -> Self {
        Self {
            gpu: Err(why.clone()),
            refusal: Some(why),
        }
    }

    fn has(&self, least_memory: u64) -> bool {
        (self.gpu.as_ref()).is_ok_and(|gpu| gpu.memory_bytes >= least_memory)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new(DeviceChoice::Auto, visible_gpus())
    }
}

impl Machine {
    /// Describes a machine that is asked to compute on `device`, with these GPUs.
    pub fn new(device: DeviceChoice, gpus: Vec<String>) -> Self {
        Self {
            device,
            gpus: gpus.into_iter().map(|id| (id, OnceLock::new())).collect(),
            is_cluster: false,
        }
    }

    /// Stands for the machines of a cluster, whose GPUs nobody here knows.
    pub fn cluster(device: DeviceChoice) -> Self {
        Self {
            is_cluster: true,
            ..Self::new(device, Vec::new())
        }
    }

    /// Whether it stands for those of a cluster.
    pub fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Returns where a stage would compute.
    pub fn place(&self, gpu_use: GpuUse, resources: &Resources) -> Place {
        match gpu_use {
            _ if !self.offers_gpus(gpu_use, resources.gpus) => Place::Processor,
            GpuUse::None => Place::Processor,
            GpuUse::Program => Place::Program,
            GpuUse::Tensors if self.is_cluster => Place::Program,
            GpuUse::Tensors => {
                let gpu = self.gpu(resources.gpu_memory);
                gpu.map_or(Place::Processor, |gpu| Place::Gpu(gpu.clone()))
            }
        }
    }

    /// Whether results of a numerics class are those that this machine would compute, itself in `class`.
    pub fn is_of(&self, class: &str, here: &str) -> bool {
        let unknown = numerics_class(&Place::Program);
        class == here || self.is_cluster && here == unknown && class.starts_with(&unknown)
    }

    /// Returns this machine, asked for nothing in particular: one for the whole process.
    pub fn here() -> &'static Self {
        static HERE: OnceLock<Machine> = OnceLock::new();
        HERE.get_or_init(Self::default)
    }

    /// Where stages are asked to compute.
    pub fn device(&self) -> DeviceChoice {
        self.device
    }

    /// Whether a stage that asks for so many GPUs is to have any, as far as there seem to be some.
    pub fn offers_gpus(&self, gpu_use: GpuUse, asked: usize) -> bool {
        let may_have = self.is_cluster || !self.gpus.is_empty();
        self.device.gpus(gpu_use, asked) > 0 && may_have
    }

    /// Returns the GPU that tensors would lie on which need one with so many bytes of memory, or why there is none.
    /// Asked once, and only when it is needed.
    pub fn gpu(&self, least_memory: u64) -> Result<&Gpu, Refusal> {
        let found = self.gpus.iter().find(|(id, _)| self.has(id, least_memory));
        let Some((id, _)) = found else {
            let message = match self.largest() {
                _ if self.gpus.is_empty() => "no GPU is visible".to_owned(),
                Some(gpu) => too_small(gpu, least_memory),
                None => format!("no GPU here is known to have {}", gigabytes(least_memory)),
            };
            return Err(Refusal {
                message,
                hint: None,
            });
        };
        let about = self.about(id);
        match (&about.refusal, &about.gpu) {
            (Some(refusal), _) => Err(refusal.clone()),
            (None, gpu) => gpu.as_ref().map_err(Refusal::clone),
        }
    }

    /// Whether a GPU has so many bytes of memory in all.
    pub fn has(&self, id: &str, least_memory: u64) -> bool {
        least_memory == 0 || self.about(id).has(least_memory)
    }

    fn largest(&self) -> Option<&Gpu> {
        let known = self.gpus.iter().filter_map(|(id, _)| {
            let about = self.about(id);
            about.gpu.as_ref().ok()
        });
        known.max_by_key(|gpu| gpu.memory_bytes)
    }

    fn about(&self, id: &str) -> &AboutGpu {
        static UNKNOWN: OnceLock<AboutGpu> = OnceLock::new();
        let found = self.gpus.iter().find(|(known, _)| known == id);
        let found = found.map_or(&UNKNOWN, |(_, found)| found);
        found.get_or_init(|| ask(id))
    }
}

/// Says that a GPU has too little memory.
pub fn too_small(gpu: &Gpu, least_memory: u64) -> String {
    format!(
        "`resources.gpu_memory` asks for {}, and the {} has {}",
        gigabytes(least_memory),
        gpu.name,
        gigabytes(gpu.memory_bytes)
    )
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn ask(id: &str) -> AboutGpu {
    let nothing = |why: String| {
        AboutGpu::nothing(Refusal {
            message: format!("nothing is known of GPU {id}: {why}"),
            hint: Some("`--device cpu` asks nothing of it".to_owned()),
        })
    };
    let answer = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        answer_of(command.arg(ABOUT_GPU).env("CUDA_VISIBLE_DEVICES", id))
    });
    match answer {
        Err(error) => nothing(error.to_string()),
        Ok(None) => nothing(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Some(answer)) => serde_json::from_slice(&answer.stdout)
            .unwrap_or_else(|_| nothing(answer.status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_gpus_is_not_asked() {
        let machine = Machine::new(DeviceChoice::Auto, Vec::new());
        assert_eq!(machine.gpu(0).unwrap_err().message, "no GPU is visible");
    }
}
