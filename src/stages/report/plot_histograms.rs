//! `plot_histograms`: rewards of several policies over each other.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::figure_params::FigureParams;
use super::groups::{Grouping, Row, refuse_ungrouped, rows_named};
use super::scored::{self, Scored};
use crate::artifacts::figure::{self, FIGURE};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::figure::{HistogramChart, Sample};

/// Draws the histograms of the rewards of several policies over each other, as `figure.svg`.
///
/// Heights are shares of the completions of a row, those of all its runs together.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlotHistograms {
    /// The axis whose values are the histograms.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The rows drawn, in this order; all if empty.
    #[serde(default)]
    rows: Vec<String>,
    /// The numeric column of `scores` that is counted.
    #[serde(default = "defaults::reward")]
    column: String,
    /// Number of bins over the range of all values.
    #[serde(default = "bins")]
    bins: usize,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// The name of the horizontal axis; that of the column if empty.
    #[serde(default)]
    x_label: String,
    /// Colours, size and words.
    #[serde(default)]
    figure: FigureParams,
}

fn bins() -> usize {
    30
}

fn title() -> String {
    "Rewards of completions".to_owned()
}

impl Kind for PlotHistograms {
    const NAME: &'static str = "plot_histograms";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = "{ rows: [baseline, ppo, flowhf.late], bins: 30 }";

    fn ports(&self) -> Vec<Port> {
        vec![scored::scores_port()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("figure", FIGURE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(1..=1000).contains(&self.bins) {
            problems.push(Problem::new("bins", "`bins` must be from 1 to 1000"));
        }
        self.figure.check(&mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let grouping = self.grouping();
        refuse_ungrouped(known, "scores", grouping, false, ("rows", &self.rows));
        scored::needs_column(known, (&self.row, &self.rows), "column", &self.column);
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let rows = scored::load_scores(ctx, self.grouping())?;
        figure::write(
            &ctx.output("figure")?,
            "figure",
            &self.chart(&rows)?.to_svg()?,
        )?;
        Ok(())
    }
}

impl PlotHistograms {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn chart(&self, rows: &[Row<Scored>]) -> Result<HistogramChart, StageError> {
        let looks = self.figure.looks_of(rows);
        let chosen = rows_named(rows, &self.rows)?;
        let mut samples = Vec::with_capacity(chosen.len());
        for row in chosen {
            let mut values = Vec::new();
            for run in &row.runs {
                // The chart says how many values are not finite.
                values.extend(run.content.table.all_numbers(&self.column)?);
            }
            samples.push(Sample {
                label: row.name.clone(),
                look: looks[row.label.as_str()],
                values,
            });
        }
        Ok(HistogramChart {
            title: self.title.clone(),
            x_label: if self.x_label.is_empty() {
                self.column.clone()
            } else {
                self.x_label.clone()
            },
            samples,
            legend_title: self.row.clone(),
            bins: self.bins,
            size: self.figure.size(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::report::fixture::{rows, scored};

    fn kind(params: serde_json::Value) -> PlotHistograms {
        serde_json::from_value(params).unwrap()
    }

    #[test]
    fn runs_are_pooled_and_rows_chosen() {
        let rows = rows(vec![
            scored("ppo", 1, 1.0, 9),
            scored("tb", 1, 0.0, 9),
            scored("ppo", 2, 1.0, 7),
        ]);
        let chart = kind(serde_json::json!({ "rows": ["tb", "ppo"] }))
            .chart(&rows)
            .unwrap();
        let found: Vec<(&str, usize)> = chart
            .samples
            .iter()
            .map(|sample| (sample.label.as_str(), sample.values.len()))
            .collect();
        assert_eq!(found, [("tb", 9), ("ppo", 16)]);
        assert_eq!(chart.x_label, "reward");
        let expected = rows[0].runs[1].content.column("reward").unwrap();
        assert_eq!(chart.samples[1].values[9..], expected);
        chart.to_svg().unwrap();
        assert!(
            kind(serde_json::json!({ "rows": ["tp"] }))
                .chart(&rows)
                .is_err()
        );
        assert_eq!(kind(serde_json::json!({ "bins": 0 })).validate().len(), 1);
    }
}
