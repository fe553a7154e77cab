//! `command`: any program as a stage.

mod outputs;
pub(super) mod paths;
mod process;
mod same_rows;
mod taken;
pub(super) mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::outputs::{DeclaredOutput, TypedOutput};
use self::variables::{GPUS, PATH};
use crate::artifacts::completions::{ROWS, ROWS_PER_PROMPT};
use crate::engine::context::{RunContext, input_folder};
use crate::engine::facts::Known;
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};

/// Runs a shell command; what it writes becomes artifacts.
///
/// The working directory is an empty scratch folder that holds copies of the `code`. Each input port is an
/// environment variable with the artifact's path: the file itself where the artifact is one file, its folder
/// otherwise; several paths are separated by spaces. `$x` belongs to the shell, `${x}` to flowgraph.
///
/// The environment is empty but for the ports, what `env` and `secret_env` name, PATH, an empty HOME of the stage's
/// own, LANG=C.UTF-8 and CUDA_VISIBLE_DEVICES, which is empty unless the stage asks for GPUs with
/// `resources: { gpus: 1 }`. The umask is 022, and there is no terminal. What PATH finds does not count: another version
/// of a program gives no new result unless the command says so (`env: [PATH]` counts the folders, `code` the program
/// itself). Nor do the machine's time zone and limits (`ulimit`), and what a command reads by absolute paths.
///
/// What the command leaves running when it ends, or is ended by a `timeout`, is killed.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Shell text, run by `sh -e`.
    run: String,
    /// For each output, the file or folder that the command writes; the first by name is the default output.
    ///
    /// `NAME: PATH` is an output of kind `file`, which other commands take: contents, names and executable bits are
    /// kept; links may lead to inputs only, and empty folders within one are left out. `NAME: { path: PATH, kind: scores }`
    /// is an artifact of that kind, which any port for it takes: `flowgraph kinds --artifacts KIND` says what it must
    /// hold, which is checked when the command ends. Rows are parquet, one JSON object a line, or CSV; a model is a folder
    /// in the layout of the Hugging Face hub.
    outputs: BTreeMap<String, DeclaredOutput>,
    /// Files and folders that the command needs; copied into the working directory under their relative path. Contents,
    /// names, links and executable bits count. Of a folder, `.git`, `.flowgraph` and `__pycache__` are left out.
    #[serde(default, deserialize_with = "paths::in_list")]
    code: Vec<String>,
    /// Environment variables passed on; their values count (as digests).
    #[serde(default)]
    env: Vec<String>,
    /// Environment variables passed on whose values do not count and are stored nowhere: only their names count, and
    /// they must be set. In the log and in messages a value of 4 bytes or more is masked, as is each of its lines of 8 or
    /// more, also as they stand between the quotes of a shell, JSON or Python; what else the command makes of it (base64, a
    /// part) is not, and an output that holds it is stored with a warning.
    #[serde(default, skip_serializing)]
    secret_env: Vec<String>,
}

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
            .iter()
            .map(|(name, output)| output.declared(name))
            .collect()
    }

    fn code(&self) -> Vec<String> {
        self.code.clone()
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Program
    }

    fn environment(&self) -> Vec<String> {
        variables::in_manifest(&self.env, &self.secret_env)
    }

    fn secrets(&self) -> Vec<String> {
        self.secret_env.clone()
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
        for (name, output) in &self.outputs {
            output.check(name, &mut problems);
            if !crate::engine::reference::is_name(name) {
                problems.push(Problem::new(
                    &format!("outputs.{name}"),
                    format!("`{name}` cannot name an output"),
                ));
            }
        }
        let paths = self.outputs.iter();
        let paths: Vec<(&str, &str)> = paths
            .map(|(name, output)| (name.as_str(), output.path()))
            .collect();
        paths::check(&paths, &self.code, &mut problems);
        let both = [("env", &self.env), ("secret_env", &self.secret_env)];
        variables::check(&both, &mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let work = fs_err::canonicalize(ctx.scratch("work")?)?;
        ctx.lay_out_code(&work)?;
        // Beside the working directory.
        let home = ctx.scratch("home")?;
        let home = work.with_file_name(home.file_name().unwrap_or_default());
        let environment = self.variables(home, ctx)?;
        let before = input_times(ctx)?;
        let has_secrets = !self.secret_env.is_empty();
        process::run(&self.run, &work, environment, has_secrets, ctx)?;
        if input_times(ctx)? != before {
            return Err(StageError::new("the command changed one of its inputs")
                .hint("inputs belong to the store: write to the working directory instead"));
        }
        // Before any of them is taken: one may be written through another.
        for output in self.outputs.values() {
            check_output(&work, output.path())?;
        }
        for (name, output) in &self.outputs {
            match output.typed() {
                Some(typed) => taken::take(typed, name, &work, ctx)?,
                None => take_output(&work, output.path(), &ctx.output(name)?)?,
            }
        }
        Ok(())
    }

    fn facts(&self, known: &mut Known<'_>) {
        for (name, output) in &self.outputs {
            if output.typed().is_some_and(TypedOutput::has_rows_of_input) {
                known.passes_on_of_only_input(name, &[ROWS, ROWS_PER_PROMPT]);
            }
        }
    }
}

