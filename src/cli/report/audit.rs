//! Verdicts of an audit, as `flowgraph audit --json` printed them, on the results that they are about.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::audit::Verdict;
use super::super::{Failure, exit_code};
use crate::engine::artifact::Digest;
use crate::engine::plan::StagePlan;
use crate::engine::spec::Pipeline;
use crate::files::read_text;

/// Bytes of a file of verdicts.
const MOST_BYTES: u64 = 1 << 28;

/// What is read of the file.
#[derive(Debug, Deserialize)]
struct Printed {
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    stage: String,
    fingerprint: Option<Digest>,
    condition: String,
    verdict: Verdict,
    reason: Option<String>,
}

/// What an audit says of a stage under one condition.
#[derive(Debug, Serialize)]
pub(super) struct Audited {
    #[serde(skip)]
    verdict: Verdict,
    words: &'static str,
    condition: String,
    reason: Option<String>,
}

/// The verdicts on the results of a pipeline, by position of their stages.
#[derive(Debug, Default)]
pub(super) struct Audit {
    by_stage: BTreeMap<usize, Vec<Audited>>,
    /// How many verdicts of the file are on other results.
    pub(super) others: usize,
}

impl Audit {
    /// Reads verdicts, and keeps those on the results that the pipeline has now.
    pub(super) fn read(
        path: &Path,
        pipeline: &Pipeline,
        plans: &[StagePlan],
    ) -> Result<Self, Failure> {
        let refused = |message: String| Failure::Other {
            message,
            hint: Some("expected what `flowgraph audit PIPELINE --json` prints".to_owned()),
            code: exit_code::USAGE,
        };
        let text = read_text(path, MOST_BYTES).map_err(|error| refused(error.to_string()))?;
        let printed: Printed = serde_json::from_str(&text)
            .map_err(|error| refused(format!("{} is no audit: {error}", path.display())))?;
        let names = pipeline.stages.iter().enumerate();
        let positions: BTreeMap<&str, usize> =
            names.map(|(at, stage)| (stage.name.as_str(), at)).collect();
        let mut audit = Self::default();
        for finding in printed.findings {
            let at = positions.get(finding.stage.as_str()).copied();
            let own = |at: &usize| {
                plans[*at].outputs.is_some() && plans[*at].fingerprint == finding.fingerprint
            };
            match at.filter(own) {
                Some(at) => audit.by_stage.entry(at).or_default().push(Audited {
                    verdict: finding.verdict,
                    words: finding.verdict.words(),
                    condition: finding.condition,
                    reason: finding.reason,
                }),
                None => audit.others += 1,
            }
        }
        Ok(audit)
    }

    /// Returns the verdicts on a stage.
    pub(super) fn of(&self, stage: usize) -> &[Audited] {
        self.by_stage.get(&stage).map_or(&[], Vec::as_slice)
    }

    /// Says how well the making of a stage's result was audited, itself and everything upstream; `None` if nothing was.
    pub(super) fn of_making(&self, pipeline: &Pipeline, stage: usize) -> Option<String> {
        let made_by = pipeline.graph.upstream([stage]);
        let stages = (0..made_by.len()).filter(|at| made_by[*at]);
        let worst: Vec<Option<Verdict>> = stages
            .map(|at| self.of(at).iter().map(|audited| audited.verdict).max())
            .collect();
        let audited = worst.iter().flatten();
        let compared = audited
            .clone()
            .filter(|verdict| **verdict != Verdict::NotAuditable);
        Some(format!(
            "Audit: {}; {} of {} stages behind it compared",
            audited.clone().max()?.words(),
            compared.count(),
            worst.len()
        ))
    }
}
