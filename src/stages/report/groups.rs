//! Labelled artifacts as the rows of a table: grouped by axes, with the runs of another axis beside each other.

use std::collections::BTreeMap;

use crate::artifacts::table::Table;
use crate::engine::artifact::Digest;
use crate::engine::context::{Input, Labels};
use crate::engine::facts::Known;
use crate::engine::stage::{Problem, StageError};
use crate::excerpt::listed;

/// The label that names the stage and output an artifact comes from.
pub(super) const STAGE: &str = "stage";

/// Which axis makes the rows and which the runs of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grouping<'a> {
    /// The axes whose values are the rows, such as `policy`.
    pub(super) row: &'a [String],
    /// The axis whose values are the runs of a row, such as `seed`.
    pub(super) aggregate: &'a str,
    /// Names shown instead of axis values.
    pub(super) names: &'a BTreeMap<String, String>,
}

impl Grouping<'_> {
    /// The columns that say which row and which run of it a line of a table is, and further ones.
    pub(super) fn columns_with(self, own: impl IntoIterator<Item = String>) -> Vec<String> {
        let axes = self.row.iter().map(String::as_str).chain([self.aggregate]);
        axes.map(str::to_owned).chain(own).collect()
    }
}

/// All runs of one row.
#[derive(Debug)]
pub(super) struct Row<T> {
    /// The axis value; those of several axes with `, ` between.
    pub(super) label: String,
    /// What is shown for it.
    pub(super) name: String,
    /// The value of each axis.
    pub(super) values: Vec<String>,
    /// What is shown for each of them.
    pub(super) shown: Vec<String>,
    /// The runs, in the order of the inputs.
    pub(super) runs: Vec<Run<T>>,
}

/// One run of a row.
#[derive(Debug)]
pub(super) struct Run<T> {
    /// The value of the aggregated axis; empty for an input without that axis.
    pub(super) label: String,
    /// All labels of the input.
    pub(super) labels: Labels,
    /// Of the bytes of the input, where it has been read.
    pub(super) digest: Option<Digest>,
    /// What was read.
    pub(super) content: T,
}

impl<T> Run<T> {
    /// Returns the same run with its content borrowed.
    pub(super) fn borrowed(&self) -> Run<&T> {
        Run {
            label: self.label.clone(),
            labels: self.labels.clone(),
            digest: self.digest,
            content: &self.content,
        }
    }
}

impl<T> Row<T> {
    /// Names a run of this row, for messages.
    pub(super) fn describe(&self, run: &Run<T>, aggregate: &str) -> String {
        if run.label.is_empty() {
            self.label.clone()
        } else {
            format!("{}, {aggregate} {}", self.label, run.label)
        }
    }

    /// Returns the same row with other contents.
    pub(super) fn try_map<U>(
        self,
        aggregate: &str,
        mut map: impl FnMut(Run<T>) -> Result<U, StageError>,
    ) -> Result<Row<U>, StageError> {
        let mut runs = Vec::with_capacity(self.runs.len());
        let whole: Vec<String> = self
            .runs
            .iter()
            .map(|run| self.describe(run, aggregate))
            .collect();
        for (run, described) in self.runs.into_iter().zip(whole) {
            let (label, labels, digest) = (run.label.clone(), run.labels.clone(), run.digest);
            let content = map(run).map_err(|error| within(&described, error))?;
            runs.push(Run {
                label,
                labels,
                digest,
                content,
            });
        }
        Ok(Row {
            label: self.label,
            name: self.name,
            values: self.values,
            shown: self.shown,
            runs,
        })
    }
}

/// Adds a column for each axis of the rows; `row_of_line` holds the row of each line of the table.
pub(super) fn add_axes<'a, T: 'a>(
    table: &mut Table,
    axes: &[String],
    row_of_line: impl Iterator<Item = &'a Row<T>> + Clone,
) {
    for (at, axis) in axes.iter().enumerate() {
        let shown = row_of_line.clone().map(|row| Some(row.shown[at].clone()));
        table.label_column(axis, shown);
    }
}

/// Says of which row an error speaks.
pub(super) fn within(place: &str, error: impl Into<StageError>) -> StageError {
    match error.into() {
        StageError::Failed { message, hint } => StageError::Failed {
            message: format!("{place}: {message}"),
            hint,
        },
        StageError::Interrupted => StageError::Interrupted,
    }
}

