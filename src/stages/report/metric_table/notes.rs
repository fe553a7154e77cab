//! What must be known to read the table.

use super::MetricTable;
use super::shown::Shown;
use super::tables::RUNS_OF_IQM;
use crate::stages::report::measure::Metric;
use crate::stages::report::questions::drawn_questions;
use crate::stats::MAJORITY_DRAWS;

impl MetricTable {
    pub(super) fn standard_notes(
        &self,
        shown: &[Shown],
        several: bool,
        shared: bool,
    ) -> Vec<String> {
        let mut notes = self.notes.clone();
        let has = |metrics: &[Metric]| {
            shown
                .iter()
                .any(|shown| matches!(shown, Shown::Metric(metric) if metrics.contains(metric)))
        };
        if has(&[Metric::Std, Metric::TopKStd]) {
            notes.push("Std divides by n.".to_owned());
        }
        let of_top_k =
            |shown: &Shown| matches!(shown, Shown::Metric(metric) if metric.is_of_top_k());
        if shown.iter().any(of_top_k) {
            notes.push(format!(
                "Top-{0}: the {0} completions of a run with the greatest {1}.",
                self.top_k, self.column
            ));
        }
        if shown.iter().any(Shown::has_interval) {
            let percent = self.level * 100.0;
            let (runs, caution) = if several {
                (
                    format!(
                        "runs ({}) and {}",
                        self.aggregate,
                        drawn_questions("questions", shared)
                    ),
                    "; with few runs it is too narrow",
                )
            } else {
                (
                    "questions alone: one run does not show how runs differ".to_owned(),
                    "",
                )
            };
            notes.push(format!(
                "[low, high]: {percent}% bootstrap interval over {runs}{caution}."
            ));
        }
        if shown.contains(&Shown::MiddleHalf) {
            notes.push(format!(
                "IQM: mean of the middle half of {}, over the questions of all runs together (Agarwal et al. 2021); empty \
                 with fewer than {RUNS_OF_IQM} runs.",
                self.column
            ));
        }
        if several {
            notes.push(format!(
                "±: sample standard deviation over the runs ({}).",
                self.aggregate
            ));
        }
        let attempts = |wanted: fn(Metric) -> bool| {
            let shown = shown.iter();
            shown
                .filter_map(|shown| match shown {
                    Shown::Metric(metric) => Some(*metric),
                    _ => None,
                })
                .any(wanted)
        };
        if attempts(|metric| metric.drawn().is_some()) {
            notes.push(format!(
                "pass@k, max@k, majority@k: whether one of k completions of a question is right, the greatest {0}, \
                 and whether their most frequent answer is right; means over all ways of drawing k of the completions \
                 that there are (majority@k of some hundreds: {MAJORITY_DRAWS} draws), then over questions. Right: {0} \
                 of at least {1}.",
                self.column, self.right
            ));
        }
        if attempts(|metric| metric == Metric::DistinctRight) {
            notes.push(format!(
                "Distinct right: answers of {} of at least {} to a question that differ, of all its completions; it \
                 grows with their number.",
                self.column, self.right
            ));
        }
        if has(&[
            Metric::Diversity,
            Metric::DiversityAll,
            Metric::Novelty,
            Metric::NoveltyAll,
        ]) {
            notes.push(format!(
                "Diversity: mean cosine distance of pairs, novelty: mean cosine distance to the nearest completion \
                 trained on; of the top {}, unless the heading says otherwise.",
                self.top_k
            ));
        }
        if shown
            .iter()
            .any(|shown| matches!(shown, Shown::Metric(metric) if metric.is_tfidf()))
        {
            notes.push(
                "TF-IDF weights are fitted on all completions and reference completions together."
                    .to_owned(),
            );
        }
        notes
    }
}
