//! The command line: one file per command. Only this layer prints.

mod attach;
mod audit;
mod check;
mod cluster;
mod compare;
mod completions;
mod costs;
mod detached;
mod diagnostics;
mod diff;
mod export;
mod export_provenance;
mod gc;
mod graph;
mod init;
mod interrupts;
mod kinds;
mod logs;
mod meant;
mod model_card;
mod nearest_store;
mod output;
mod plan;
mod progress;
mod remote;
mod report;
mod results;
mod run;
mod runs;
mod schema;
mod show;
mod table_rows;
mod text;
mod tracking;
mod verify;
mod watch;
mod why;

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::OsStringValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::engine::launch::run_agent;
use crate::engine::machine::ABOUT_GPU;
use crate::engine::overrides::Overrides;
use crate::engine::spec::{LoadError, Pipeline};
use crate::engine::stage::{Registry, StageError};
use crate::engine::store::{Lock, LockState, Store};
use crate::engine::worker;
use crate::ml::kernels::form::Form;
use crate::ml::kernels::process::prepare;
use crate::ml::kernels::simd::Path;
use output::Output;
use text::visible;

/// Exit codes, stable for scripts.
pub mod exit_code {
    /// Done.
    pub const OK: u8 = 0;
    /// A stage failed.
    pub const STAGE_FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// The pipeline is invalid.
    pub const INVALID_PIPELINE: u8 = 3;
    /// The store is damaged.
    pub const STORE_DAMAGED: u8 = 4;
    /// An audit found other results than the stored ones.
    pub const AUDIT_DIFFERENT: u8 = 5;
    /// `plan --exit-code`, and something would run.
    pub const WOULD_RUN: u8 = 10;
    /// Interrupted by a signal.
    pub const INTERRUPTED: u8 = 130;
}

