//! This machine: where a stage can compute, and what records say of where it did.

mod driver;
mod probe;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::artifact::Digest;
use super::stage::GpuUse;

pub use driver::{CudaVersion, Driver, DriverError, Gpu, Products};
pub use probe::{ABOUT_GPU, AboutGpu, Machine, Refusal, too_small};

/// Where a run is asked to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// On the GPUs that a stage asks for, where they can be had and its kind can use them; else on the processor.
    #[default]
    Auto,
    /// On the processor alone.
    Cpu,
    /// All that a GPU can compute on one, or not at all.
    Cuda,
}

impl DeviceChoice {
    /// Returns how many GPUs a stage is to be given that asks for `asked`.
    pub fn gpus(self, gpu_use: GpuUse, asked: usize) -> usize {
        match (self, gpu_use) {
            (Self::Cpu, _) | (_, GpuUse::None) => 0,
            (_, GpuUse::Program) => asked,
            // The tensors of a stage lie on one.
            (Self::Auto, GpuUse::Tensors) => asked.min(1),
            (Self::Cuda, GpuUse::Tensors) => 1,
        }
    }
}

/// Whether an error tells that a GPU had no room, in the words of CUDA's libraries.
pub fn is_about_gpu_memory(message: &str) -> bool {
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|code| message.contains(code))
}

/// What a stage computed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Tokens that were trained on or generated.
    pub tokens: u64,
    /// Floating-point operations of the models.
    pub flops: f64,
}

/// Where a stage computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the processor.
    Processor,
    /// Wherever a program of its own does, which sees GPUs.
    Program,
    /// Its tensors lie on a GPU.
    Gpu(Gpu),
}

impl Place {
    /// Names it as a record does.
    pub fn device(&self) -> &'static str {
        match self {
            Self::Processor => "cpu",
            // As the process sees it: no other is shown to it.
            Self::Program | Self::Gpu(_) => "cuda:0",
        }
    }
}

/// Returns the ids of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` has them.
///
/// As CUDA reads it, the list ends before the first that is none, such as -1.
pub fn visible_gpus() -> Vec<String> {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(ids) => ids_in(&ids),
        Err(_) => std::fs::read_dir("/proc/driver/nvidia/gpus")
            .map(|gpus| (0..gpus.count()).map(|id| id.to_string()).collect())
            .unwrap_or_default(),
    }
}

fn ids_in(list: &str) -> Vec<String> {
    let is_id = |id: &&str| {
        !id.is_empty() && id.chars().all(|sign| sign.is_ascii_digit())
            || id.starts_with("GPU-")
            || id.starts_with("MIG-")
    };
    let mut ids: Vec<String> = Vec::new();
    for id in list.split(',').map(str::trim).take_while(is_id) {
        if !ids.iter().any(|known| known == id) {
            ids.push(id.to_owned());
        }
    }
    ids
}

/// The variable that chooses another form of the operations: `composed` ones are those of other devices, on a processor.
pub const KERNELS: &str = "FLOWGRAPH_KERNELS";

/// Its value for the form of other devices.
pub const COMPOSED: &str = "composed";

/// The class of results that a processor computed in that form, for checking.
const COMPOSED_CLASS: &str = "composed/1";

/// Names the arithmetic of a place: within that of processors, equal fingerprints give equal bytes.
///
/// All processors are one class, and all GPUs of one compute capability; the number of a class rises when its arithmetic
/// changes. Results of different classes are alike but for rounding.
pub fn numerics_class(place: &Place) -> String {
    let is_composed = || std::env::var_os(KERNELS).is_some_and(|form| form == COMPOSED);
    match place {
        Place::Gpu(gpu) => format!("cuda-sm{}/1", gpu.capability),
        Place::Program => "cuda".to_owned(),
        Place::Processor if is_composed() => COMPOSED_CLASS.to_owned(),
        Place::Processor => "cpu/2".to_owned(),
    }
}

/// Whether results of one class may stand in for those of another: those that were made for checking never do.
pub fn may_stand_in(class: &str, other: &str) -> bool {
    class == other || ![class, other].contains(&COMPOSED_CLASS)
}

/// Returns the machine's name.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// Returns the name of the user that this process runs as, or the number where there is no name.
pub fn user_name() -> String {
    let number = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&number)).then(|| name.to_owned())
    });
    // Users of a group's directory are in no file of this machine.
    let told = || std::env::var("USER").ok().filter(|name| !name.is_empty());
    named.or_else(told).unwrap_or(number)
}

/// Returns a name that no process of any machine was given before.
pub(super) fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (count, id) = (COUNT.fetch_add(1, Ordering::Relaxed), std::process::id());
    let now = jiff::Timestamp::now().as_nanosecond();
    Digest::of(format!("{} {id} {now} {count}", host_name()).as_bytes()).short()
}

/// What a process used.
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) peak_memory_bytes: u64,
}

/// Returns what this process and its ended children used.
pub(super) fn usage() -> Usage {
    let mut total = Usage {
        cpu_seconds: 0.0,
        peak_memory_bytes: 0,
    };
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        #[expect(
            unsafe_code,
            reason = "the standard library has no getrusage; the struct is plain numbers"
        )]
        let usage = unsafe {
            libc::getrusage(who, usage.as_mut_ptr());
            usage.assume_init()
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
        total.cpu_seconds += seconds(usage.ru_utime) + seconds(usage.ru_stime);
        // Linux counts kilobytes.
        total.peak_memory_bytes = total
            .peak_memory_bytes
            .max(usage.ru_maxrss.unsigned_abs() * 1024);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_gpus_ends_before_the_first_that_is_none() {
        assert_eq!(ids_in("3, 5"), ["3", "5"]);
        assert_eq!(ids_in("GPU-1f2e,MIG-77"), ["GPU-1f2e", "MIG-77"]);
        assert_eq!(ids_in("3,-1,5"), ["3"]);
        assert_eq!(ids_in("3,3,4"), ["3", "4"]);
        for none in ["", "-1", "NoDevFiles", "none", "void"] {
            assert!(ids_in(none).is_empty(), "{none}");
        }
    }
}
