//! `flowgraph audit`: compute stored results again, and compare.

use std::collections::BTreeMap;

use clap::Args;
use owo_colors::Style;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::output::{Output, counted};
use super::plan::causes;
use super::run::{capacity, count_interrupts};
use super::text::Text;
use super::{Failure, PipelineOptions, exit_code, progress, stages_named};
use crate::artifacts::compare::{self, Difference};
use crate::engine::artifact::{Artifact, Digest};
use crate::engine::audit::{AuditStore, Recomputed, changed_source};
use crate::engine::executor::RunOptions;
use crate::engine::launch::Local;
use crate::engine::machine::{COMPOSED, KERNELS};
use crate::engine::plan::{Decision, Known, PlanOptions, Planner, StagePlan};
use crate::engine::spec::Pipeline;
use crate::engine::stage::{Registry, StageError};
use crate::engine::store::{Damage, Record, Store};
use crate::random::Stream;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stages to audit, with all their instances, or one as `stage[axis=value]` (default: all)
    stages: Vec<String>,
    /// Audit so many of them, chosen at random
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Seed of that choice
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compute with so many threads, one after the other, as in `--threads 1,2` (default: what the stage declares)
    #[arg(long, value_delimiter = ',', value_name = "N")]
    threads: Vec<usize>,
    /// Compute on these devices, one after the other: cpu, cuda, cuda:N, or composed, which is the processor with the
    /// operations that other devices have (default: auto)
    #[arg(long, value_delimiter = ',', value_name = "DEVICE")]
    device: Vec<String>,
    /// Stages at once (default: one for each core)
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Exit with 1 if a result could not be computed again and compared
    #[arg(long)]
    require_all: bool,
}

/// What an audit says of a stage, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The same bytes.
    Reproduced,
    /// Other bytes, apart by no more than rounding.
    WithinTolerance,
    /// It could not be computed again.
    NotAuditable,
    /// Other results.
    Different,
}

impl Verdict {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::WithinTolerance => "within tolerance",
            Self::NotAuditable => "not auditable",
            Self::Different => "different",
        }
    }
}

/// One stage under one condition.
#[derive(Debug, Serialize)]
struct Finding {
    stage: String,
    #[serde(skip)]
    position: usize,
    /// That of the result audited, if there is one.
    fingerprint: Option<Digest>,
    condition: String,
    verdict: Verdict,
    /// Why it is not auditable.
    reason: Option<String>,
    /// By output.
    differences: BTreeMap<String, Vec<Difference>>,
}

/// A table with what was audited of its making.
#[derive(Debug, Serialize)]
struct TableVerdict {
    table: String,
    worst: Option<Verdict>,
    compared: usize,
    stages: usize,
}

/// What the stages are computed with.
struct Condition {
    threads: Option<usize>,
    device: String,
}

impl Condition {
    fn words(&self) -> String {
        match self.threads {
            None => self.device.clone(),
            Some(1) => format!("{}, 1 thread", self.device),
            Some(threads) => format!("{}, {threads} threads", self.device),
        }
    }
}

