//! This machine: where a stage can compute, and what records say of where it did.

use serde::{Deserialize, Serialize};

/// Where a run is asked to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// On the GPUs that a stage asks for, where there are any and its kind can use them; else on the processor.
    #[default]
    Auto,
    /// On the processor alone.
    Cpu,
    /// On a GPU, or not at all.
    Cuda,
}

/// Returns the ids of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` has them.
pub fn visible_gpus() -> Vec<String> {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(ids) => ids
            .split(',')
            .map(str::trim)
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .collect(),
        Err(_) => std::fs::read_dir("/proc/driver/nvidia/gpus")
            .map(|gpus| (0..gpus.count()).map(|id| id.to_string()).collect())
            .unwrap_or_default(),
    }
}

/// The variable that chooses another form of the operations: `composed` ones are those of other devices, on a processor.
pub const KERNELS: &str = "FLOWGRAPH_KERNELS";

/// Its value for the form of other devices.
pub const COMPOSED: &str = "composed";

/// The class of results that a processor computed in that form, for checking.
const COMPOSED_CLASS: &str = "composed/1";

/// Names the arithmetic of a device: within that of processors, equal fingerprints give equal bytes.
///
/// All processors are one class; its number rises when their arithmetic changes. Results of the other classes are alike but
/// for rounding.
pub fn numerics_class(device: &str) -> String {
    let is_composed = || std::env::var_os(KERNELS).is_some_and(|form| form == COMPOSED);
    let class = if device.starts_with("cuda") {
        "cuda"
    } else if is_composed() {
        COMPOSED_CLASS
    } else {
        "cpu/2"
    };
    class.to_owned()
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
