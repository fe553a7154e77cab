//! `command`: any program as a stage.

mod process;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::artifact::{Digest, is_inside};
use crate::engine::context::{RunContext, input_folder};
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::sources::Source;

/// Runs a shell command; what it writes becomes artifacts.
///
/// The working directory is an empty scratch folder that holds copies of the `code` files. Each input port is an
/// environment variable with the artifact's path: the file itself where the artifact is one file, its folder
/// otherwise; several paths are separated by spaces. `$x` belongs to the shell, `${x}` to flowgraph. The
/// environment is empty but for PATH, HOME, LANG, the ports, and what `env` and `secret_env` name.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Shell text, run by `sh -e`.
    run: String,
    /// For each output, the file or folder that the command writes; the first by name is the default output.
    outputs: BTreeMap<String, String>,
    /// Files that the command needs; copied into the working directory under their relative path, and hashed.
    #[serde(default)]
    code: Vec<String>,
    /// Environment variables passed on; their values count (as digests).
    #[serde(default)]
    env: Vec<String>,
    /// Environment variables passed on whose values do not count and are stored nowhere.
    #[serde(default, skip_serializing)]
    secret_env: Vec<String>,
}

/// `CUDA_VISIBLE_DEVICES` names the GPUs that the stage was given.
const PASSED: [&str; 4] = ["PATH", "HOME", "LANG", "CUDA_VISIBLE_DEVICES"];

impl Kind for Command {
    const NAME: &'static str = "command";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = r#"{ run: "python3 plot.py $scores > fig.svg", outputs: { svg: fig.svg }, code: [plot.py] }"#;

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn has_free_ports(&self) -> bool {
        true
    }

    fn outputs(&self) -> Vec<Output> {
        self.outputs
            .keys()
            .map(|name| Output::new(name, "file").foreign())
            .collect()
    }

    fn sources(&self) -> Vec<SourceParam> {
        self.code
            .iter()
            .map(|path| SourceParam {
                key: path.clone(),
                source: Source::File(path.into()),
                sha256: None,
            })
            .collect()
    }

    fn uses_gpus(&self) -> bool {
        true
    }

    fn environment(&self) -> Vec<String> {
        self.env
            .iter()
            .map(|name| match std::env::var_os(name) {
                Some(value) => format!("{name}={}", Digest::of(value.as_encoded_bytes())),
                None => format!("{name}=unset"),
            })
            .collect()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.run.trim().is_empty() {
            problems.push(Problem::new("run", "`run` is empty"));
        }
        if self.outputs.is_empty() {
            problems.push(
                Problem::new("outputs", "a command needs at least one output")
                    .hint("for example `outputs: { svg: fig.svg }`"),
            );
        }
        for (name, path) in &self.outputs {
            if !crate::engine::reference::is_name(name) {
                problems.push(Problem::new(
                    &format!("outputs.{name}"),
                    format!("`{name}` cannot name an output"),
                ));
            }
            if !is_inside(path) {
                problems.push(
                    Problem::new(
                        &format!("outputs.{name}"),
                        format!("`{path}` leaves the working directory"),
                    )
                    .hint("outputs are written in the working directory"),
                );
            }
        }
        for path in self.code.iter().filter(|path| !is_inside(path)) {
            problems.push(
                Problem::new(
                    "code",
                    format!("`{path}` is not a relative path without `..`"),
                )
                .hint("code files are copied into the working directory under their relative path"),
            );
        }
        for name in self.env.iter().chain(&self.secret_env) {
            if PASSED.contains(&name.as_str())
                || name.starts_with("LD_")
                || name.contains(['=', '\0'])
                || name.is_empty()
            {
                problems.push(Problem::new("env", format!("`{name}` cannot be passed on")));
            }
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let work = ctx.scratch("work")?;
        for path in &self.code {
            let target = work.join(path);
            if let Some(folder) = target.parent() {
                fs_err::create_dir_all(folder)?;
            }
            fs_err::copy(ctx.source(path)?, &target)?;
        }
        let before = input_times(ctx)?;
        let named = PASSED.iter().copied();
        let named = named.chain(self.env.iter().chain(&self.secret_env).map(String::as_str));
        let mut variables: Vec<(String, OsString)> = named
            .filter_map(|name| Some((name.to_owned(), std::env::var_os(name)?)))
            .collect();
        for (port, inputs) in ctx.all_inputs() {
            let paths: Vec<String> = inputs
                .iter()
                .enumerate()
                .map(|(index, input)| relative_path(port, index, &input.files))
                .collect();
            variables.push((port.clone(), paths.join(" ").into()));
        }
        process::run(&self.run, &work, variables, ctx)?;
        if input_times(ctx)? != before {
            return Err(StageError::new("the command changed one of its inputs")
                .hint("inputs belong to the store: write to the working directory instead"));
        }
        for (name, path) in &self.outputs {
            take_output(&work, path, &ctx.output(name)?)?;
        }
        Ok(())
    }
}

/// The path of an input from the working directory: relative, so that it says nothing of this machine.
fn relative_path(port: &str, index: usize, files: &[String]) -> String {
    let folder = format!("../{}", input_folder(port, index));
    match files {
        [file] => format!("{folder}/{file}"),
        _ => folder,
    }
}

type FileTimes = Vec<(PathBuf, u64, Option<std::time::SystemTime>)>;

fn input_times(ctx: &RunContext) -> Result<FileTimes, StageError> {
    let mut times = Vec::new();
    for input in ctx.all_inputs().values().flatten() {
        for file in &input.files {
            let path = input.path.join(file);
            let metadata = fs_err::metadata(&path)?;
            times.push((path, metadata.len(), metadata.modified().ok()));
        }
    }
    Ok(times)
}

fn take_output(work: &Path, path: &str, folder: &Path) -> Result<(), StageError> {
    let written = work.join(path);
    let Ok(metadata) = fs_err::symlink_metadata(&written) else {
        return Err(
            StageError::new(format!("the command did not write `{path}`"))
                .hint("each path in `outputs` is relative to the working directory"),
        );
    };
    if metadata.is_dir() {
        fs_err::remove_dir(folder)?;
        fs_err::rename(&written, folder)?;
    } else if metadata.is_file() {
        let name = written.file_name().unwrap_or_default();
        fs_err::rename(&written, folder.join(name))?;
    } else {
        return Err(StageError::new(format!(
            "output `{path}` is neither a file nor a folder"
        )));
    }
    Ok(())
}
