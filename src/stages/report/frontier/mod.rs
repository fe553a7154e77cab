//! `frontier`: what is traded for what, and who has more of one thing at equal measure of another.

mod figures;
mod matched;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::axes::Axes;
use super::figure_params::{FigureParams, Scale, file_name};
use super::joined::{Join, tell_incomplete};
use crate::artifacts::figure::{self, FIGURE};
use crate::artifacts::table::TABLE;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;

/// Shows what is traded for what over strengths, steps or temperatures, and compares series at equal measure of a column.
///
/// A point is a value of `series` and of each axis of `along`; its runs are the values of `aggregate`. The output `table`
/// has every point with the mean and the sample standard deviation of each column over the runs.
///
/// With `pairs` the output `matched` has the difference of two series in each column of `values` at equal values of each
/// column of `at`, run by run: in a run each series is a line through its points, sorted by what is held equal, with the
/// mean of points where that is the same; the difference of the two lines is averaged over the range that both have. Means
/// of that over the runs stand with a t interval. Where no run has a common range, there is no difference, and the two
/// ranges stand beside the empty cell.
///
/// The output `figure` has for each column held equal and each value a chart of the points, `VALUE-over-COLUMN.svg`, joined
/// along the first axis of `along`, with a line for each value of the others. With `together` it has for each series
/// `together-NUMBER-SERIES.svg`, several columns over that of `x`: over-optimisation shows as a learned reward (solid) that
/// grows while the exact one (dashed) falls.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Frontier {
    /// The axis whose values are compared.
    #[serde(default = "defaults::policy")]
    series: String,
    /// The axis, or the axes, whose values are the points of a series.
    along: Axes,
    /// The axis whose values are the runs of a point.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The columns that are traded or compared.
    values: Vec<String>,
    /// The columns that are held equal.
    #[serde(default)]
    at: Vec<String>,
    /// The series that are compared, as the tables name them.
    #[serde(default)]
    pairs: Vec<Pair>,
    /// A column for the horizontal axis of charts, and its scale.
    #[serde(default)]
    x: Option<Horizontal>,
    /// Columns drawn in one chart for each series, over that of `x`.
    #[serde(default)]
    together: Vec<String>,
    /// Coverage of the intervals.
    #[serde(default = "defaults::level")]
    level: f64,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// What else must be known to read the tables.
    #[serde(default)]
    notes: Vec<String>,
    /// Colours, size and words.
    #[serde(default)]
    figure: FigureParams,
}

/// Two series; differences are `a - b`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pair {
    /// The first.
    a: String,
    /// The second.
    b: String,
}

/// A horizontal axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Horizontal {
    /// Its column.
    column: String,
    /// How its values are laid out.
    #[serde(default)]
    scale: Scale,
}

fn title() -> String {
    "Trade-offs".to_owned()
}

impl Kind for Frontier {
    const NAME: &'static str = "frontier";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = "{ along: strength, values: [Mean, exact_reward, Semantic diversity], at: [Mean, kl], \
        pairs: [{ a: GDPO, b: DPO }], x: { column: kl, scale: sqrt }, together: [Mean, exact_reward] }";

    fn ports(&self) -> Vec<Port> {
        vec![Join::port()]
    }