pub(super) fn run(
    args: &AuditArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    if args.threads.contains(&0) {
        return Err(Failure::usage("`--threads` must be at least 1"));
    }
    let mut pipeline = args.options.load(registry)?;
    let options = PlanOptions {
        records_alone: true,
        ..PlanOptions::default()
    };
    let plans = Planner::new(&pipeline, store, options).plan()?;
    let mut recorded = BTreeMap::new();
    let mut hindrances = BTreeMap::new();
    for stage in chosen(args, &pipeline)? {
        match record_of(&pipeline, &plans[stage], stage, store) {
            Ok(record) => drop(recorded.insert(stage, record)),
            Err(reason) => drop(hindrances.insert(stage, reason)),
        }
    }
    let known: Known = plans.into_iter().map(|plan| plan.outputs).collect();
    let interrupts = count_interrupts()?;
    let mut findings = Vec::new();
    for condition in conditions(args) {
        for (&stage, reason) in &hindrances {
            let name = &pipeline.stages[stage].name;
            findings.push(Finding::not_auditable(stage, name, &condition, reason));
        }
        if recorded.is_empty() {
            continue;
        }
        let is_composed = condition.device == COMPOSED;
        let device = if is_composed {
            "cpu"
        } else {
            &condition.device
        };
        let mut capacity = capacity(args.jobs, device)?;
        for stage in &mut pipeline.stages {
            stage.resources.cpus = condition.threads.unwrap_or(stage.resources.cpus);
            // A second try would go on where the first one stopped.
            stage.retries = 0;
        }
        // As many threads as were asked for, whatever the machine has.
        capacity.cpus = capacity.cpus.max(condition.threads.unwrap_or(0));
        let launcher = Local {
            environment: match condition.device.as_str() {
                COMPOSED => vec![(KERNELS, COMPOSED)],
                // Whatever this process has been told.
                "cpu" => vec![(KERNELS, "fused")],
                _ => Vec::new(),
            },
            ..Local::new()?
        };
        let options = RunOptions {
            plan: PlanOptions::default(),
            wanted: Vec::new(),
            capacity,
            fail_fast: false,
            interrupts: interrupts.clone(),
            launcher: Box::new(launcher),
            remote: None,
        };
        let quiet = Output {
            json: false,
            ..*output
        };
        let own = AuditStore::within(store)?;
        let mut observer = progress::observer(&quiet, &pipeline);
        let results = own.recompute(
            &pipeline,
            &recorded,
            known.clone(),
            options,
            observer.as_mut(),
        )?;
        drop(observer);
        for (stage, result) in results {
            let name = &pipeline.stages[stage].name;
            let record = &recorded[&stage];
            findings.push(match result {
                Recomputed::Failed(reason) => {
                    Finding::not_auditable(stage, name, &condition, &reason)
                }
                Recomputed::Made(made) => {
                    let stores = (store, &own.own);
                    Finding::of(stage, name, &condition, (record, &made), stores)
                }
            });
        }
    }
    // What was edited meanwhile may have been read by some stages and not by others.
    for finding in &mut findings {
        let Some(record) = recorded.get(&finding.position) else {
            continue;
        };
        finding.fingerprint = Some(record.fingerprint);
        let changed = changed_source(&pipeline, store, finding.position, record);
        if let Some(reason) = changed.filter(|_| finding.verdict != Verdict::NotAuditable) {
            finding.verdict = Verdict::NotAuditable;
            finding.reason = Some(format!("{reason} any more"));
            finding.differences.clear();
        }
    }
    findings.sort_by_key(|finding| finding.position);
    let tables = table_verdicts(&pipeline, &findings);
    let counts = Counts::of(&findings);
    if output.json {
        output.json(&json!({ "counts": counts, "findings": findings, "tables": tables }));
    } else {
        report(&findings, &tables, &counts, output);
    }
    Ok(if counts.different > 0 {
        exit_code::AUDIT_DIFFERENT
    } else if counts.compared == 0 || (args.require_all && counts.not_auditable > 0) {
        exit_code::STAGE_FAILED
    } else {
        exit_code::OK
    })
}

/// Returns the record of a stage's result, or why there is none.
fn record_of(
    pipeline: &Pipeline,
    plan: &StagePlan,
    stage: usize,
    store: &Store,
) -> Result<Record, String> {
    let name = &pipeline.stages[stage].name;
    let cached = plan
        .fingerprint
        .filter(|_| plan.decision == Decision::Cached);
    let Some(fingerprint) = cached else {
        let why = causes(&plan.causes, name);
        return Err(format!(
            "it has no result as the pipeline stands now ({why})"
        ));
    };
    let record = store.read_record(&fingerprint, plan.beside.as_deref());
    record
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "its record is gone".to_owned())
}

