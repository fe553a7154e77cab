//! `flowgraph report`: the results of a pipeline as one file to read, HTML or Markdown.
//!
//! ```text
//! facts        what was run, where, by which version
//! markdown     the Markdown page
//! html         the HTML file: fills `template.html` with
//!   tables       tables, claims first, with the runs behind their cells
//!   figures      figures, inline
//!   graph        the stages drawn, matrices folded
//!   stages       what is known of each stage
//!   logs         what stages wrote
//!   audit        verdicts of an audit
//!   completions  what policies answered to the same prompts
//!   embed        texts from outside made harmless in HTML
//! ```

mod audit;
mod completions;
mod embed;
mod facts;
mod figures;
mod graph;
mod html;
mod logs;
mod markdown;
mod stages;
mod tables;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use audit::Audit;

use super::export::refuse_existing;
use super::output::{Output, counted};
use super::run::CLAIMS;
use super::{Failure, PipelineOptions, exit_code, results};
use crate::engine::plan::StagePlan;
use crate::engine::spec::Pipeline;
use crate::engine::stage::Registry;
use crate::engine::store::Store;
use crate::files::write_whole;

/// The output of tables that show every run.
const RUN_BY_RUN: &str = "per_seed";

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// What to write
    #[arg(long, value_enum, default_value = "html")]
    format: Format,
    /// File to write (default: `report.html` or `report.md`)
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show the verdicts that `flowgraph audit --json` printed into this file, as far as they are on these results
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Replace a file that is there already
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One file for a browser, which needs no network: tables, figures, graph, completions, provenance
    Html,
    /// What made the results of a finished pipeline, and every table
    Markdown,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Markdown => "md",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Html => "HTML",
            Self::Markdown => "Markdown",
        }
    }
}

pub(super) fn run(
    args: &ReportArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let default = || PathBuf::from(format!("report.{}", args.format.extension()));
    let file = args.out.clone().unwrap_or_else(default);
    args.check(&file)?;
    if args.audit.is_some() && args.format != Format::Html {
        return Err(Failure::usage("`--audit` is for `--format html` alone"));
    }
    let pipeline = args.options.load(registry)?;
    let (results, missing) = results::find_all(&pipeline, store)?;
    let text = match args.format {
        Format::Markdown => markdown::page(&pipeline, store, &results)?,
        Format::Html => {
            if results.found.is_empty() {
                results::tell_missing(true, missing, output)?;
            }
            let audit = args.audit(&pipeline, &results.plans, output)?;
            html::report(&pipeline, store, &results, &audit)?
        }
    };
    write_whole(&file, &mut text.as_bytes())?;
    if output.json {
        output
            .json(&json!({ "file": file.display().to_string(), "bytes": text.len(), "stages_without_result": missing }));
    } else {
        output.line(&format!("{} -> {}", pipeline.name, file.display()));
    }
    if missing > 0 && args.format == Format::Html {
        let message = format!(
            "{} without a result: the report says which",
            counted(missing, "stage")
        );
        output.warning(&message, "`flowgraph run` makes them");
    }
    Ok(exit_code::OK)
}

impl ReportArgs {
    /// Reads the verdicts that were asked for.
    fn audit(
        &self,
        pipeline: &Pipeline,
        plans: &[StagePlan],
        output: &Output,
    ) -> Result<Audit, Failure> {
        let Some(path) = &self.audit else {
            return Ok(Audit::default());
        };
        let audit = Audit::read(path, pipeline, plans)?;
        if audit.others > 0 {
            let verdicts = counted(audit.others, "verdict");
            let message = format!(
                "{verdicts} of {} not on these results: left out",
                path.display()
            );
            output.warning(
                &message,
                "`flowgraph audit --json` audits those that are there now",
            );
        }
        Ok(audit)
    }

    /// Checks that the report may be written where it goes.
    fn check(&self, file: &Path) -> Result<(), Failure> {
        // `--force` must not write over a pipeline or a program.
        let wanted = self.format.extension();
        if file.extension().is_none_or(|extension| extension != wanted) {
            return Err(Failure::Other {
                message: format!(
                    "the name of a report in {} must end in `.{wanted}`, found `{}`",
                    self.format.name(),
                    file.display()
                ),
                hint: Some(
                    "`--format html` and `--format markdown` say what is written".to_owned(),
                ),
                code: exit_code::USAGE,
            });
        }
        refuse_existing(file, self.force, "file")
    }
}