impl Command {
    /// Returns all that the command's environment holds.
    fn variables(
        &self,
        home: PathBuf,
        ctx: &mut RunContext,
    ) -> Result<Vec<(String, OsString)>, StageError> {
        let mut variables = vec![
            ("HOME".to_owned(), home.into_os_string()),
            ("LANG".to_owned(), OsString::from("C.UTF-8")),
        ];
        variables.retain(|(name, _)| !self.env.contains(name));
        let mut pass_on = |name: &str| {
            let value = std::env::var_os(name);
            variables.extend(value.map(|value| (name.to_owned(), value)));
        };
        if !self.env.iter().any(|name| name == PATH) {
            pass_on(PATH);
        }
        pass_on(GPUS);
        for name in &self.env {
            pass_on(name);
        }
        for name in &self.secret_env {
            variables.push((name.clone(), variables::secret(name, ctx)?));
        }
        for (port, inputs) in ctx.all_inputs() {
            if variables.iter().any(|(name, _)| name == port) {
                return Err(StageError::new(format!(
                    "`{port}` is both a port and an environment variable"
                ))
                .hint("give the port another name"));
            }
            let paths: Vec<String> = inputs
                .iter()
                .enumerate()
                .map(|(index, input)| relative_path(port, index, &input.files))
                .collect();
            variables.push((port.clone(), paths.join(" ").into()));
        }
        Ok(variables)
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

/// Checks that an output is there, and that taking it takes it from nobody else.
fn check_output(work: &Path, path: &str) -> Result<(), StageError> {
    let written = work.join(path);
    let Ok(metadata) = fs_err::symlink_metadata(&written) else {
        return Err(
            StageError::new(format!("the command did not write `{path}`"))
                .hint("each path in `outputs` is relative to the working directory"),
        );
    };
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(StageError::new(format!(
            "output `{path}` is neither a file nor a folder"
        )));
    }
    if path.contains('/') && fs_err::canonicalize(&written)? != written {
        return Err(
            StageError::new(format!("output `{path}` is reached through a link"))
                .hint("write the output itself into the working directory"),
        );
    }
    Ok(())
}

fn take_output(work: &Path, path: &str, folder: &Path) -> Result<(), StageError> {
    let written = work.join(path);
    if written.is_dir() {
        fs_err::remove_dir(folder)?;
        fs_err::rename(&written, folder)?;
    } else {
        let name = written.file_name().unwrap_or_default();
        fs_err::rename(&written, folder.join(name))?;
    }
    Ok(())
}
