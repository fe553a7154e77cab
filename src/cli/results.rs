//! The results that a user names: one, or those of several instances of a stage.

use std::str::FromStr;

use super::output::{Output, counted};
use super::{Failure, exit_code};
use crate::engine::artifact::Artifact;
use crate::engine::context::Labels;
use crate::engine::plan::{PlanOptions, Planner, StagePlan};
use crate::engine::reference::{Reference, is_same_value};
use crate::engine::spec::Pipeline;
use crate::engine::store::Store;

/// `KEY=VALUE`: an axis or a column, and what it must be.
#[derive(Debug, Clone)]
pub(super) struct Where {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for Where {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or("expected KEY=VALUE, such as `policy=ppo`")?;
        Ok(Self {
            key: key.trim().to_owned(),
            value: value.trim().to_owned(),
        })
    }
}

/// One result.
pub(super) struct Found {
    pub(super) artifact: Artifact,
    /// The position of its stage.
    pub(super) stage: usize,
    /// The output's name.
    pub(super) output: String,
    /// The axis values of its stage.
    pub(super) axes: Labels,
}

/// Results that a user named.
pub(super) struct Results {
    /// At least one.
    pub(super) found: Vec<Found>,
    /// Those of the whole pipeline.
    pub(super) plans: Vec<StagePlan>,
}

/// Finds the artifacts that `text` names, as the pipeline stands now, of the instances whose axes are as asked for.
///
/// Of one kind of artifact there may be `several`, of another only one.
pub(super) fn find(
    pipeline: &Pipeline,
    store: &Store,
    text: &str,
    wheres: &[Where],
    several: impl Fn(&str) -> bool,
) -> Result<Results, Failure> {
    let reference = Reference::parse(text).map_err(Failure::usage)?;
    let named = pipeline.named(&reference);
    if named.is_empty() {
        let unknown = pipeline.find(&reference.stage).err();
        return Err(Failure::usage(
            unknown.unwrap_or_else(|| format!("no instance `{text}`")),
        ));
    }
    let as_asked = |at: &usize| {
        let axes = &pipeline.stages[*at].axes;
        let mut asked = wheres.iter();
        asked.all(|asked| {
            axes.get(&asked.key)
                .is_none_or(|value| is_same_value(value, &asked.value))
        })
    };
    let stages: Vec<usize> = named.iter().copied().filter(as_asked).collect();
    if stages.is_empty() {
        let names: Vec<&str> = named
            .iter()
            .map(|at| pipeline.stages[*at].name.as_str())
            .collect();
        return Err(Failure::usage(format!(
            "no instance of `{text}` is as `--where` says; there are {}",
            crate::excerpt::listed(names)
        )));
    }
    let mut chosen = Vec::new();
    for stage in stages {
        chosen.push((
            stage,
            output_of(pipeline, stage, reference.output.as_deref())?,
        ));
    }
    if let [(first, output), _, ..] = chosen.as_slice() {
        let first = &pipeline.stages[*first];
        let kind = first
            .stage
            .outputs()
            .into_iter()
            .find(|made| made.name == *output);
        if !kind.is_some_and(|made| several(&made.kind)) {
            return Err(Failure::usage(format!(
                "`{text}` means {} stages; name one, such as `{}`",
                chosen.len(),
                first.name
            )));
        }
    }
    let plans = Planner::new(pipeline, store, PlanOptions::default()).plan()?;
    let mut found = Vec::new();
    for (stage, output) in chosen {
        let instance = &pipeline.stages[stage];
        let outputs = plans[stage].outputs.as_ref();
        let artifact = outputs.and_then(|outputs| outputs.get(&output)).cloned();
        let artifact = artifact.ok_or_else(|| Failure::Other {
            message: format!(
                "stage `{}` has no result as the pipeline stands now",
                instance.name
            ),
            hint: Some(format!(
                "`flowgraph run {} --only '{}'` makes it",
                pipeline.document.file.display(),
                instance.name
            )),
            code: exit_code::STAGE_FAILED,
        })?;
        found.push(Found {
            artifact,
            stage,
            output,
            axes: instance.axes.clone(),
        });
    }
    Ok(Results { found, plans })
}

/// Finds every result that the pipeline has as it stands now, and counts the stages without one.
pub(super) fn find_all(pipeline: &Pipeline, store: &Store) -> Result<(Results, usize), Failure> {
    let plans = Planner::new(pipeline, store, PlanOptions::default()).plan()?;
    let mut found = Vec::new();
    let mut missing = 0;
    for (stage, plan) in plans.iter().enumerate() {
        let Some(outputs) = &plan.outputs else {
            missing += 1;
            continue;
        };
        found.extend(outputs.iter().map(|(output, artifact)| Found {
            artifact: artifact.clone(),
            stage,
            output: output.clone(),
            axes: pipeline.stages[stage].axes.clone(),
        }));
    }
    Ok((Results { found, plans }, missing))
}

/// Refuses to go on where no stage has a result, and says how many have none.
pub(super) fn tell_missing(
    is_nothing: bool,
    missing: usize,
    output: &Output,
) -> Result<(), Failure> {
    const HINT: &str = "`flowgraph run` makes them";
    if is_nothing {
        return Err(Failure::Other {
            message: "no stage has a result as the pipeline stands now".to_owned(),
            hint: Some(HINT.to_owned()),
            code: exit_code::STAGE_FAILED,
        });
    }
    if missing > 0 {
        let stages = counted(missing, "stage");
        output.warning(&format!("without a result, and left out: {stages}"), HINT);
    }
    Ok(())
}

/// Returns the name of the output that is meant.
fn output_of(pipeline: &Pipeline, stage: usize, named: Option<&str>) -> Result<String, Failure> {
    let instance = &pipeline.stages[stage];
    let outputs = instance.stage.outputs();
    let first = || outputs.first().map(|output| output.name.clone());
    let name = named.map_or_else(|| first().unwrap_or_default(), str::to_owned);
    if outputs.iter().all(|output| output.name != name) {
        let known: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "stage `{}` has no output `{name}`; it has {}",
            instance.name,
            known.join(", ")
        )));
    }
    Ok(name)
}
