//! Rows of tables by name, so that those of two tables can be told to be the same.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use crate::artifacts::table::{Column, Table, Values};

/// Whether a column can say what a row is: by words or by whole numbers, such as a seed.
fn is_label(column: &Column) -> bool {
    match &column.values {
        Values::Text(_) => true,
        Values::Numbers(values) => {
            let whole = |value: &Option<f64>| value.is_none_or(|value| value.fract() == 0.0);
            column.decimals.is_none() || values.iter().all(whole)
        }
        Values::Ids(_) => false,
    }
}

/// How many of the first columns it takes to tell the rows apart: as few as can be, for what comes after them may be a
/// result.
pub(super) fn axes(table: &Table) -> usize {
    let labels = table.columns.iter().take_while(|column| is_label(column));
    let labels = labels.count().max(1);
    let is_enough = |axes: &usize| {
        let names: BTreeSet<String> = (0..table.height())
            .map(|row| name(table, *axes, row))
            .collect();
        names.len() == table.height()
    };
    (1..labels).find(is_enough).unwrap_or(labels)
}

/// Names each row, in the order of the table, by its first columns; rows that begin alike are numbered.
pub(super) fn named(table: &Table, axes: usize) -> IndexMap<String, usize> {
    let mut names = IndexMap::new();
    for row in 0..table.height() {
        let first = name(table, axes, row);
        let mut key = first.clone();
        let mut number = 1;
        while names.contains_key(&key) {
            number += 1;
            key = format!("{first} ({number})");
        }
        names.insert(key, row);
    }
    names
}

/// The value of one column, or of several, each with its heading.
fn name(table: &Table, axes: usize, row: usize) -> String {
    let columns = table.columns.iter().take(axes);
    let parts = columns.filter_map(|column| {
        let cell = column.cell(row)?;
        Some(match axes {
            1 => cell,
            _ => format!("{} {cell}", column.name),
        })
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_by_as_few_columns_as_tell_them_apart() {
        let mut table = Table::new("runs");
        let labels = |values: [&str; 3]| values.map(|value| Some(value.to_owned()));
        table.label_column("policy", labels(["ppo", "ppo", "tb"]));
        table.label_column("seed", labels(["1", "2", "1"]));
        table.text_column("Training", labels(["completed", "diverged", "completed"]));
        table.number_column("Mean", 1, [Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!(axes(&table), 2);
        let names: Vec<String> = named(&table, 2).into_keys().collect();
        assert_eq!(
            names,
            [
                "policy ppo, seed 1",
                "policy ppo, seed 2",
                "policy tb, seed 1"
            ]
        );
        let names: Vec<String> = named(&table, 1).into_keys().collect();
        assert_eq!(names, ["ppo", "ppo (2)", "tb"]);
        assert_eq!(axes(&Table::new("nothing")), 1);
    }
}