/// Declarative, cached experiment graphs for GFlowNet and RLHF training of language models.
#[derive(Debug, Parser)]
#[command(
    name = "flowgraph",
    version,
    max_term_width = 100,
    after_help = "\
Start with `flowgraph run pipelines/flowhf.yaml`; see what would happen first with `flowgraph plan`.\n\
Exit codes: 0 done, 1 a stage failed, 2 usage, 3 invalid pipeline, 4 store damaged, 5 audit found a difference,\n\
10 `plan --exit-code` and something would run, 130 interrupted."
)]
struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct GlobalOptions {
    /// Folder that holds results (default: the nearest .flowgraph above the pipeline or the current folder, else a new one
    /// here)
    #[arg(long, global = true, env = "FLOWGRAPH_STORE", value_name = "DIR", value_parser = OsStringValueParser::new())]
    store: Option<OsString>,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
    /// Use colour
    #[arg(long, global = true, value_enum, default_value = "auto")]
    color: ColorChoice,
    /// Say less
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Show all columns of tables, also those that the terminal has no room for
    #[arg(long, global = true)]
    wide: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// A pipeline and what changes it.
#[derive(Debug, Args)]
struct PipelineOptions {
    /// Pipeline file
    pipeline: PathBuf,
    /// Apply a profile of the pipeline; may be given several times, later ones win
    #[arg(long = "profile", short = 'p', value_name = "NAME")]
    profiles: Vec<String>,
    /// Set a param, as in `--set ppo.lr=2e-5`, or part of a stage, as in `--set stages.sft.params.steps=10`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl PipelineOptions {
    /// Loads the pipeline. It is never taken apart: with 10,000 stages that takes longer than to exit.
    fn load(&self, registry: &Registry) -> Result<ManuallyDrop<Pipeline>, Failure> {
        let overrides = Overrides {
            profiles: self.profiles.clone(),
            set: self.set.clone(),
        };
        let pipeline = Pipeline::load(&self.pipeline, &overrides, registry)?;
        Ok(ManuallyDrop::new(pipeline))
    }
}

/// The user's file of a name with settings for all pipelines.
fn user_file(name: &str) -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = of("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(of("HOME")?).join(".config")))?;
    Some(folder.join("flowgraph").join(name))
}

/// Finds the stages that a name or a reference means; see [`Pipeline::find_all`].
fn stages_named(pipeline: &Pipeline, name: &str) -> Result<Vec<usize>, Failure> {
    let found = pipeline.find_all(name);
    if found.is_empty() {
        return Err(Failure::usage(
            pipeline.find(name).err().unwrap_or_default(),
        ));
    }
    Ok(found)
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a pipeline to begin with
    Init(init::InitArgs),
    /// Execute what is not cached, and print the tables
    Run(run::RunArgs),
    /// Say what `run` would do, and why
    Plan(plan::PlanArgs),
    /// Show what a stage's result is made of, and what changed since the one before
    Why(why::WhyArgs),
    /// Validate a pipeline with each of its profiles
    Check(check::CheckArgs),
    /// Print a result: a table, metrics, text, or where it is
    Show(show::ShowArgs),
    /// Copy a result out of the store
    Export(export::ExportArgs),
    /// Write the results as one file to read, for a browser or as Markdown
    Report(report::ReportArgs),
    /// Compute stored results again from their recorded inputs, and compare
    Audit(audit::AuditArgs),
    /// List the runs of the store
    Runs(runs::RunsArgs),
    /// Compare several runs: a row each, with the params that differ and chosen cells
    Compare(compare::CompareArgs),
    /// Show a run of another process while it goes on
    Watch(watch::WatchArgs),
    /// Say once how a run is: what is at work, and where jobs wait
    Status(watch::WatchArgs),
    /// Print what a stage printed
    Logs(logs::LogsArgs),
    /// Show a run that goes on elsewhere, or go on with one whose process is gone
    Attach(attach::AttachArgs),
    /// Ask a run to stop: what can will go on from where it was
    Cancel(attach::CancelArgs),
    /// Compare two runs: params, stages, tables
    Diff(diff::DiffArgs),
    /// Draw the graph
    Graph(graph::GraphArgs),
    /// List the stage kinds, or describe one
    Kinds(kinds::KindsArgs),
    /// Print the JSON schema of pipeline files, for editors
    Schema,
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Re-hash the store and name what is damaged
    Verify(verify::VerifyArgs),
    /// Say how results were made, as RO-Crate, W3C PROV or in-toto
    ExportProvenance(export_provenance::ExportProvenanceArgs),
    /// Take away results that no pipeline and no recent run needs
    Gc(gc::GcArgs),
    /// Send results to the shared store that are not there
    Push(remote::PushArgs),
    /// Bring the results of a pipeline here that the shared store has
    Pull(remote::PullArgs),
    /// Ask the shared store of a group, in a bucket or a folder
    Remote(remote::RemoteArgs),
    /// Run one stage; started by `run`
    #[command(hide = true)]
    Worker {
        /// Number of an open file with the job, which is on standard input otherwise
        #[arg(long, value_parser = clap::value_parser!(i32).range(3..))]
        job: Option<i32>,
    },
    /// Run the stages of a cluster's job; started by the jobs that `run --executor slurm` submits
    #[command(hide = true)]
    Agent {
        /// The job's folder
        folder: PathBuf,
    },
    /// Say what this program was built for, as JSON; asked of the program for GPUs
    #[command(hide = true, name = worker::ABOUT)]
    AboutCuda,
    /// Say which GPU the tensors of stages would lie on, as JSON; asked of this program by itself
    #[command(hide = true, name = ABOUT_GPU)]
    AboutGpu,
}

/// Why a command could not do its work.
enum Failure {
    /// The pipeline file.
    Load(LoadError),
    /// Anything else, with an exit code.
    Other {
        message: String,
        hint: Option<String>,
        code: u8,
    },
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self::Other {
            message: message.into(),
            hint: None,
            code: exit_code::USAGE,
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Failed { message, hint } => Self::Other {
                message,
                hint,
                code: exit_code::STAGE_FAILED,
            },
            StageError::Interrupted => Self::Other {
                message: "interrupted".to_owned(),
                hint: None,
                code: exit_code::INTERRUPTED,
            },
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        StageError::from(error).into()
    }
}

/// Keeps what a command reads from being collected meanwhile; waits while a collection is under way.
///
/// Where there is no lock to take, as in a store that is a copy for reading, nothing is collected either.
fn wait_for_collection(store: &Store, output: &Output) -> Option<Lock> {
    let mut told = false;
    while store.has_lock() {
        match store.try_share().ok()? {
            LockState::Held(lock) => return Some(lock),
            LockState::Busy { holder } => {
                if !told {
                    output.line(&format!("waits for {holder}"));
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    None
}

/// What a bug prints can hold what is in the files that it was about.
fn show_panics_without_control_characters() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.to_string();
        if visible(&said) == said {
            default(panic);
        } else {
            Output::default().error(&said, None);
        }
    }));
}

/// Runs the command line with the stage kinds of `registry`.
///
/// A program with kinds of its own calls this with its own table and has the whole command line.
pub fn main(registry: &Registry) -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli, nearest_store::pipelines(&matches)))
    });
    let (cli, pipelines) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // What is wrong is told with the argument in it: as people can read it.
            let readable = std::env::args_os().map(|given| {
                let given = given.to_string_lossy();
                visible(&given).into_owned()
            });
            let said = Cli::try_parse_from(readable).err();
            let written = said.as_ref().unwrap_or(&error).print();
            if error.use_stderr() {
                let words = std::env::args_os().skip(1);
                let words: Vec<String> = words
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                if let Some(hint) = meant::hint(&error, &words) {
                    Output::default().hint(hint);
                }
                return ExitCode::from(exit_code::USAGE);
            }
            output::note_lost(written);
            return ended(exit_code::OK, &Output::default());
        }
    };
    match cli.global.color {
        ColorChoice::Auto => {}
        ColorChoice::Always => anstream::ColorChoice::Always.write_global(),
        ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
    }
    if !matches!(cli.command, Command::Worker { .. }) {
        show_panics_without_control_characters();
    }
    let output = Output {
        json: cli.global.json,
        quiet: cli.global.quiet,
        verbose: cli.global.verbose,
        wide: cli.global.wide,
    };
    let uses_no_store = matches!(
        cli.command,
        Command::Init(_)
            | Command::Check(_)
            | Command::Graph(_)
            | Command::Kinds(_)
            | Command::Schema
            | Command::Completions(_)
            | Command::Worker { .. }
            | Command::Agent { .. }
            | Command::AboutCuda
            | Command::AboutGpu
    );
    // An empty variable is none.
    let folder = match cli.global.store.filter(|named| !named.is_empty()) {
        Some(named) => Ok(PathBuf::from(named)),
        None if uses_no_store => Ok(nearest_store::HERE.into()),
        None => nearest_store::nearest(&pipelines, &output),
    };
    let folder = match folder {
        Ok(folder) => folder,
        Err(failure) => return ExitCode::from(told(failure, &output)),
    };
    let mut store = Store::new(folder).stopped_by(interrupts::stop_flag());
    if !output.quiet && !output.json {
        store = store.tells_of_large_files(move |path, bytes| output.reading(path, bytes));
    }
    if !matches!(cli.command, Command::Worker { .. }) {
        if let Err(wrong) = Path::of_environment() {
            output.error(&wrong.message, Some(&wrong.hint));
            return ExitCode::from(exit_code::USAGE);
        }
        if let Err(wrong) = Form::of_environment() {
            output.error(&wrong, Some("without it the operations are fused"));
            return ExitCode::from(exit_code::USAGE);
        }
        if Path::best() == Path::Scalar
            && matches!(cli.command, Command::Run(_) | Command::Audit(_))
        {
            let message = "this processor has no fused products (FMA) that flowgraph knows";
            output.warning(
                message,
                "results are the same as anywhere, and take much longer",
            );
        }
    }
    // Runs and collections have locks of their own.
    let reads = matches!(
        cli.command,
        Command::Plan(_)
            | Command::Why(_)
            | Command::Show(_)
            | Command::Export(_)
            | Command::Report(_)
            | Command::Audit(_)
            | Command::Diff(_)
            | Command::Compare(_)
            | Command::Verify(_)
            | Command::ExportProvenance(_)
            | Command::Push(_)
            | Command::Pull(_)
    );
    // The others say which results are missing, and how to make them.
    let is_about_store = matches!(
        cli.command,
        Command::Verify(_)
            | Command::Runs(_)
            | Command::Watch(_)
            | Command::Compare(_)
            | Command::Diff(_)
    ) || matches!(&cli.command, Command::Gc(args) if args.remote.is_none());
    let is_something_else = !uses_no_store && store.root().exists();
    if (is_about_store || is_something_else) && !store.root().is_dir() {
        let message = format!("no store at {}", store.root().display());
        let hint =
            "`--store DIR` or FLOWGRAPH_STORE names the folder, and `flowgraph run` makes it";
        output.error(&message, Some(hint));
        return ExitCode::from(exit_code::USAGE);
    }
    let _in_use = reads.then(|| wait_for_collection(&store, &output));
    let result = match cli.command {
        Command::Init(args) => init::run(&args, &output),
        Command::Run(args) => run::run(&args, registry, &store, &output),
        Command::Plan(args) => plan::run(&args, registry, &store, &output),
        Command::Why(args) => why::run(&args, registry, &store, &output),
        Command::Check(args) => check::run(&args, registry, &output),
        Command::Show(args) => show::run(&args, registry, &store, &output),
        Command::Export(args) => export::run(&args, registry, &store, &output),
        Command::Report(args) => report::run(&args, registry, &store, &output),
        Command::Audit(args) => audit::run(&args, registry, &store, &output),
        Command::Runs(args) => runs::run(&args, &store, &output),
        Command::Compare(args) => compare::run(&args, &store, &output),
        Command::Watch(args) => watch::run(&args, &store, &output),
        Command::Status(args) => watch::status(&args, &store, &output),
        Command::Logs(args) => logs::run(&args, &store, &output),
        Command::Attach(args) => attach::attach(&args, &store, &output),
        Command::Cancel(args) => attach::cancel(&args, &store, &output),
        Command::Diff(args) => diff::run(&args, &store, &output),
        Command::Graph(args) => graph::run(&args, registry, &output),
        Command::Kinds(args) => kinds::run(&args, registry, &output),
        Command::Schema => schema::run(registry, &output),
        Command::Completions(args) => completions::run(&args, &output),
        Command::Verify(args) => verify::run(&args, &store, &output),
        Command::ExportProvenance(args) => export_provenance::run(&args, registry, &store, &output),
        Command::Gc(args) => gc::run(&args, registry, &store, &output),
        Command::Push(args) => remote::push(&args, registry, &store, &output),
        Command::Pull(args) => remote::pull(&args, registry, &store, &output),
        Command::Remote(args) => remote::run(&args, &store, &output),
        Command::Worker { job } => {
            prepare();
            Ok(worker::main(registry, job))
        }
        Command::Agent { folder } => run_agent(&folder).map_err(Failure::from),
        Command::AboutGpu => {
            output.json(&worker::about_gpu());
            Ok(exit_code::OK)
        }
        Command::AboutCuda => {
            output.json(&worker::About::this());
            Ok(exit_code::OK)
        }
    };
    let code = result.unwrap_or_else(|failure| told(failure, &output));
    ended(code, &output)
}

/// Says why a command could not do its work; returns the exit code.
fn told(failure: Failure, output: &Output) -> u8 {
    match failure {
        Failure::Load(LoadError::Invalid(invalid)) => {
            diagnostics::report(&invalid.document, &invalid.diagnostics, output);
            exit_code::INVALID_PIPELINE
        }
        Failure::Load(error @ LoadError::Read(_)) => {
            output.error(&error.to_string(), None);
            exit_code::USAGE
        }
        Failure::Other {
            message,
            hint,
            code,
        } => {
            output.error(&message, hint.as_deref());
            code
        }
    }
}

/// Ends a command that otherwise ends with `code`: whoever asked for data may not have it.
fn ended(code: u8, output: &Output) -> ExitCode {
    let Some(error) = output::lost() else {
        return ExitCode::from(code);
    };
    output.error(&format!("cannot write to standard output: {error}"), None);
    ExitCode::from(if code == exit_code::OK {
        exit_code::STAGE_FAILED
    } else {
        code
    })
}
