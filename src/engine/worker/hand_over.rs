//! Handing a stage over to the program that is built for GPUs.
//!
//! That program needs the driver and the libraries of CUDA to start at all; the ordinary one starts anywhere, finds out
//! what there is on the machine that runs the stage, and turns into the other one.

use std::fmt::Write as _;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::Job;
use crate::engine::machine::{AboutGpu, CudaVersion, Driver, DriverError, Gpu, Refusal, host_name};
use crate::engine::processes::answer_of;
use crate::engine::stage::StageError;
use crate::excerpt::{MESSAGE, excerpt};

/// Whether this program computes on GPUs itself.
pub(super) const IS_FOR_GPUS: bool = cfg!(feature = "cuda");

/// The variable that names the program for GPUs.
const PROGRAM: &str = "FLOWGRAPH_CUDA";
/// Its name beside this one.
const NAME: &str = "flowgraph-cuda";

/// Its command that says what it was built for.
pub const ABOUT: &str = "about-cuda";
/// The option of `worker` that names the open file with the job.
const JOB_OPTION: &str = "--job";

/// The CUDA that a program is built with where nothing else was asked for: what candle's kernels are compiled by.
const CUDA: u32 = 13000;
/// The compute capability that they are compiled for, as the environment of the build names it.
const CAPABILITY: Option<&str> = option_env!("CUDA_COMPUTE_CAP");

/// What a program for GPUs says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of flowgraph.
    pub flowgraph: String,
    /// Whether it computes on GPUs.
    pub computes_on_gpus: bool,
    /// The CUDA that the driver must know.
    pub cuda: CudaVersion,
    /// The compute capability of the GPUs that its kernels run on; unknown is 0.
    pub capability: u32,
}

