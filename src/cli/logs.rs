//! `flowgraph logs`: what a stage printed.

use clap::Args;

use super::output::Output;
use super::{Failure, exit_code};
use crate::engine::runs::Run;
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The stage, as a run names it
    stage: String,
    /// The run: `last`, `last-1`, an id or its beginning
    #[arg(long, default_value = "last")]
    run: String,
}

/// Prints the log of a stage, of the last run before that which started it if the run itself did not.
pub(super) fn run(args: &LogsArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    let asked = Run::find(store, &args.run).map_err(Failure::usage)?;
    let earlier = Run::all(store)?.into_iter().rev();
    let mut runs = earlier.filter(|run| run.description.run <= asked.description.run);
    let found = runs.find_map(|run| {
        let log = run.log_path(&args.stage);
        let text = fs_err::read(log).ok()?;
        Some((run, text))
    });
    let Some((run, text)) = found else {
        return Err(Failure::usage(format!(
            "no run started a stage `{}`; `flowgraph status` names those at work",
            args.stage
        )));
    };
    if run.description.run != asked.description.run {
        output.hint(&format!("the run {} started it", run.description.run));
    }
    output.data(String::from_utf8_lossy(&text).trim_end());
    Ok(exit_code::OK)
}