/// Groups artifacts into rows, in the order in which they appear.
///
/// Two artifacts that are the same run of the same row are an error, and so are artifacts that differ in a
/// further axis: a row must not mix what is not comparable. An artifact without the only row axis is named
/// after its stage if `by_stage` says so.
pub(super) fn group<T>(
    items: Vec<(Labels, T)>,
    grouping: Grouping<'_>,
    by_stage: bool,
) -> Result<Vec<Row<T>>, StageError> {
    one_value_of_other_axes(&items, grouping)?;
    let mut rows: Vec<Row<T>> = Vec::new();
    for (labels, content) in items {
        let by_stage = by_stage && grouping.row.len() == 1;
        let values = grouping.row.iter();
        let values = values
            .map(|axis| row_of(&labels, axis, by_stage))
            .collect::<Result<Vec<String>, _>>()?;
        let label = values.join(", ");
        let run = labels.get(grouping.aggregate).cloned().unwrap_or_default();
        let run = Run {
            label: run,
            labels,
            digest: None,
            content,
        };
        match rows.iter_mut().find(|row| row.label == label) {
            Some(row) if row.runs.iter().any(|other| other.label == run.label) => {
                let what = row.describe(&run, grouping.aggregate);
                return Err(StageError::new(format!(
                    "two inputs are {what}: one is {}",
                    show(&run.labels)
                ))
                .hint("select one value of each axis that is neither `row` nor `aggregate`"));
            }
            Some(row) => row.runs.push(run),
            None => {
                let name = |value: &String| grouping.names.get(value).unwrap_or(value).clone();
                let shown: Vec<String> = values.iter().map(name).collect();
                rows.push(Row {
                    name: shown.join(", "),
                    label,
                    values,
                    shown,
                    runs: vec![run],
                });
            }
        }
    }
    Ok(rows)
}

/// Reads the artifacts of a port and groups them as [`group`] does; each run keeps the digest of its bytes.
pub(super) fn read_rows<'a, T>(
    inputs: &'a [Input],
    grouping: Grouping<'_>,
    by_stage: bool,
    read: impl Fn(&'a Input) -> Result<T, StageError>,
) -> Result<Vec<Row<T>>, StageError> {
    let items = inputs.iter();
    let items = items.map(|input| Ok((input.labels.clone(), (input.digest, read(input)?))));
    let rows = group(
        items.collect::<Result<_, StageError>>()?,
        grouping,
        by_stage,
    )?;
    let with_digests = rows.into_iter().map(|row| {
        let runs = row.runs.into_iter().map(|run| Run {
            label: run.label,
            labels: run.labels,
            digest: Some(run.content.0),
            content: run.content.1,
        });
        Row {
            label: row.label,
            name: row.name,
            values: row.values,
            shown: row.shown,
            runs: runs.collect(),
        }
    });
    Ok(with_digests.collect())
}

/// Groups what is known of a port's artifacts before anything runs.
pub(super) fn known_rows(
    known: &Known<'_>,
    port: &str,
    grouping: Grouping<'_>,
    by_stage: bool,
) -> Result<Vec<Row<()>>, StageError> {
    let labels = known.labels(port).into_iter();
    let items = labels.map(|labels| (labels.clone(), ()));
    group(items.collect(), grouping, by_stage)
}

/// Refuses artifacts of a port that cannot be grouped, and rows that a param names and none of them is. Artifacts without
/// any axis, as in the smallest pipeline of a kind, are left to the run.
pub(super) fn refuse_ungrouped(
    known: &mut Known<'_>,
    port: &str,
    grouping: Grouping<'_>,
    by_stage: bool,
    (param, named): (&str, &[String]),
) {
    let mut axes = known.labels(port).into_iter().flat_map(Labels::keys);
    if axes.all(|axis| axis == STAGE) {
        return;
    }
    match known_rows(known, port, grouping, by_stage) {
        Err(error) => refuse(known, "row", error),
        Ok(rows) => {
            if let Err(error) = rows_named(&rows, named) {
                refuse(known, param, error);
            }
        }
    }
}

/// Refuses a stage before it runs, with the error that it would end with.
pub(super) fn refuse(known: &mut Known<'_>, param: &str, error: StageError) {
    if let StageError::Failed { message, hint } = error {
        let problem = Problem::new(param, message);
        known.refuse(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        });
    }
}

fn row_of(labels: &Labels, axis: &str, by_stage: bool) -> Result<String, StageError> {
    if let Some(value) = labels.get(axis) {
        return Ok(value.clone());
    }
    match labels.get(STAGE) {
        Some(stage) if by_stage => Ok(before_dot(stage).to_owned()),
        _ => Err(StageError::new(format!(
            "an input has no axis `{axis}`; it is {}",
            show(labels)
        ))
        .hint("`row` names the axis whose values are the rows")),
    }
}