fn chosen(args: &AuditArgs, pipeline: &Pipeline) -> Result<Vec<usize>, Failure> {
    let mut chosen: Vec<usize> = if args.stages.is_empty() {
        (0..pipeline.stages.len()).collect()
    } else {
        let mut chosen = Vec::new();
        for name in &args.stages {
            chosen.extend(stages_named(pipeline, name)?);
        }
        chosen
    };
    if let Some(count) = args.sample {
        Stream::new(args.seed, "audit").at(0).shuffle(&mut chosen);
        chosen.truncate(count);
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

fn conditions(args: &AuditArgs) -> Vec<Condition> {
    let devices = match args.device.as_slice() {
        [] => vec!["auto".to_owned()],
        devices => devices.to_vec(),
    };
    let threads: Vec<Option<usize>> = match args.threads.as_slice() {
        [] => vec![None],
        threads => threads.iter().copied().map(Some).collect(),
    };
    let mut conditions = Vec::new();
    for device in &devices {
        for threads in &threads {
            conditions.push(Condition {
                threads: *threads,
                device: device.clone(),
            });
        }
    }
    conditions
}

impl Finding {
    fn not_auditable(stage: usize, name: &str, condition: &Condition, reason: &str) -> Self {
        Self {
            stage: name.to_owned(),
            position: stage,
            fingerprint: None,
            condition: condition.words(),
            verdict: Verdict::NotAuditable,
            reason: Some(reason.to_owned()),
            differences: BTreeMap::new(),
        }
    }

    /// Compares what is recorded, as it lies in the first store, with what was made, as it lies in the second.
    fn of(
        stage: usize,
        name: &str,
        condition: &Condition,
        (recorded, made): (&Record, &Record),
        stores: (&Store, &Store),
    ) -> Self {
        let mut finding = Self {
            // Where it was computed, which is not always where that was asked for.
            condition: Condition {
                threads: Some(made.provenance.threads),
                device: if condition.device == COMPOSED {
                    format!("{}, {COMPOSED}", made.provenance.device)
                } else {
                    made.provenance.device.clone()
                },
            }
            .words(),
            ..Self::not_auditable(stage, name, condition, "")
        };
        for (output, artifact) in &recorded.outputs {
            match differences(artifact, made.outputs.get(output), stores) {
                Ok(differences) if differences.is_empty() => {}
                Ok(differences) => {
                    finding.differences.insert(output.clone(), differences);
                }
                Err(missing) => {
                    finding.reason = Some(format!("there is nothing to compare with: {missing}"));
                    finding.differences.clear();
                    return finding;
                }
            }
        }
        for output in made.outputs.keys() {
            if !recorded.outputs.contains_key(output) {
                let difference = Difference::whole("is not recorded".to_owned());
                finding.differences.insert(output.clone(), vec![difference]);
            }
        }
        finding.reason = None;
        let mut all = finding.differences.values().flatten().peekable();
        finding.verdict = if all.peek().is_none() {
            Verdict::Reproduced
        } else if all.all(|difference| difference.within_tolerance) {
            Verdict::WithinTolerance
        } else {
            Verdict::Different
        };
        finding
    }
}

/// Lists in what an artifact, byte by byte as it is stored, differs from what was made; an error if it is not there.
fn differences(
    recorded: &Artifact,
    made: Option<&Artifact>,
    stores: (&Store, &Store),
) -> Result<Vec<Difference>, Damage> {
    let mut altered = Vec::new();
    for file in &recorded.files {
        match stores.0.check_object(&file.digest) {
            Ok(_) => {}
            Err(damage @ Damage::Altered { .. }) => {
                let part = format!("{}, as it is stored: {damage}", file.path);
                altered.push(Difference::whole(part));
            }
            Err(damage) => return Err(damage),
        }
    }
    let Some(made) = made else {
        altered.push(Difference::whole("was not made".to_owned()));
        return Ok(altered);
    };
    if !altered.is_empty() || made.digest == recorded.digest {
        return Ok(altered);
    }
    let found = compare::compare(stores, (recorded, made));
    Ok(match found {
        Ok(found) if !found.is_empty() => found,
        Ok(_) => vec![Difference::whole("its kind".to_owned())],
        Err(error) => {
            let message = match error {
                StageError::Failed { message, .. } => message,
                StageError::Interrupted => "interrupted".to_owned(),
            };
            vec![Difference::whole(format!(
                "other bytes, which cannot be compared: {message}"
            ))]
        }
    })
}

/// How many findings there are of each kind.
#[derive(Debug, Default, Serialize)]
struct Counts {
    asked: usize,
    compared: usize,
    reproduced: usize,
    within_tolerance: usize,
    different: usize,
    not_auditable: usize,
}

impl Counts {
    fn of(findings: &[Finding]) -> Self {
        let mut counts = Self {
            asked: findings.len(),
            ..Self::default()
        };
        for finding in findings {
            *match finding.verdict {
                Verdict::Reproduced => &mut counts.reproduced,
                Verdict::WithinTolerance => &mut counts.within_tolerance,
                Verdict::Different => &mut counts.different,
                Verdict::NotAuditable => &mut counts.not_auditable,
            } += 1;
        }
        counts.compared = counts.asked - counts.not_auditable;
        counts
    }
}

/// Says of each table how well its making was audited: itself and everything upstream.
fn table_verdicts(pipeline: &Pipeline, findings: &[Finding]) -> Vec<TableVerdict> {
    let mut tables = Vec::new();
    for (at, stage) in pipeline.stages.iter().enumerate() {
        let is_table = |kind: &str| kind == "table";
        let first = stage.stage.outputs().into_iter().next();
        if !first.is_some_and(|output| is_table(&output.kind)) {
            continue;
        }
        let made_by = pipeline.graph.upstream([at]);
        let found = |position: usize| {
            let own = findings
                .iter()
                .filter(move |found| found.position == position);
            own.map(|found| found.verdict).max()
        };
        let stages: Vec<usize> = (0..made_by.len()).filter(|other| made_by[*other]).collect();
        let verdicts: Vec<Verdict> = stages.iter().filter_map(|at| found(*at)).collect();
        let compared = verdicts
            .iter()
            .filter(|verdict| **verdict != Verdict::NotAuditable);
        tables.push(TableVerdict {
            table: stage.name.clone(),
            worst: verdicts.iter().copied().max(),
            compared: compared.count(),
            stages: stages.len(),
        });
    }
    tables
}

fn report(findings: &[Finding], tables: &[TableVerdict], counts: &Counts, output: &Output) {
    const SHOWN: usize = 5;
    let mut text = Text::default();
    for finding in findings {
        if finding.verdict == Verdict::Reproduced && output.quiet {
            continue;
        }
        let words = format!("{:>16}", finding.verdict.words());
        let style = match finding.verdict {
            Verdict::Reproduced => Style::new().green(),
            Verdict::WithinTolerance => Style::new().cyan(),
            Verdict::NotAuditable => Style::new().yellow(),
            Verdict::Different => Style::new().red(),
        };
        text.push_styled(&words, style);
        text.push_str(&format!(" {}  {}", finding.stage, finding.condition));
        if let Some(reason) = &finding.reason {
            text.push_str(&format!(": {reason}"));
        }
        text.push_str("\n");
        for (name, differences) in &finding.differences {
            for difference in differences.iter().take(SHOWN) {
                text.push_str(&format!("{:>19}{name}: {}\n", "", describe(difference)));
            }
            if differences.len() > SHOWN {
                let rest = differences.len() - SHOWN;
                text.push_str(&format!("{:>19}{name}: and {rest} more\n", ""));
            }
        }
    }
    for table in tables.iter().filter(|table| table.worst.is_some()) {
        text.push_str("table ");
        text.push_styled(&table.table, Style::new().bold());
        text.push_str(&format!(
            ": {}, {} of the {} compared that it is made by
",
            table.worst.map_or("not audited", Verdict::words),
            table.compared,
            counted(table.stages, "stage"),
        ));
    }
    text.push_str(&format!(
        "compared {} of {}: {} reproduced, {} within tolerance, {} different; {} not auditable\n",
        counts.compared,
        counted(counts.asked, "result"),
        counts.reproduced,
        counts.within_tolerance,
        counts.different,
        counts.not_auditable,
    ));
    text.push_str(&format!(
        "tolerance: {:e} of the largest magnitude in a tensor, {:e} in a column of numbers; all else must be equal\n",
        compare::TENSOR_TOLERANCE,
        compare::NUMBER_TOLERANCE,
    ));
    output.text(&text);
}

fn describe(difference: &Difference) -> String {
    let mut text = difference.part.clone();
    if let (Some(absolute), Some(relative)) = (difference.absolute, difference.relative) {
        text.push_str(&format!(
            " by {absolute:.1e}, {relative:.1e} of its largest value"
        ));
    }
    if let Some(ulp) = difference.ulp {
        text.push_str(&format!(", {ulp} ulp"));
    }
    text
}
