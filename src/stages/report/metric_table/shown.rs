//! The columns of the table: which there can be, and which are shown.

use std::borrow::Cow;

use super::MetricTable;
use crate::stages::report::groups::Row;
use crate::stages::report::measure::Metric;
use crate::stages::report::scored::Scored;

/// The interquartile mean in `columns`.
pub(super) const IQM: &str = "iqm";

/// A column of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shown {
    Metric(Metric),
    /// The interquartile mean of the reward over runs and questions.
    MiddleHalf,
    MeanOf(String),
    EntropyOf(String),
}

impl Shown {
    pub(super) fn key(&self) -> Cow<'_, str> {
        match self {
            Self::Metric(metric) => metric.key(),
            Self::MiddleHalf => Cow::Borrowed(IQM),
            Self::MeanOf(column) | Self::EntropyOf(column) => Cow::Borrowed(column),
        }
    }

    /// Whether it has an interval over questions and runs.
    pub(super) fn has_interval(&self) -> bool {
        match self {
            Self::Metric(metric) => *metric == Metric::Mean || metric.is_of_attempts(),
            Self::MiddleHalf => true,
            Self::MeanOf(_) | Self::EntropyOf(_) => false,
        }
    }

    pub(super) fn heading(&self, k: usize) -> String {
        match self {
            Self::Metric(metric) => metric.heading(k),
            Self::MiddleHalf => "IQM".to_owned(),
            Self::MeanOf(column) => column.clone(),
            Self::EntropyOf(column) => format!("Entropy of {column}"),
        }
    }
}

impl MetricTable {
    pub(super) fn keys(&self) -> Vec<Cow<'_, str>> {
        let mut keys: Vec<Cow<'_, str>> = Vec::new();
        for metric in self.metrics() {
            keys.push(metric.key());
        }
        keys.push(Cow::Borrowed(IQM));
        let further = self.extra.iter().chain(&self.entropy);
        keys.extend(further.map(|column| Cow::Borrowed(column.as_str())));
        keys
    }

    /// Every metric that can be named.
    fn metrics(&self) -> Vec<Metric> {
        let drawn = [Metric::PassAt, Metric::MaxAt, Metric::MajorityAt];
        let drawn = drawn
            .iter()
            .flat_map(|metric| self.k.iter().map(|k| metric(*k)));
        let metrics = Metric::ALL.into_iter().chain(drawn);
        metrics.chain([Metric::DistinctRight]).collect()
    }

    /// The metrics of right answers that are shown: those of `k`, or those named.
    pub(super) fn attempts(&self) -> Vec<Metric> {
        let mut metrics = self.metrics();
        metrics.retain(|metric| metric.is_of_attempts() && self.shows(*metric));
        metrics
    }

    fn shows(&self, metric: Metric) -> bool {
        if self.columns.is_empty() {
            return !metric.is_of_attempts() || !self.k.is_empty();
        }
        self.columns.iter().any(|key| *key == metric.key())
    }

    /// Returns the columns that the inputs allow and the params want.
    pub(super) fn shown(&self, rows: &[Row<Scored>]) -> Vec<Shown> {
        let metrics = self.metrics().into_iter();
        let metrics = metrics.filter(|metric| self.shows(*metric));
        let metrics = metrics.map(Shown::Metric);
        let further = self.extra.iter().cloned().map(Shown::MeanOf);
        let asked_for = self.columns.iter().any(|key| key == IQM);
        let all = metrics
            .chain(asked_for.then_some(Shown::MiddleHalf))
            .chain(further)
            .chain(self.entropy.iter().cloned().map(Shown::EntropyOf));
        if self.columns.is_empty() {
            let runs = || rows.iter().flat_map(|row| &row.runs);
            let possible = |shown: &Shown| match shown {
                Shown::Metric(metric) => runs().all(|run| run.content.has(*metric)),
                _ => true,
            };
            return all.filter(possible).collect();
        }
        let all: Vec<Shown> = all.collect();
        let chosen = self
            .columns
            .iter()
            .filter_map(|key| all.iter().find(|shown| shown.key() == **key));
        let rest = all.iter().filter(|shown| {
            let asked_for = matches!(shown, Shown::MeanOf(_) | Shown::EntropyOf(_));
            asked_for && !self.columns.iter().any(|key| *key == shown.key())
        });
        chosen.chain(rest).cloned().collect()
    }
}