    fn outputs(&self) -> Vec<Output> {
        let matched = (!self.pairs.is_empty()).then(|| Output::new("matched", TABLE));
        std::iter::once(Output::new("table", TABLE))
            .chain(matched)
            .chain([Output::new("figure", FIGURE)])
            .collect()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut axes: BTreeSet<&String> = [&self.series, &self.aggregate].into();
        let along = self.along.names();
        if axes.len() < 2 || !along.iter().all(|axis| axes.insert(axis)) {
            problems.push(Problem::new(
                "along",
                "`series`, `along` and `aggregate` must be different axes",
            ));
        }
        if self.values.is_empty() {
            problems.push(Problem::new(
                "values",
                "`values` must name at least one column",
            ));
        }
        for (key, columns) in [
            ("values", &self.values),
            ("at", &self.at),
            ("together", &self.together),
        ] {
            let mut seen = BTreeSet::new();
            if let Some(twice) = columns.iter().find(|column| !seen.insert(*column)) {
                problems.push(Problem::new(key, format!("`{key}` has `{twice}` twice")));
            }
        }
        match (self.pairs.is_empty(), self.at.is_empty()) {
            (false, true) => problems.push(
                Problem::new(
                    "pairs",
                    "`pairs` are compared at equal values of a column, and `at` names none",
                )
                .hint("such as `at: [kl]`"),
            ),
            (false, false) if self.compared().next().is_none() => problems.push(Problem::new(
                "at",
                "`values` names no column but the one that is held equal",
            )),
            _ => {}
        }
        for pair in self.pairs.iter().filter(|pair| pair.a == pair.b) {
            problems.push(Problem::new(
                "pairs",
                format!("`{}` is compared to itself", pair.a),
            ));
        }
        if !self.together.is_empty() && self.x.is_none() {
            problems.push(
                Problem::new(
                    "together",
                    "`together` needs `x`, the column that its charts are drawn over",
                )
                .hint("such as `x: { column: kl, scale: sqrt }`"),
            );
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            problems.push(Problem::new("level", "`level` must be between 0 and 1"));
        }
        self.figure.check(&mut problems);
        let mut names = BTreeSet::new();
        for (over, value) in self.panels() {
            let name = panel_name(value, over);
            if !names.insert(name.clone()) {
                problems.push(Problem::new(
                    "values",
                    format!("two figures would be `{name}.svg`"),
                ));
            }
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        self.join().check(known, &self.wanted());
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let points = self.join().points(&Join::read(ctx)?, &self.wanted())?;
        tell_incomplete(ctx, &points);
        if let Some(note) = self.check_log_axis(&points)? {
            ctx.note(&note);
        }
        self.table(&points).write(&ctx.output("table")?)?;
        if !self.pairs.is_empty() {
            let matched = self.matched(&points)?;
            let apart = matched.iter().filter(|one| one.range.is_err());
            for one in apart {
                let (a, b, at) = (&one.pair.a, &one.pair.b, &one.at);
                ctx.note(&format!(
                    "{a} and {b} at equal `{at}`: {}",
                    one.range_text()
                ));
            }
            self.matched_table(&matched)
                .write(&ctx.output("matched")?)?;
        }
        let folder = ctx.output("figure")?;
        for (name, chart) in self.charts(&points) {
            figure::write(&folder, &name, &chart.to_svg()?)?;
        }
        Ok(())
    }
}

impl Frontier {
    fn join(&self) -> Join<'_> {
        Join {
            series: &self.series,
            along: self.along.names(),
            param: "along",
            aggregate: &self.aggregate,
        }
    }

    /// The columns that are read, in the order in which they are shown, each with the param that names it first.
    fn wanted(&self) -> Vec<(&'static str, &str)> {
        let values = self.values.iter().map(|column| ("values", column));
        let at = self.at.iter().map(|column| ("at", column));
        let x = self.x.iter().map(|x| ("x", &x.column));
        let together = self.together.iter().map(|column| ("together", column));
        let mut wanted: Vec<(&str, &str)> = Vec::new();
        for (param, column) in values.chain(at).chain(x).chain(together) {
            if wanted.iter().all(|(_, other)| other != column) {
                wanted.push((param, column));
            }
        }
        wanted
    }

    /// What is held equal, and what is compared then.
    fn compared(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self
            .at
            .iter()
            .flat_map(|at| self.values.iter().map(move |value| (at, value)));
        pairs
            .filter(|(at, value)| at != value)
            .map(|(at, value)| (at.as_str(), value.as_str()))
    }

    /// Horizontal and vertical columns of the charts of all series.
    fn panels(&self) -> Vec<(&str, &str)> {
        let mut over: Vec<&String> = self.at.iter().collect();
        over.extend(
            self.x
                .iter()
                .map(|x| &x.column)
                .filter(|x| !self.at.contains(x)),
        );
        let pairs = over
            .iter()
            .flat_map(|over| self.values.iter().map(move |value| (*over, value)));
        pairs
            .filter(|(over, value)| over != value)
            .map(|(over, value)| (over.as_str(), value.as_str()))
            .collect()
    }
}

/// The file name of a chart, without its ending.
fn panel_name(value: &str, over: &str) -> String {
    format!("{}-over-{}", file_name(value), file_name(over))
}
