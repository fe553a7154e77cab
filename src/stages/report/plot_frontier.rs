//! `plot_frontier`: quality against diversity.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::figure_params::FigureParams;
use crate::artifacts::figure::{self, FIGURE};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::figure::{Point, PointChart, PointSeries};
use crate::stats::{mean, pareto_optimal, sample_std};

/// Draws quality against diversity, a point for each policy, as `figure.svg`; `table` has the numbers.
///
/// Both come from tables with one row for each run, such as the outputs `per_seed` of `win_rate`, `metric_table` and
/// `semantic_diversity`; rows belong together by what the tables show of `series` and `along`. A point is the mean over
/// runs, its bars reach from the least to the greatest of them. With `along: temperature` a line joins the temperatures
/// of a policy. A ring marks Pareto-optimal points: no other has at least as much of both and more of one.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlotFrontier {
    /// The column of `quality`; greater is better.
    #[serde(default = "quality")]
    quality: String,
    /// The column of `diversity`; greater is more diverse.
    #[serde(default = "diversity")]
    diversity: String,
    /// The axis whose values have a colour each.
    #[serde(default = "defaults::policy")]
    series: String,
    /// The axis whose values are joined by a line and stand beside their points.
    #[serde(default)]
    along: Option<String>,
    /// The axis whose values are the runs of a point.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The values of `series` drawn, in this order; all if empty.
    #[serde(default)]
    rows: Vec<String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// The name of the vertical axis; that of the column if empty.
    #[serde(default)]
    quality_label: String,
    /// The name of the horizontal axis; that of the column if empty.
    #[serde(default)]
    diversity_label: String,
    /// Colours, size and words.
    #[serde(default)]
    figure: FigureParams,
}

fn quality() -> String {
    "Win rate (%)".to_owned()
}

fn diversity() -> String {
    "Semantic diversity".to_owned()
}

fn title() -> String {
    "Quality and diversity".to_owned()
}

/// What the runs of one table say of each point: by its values of `series` and `along`.
type Measured = IndexMap<(String, String), Vec<(String, f64)>>;

/// A point with the values of its runs.
#[derive(Debug)]
struct Place {
    series: String,
    along: String,
    quality: Vec<f64>,
    diversity: Vec<f64>,
    means: (f64, f64),
    optimal: bool,
}

impl Kind for PlotFrontier {
    const NAME: &'static str = "plot_frontier";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str =
        r#"{ quality: "Win rate (%)", diversity: Semantic diversity, along: temperature }"#;

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("quality", &[TABLE], "a table of runs with the quality"),
            Port::one("diversity", &[TABLE], "a table of runs with the diversity"),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("figure", FIGURE), Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut axes: Vec<&String> = vec![&self.series, &self.aggregate];
        axes.extend(&self.along);
        axes.sort();
        if axes.windows(2).any(|pair| pair[0] == pair[1]) {
            problems.push(Problem::new(
                "along",
                "`series`, `along` and `aggregate` must be different axes",
            ));
        }
        self.figure.check(&mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let quality = Table::read(&ctx.input("quality")?.path)?;
        let diversity = Table::read(&ctx.input("diversity")?.path)?;
        let (places, alone) = self.places(&quality, &diversity)?;
        if !alone.is_empty() {
            ctx.note(&format!(
                "in only one of the tables, so not drawn: {}",
                alone.join("; ")
            ));
        }
        let svg = self.chart(&places).to_svg()?;
        figure::write(&ctx.output("figure")?, "figure", &svg)?;
        self.table(&places).write(&ctx.output("table")?)?;
        Ok(())
    }
}

impl PlotFrontier {
    /// Reads the column of one table.
    fn measured(&self, table: &Table, port: &str, column: &str) -> Result<Measured, StageError> {
        let values = table.numbers(column)?;
        let series = table.all_texts(&self.series)?;
        let along = self.along.as_ref().map(|axis| table.all_texts(axis));
        let along = along.transpose()?;
        let runs = if table.has(&self.aggregate) {
            table.texts(&self.aggregate)?
        } else {
            vec![None; series.len()]
        };
        let mut measured = Measured::new();
        for (row, value) in values.iter().enumerate() {
            let Some(value) = value.filter(|value| value.is_finite()) else {
                continue;
            };
            let along = along
                .as_ref()
                .map_or(String::new(), |along| along[row].clone());
            let key = (series[row].clone(), along);
            let run = runs[row].clone().unwrap_or_default();
            let known = measured.entry(key).or_default();
            if known.iter().any(|(other, _)| *other == run) {
                return Err(StageError::new(format!(
                    "`{port}` has more than one row that is {} {}, {} {run}",
                    self.series, series[row], self.aggregate
                ))
                .hint(
                    "give the further axis as `along`, or take a table that has one value of it",
                ));
            }
            known.push((run, value));
        }
        Ok(measured)
    }

