//! The `flowgraph` program: the command line with the stage kinds that ship with it.

use std::process::ExitCode;

fn main() -> ExitCode {
    flowgraph::cli::main(flowgraph::registry::REGISTRY)
}