fn one_value_of_other_axes<T>(
    items: &[(Labels, T)],
    grouping: Grouping<'_>,
) -> Result<(), StageError> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (labels, _) in items {
        for (axis, value) in labels {
            if [STAGE, grouping.aggregate].contains(&axis.as_str()) || grouping.row.contains(axis) {
                continue;
            }
            let first = seen.entry(axis).or_insert(value);
            if first != value {
                return Err(StageError::new(format!(
                    "the inputs have more than one value of the axis `{axis}`: {first}, {value}"
                ))
                .hint(format!("select one, as in `stage[{axis}={first}]`")));
            }
        }
    }
    Ok(())
}

pub(super) fn before_dot(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

pub(super) fn show(labels: &Labels) -> String {
    let parts: Vec<String> = labels
        .iter()
        .map(|(axis, value)| format!("{axis}={value}"))
        .collect();
    format!("[{}]", parts.join(", "))
}

/// How the labels of a second artifact must fit those of a first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It has every axis of the first, with the same value.
    EveryAxis,
    /// Axes that both have have the same value.
    CommonAxes,
}

/// Finds the one input that belongs to an artifact with these labels, whatever stages they come from.
pub(super) fn matching<'a>(
    labels: &Labels,
    candidates: &'a [Input],
    port: &str,
    fit: Fit,
) -> Result<&'a Input, StageError> {
    let fits = |candidate: &&Input| {
        labels
            .iter()
            .filter(|(axis, _)| *axis != STAGE)
            .all(|(axis, value)| match candidate.labels.get(axis) {
                Some(other) => other == value,
                None => fit == Fit::CommonAxes,
            })
    };
    let found: Vec<&Input> = candidates.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(StageError::new(format!(
            "no input of `{port}` belongs to {}",
            show(labels)
        ))),
        [first, second, ..] => Err(StageError::new(format!(
            "more than one input of `{port}` belongs to {}: {} and {}",
            show(labels),
            show(&first.labels),
            show(&second.labels)
        ))),
    }
}

/// Finds the run of a training that made a policy: the row is named like it, or is one of its outputs
/// (`flowhf.early` of `flowhf`), and the run is the same where the training has runs.
pub(super) fn training_of<'a, T>(
    trainings: &'a [Row<T>],
    row: &str,
    run: &str,
) -> Option<&'a Run<T>> {
    let training = trainings
        .iter()
        .find(|training| training.label == row)
        .or_else(|| {
            trainings
                .iter()
                .find(|training| training.label == before_dot(row))
        })?;
    let same = training.runs.iter().find(|other| other.label == run);
    let only = || training.runs.iter().find(|other| other.label.is_empty());
    same.or_else(only)
}

/// Returns a row by the axis value that it has.
pub(super) fn row_named<'a, T>(rows: &'a [Row<T>], label: &str) -> Result<&'a Row<T>, StageError> {
    rows.iter().find(|row| row.label == label).ok_or_else(|| {
        let known: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
        StageError::new(format!("no input is the row `{label}`"))
            .hint(format!("the rows are: {}", listed(known)))
    })
}