    /// Returns the points, in the order of their series and then along it, and what only one table has.
    fn places(
        &self,
        quality: &Table,
        diversity: &Table,
    ) -> Result<(Vec<Place>, Vec<String>), StageError> {
        let mut quality = self.measured(quality, "quality", &self.quality)?;
        let mut diversity = self.measured(diversity, "diversity", &self.diversity)?;
        let is_wanted = |series: &String| self.rows.is_empty() || self.rows.contains(series);
        quality.retain(|(series, _), _| is_wanted(series));
        diversity.retain(|(series, _), _| is_wanted(series));
        let mut places = Vec::new();
        let mut alone = Vec::new();
        let named =
            |(series, along): &(String, String)| format!("{series} {along}").trim().to_owned();
        for (key, runs) in quality {
            let Some(others) = diversity.shift_remove(&key) else {
                alone.push(named(&key));
                continue;
            };
            let values = |runs: Vec<(String, f64)>| -> Vec<f64> {
                runs.into_iter().map(|(_, value)| value).collect()
            };
            let (quality, diversity) = (values(runs), values(others));
            places.push(Place {
                means: (mean(&diversity)?, mean(&quality)?),
                series: key.0,
                along: key.1,
                quality,
                diversity,
                optimal: false,
            });
        }
        alone.extend(diversity.keys().map(named));
        if places.is_empty() {
            return Err(
                StageError::new("the tables have no row in common").hint(format!(
                    "they name what they compare differently: {}; `row_names` must be the same",
                    alone.join("; ")
                )),
            );
        }
        for wanted in &self.rows {
            if places.iter().all(|place| place.series != *wanted) {
                return Err(
                    StageError::new(format!("both tables need rows of `{wanted}`"))
                        .hint("`rows` names values of `series` as the tables show them"),
                );
            }
        }
        let means: Vec<(f64, f64)> = places.iter().map(|place| place.means).collect();
        for (place, optimal) in places.iter_mut().zip(pareto_optimal(&means)) {
            place.optimal = optimal;
        }
        let mut order: Vec<String> = self.rows.clone();
        order.extend(places.iter().map(|place| place.series.clone()));
        let rank = |place: &Place| order.iter().position(|series| *series == place.series);
        // Numbers ascend along a line; words keep the order of the table.
        let number = |place: &Place| place.along.parse::<f64>().unwrap_or(0.0);
        places.sort_by(|a, b| rank(a).cmp(&rank(b)).then(number(a).total_cmp(&number(b))));
        Ok((places, alone))
    }

    fn chart(&self, places: &[Place]) -> PointChart {
        let or = |label: &String, column: &String| {
            let text = if label.is_empty() { column } else { label };
            text.clone()
        };
        let range = |values: &[f64]| {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (values.len() > 1).then_some((low, high))
        };
        let names = places.iter().map(|place| &place.series);
        let looks = self.figure.looks_by_name(names);
        let mut series: Vec<PointSeries> = Vec::new();
        for place in places {
            if series.last().is_none_or(|last| last.label != place.series) {
                series.push(PointSeries {
                    label: place.series.clone(),
                    look: looks[place.series.as_str()],
                    points: Vec::new(),
                });
            }
            let point = Point {
                at: place.means,
                x_range: range(&place.diversity),
                y_range: range(&place.quality),
                label: place.along.clone(),
                ringed: place.optimal,
                apart: false,
            };
            if let Some(last) = series.last_mut() {
                last.points.push(point);
            }
        }
        PointChart {
            title: self.title.clone(),
            x_label: or(&self.diversity_label, &self.diversity),
            y_label: or(&self.quality_label, &self.quality),
            legend_title: self.series.clone(),
            bar_label: format!("least to greatest {}", self.aggregate),
            ring_label: "Pareto-optimal".to_owned(),
            series,
            size: self.figure.size(),
            ..PointChart::default()
        }
    }

