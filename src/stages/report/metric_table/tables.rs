//! The table of rows and the table of runs.

use super::MetricTable;
use super::measured::Measured;
use super::shown::Shown;
use crate::artifacts::curve::Curve;
use crate::artifacts::table::Table;
use crate::engine::stage::StageError;
use crate::random::Stream;
use crate::stages::report::groups::{Row, add_axes, training_of, within};
use crate::stages::report::measure::Metric;
use crate::stages::report::questions::compare;
use crate::stages::report::repeats::once;
use crate::stages::report::resample::{self, Questions, crossed_mean_of};
use crate::stages::report::scored::Scored;
use crate::stages::report::trainings::ended;
use crate::stats::{
    Bootstrap, Interval, StatsError, interquartile_mean, mean, middle_half_mean, sample_std,
};

/// The fewest runs whose interquartile mean is shown: of fewer, a run that fails is more than what is left out.
pub(super) const RUNS_OF_IQM: usize = 5;

impl MetricTable {
    /// Makes the table of rows and the table of runs.
    pub(super) fn tables(
        &self,
        rows: Vec<Row<Scored>>,
        curves: &[Row<Curve>],
    ) -> Result<(Table, Table), StageError> {
        let shown = self.shown(&rows);
        let mut measured = Vec::with_capacity(rows.len());
        for row in rows {
            // Runs are dropped as they are measured: their vectors are large.
            measured.push(row.try_map(&self.aggregate, |run| self.measure(&run.content, &shown))?);
        }
        let per_seed = self.per_seed(&measured, &shown, curves);
        Ok((self.aggregated(&measured, &shown, curves)?, per_seed))
    }

    fn aggregated(
        &self,
        rows: &[Row<Measured>],
        shown: &[Shown],
        curves: &[Row<Curve>],
    ) -> Result<Table, StageError> {
        let (rows, repeats) = once(rows, &self.aggregate);
        let rows = rows.as_slice();
        let several = rows.iter().any(|row| row.runs.len() > 1);
        let mut table = Table::new(&self.title);
        add_axes(&mut table, self.row.names(), rows.iter());
        table.whole_column(
            "n",
            rows.iter()
                .map(|row| Some(row.runs.iter().map(|run| run.content.n).sum::<usize>() as f64)),
        );
        if several {
            table.whole_column("Runs", rows.iter().map(|row| Some(row.runs.len() as f64)));
        }
        for (at, column) in shown.iter().enumerate() {
            let heading = column.heading(self.top_k);
            let runs = |row: &Row<&Measured>| -> Vec<f64> {
                row.runs.iter().map(|run| run.content.values[at]).collect()
            };
            let intervals = rows
                .iter()
                .map(|row| self.interval(row, column, at))
                .collect::<Result<Vec<_>, _>>()?;
            let means = rows
                .iter()
                .zip(&intervals)
                .map(|(row, interval)| match column {
                    // Of all runs together, not of each.
                    Shown::MiddleHalf => Ok(interval.map(|interval| interval.estimate)),
                    _ => Ok(Some(mean(&runs(row))?)),
                });
            table.number_column(&heading, 3, means.collect::<Result<Vec<_>, StageError>>()?);
            if several {
                // One run has no spread, nor has what is not shown.
                let spread = rows.iter().zip(&intervals).map(|(row, interval)| {
                    let is_shown = *column != Shown::MiddleHalf || interval.is_some();
                    sample_std(&runs(row)).ok().filter(|_| is_shown)
                });
                table.spread_of_last("sd", spread);
            }
            if column.has_interval() {
                let bounds = |interval: &Option<Interval>| {
                    interval
                        .map(|interval| (interval.low, interval.high))
                        .unzip()
                };
                table.interval_of_last(intervals.iter().map(bounds));
            }
            if rows.iter().any(|row| self.reported(row, column).is_some()) {
                let reported = rows.iter().map(|row| self.reported(row, column));
                table.number_column(format!("{heading} (paper)"), 3, reported);
            }
        }
        if !curves.is_empty() {
            table.text_column(
                "Training",
                rows.iter().map(|row| {
                    let runs = row.runs.iter();
                    let trainings =
                        runs.filter_map(|run| training_of(curves, &row.values[0], &run.label));
                    ended(&trainings.map(|run| &run.content).collect::<Vec<_>>())
                }),
            );
        }
        let asked = compare(rows, &self.aggregate, |run| {
            Ok(run.keys.iter().cloned().collect())
        })?;
        let notes = self.standard_notes(shown, several, asked.shared);
        table.notes.extend(notes);
        table.notes.extend(asked.notes);
        table.notes.extend(repeats);
        Ok(table)
    }

