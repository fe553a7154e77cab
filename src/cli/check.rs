//! `flowgraph check`: validate a pipeline with each of its profiles, without touching a store.

use clap::Args;
use serde_json::json;

use super::cluster::{self, Executor};
use super::output::{Output, counted};
use super::{Failure, PipelineOptions, diagnostics, exit_code};
use crate::engine::diagnostic::Segment;
use crate::engine::document::{Document, Located};
use crate::engine::overrides::Overrides;
use crate::engine::spec::{LoadError, Pipeline};
use crate::engine::stage::Registry;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Ask the Slurm cluster, too, whether it would take the jobs of the stages
    #[arg(long, value_enum, default_value = "local", env = "FLOWGRAPH_EXECUTOR")]
    executor: Executor,
}

pub(super) fn run(args: &CheckArgs, registry: &Registry, output: &Output) -> Result<u8, Failure> {
    let document = Document::read(&args.options.pipeline).map_err(LoadError::from)?;
    let mut variants = vec![args.options.profiles.clone()];
    if args.options.profiles.is_empty() {
        variants.extend(
            Pipeline::profiles(&document)
                .into_iter()
                .map(|profile| vec![profile]),
        );
    }
    let mut found: Vec<Located> = Vec::new();
    let (mut warnings, mut counts) = (Vec::new(), Vec::new());
    let mut broken = false;
    let in_profile = Segment::Key("profiles".into());
    for profiles in variants {
        let overrides = Overrides {
            profiles: profiles.clone(),
            set: args.options.set.clone(),
        };
        let name = if profiles.is_empty() {
            "default".to_owned()
        } else {
            profiles.join("+")
        };
        match Pipeline::from_document(document.clone(), &overrides, registry) {
            Ok(pipeline) => {
                // What a profile leaves unused of the file's params is no mistake; what it adds in vain is one.
                let mistaken = pipeline.warnings.iter().filter(|warning| {
                    profiles == args.options.profiles
                        || warning.diagnostic.path.0.first() == Some(&in_profile)
                });
                warnings.extend(mistaken.cloned());
                counts.push((name, pipeline.stages.len()));
            }
            // What is wrong with an imported file is wrong for every profile.
            Err(invalid) if invalid.document.file != document.file => {
                diagnostics::report(&invalid.document, &invalid.diagnostics, output);
                return Ok(exit_code::INVALID_PIPELINE);
            }
            Err(invalid) => {
                broken = true;
                for mut located in invalid.diagnostics {
                    let known = found.iter().any(|other| {
                        other.span == located.span
                            && located
                                .diagnostic
                                .message
                                .ends_with(&other.diagnostic.message)
                    });
                    if !known {
                        if !profiles.is_empty() && !located.diagnostic.names_profile {
                            located.diagnostic.message =
                                format!("profile `{name}`: {}", located.diagnostic.message);
                        }
                        found.push(located);
                    }
                }
            }
        }
    }
    found.extend(warnings);
    if broken || output.json {
        if !broken {
            let profiles: Vec<_> = counts
                .iter()
                .map(|(profile, stages)| json!({ "profile": profile, "stages": stages }))
                .collect();
            output.json(&json!({ "valid": true, "profiles": profiles }));
            if args.executor == Executor::Slurm {
                let pipeline = args.options.load(registry)?;
                return cluster::check(&pipeline, output);
            }
            return Ok(exit_code::OK);
        }
        diagnostics::report(&document, &found, output);
        return Ok(exit_code::INVALID_PIPELINE);
    }
    diagnostics::report(&document, &found, output);
    let counts: Vec<String> = counts
        .iter()
        .map(|(profile, stages)| format!("{profile}: {}", counted(*stages, "stage")))
        .collect();
    output.line(&format!(
        "{} is valid ({})",
        document.file.display(),
        counts.join(", ")
    ));
    if args.executor == Executor::Slurm {
        let pipeline = args.options.load(registry)?;
        return cluster::check(&pipeline, output);
    }
    Ok(exit_code::OK)
}
