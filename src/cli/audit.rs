//! `flowgraph audit`: compute stored results again, and compare.

use std::collections::BTreeMap;

use clap::Args;
use owo_colors::OwoColorize;
use serde::Serialize;
use serde_json::json;

use super::output::{Output, counted};
use super::run::{capacity, count_interrupts};
use super::{Failure, PipelineOptions, exit_code, progress, stages_named};
use crate::artifacts::compare::{self, Difference};
use crate::engine::audit::{AuditStore, Reexecuted};
use crate::engine::executor::RunOptions;
use crate::engine::plan::{Decision, PlanOptions, Planner, StagePlan};
use crate::engine::spec::Pipeline;
use crate::engine::stage::Registry;
use crate::engine::store::Store;
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
    /// Compute on these devices, one after the other: cpu, cuda or cuda:N (default: auto)
    #[arg(long, value_delimiter = ',', value_name = "DEVICE")]
    device: Vec<String>,
    /// Stages at once (default: one for each core)
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

/// What an audit says of a stage, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
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
    fn words(self) -> &'static str {
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
    audited: usize,
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
    let mut pipeline = args.options.load(registry)?;
    let plans = Planner::new(&pipeline, store, PlanOptions::default()).plan()?;
    let chosen = chosen(args, &pipeline)?;
    let interrupts = count_interrupts()?;
    let mut findings = Vec::new();
    for condition in conditions(args) {
        let mut selected = vec![false; pipeline.stages.len()];
        for &stage in &chosen {
            if plans[stage].decision == Decision::Cached {
                selected[stage] = true;
            } else {
                findings.push(Finding {
                    stage: pipeline.stages[stage].name.clone(),
                    position: stage,
                    condition: condition.words(),
                    verdict: Verdict::NotAuditable,
                    reason: Some("it has no result as the pipeline stands now".to_owned()),
                    differences: BTreeMap::new(),
                });
            }
        }
        if !selected.contains(&true) {
            continue;
        }
        for stage in &mut pipeline.stages {
            stage.resources.cpus = condition.threads.unwrap_or(stage.resources.cpus);
        }
        let copy = AuditStore::of(store, &plans)?;
        let options = RunOptions {
            plan: PlanOptions::default(),
            wanted: Vec::new(),
            capacity: capacity(args.jobs, &condition.device)?,
            fail_fast: false,
            interrupts: interrupts.clone(),
            program: std::env::current_exe()?,
        };
        let quiet = Output {
            json: false,
            ..*output
        };
        let mut observer = progress::observer(&quiet, &pipeline);
        let results = copy.run(&pipeline, &selected, options, observer.as_mut())?;
        drop(observer);
        for (stage, result) in results {
            findings.push(judge(
                &pipeline,
                &plans,
                stage,
                &condition,
                result,
                (store, &copy.store),
            )?);
        }
    }
    findings.sort_by_key(|finding| finding.position);
    let tables = table_verdicts(&pipeline, &findings);
    if output.json {
        output.json(&json!({ "findings": findings, "tables": tables }));
    } else {
        report(&findings, &tables, output);
    }
    let different = findings
        .iter()
        .any(|found| found.verdict == Verdict::Different);
    Ok(if different {
        exit_code::AUDIT_DIFFERENT
    } else {
        exit_code::OK
    })
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

fn judge(
    pipeline: &Pipeline,
    plans: &[StagePlan],
    stage: usize,
    condition: &Condition,
    result: Reexecuted,
    stores: (&Store, &Store),
) -> Result<Finding, Failure> {
    let mut finding = Finding {
        stage: pipeline.stages[stage].name.clone(),
        position: stage,
        condition: condition.words(),
        verdict: Verdict::Reproduced,
        reason: None,
        differences: BTreeMap::new(),
    };
    match result {
        Reexecuted::Same => {}
        Reexecuted::Failed(message) => {
            finding.verdict = Verdict::NotAuditable;
            finding.reason = Some(message);
        }
        Reexecuted::Other(outputs) => {
            let cached = plans[stage].outputs.as_ref();
            for (name, artifact) in outputs {
                let Some(recorded) = cached.and_then(|cached| cached.get(&name)) else {
                    continue;
                };
                let differences = compare::compare(stores, (recorded, &artifact))?;
                if !differences.is_empty() {
                    finding.differences.insert(name, differences);
                }
            }
            let mut all = finding.differences.values().flatten();
            finding.verdict = if all.all(|difference| difference.within_tolerance) {
                Verdict::WithinTolerance
            } else {
                Verdict::Different
            };
        }
    }
    Ok(finding)
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
        let audited = |position: usize| {
            let own = findings
                .iter()
                .filter(move |found| found.position == position);
            own.map(|found| found.verdict).max()
        };
        let stages: Vec<usize> = (0..made_by.len()).filter(|other| made_by[*other]).collect();
        let verdicts: Vec<Verdict> = stages.iter().filter_map(|at| audited(*at)).collect();
        tables.push(TableVerdict {
            table: stage.name.clone(),
            worst: verdicts.iter().copied().max(),
            audited: verdicts.len(),
            stages: stages.len(),
        });
    }
    tables
}

fn report(findings: &[Finding], tables: &[TableVerdict], output: &Output) {
    const SHOWN: usize = 5;
    let mut text = String::new();
    for finding in findings {
        if finding.verdict == Verdict::Reproduced && output.quiet {
            continue;
        }
        let words = format!("{:>16}", finding.verdict.words());
        let words = match finding.verdict {
            Verdict::Reproduced => words.green().to_string(),
            Verdict::WithinTolerance => words.cyan().to_string(),
            Verdict::NotAuditable => words.yellow().to_string(),
            Verdict::Different => words.red().to_string(),
        };
        text.push_str(&format!("{words} {}  {}", finding.stage, finding.condition));
        if let Some(reason) = &finding.reason {
            text.push_str(&format!(": {reason}"));
        }
        text.push('\n');
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
    for table in tables.iter().filter(|table| table.audited > 0) {
        text.push_str(&format!(
            "table {}: {}, {} of the {} audited that it is made by\n",
            table.table.bold(),
            table.worst.map_or("not audited", Verdict::words),
            table.audited,
            counted(table.stages, "stage"),
        ));
    }
    let count = |verdict| {
        findings
            .iter()
            .filter(|found| found.verdict == verdict)
            .count()
    };
    text.push_str(&format!(
        "{} reproduced, {} within tolerance, {} different, {} not auditable\n",
        count(Verdict::Reproduced),
        count(Verdict::WithinTolerance),
        count(Verdict::Different),
        count(Verdict::NotAuditable),
    ));
    text.push_str(&format!(
        "tolerance: {:e} of the largest magnitude in a tensor, {:e} in a column of numbers; all else must be equal\n",
        compare::TENSOR_TOLERANCE,
        compare::NUMBER_TOLERANCE,
    ));
    output.data(&text);
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
