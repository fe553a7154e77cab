//! The table of points and the table of differences.

use super::Frontier;
use super::matched::Matched;
use crate::stages::report::joined::{Point, by_point, values};

use crate::artifacts::table::Table;
use crate::stats::{SampleMean, mean, sample_std};

impl Frontier {
    /// Makes the table of points.
    pub(super) fn table(&self, points: &[Point]) -> Table {
        let mut table = Table::new(&self.title);
        let rows = by_point(points);
        table.label_column(
            &self.series,
            rows.clone().map(|runs| Some(runs[0].series.clone())),
        );
        for (at, axis) in self.along.names().iter().enumerate() {
            table.label_column(
                axis,
                rows.clone().map(|runs| Some(runs[0].along[at].clone())),
            );
        }
        table.whole_column("Runs", rows.clone().map(|runs| Some(runs.len() as f64)));
        let several = rows.clone().any(|runs| runs.len() > 1);
        for (_, column) in self.wanted() {
            table.number_column(
                column,
                3,
                rows.clone().map(|runs| mean(&values(runs, column)).ok()),
            );
            if several {
                table.spread_of_last(
                    "sd",
                    rows.clone()
                        .map(|runs| sample_std(&values(runs, column)).ok()),
                );
            }
        }
        table.notes.clone_from(&self.notes);
        if several {
            table.notes.push(format!(
                "±: sample standard deviation over the runs ({}).",
                self.aggregate
            ));
        }
        table
    }

    /// Makes the table of differences.
    pub(super) fn matched_table(&self, matched: &[Matched]) -> Table {
        let mut table = Table::new(format!("{}: differences at equal measure", self.title));
        let texts =
            |of: fn(&Matched) -> &String| matched.iter().map(move |one| Some(of(one).clone()));
        table.text_column("a", texts(|one| &one.pair.a));
        table.text_column("b", texts(|one| &one.pair.b));
        table.text_column("Held equal", texts(|one| &one.at));
        table.text_column("Compared", texts(|one| &one.value));
        let means = matched.iter().map(|one| mean(&one.differences).ok());
        table.number_column("a - b", 3, means);
        table.interval_of_last(matched.iter().map(|one| self.interval(&one.differences)));
        let runs = matched.iter().map(|one| {
            let with_range = one.differences.len();
            Some(if with_range == one.runs {
                with_range.to_string()
            } else {
                format!("{with_range} of {}", one.runs)
            })
        });
        table.text_column("Runs", runs);
        table.text_column(
            "Common range",
            matched.iter().map(|one| Some(one.range_text())),
        );
        table.notes.clone_from(&self.notes);
        table.notes.push(format!(
            "a - b: the difference of the lines through the points of a run, averaged over the range that both have; mean over \
             the runs ({}) with a common range, with its {}% t interval.",
            self.aggregate,
            100.0 * self.level
        ));
        table
            .notes
            .push("Common range: mean of its ends over those runs.".to_owned());
        if matched.iter().any(|one| one.range.is_err()) {
            table.notes.push(
                "No common range, so no difference: more points along the axis may let the ranges meet."
                    .to_owned(),
            );
        }
        let mut repeats: Vec<String> = Vec::new();
        for one in matched {
            let told = one.repeated.as_ref().map(|told| {
                let (a, b) = (&one.pair.a, &one.pair.b);
                format!("{a} and {b}: runs with the same points throughout count once: {told}.")
            });
            repeats.extend(told.filter(|told| !repeats.contains(told)));
        }
        table.notes.extend(repeats);
        table
    }

    /// The t interval of the mean; none for one run.
    fn interval(&self, differences: &[f64]) -> (Option<f64>, Option<f64>) {
        let known = SampleMean::of(differences).ok();
        let interval = known.map(|known| known.interval(1.0 - self.level));
        interval
            .map(|interval| (interval.low, interval.high))
            .unzip()
    }
}
