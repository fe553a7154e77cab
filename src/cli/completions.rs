//! `flowgraph completions`: scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output::Output;
use super::{Cli, Failure, exit_code};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell to complete in
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, output: &Output) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "flowgraph", &mut script);
    output.data(&String::from_utf8_lossy(&script));
    Ok(exit_code::OK)
}