    fn table(&self, places: &[Place]) -> Table {
        let mut table = Table::new(&self.title);
        let texts = |of: fn(&Place) -> &String| places.iter().map(move |p| Some(of(p).clone()));
        table.label_column(&self.series, texts(|place| &place.series));
        if let Some(axis) = &self.along {
            table.label_column(axis, texts(|place| &place.along));
        }
        let several = places
            .iter()
            .any(|place| place.quality.len().max(place.diversity.len()) > 1);
        let mut add = |name: &String, mean: fn(&Place) -> f64, runs: fn(&Place) -> &Vec<f64>| {
            table.number_column(name, 3, places.iter().map(|place| Some(mean(place))));
            if several {
                let spread = places.iter().map(|place| sample_std(runs(place)).ok());
                table.spread_of_last("sd", spread);
            }
        };
        add(&self.diversity, |p| p.means.0, |p| &p.diversity);
        add(&self.quality, |p| p.means.1, |p| &p.quality);
        let optimal = places.iter().map(|place| {
            let answer = if place.optimal { "yes" } else { "no" };
            Some(answer.to_owned())
        });
        table.text_column("Pareto-optimal", optimal);
        table.notes.push(
            "Pareto-optimal: no other row has at least as much of both and more of one, by the means over runs."
                .to_owned(),
        );
        if several {
            table.notes.push(format!(
                "±: sample standard deviation over the runs ({}).",
                self.aggregate
            ));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind_of(params: serde_json::Value) -> PlotFrontier {
        serde_json::from_value(params).unwrap()
    }

    /// Rows of policy, temperature, seed and a value.
    fn table(column: &str, rows: &[(&str, &str, &str, f64)]) -> Table {
        let mut table = Table::new("runs");
        let texts =
            |of: fn(&(&str, &str, &str, f64)) -> String| rows.iter().map(move |r| Some(of(r)));
        table.text_column("policy", texts(|row| row.0.to_owned()));
        table.text_column("temperature", texts(|row| row.1.to_owned()));
        table.text_column("seed", texts(|row| row.2.to_owned()));
        table.number_column(column, 3, rows.iter().map(|row| Some(row.3)));
        table
    }

    fn tables() -> (Table, Table) {
        let quality = [
            ("dpo", "1", "1", 60.0),
            ("dpo", "1", "2", 64.0),
            ("dpo", "0.7", "1", 70.0),
            ("gdpo", "0.7", "1", 66.0),
            ("gdpo", "1", "1", 62.0),
            ("chosen", "1", "1", 50.0),
        ];
        let diversity = [
            ("dpo", "0.7", "1", 0.2),
            ("gdpo", "1", "1", 0.69),
            ("gdpo", "0.7", "1", 0.5),
            ("dpo", "1", "1", 0.3),
            ("dpo", "1", "2", 0.4),
        ];
        (
            table("Win rate (%)", &quality),
            table("Semantic diversity", &diversity),
        )
    }

    #[test]
    fn points_are_means_over_runs_in_order_along_their_line() {
        let (quality, diversity) = tables();
        let kind = kind_of(json!({ "along": "temperature" }));
        let (places, alone) = kind.places(&quality, &diversity).unwrap();
        assert_eq!(alone, ["chosen 1"]);
        let found: Vec<(&str, &str, bool)> = places
            .iter()
            .map(|place| (&*place.series, &*place.along, place.optimal))
            .collect();
        // DPO at 1 is beaten by GDPO at 0.7: 66 > 62, 0.5 > 0.35.
        let expected = [
            ("dpo", "0.7", true),
            ("dpo", "1", false),
            ("gdpo", "0.7", true),
            ("gdpo", "1", true),
        ];
        assert_eq!(found, expected);
        assert!((places[1].means.0 - 0.35).abs() < 1e-12 && places[1].means.1 == 62.0);
        let chart = kind.chart(&places);
        assert_eq!(chart.series.len(), 2);
        assert_eq!(chart.series[0].points[1].y_range, Some((60.0, 64.0)));
        assert_eq!(chart.series[0].points[0].y_range, None);
        chart.to_svg().unwrap();
        let table = kind.table(&places);
        assert_eq!(table.all_texts("Pareto-optimal").unwrap()[1], "no");
        let spread = table.numbers("Win rate (%) sd").unwrap();
        assert!(spread[0].is_none() && (spread[1].unwrap() - 8f64.sqrt()).abs() < 1e-12);
        let some = kind_of(json!({ "along": "temperature", "rows": ["gdpo"] }));
        let (places, _) = some.places(&quality, &diversity).unwrap();
        assert_eq!(places.len(), 2);
    }

    #[test]
    fn rows_that_would_be_mixed_or_missing_are_errors() {
        let (quality, diversity) = tables();
        let message = |params, diversity: &Table| match kind_of(params).places(&quality, diversity)
        {
            Err(StageError::Failed { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        let found = message(json!({}), &diversity);
        assert_eq!(
            found,
            "`quality` has more than one row that is policy dpo, seed 1"
        );
        let other = table("Semantic diversity", &[("DPO", "1", "1", 0.2)]);
        let along = || json!({ "along": "temperature" });
        assert_eq!(message(along(), &other), "the tables have no row in common");
        let found = message(
            json!({ "along": "temperature", "rows": ["dpo", "tb"] }),
            &diversity,
        );
        assert_eq!(found, "both tables need rows of `tb`");
        let found = message(json!({ "quality": "Mean" }), &diversity);
        assert!(found.contains("no column `Mean`"), "{found}");
        assert_eq!(kind_of(json!({ "along": "seed" })).validate().len(), 1);
        assert_eq!(kind_of(along()).validate(), []);
    }
}
