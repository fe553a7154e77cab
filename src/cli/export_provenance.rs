//! `flowgraph export-provenance`: how results were made, for other tools.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::output::{Output, counted};
use super::{Failure, PipelineOptions, exit_code, results, stages_named};
use crate::engine::plan::{PlanOptions, Planner};
use crate::engine::provenance::Provenance;
use crate::engine::stage::Registry;
use crate::engine::store::Store;
use crate::files::write_whole;

#[derive(Debug, Args)]
pub(super) struct ExportProvenanceArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stages, with what they are made of (default: all)
    stages: Vec<String>,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// A folder for an RO-Crate, a file for the others (default: standard output)
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An RO-Crate 1.1 with the profile Process Run Crate, tables and figures inside
    RoCrate,
    /// W3C PROV as PROV-JSON
    Prov,
    /// in-toto statements with SLSA provenance, one to a line
    InToto,
}

pub(super) fn run(
    args: &ExportProvenanceArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let plans = Planner::new(&pipeline, store, PlanOptions::default()).plan()?;
    let mut targets = Vec::new();
    for name in &args.stages {
        targets.extend(stages_named(&pipeline, name)?);
    }
    if targets.is_empty() {
        targets.extend(0..pipeline.stages.len());
    }
    let wanted = pipeline.graph.upstream(targets);
    let provenance = Provenance::of(&pipeline, store, &plans, &wanted);
    let missing = wanted.iter().filter(|wanted| **wanted).count() - provenance.len();
    results::tell_missing(provenance.is_empty(), missing, output)?;
    let text = match args.format {
        Format::Prov => serde_json::to_string_pretty(&provenance.prov()).unwrap_or_default() + "\n",
        Format::InToto => {
            let statements = provenance.in_toto().into_iter();
            statements
                .map(|statement| format!("{statement}\n"))
                .collect()
        }
        Format::RoCrate => {
            let folder = args.output.as_ref().ok_or_else(|| {
                Failure::usage("an RO-Crate is a folder: give one with `--output FOLDER`")
            })?;
            if folder.join("ro-crate-metadata.json").exists() {
                return Err(Failure::usage(format!(
                    "{} holds an RO-Crate",
                    folder.display()
                )));
            }
            let (metadata, payload) = provenance.ro_crate();
            for (path, artifact) in payload {
                let target = folder.join(path);
                fs_err::create_dir_all(&target)?;
                for file in &artifact.files {
                    let copy = target.join(&file.path);
                    if let Some(parent) = copy.parent() {
                        fs_err::create_dir_all(parent)?;
                    }
                    fs_err::copy(store.object_path(&file.digest), copy)?;
                }
            }
            fs_err::create_dir_all(folder)?;
            let mut document = pipeline.document.text.as_bytes();
            write_whole(&folder.join("pipeline.yaml"), &mut document)?;
            // The metadata makes it a crate, so it comes last.
            let text = serde_json::to_string_pretty(&metadata).unwrap_or_default() + "\n";
            let metadata = folder.join("ro-crate-metadata.json");
            write_whole(&metadata, &mut text.as_bytes())?;
            output.line(&format!(
                "{}: an RO-Crate of {}",
                folder.display(),
                counted(provenance.len(), "stage")
            ));
            return Ok(exit_code::OK);
        }
    };
    match &args.output {
        Some(path) => write_whole(path, &mut text.as_bytes())?,
        None => output.data(&text),
    }
    Ok(exit_code::OK)
}
