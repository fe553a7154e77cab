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
use crate::stages::report::scored::Scored;
use crate::stages::report::trainings::ended;
use crate::stats::{Bootstrap, Interval, mean, sample_std};

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
            let runs = |row: &Row<Measured>| -> Vec<f64> {
                row.runs.iter().map(|run| run.content.values[at]).collect()
            };
            let means = rows.iter().map(|row| Ok(Some(mean(&runs(row))?)));
            table.number_column(&heading, 3, means.collect::<Result<Vec<_>, StageError>>()?);
            if several {
                // One run has no spread.
                table.spread_of_last("sd", rows.iter().map(|row| sample_std(&runs(row)).ok()));
            }
            if column.has_interval() {
                let intervals = rows
                    .iter()
                    .map(|row| self.interval(row, column, at))
                    .collect::<Result<Vec<_>, _>>()?;
                let bounds = |interval: &Interval| (Some(interval.low), Some(interval.high));
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
                    ended(
                        &row.runs
                            .iter()
                            .filter_map(|run| training_of(curves, &row.values[0], &run.label))
                            .collect::<Vec<_>>(),
                    )
                }),
            );
        }
        table.notes.extend(self.standard_notes(shown, several));
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
                ended(&[training_of(curves, &row.values[0], run)?])
            };
            table.text_column(
                "Training",
                runs().map(|(row, run)| training(row, &run.label)),
            );
        }
        table
    }

    fn reported(&self, row: &Row<Measured>, column: &Shown) -> Option<f64> {
        self.reference_values
            .get(&row.label)?
            .get(column.key().as_ref())
            .copied()
    }

    fn interval(
        &self,
        row: &Row<Measured>,
        column: &Shown,
        at: usize,
    ) -> Result<Interval, StageError> {
        let mut stream = Stream::new(self.seed, "metric_table").child(&row.label);
        if *column != Shown::Metric(Metric::Mean) {
            stream = stream.child(&column.key());
        }
        let runs = row.runs.iter();
        let questions: Vec<Vec<f64>> = runs
            .filter_map(|run| run.content.questions[at].clone())
            .collect();
        let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
        bootstrap
            .mean_of_runs(&questions)
            .map_err(|error| within(&row.label, error))
    }
}
