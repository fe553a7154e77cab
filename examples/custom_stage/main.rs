//! A program with a stage kind of its own, and all of flowgraph's command line.
//!
//! `cargo run --release --example custom_stage -- run examples/custom_stage/pipeline.yaml`

use std::process::ExitCode;

use flowgraph::artifacts::completions::SCORES;
use flowgraph::artifacts::table::{TABLE, Table};
use flowgraph::engine::context::RunContext;
use flowgraph::engine::stage::{Kind, Output, Port, Problem, StageError, StageKind};
use flowgraph::registry::REGISTRY;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Counts how often each word begins a completion.
///
/// The text here is what `kinds first_words` shows; that of the fields stands beside the params.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FirstWords {
    /// Words that are rarer are left out.
    #[serde(default = "one")]
    least: usize,
}

fn one() -> usize {
    1
}

impl Kind for FirstWords {
    const NAME: &'static str = "first_words";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ least: 2 }";

    fn ports(&self) -> Vec<Port> {
        vec![Port::one("completions", &[SCORES], "what is counted")]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        if self.least == 0 {
            vec![Problem::new("least", "`least` must be at least 1")]
        } else {
            Vec::new()
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let completions = Table::read(&ctx.input("completions")?.path)?;
        let mut counts = std::collections::BTreeMap::new();
        for text in completions.all_texts("completion")? {
            let word = text.split_whitespace().next().unwrap_or_default();
            *counts.entry(word.to_owned()).or_insert(0usize) += 1;
        }
        counts.retain(|_, count| *count >= self.least);
        let mut table = Table::new("First words of the completions");
        table.text_column("word", counts.keys().cloned().map(Some));
        table.number_column("count", 0, counts.values().map(|count| Some(*count as f64)));
        Ok(table.write(&ctx.output("table")?)?)
    }
}

fn main() -> ExitCode {
    let mut registry = REGISTRY.to_vec();
    registry.push(StageKind::of::<FirstWords>());
    // Workers are this program again, so they know the kind too.
    flowgraph::cli::main(&registry)
}
