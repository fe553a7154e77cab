//! Tests that a paper reports, recomputed from its table.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Alternative;
use crate::artifacts::table::Table;
use crate::engine::stage::StageError;
use crate::stages::report::groups::within;
use crate::stats::{self, Summary, Variances, two_sample_t_test};

/// A test that a paper reports.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    /// What is compared, and where it stands.
    name: String,
    /// Values in each sample.
    n: usize,
    /// The first sample.
    a: Moments,
    /// The second sample.
    b: Moments,
    /// How its standard deviations were computed.
    std: StdKind,
    /// The p that the paper reports.
    #[serde(default)]
    expected_p: Option<f64>,
    /// How far the recomputed p (Welch's) may be from it.
    #[serde(default = "tolerance")]
    tolerance: f64,
}

/// Mean and standard deviation of a published sample.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Moments {
    /// The mean.
    mean: f64,
    /// The standard deviation.
    std: f64,
}

/// How a standard deviation was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StdKind {
    /// Divided by n.
    Population,
    /// Divided by n - 1.
    Sample,
}

impl StdKind {
    fn name(self) -> &'static str {
        match self {
            Self::Population => "population",
            Self::Sample => "sample",
        }
    }
}

impl From<StdKind> for stats::StdKind {
    fn from(kind: StdKind) -> Self {
        match kind {
            StdKind::Population => Self::Population,
            StdKind::Sample => Self::Sample,
        }
    }
}

/// Half a unit of the third decimal, to which papers print p.
fn tolerance() -> f64 {
    0.0005
}

/// Recomputes the published tests; returns the names of those that differ as well.
pub(super) fn recomputed(
    published: &[Published],
    alternative: Alternative,
) -> Result<(Table, Vec<String>), StageError> {
    let mut tests = Vec::new();
    let mut differing = Vec::new();
    for published in published {
        let summary = |moments: Moments| {
            Summary::published(published.n, moments.mean, moments.std, published.std.into())
                .map_err(|error| within(&published.name, error))
        };
        let (a, b) = (summary(published.a)?, summary(published.b)?);
        let test = |variances| {
            two_sample_t_test(&a, &b, variances, alternative.into())
                .map_err(|error| within(&published.name, error))
        };
        let (welch, student) = (test(Variances::Unequal)?, test(Variances::Equal)?);
        let agrees = published
            .expected_p
            .map(|p| (p - welch.p).abs() <= published.tolerance);
        if agrees == Some(false) {
            differing.push(published.name.clone());
        }
        tests.push((published, welch, student, agrees));
    }
    let mut table =
        Table::new("Published tests, recomputed from the published means and standard deviations");
    table.text_column(
        "Test",
        tests
            .iter()
            .map(|(published, ..)| Some(published.name.clone())),
    );
    table.text_column(
        "Std is",
        tests
            .iter()
            .map(|(published, ..)| Some(published.std.name().to_owned())),
    );
    table.number_column(
        "n",
        0,
        tests.iter().map(|(published, ..)| Some(published.n as f64)),
    );
    table.number_column("t", 3, tests.iter().map(|(_, welch, ..)| Some(welch.t)));
    table.number_column(
        "df",
        1,
        tests
            .iter()
            .map(|(_, welch, ..)| Some(welch.degrees_of_freedom)),
    );
    table.number_column("p", 5, tests.iter().map(|(_, welch, ..)| Some(welch.p)));
    table.number_column(
        "Student p",
        5,
        tests.iter().map(|(_, _, student, _)| Some(student.p)),
    );
    table.number_column(
        "p (paper)",
        3,
        tests.iter().map(|(published, ..)| published.expected_p),
    );
    let verdict = |agrees: bool| if agrees { "agrees" } else { "differs" }.to_owned();
    table.text_column(
        "Verdict",
        tests.iter().map(|(.., agrees)| agrees.map(verdict)),
    );
    table.notes.push(
        "t, df and p are Welch's. A population standard deviation (divided by n) is converted to that of a sample."
            .to_owned(),
    );
    Ok((table, differing))
}