    fn per_seed(&self, rows: &[Row<Measured>], shown: &[Shown], curves: &[Row<Curve>]) -> Table {
        let mut table = Table::new(format!("{}, run by run", self.title));
        let runs = || {
            rows.iter()
                .flat_map(|row| row.runs.iter().map(move |run| (row, run)))
        };
        add_axes(&mut table, self.row.names(), runs().map(|(row, _)| row));
        table.label_column(
            &self.aggregate,
            runs().map(|(_, run)| Some(run.label.clone())),
        );
        table.whole_column("n", runs().map(|(_, run)| Some(run.content.n as f64)));
        for (at, column) in shown.iter().enumerate() {
            let values = runs().map(|(_, run)| Some(run.content.values[at]));
            table.number_column(column.heading(self.top_k), 3, values);
        }
        if !curves.is_empty() {
            let training = |row: &Row<Measured>, run: &str| {
                ended(&[&training_of(curves, &row.values[0], run)?.content])
            };
            table.text_column(
                "Training",
                runs().map(|(row, run)| training(row, &run.label)),
            );
        }
        table
    }

    fn reported<T>(&self, row: &Row<T>, column: &Shown) -> Option<f64> {
        self.reference_values
            .get(&row.label)?
            .get(column.key().as_ref())
            .copied()
    }

    /// The interval of a column that has one; none of an interquartile mean of few runs.
    fn interval(
        &self,
        row: &Row<&Measured>,
        column: &Shown,
        at: usize,
    ) -> Result<Option<Interval>, StageError> {
        let few = *column == Shown::MiddleHalf && row.runs.len() < RUNS_OF_IQM;
        if !column.has_interval() || few {
            return Ok(None);
        }
        let mut stream = Stream::new(self.seed, "metric_table").child(&row.label);
        if *column != Shown::Metric(Metric::Mean) {
            stream = stream.child(&column.key());
        }
        let mut questions = Questions::new();
        let runs: Vec<(Vec<usize>, &[f64])> = row
            .runs
            .iter()
            .filter_map(|run| {
                let keys = run.content.keys.iter().cloned();
                let places = keys.map(|key| questions.place(key)).collect();
                Some((places, run.content.questions[at].as_deref()?))
            })
            .collect();
        let interval = || {
            let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
            if *column == Shown::MiddleHalf {
                return crossed_middle_half(&bootstrap, &runs, questions.count());
            }
            let runs = runs.iter();
            let runs: Vec<resample::Measured> = runs
                .map(|(places, values)| resample::Measured::mean_of(values, places.iter().copied()))
                .collect();
            crossed_mean_of(&bootstrap, &runs, &questions)
        };
        interval()
            .map(Some)
            .map_err(|error| within(&row.label, error))
    }
}

/// The interquartile mean of all questions of all runs, given with their places.
fn crossed_middle_half(
    bootstrap: &Bootstrap,
    runs: &[(Vec<usize>, &[f64])],
    questions: usize,
) -> Result<Interval, StatsError> {
    let mut ascending: Vec<(f64, usize, usize)> = Vec::new();
    for (run, (places, values)) in runs.iter().enumerate() {
        let cells = values.iter().zip(places);
        ascending.extend(cells.map(|(value, place)| (*value, run, *place)));
    }
    ascending.sort_by(|a, b| a.0.total_cmp(&b.0));
    let values: Vec<f64> = ascending.iter().map(|(value, ..)| *value).collect();
    let replicates = bootstrap.crossed(&[runs.len(), questions], |drawn| {
        let cells = ascending.iter();
        middle_half_mean(
            cells.map(|(value, run, place)| (*value, drawn[0][*run] * drawn[1][*place])),
        )
    });
    bootstrap.interval_of(interquartile_mean(&values)?, replicates)
}