/// Returns the rows with these labels, in this order, or all of them if none is named.
pub(super) fn rows_named<'a, T>(
    rows: &'a [Row<T>],
    labels: &[String],
) -> Result<Vec<&'a Row<T>>, StageError> {
    if labels.is_empty() {
        return Ok(rows.iter().collect());
    }
    labels.iter().map(|label| row_named(rows, label)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::artifact::Digest;

    pub(in crate::stages) fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn input(pairs: &[(&str, &str)]) -> Input {
        Input {
            kind: "embeddings".to_owned(),
            digest: Digest::of(b""),
            path: "/".into(),
            files: Vec::new(),
            labels: labels(pairs),
            handed_on: serde_json::Value::Null,
        }
    }

    fn grouped(items: &[&[(&str, &str)]], by_stage: bool) -> Result<Vec<String>, String> {
        let names = [("ppo".to_owned(), "PPO".to_owned())].into();
        let grouping = Grouping {
            row: &["policy".to_owned()],
            aggregate: "seed",
            names: &names,
        };
        let items = items.iter().map(|pairs| (labels(pairs), ())).collect();
        match group(items, grouping, by_stage) {
            Ok(rows) => Ok(rows
                .iter()
                .map(|row| {
                    let runs: Vec<&str> = row.runs.iter().map(|run| run.label.as_str()).collect();
                    format!("{} {}", row.name, runs.join(" "))
                })
                .collect()),
            Err(StageError::Failed { message, .. }) => Err(message),
            Err(StageError::Interrupted) => Err("interrupted".to_owned()),
        }
    }

    #[test]
    fn rows_and_runs_keep_the_order_of_the_inputs() {
        let found = grouped(
            &[
                &[("policy", "tb"), ("seed", "2"), ("stage", "scored")],
                &[("policy", "ppo"), ("seed", "2"), ("stage", "scored")],
                &[("policy", "tb"), ("seed", "1"), ("stage", "scored")],
                &[("policy", "base"), ("stage", "other")],
            ],
            false,
        );
        assert_eq!(found.unwrap(), ["tb 2 1", "PPO 2", "base "]);
    }

    #[test]
    fn rows_may_have_several_axes() {
        let names = [("ppo".to_owned(), "PPO".to_owned())].into();
        let axes = ["policy", "temperature"].map(str::to_owned);
        let grouping = Grouping {
            row: &axes,
            aggregate: "seed",
            names: &names,
        };
        let item = |policy: &str, temperature: &str, seed: &str| {
            let pairs = [
                ("policy", policy),
                ("temperature", temperature),
                ("seed", seed),
            ];
            (labels(&pairs), ())
        };
        let items = vec![
            item("ppo", "0.7", "1"),
            item("ppo", "1", "1"),
            item("ppo", "0.7", "2"),
        ];
        let rows = group(items, grouping, false).unwrap();
        let found: Vec<(&str, &str, usize)> = rows
            .iter()
            .map(|row| (row.label.as_str(), row.name.as_str(), row.runs.len()))
            .collect();
        assert_eq!(
            found,
            [("ppo, 0.7", "PPO, 0.7", 2), ("ppo, 1", "PPO, 1", 1)]
        );
        let mut table = Table::new("axes");
        add_axes(&mut table, &axes, rows.iter());
        assert_eq!(table.all_texts("policy").unwrap(), ["PPO", "PPO"]);
        assert_eq!(table.all_texts("temperature").unwrap(), ["0.7", "1"]);
        let half = vec![(labels(&[("policy", "ppo"), ("stage", "x")]), ())];
        assert!(group(half, grouping, true).is_err());
    }

    #[test]
    fn what_a_row_would_mix_is_an_error() {
        let ppo: &[(&str, &str)] = &[("policy", "ppo"), ("seed", "1"), ("task", "a")];
        let other: &[(&str, &str)] = &[("policy", "ppo"), ("seed", "2"), ("task", "b")];
        let error = grouped(&[ppo, other], false).unwrap_err();
        assert_eq!(
            error,
            "the inputs have more than one value of the axis `task`: a, b"
        );
        let error = grouped(&[ppo, ppo], false).unwrap_err();
        assert!(error.starts_with("two inputs are ppo, seed 1"), "{error}");
        let error = grouped(&[&[("seed", "1"), ("stage", "x.curve")]], false).unwrap_err();
        assert_eq!(
            error,
            "an input has no axis `policy`; it is [seed=1, stage=x.curve]"
        );
        assert_eq!(
            grouped(&[&[("seed", "1"), ("stage", "x.curve")]], true).unwrap(),
            ["x 1"]
        );
    }

    #[test]
    fn artifacts_match_by_their_axes_and_not_by_their_stages() {
        let of = labels(&[("policy", "ppo"), ("seed", "1"), ("stage", "scored")]);
        let all = [
            input(&[("policy", "ppo"), ("seed", "2"), ("stage", "embedded")]),
            input(&[
                ("policy", "ppo"),
                ("seed", "1"),
                ("space", "hidden"),
                ("stage", "embedded"),
            ]),
        ];
        let found = matching(&of, &all, "embeddings", Fit::EveryAxis).unwrap();
        assert_eq!(found.labels, all[1].labels);
        let shared = [input(&[("stage", "embedded")])];
        assert!(matching(&of, &shared, "reference", Fit::EveryAxis).is_err());
        assert!(matching(&of, &shared, "reference", Fit::CommonAxes).is_ok());
        let both = [shared[0].clone(), all[1].clone()];
        assert!(matching(&of, &both, "reference", Fit::CommonAxes).is_err());
    }

    #[test]
    fn checkpoints_belong_to_the_training_that_made_them() {
        let names = BTreeMap::new();
        let grouping = Grouping {
            row: &["policy".to_owned()],
            aggregate: "seed",
            names: &names,
        };
        let items = vec![
            (labels(&[("seed", "1"), ("stage", "flowhf.curve")]), 1),
            (labels(&[("seed", "2"), ("stage", "flowhf.curve")]), 2),
            (labels(&[("stage", "sft.curve")]), 3),
        ];
        let trainings = group(items, grouping, true).unwrap();
        let of = |row: &str, run: &str| training_of(&trainings, row, run).map(|run| run.content);
        assert_eq!(of("flowhf.early", "2"), Some(2));
        assert_eq!(of("sft", "2"), Some(3));
        assert_eq!(of("flowhf", "3"), None);
        assert_eq!(of("baseline", "1"), None);
    }
}
