//! Which rows and runs a claim compares: known from labels alone, before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claim, Claims, Test};
use crate::engine::context::Labels;
use crate::engine::facts::Known;
use crate::engine::stage::StageError;
use crate::excerpt::listed;
use crate::stages::report::groups::{Row, Run, known_rows, refuse, row_named, training_of, within};

impl Claims {
    /// Refuses claims about rows, runs or columns that the inputs cannot have.
    pub(super) fn check_inputs(&self, known: &mut Known<'_>) {
        let labelled = |port, by_stage| known_rows(known, port, self.grouping(), by_stage);
        let (rows, curves) = match (labelled("scores", false), labelled("curves", true)) {
            (Ok(rows), Ok(curves)) => (rows, curves),
            (Err(error), _) | (_, Err(error)) => return refuse(known, "claims", error),
        };
        for claim in &self.claims {
            if let Err(error) = self.check_rows(claim, &rows, &curves) {
                let error = within(&format!("claim `{}`", claim.id), error);
                refuse(known, "claims", error);
            }
            self.check_columns(claim, known);
        }
    }

    fn check_columns(&self, claim: &Claim, known: &mut Known<'_>) {
        let mut needs = |row: &str, column: &str, what: &str| {
            let of = |labels: &Labels| labels.get(&self.row).is_some_and(|value| value == row);
            let asks = format!("claim `{}`: {what} needs", claim.id);
            known.needs_column("scores", column, of, ("claims", &asks));
        };
        let (a, b) = match &claim.test {
            Test::Difference {
                a,
                b,
                metric,
                column,
                ..
            } => {
                if metric.needs_column() {
                    for row in [a, b] {
                        let column = column.as_ref().unwrap_or(&self.column);
                        needs(row, column, &format!("`{}` of `{row}`", metric.key()));
                    }
                }
                (a, b)
            }
            Test::FlopsShare { a, b, .. } | Test::FlopsToReach { a, b, .. } => (a, b),
            Test::Diverges { .. } => return,
        };
        for (column, gate) in &claim.gates {
            needs(a, column, "its gate");
            if gate.compares() {
                needs(b, column, "its gate");
            }
        }
    }

    /// Checks that a claim's rows are there and are of the same runs: a run of one alone has nothing to be compared with.
    pub(super) fn check_rows<S, C>(
        &self,
        claim: &Claim,
        rows: &[Row<S>],
        curves: &[Row<C>],
    ) -> Result<(), StageError> {
        let same_rows = |a: &str, b: &str| {
            let runs = |row: &Row<S>| row.runs.iter().map(|run| run.label.clone()).collect();
            let (of_a, of_b) = (row_named(rows, a)?, row_named(rows, b)?);
            self.same_runs((a, runs(of_a)), (b, runs(of_b)))
        };
        match &claim.test {
            Test::Difference { a, b, .. } => same_rows(a, b),
            Test::Diverges { a } => trainings(rows, curves, a).map(|_| ()),
            Test::FlopsShare { a, b, .. } | Test::FlopsToReach { a, b, .. } => {
                let runs = |row: &str| -> Result<Vec<String>, StageError> {
                    Ok(trainings(rows, curves, row)?.into_keys().collect())
                };
                self.same_runs((a, runs(a)?), (b, runs(b)?))?;
                if claim.gates.is_empty() {
                    Ok(())
                } else {
                    same_rows(a, b)
                }
            }
        }
    }

    fn same_runs(
        &self,
        (a, runs_a): (&str, Vec<String>),
        (b, runs_b): (&str, Vec<String>),
    ) -> Result<(), StageError> {
        let set = |runs: &[String]| runs.iter().cloned().collect::<BTreeSet<String>>();
        if set(&runs_a) == set(&runs_b) {
            return Ok(());
        }
        let axis = &self.aggregate;
        let says = |runs: &[String]| match runs {
            [run] if run.is_empty() => format!("no axis `{axis}`"),
            runs => format!("`{axis}` {}", listed(runs.iter().map(String::as_str))),
        };
        Err(StageError::new(format!(
            "the runs of `{a}` and `{b}` do not pair: the first has {}, the second {}",
            says(&runs_a),
            says(&runs_b)
        ))
        .hint(format!(
            "a claim compares run by run: give both rows the same values of `{axis}`"
        )))
    }
}

/// Returns the trainings of a row, by run: a row of the scores, or the name of a training.
pub(super) fn trainings<'a, S, C>(
    rows: &[Row<S>],
    curves: &'a [Row<C>],
    label: &str,
) -> Result<BTreeMap<String, &'a Run<C>>, StageError> {
    let of_rows = rows.iter().find(|row| row.label == label);
    let of_rows = of_rows.map(|row| row.runs.iter().map(|run| &run.label).collect());
    let of_curves = || {
        let row = curves.iter().find(|row| row.label == label)?;
        Some(row.runs.iter().map(|run| &run.label).collect())
    };
    let runs: Vec<&String> = of_rows.or_else(of_curves).unwrap_or_default();
    let found: BTreeMap<String, &Run<C>> = runs
        .into_iter()
        .filter_map(|run| Some((run.clone(), training_of(curves, label, run)?)))
        .collect();
    if found.is_empty() {
        let known: Vec<&str> = curves.iter().map(|row| row.label.as_str()).collect();
        let hint = if known.is_empty() {
            "connect the port `curves`".to_owned()
        } else {
            format!("the trainings are: {}", listed(known))
        };
        let message = format!("no input of `curves` is the training of `{label}`");
        return Err(StageError::new(message).hint(hint));
    }
    Ok(found)
}
