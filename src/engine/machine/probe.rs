//! Whether tensors can lie on a GPU here, asked of another process: a driver may take its time, hang or crash.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{DeviceChoice, Gpu, visible_gpus};
use crate::engine::processes::kill_group;
use crate::engine::stage::{GpuUse, StageError};

/// The command of this program that answers.
pub const ABOUT_GPU: &str = "about-gpu";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of an answer is read.
const LONGEST: u64 = 1 << 16;

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
        }
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
        self.device.gpus(gpu_use, asked) > 0 && !self.gpus.is_empty()
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

/// What a short-lived program said.
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// The beginning of what it printed.
    pub stdout: Vec<u8>,
    /// The beginning of its errors.
    pub stderr: Vec<u8>,
}

/// Runs a program that has little to say; `None` if it does not end in time. It is ended then, and what it started.
pub fn answer_of(command: &mut Command) -> std::io::Result<Option<Answer>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let stdout = child.stdout.take().map(beginning_of);
    let stderr = child.stderr.take().map(beginning_of);
    let status = within(&mut child, PATIENCE)?;
    if status.is_none() {
        kill_group(i32::try_from(child.id()).unwrap_or(0));
        child.wait()?;
    }
    let said = |of: Option<Receiver<Vec<u8>>>| {
        // What it left running may hold the pipe open.
        let said = of.and_then(|of| of.recv_timeout(Duration::from_secs(1)).ok());
        said.unwrap_or_default()
    };
    Ok(status.map(|status| Answer {
        status,
        stdout: said(stdout),
        stderr: said(stderr),
    }))
}

fn within(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        match child.try_wait()? {
            None if begun.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
            ended => return Ok(ended),
        }
    }
}

/// Reads the beginning of what a program says, and lets it say the rest.
fn beginning_of(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = pipe.by_ref().take(LONGEST).read_to_end(&mut said);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        let _ = sender.send(said);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_answer_the_beginning_is_read() {
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 300000 /dev/zero; echo no >&2; exit 3"]);
        let answer = answer_of(&mut command).unwrap().unwrap();
        assert_eq!(answer.stdout.len() as u64, LONGEST);
        assert_eq!(
            (&*answer.stderr, answer.status.code()),
            (&b"no\n"[..], Some(3))
        );
    }

    #[test]
    fn a_machine_without_gpus_is_not_asked() {
        let machine = Machine::new(DeviceChoice::Auto, Vec::new());
        assert_eq!(machine.gpu(0).unwrap_err().message, "no GPU is visible");
    }
}