impl About {
    /// Describes this program.
    pub fn this() -> Self {
        Self {
            flowgraph: env!("CARGO_PKG_VERSION").to_owned(),
            computes_on_gpus: IS_FOR_GPUS,
            cuda: CudaVersion(CUDA),
            capability: CAPABILITY.and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    }
}

/// Describes the GPU that the stage was given, if this program, or the one that it is handed to, can compute there.
pub(super) fn usable_gpu(about: &About) -> Result<Gpu, StageError> {
    let host = host_name();
    let driver = start_driver()?;
    let version = driver.version().map_err(refused)?;
    if version < about.cuda {
        return Err(StageError::new(format!(
            "on {host} the NVIDIA driver knows CUDA {version}, and the program for GPUs needs {}",
            about.cuda
        ))
        .hint("a newer driver is needed: 580 or later for CUDA 13.0"));
    }
    let gpu = driver.gpu(0).map_err(refused)?;
    if about.capability != 0 && gpu.capability != about.capability {
        return Err(StageError::new(format!(
            "on {host} the {} has compute capability {}, and the program for GPUs is built for {}",
            gpu.name,
            dotted(gpu.capability),
            dotted(about.capability)
        ))
        .hint(format!(
            "build it with `CUDA_COMPUTE_CAP={}`",
            gpu.capability
        )));
    }
    Ok(gpu)
}

fn start_driver() -> Result<Driver, StageError> {
    Driver::start().map_err(refused)
}

fn refused(error: DriverError) -> StageError {
    StageError::new(format!("on {} {error}", host_name()))
        .hint("an NVIDIA GPU with its driver is needed; `--device cpu` computes on the processor")
}

fn dotted(capability: u32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

/// Describes the first GPU that this process sees, and says why the tensors of a stage cannot lie there.
pub fn about_gpu() -> AboutGpu {
    let driver = start_driver();
    let gpu = driver.and_then(|driver| driver.gpu(0).map_err(refused));
    let usable = if IS_FOR_GPUS {
        usable_gpu(&About::this())
    } else {
        found_program().map(|(_, gpu)| gpu)
    };
    AboutGpu {
        gpu: gpu.map_err(Refusal::from),
        refusal: usable.err().map(Refusal::from),
    }
}

/// Turns this process into the program for GPUs, which goes on with the job; returns only why it cannot.
pub(super) fn hand_over(job: &Job) -> StageError {
    let attempt = || -> Result<std::convert::Infallible, StageError> {
        let (program, _) = found_program()?;
        let told = told(job)?;
        let error = Command::new(&program)
            .arg("worker")
            .arg(JOB_OPTION)
            .arg(told.as_raw_fd().to_string())
            .exec();
        Err(StageError::new(format!(
            "cannot start {}: {error}",
            program.display()
        )))
    };
    match attempt() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Finds the program for GPUs, and the GPU that it can compute on.
fn found_program() -> Result<(PathBuf, Gpu), StageError> {
    let program = program()?;
    // Without it the other program would not start, and its loader says no more than a name.
    start_driver()?;
    let about = ask(&program)?;
    let own = env!("CARGO_PKG_VERSION");
    if about.flowgraph != own {
        return Err(StageError::new(format!(
            "{} is flowgraph {}, and this is {own}",
            program.display(),
            about.flowgraph
        ))
        .hint("build both from the same source"));
    }
    if !about.computes_on_gpus {
        return Err(StageError::new(format!(
            "{} is flowgraph, but not built for GPUs",
            program.display()
        ))
        .hint("build it with `cargo build --release --features cuda`"));
    }
    let gpu = usable_gpu(&about)?;
    Ok((program, gpu))
}

/// Finds the program for GPUs.
fn program() -> Result<PathBuf, StageError> {
    let named = std::env::var_os(PROGRAM).filter(|name| !name.is_empty());
    let (path, from) = match named {
        Some(named) => (in_path(named.into()), format!("{PROGRAM} names")),
        None => {
            let own = std::env::current_exe()?;
            (own.with_file_name(NAME), "it lies beside this one:".into())
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(StageError::new(format!(
        "on {} there is no program for GPUs: {from} {}",
        host_name(),
        path.display()
    ))
    .hint(format!(
        "build it with `cargo build --release --features cuda` and name it in {PROGRAM}, or put it there as `{NAME}`"
    )))
}

/// Returns where a program lies that is named without a folder: in one of those of `PATH`, as a shell would find it.
fn in_path(named: PathBuf) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_name = named.components().count() == 1 && !named.is_absolute();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(&named));
    let mut found = found.filter(|path| is_name && path.is_file());
    found.next().unwrap_or(named)
}

/// What it must be.
const WANTED: &str = "it must be flowgraph, built from the same source with `--features cuda`";

/// Asks the program for GPUs what it was built for; the loader's words are those of the error if it does not start.
fn ask(program: &Path) -> Result<About, StageError> {
    let failed = |why: String, hint: &str| {
        let why = excerpt(&why, MESSAGE);
        Err(StageError::new(format!(
            "on {} {} does not start: {why}",
            host_name(),
            program.display()
        ))
        .hint(hint.to_owned()))
    };
    let answer = match answer_of(Command::new(program).arg(ABOUT)) {
        Ok(Some(answer)) => answer,
        Ok(None) => return failed("it gives no answer".to_owned(), WANTED),
        Err(error) => return failed(error.to_string(), "it must be a program for this machine"),
    };
    if answer.status.success() {
        return serde_json::from_slice(&answer.stdout).map_err(|_| {
            StageError::new(format!(
                "on {} {} says of itself what this flowgraph does not know",
                host_name(),
                program.display()
            ))
            .hint(WANTED)
        });
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    let said = said.lines().find(|line| !line.trim().is_empty());
    match said {
        Some(said) if said.contains("libcuda.so") => failed(
            said.trim().to_owned(),
            "NVIDIA's driver is not installed on this machine; `--device cpu` computes on the processor",
        ),
        Some(said) if said.contains("shared librar") => failed(
            said.trim().to_owned(),
            "it needs CUDA's libraries (cuBLAS, cuRAND, the runtime): install them, or name their folder in LD_LIBRARY_PATH",
        ),
        said => {
            let mut why = answer.status.to_string();
            if let Some(said) = said {
                let _ = write!(why, ": {}", said.trim());
            }
            failed(why, WANTED)
        }
    }
}

/// Writes the job to a file without a name, which the next program inherits: standard input stays the link to the executor.
fn told(job: &Job) -> Result<OwnedFd, StageError> {
    let file = memfd_create("job", MemfdFlags::empty()).map_err(std::io::Error::from)?;
    let mut file = std::fs::File::from(file);
    file.write_all(serde_json::to_string(job)?.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads the job that another program wrote there.
pub(super) fn read_told(number: i32) -> std::io::Result<String> {
    #[expect(
        unsafe_code,
        reason = "the number was given on the command line for this, and is used once"
    )]
    let mut file = unsafe { std::fs::File::from_raw_fd(number) };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}
