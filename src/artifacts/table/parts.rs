//! Some rows of a table, and tables put behind one another.

use super::column::{Column, Place, Stored, Values};
use super::{Table, TableError};
use crate::engine::context::Labels;

impl Table {
    /// Says of each row whether a column is `value`, as text or as a number.
    pub fn rows_where(&self, column: &str, value: &str) -> Result<Vec<bool>, TableError> {
        let found = self.columns.iter().find(|found| found.name == column);
        let found = found.ok_or_else(|| self.missing(column, "that name"))?;
        let number: Option<f64> = match value {
            "true" => Some(1.0),
            "false" => Some(0.0),
            other => other.parse().ok(),
        };
        Ok((0..self.height())
            .map(|row| match &found.values {
                Values::Numbers(numbers) => numbers[row].is_some() && numbers[row] == number,
                _ => found.cell(row).as_deref() == Some(value),
            })
            .collect())
    }

    /// Keeps the first rows.
    pub fn keep_first(&mut self, count: usize) {
        let kept: Vec<bool> = (0..self.height()).map(|row| row < count).collect();
        self.keep_rows(&kept);
    }

    /// Returns tables one behind the other, each with the labels of where it comes from as columns before its own.
    /// A column that one of them lacks is empty there; one that is not everywhere of one type is text.
    pub fn joined(title: &str, parts: &[(Labels, Self)]) -> Self {
        let mut joined = Self::new(title);
        let mut axes: Vec<&String> = Vec::new();
        let mut names: Vec<&String> = Vec::new();
        for (labels, part) in parts {
            axes.extend(
                labels
                    .keys()
                    .filter(|axis| !axes.contains(axis))
                    .collect::<Vec<_>>(),
            );
            let columns = part.columns.iter().map(|column| &column.name);
            names.extend(
                columns
                    .filter(|name| !names.contains(name))
                    .collect::<Vec<_>>(),
            );
        }
        for axis in axes {
            let labels = parts.iter().flat_map(|(labels, part)| {
                std::iter::repeat_n(labels.get(axis).cloned(), part.height())
            });
            joined.label_column(axis.clone(), labels);
        }
        for name in names {
            let column = |part: &Self| part.columns.iter().position(|column| column.name == *name);
            let all: Vec<(Option<&Column>, usize)> = parts
                .iter()
                .map(|(_, part)| (column(part).map(|at| &part.columns[at]), part.height()))
                .collect();
            joined.columns.push(behind_one_another(name, &all));
        }
        joined
    }
}

fn behind_one_another(name: &str, parts: &[(Option<&Column>, usize)]) -> Column {
    let there = || parts.iter().filter_map(|(column, _)| *column);
    let first = there().next();
    let all_numbers = there().all(Column::is_number);
    let all_ids = there().all(|column| matches!(column.values, Values::Ids(_)));
    let values =
        if all_numbers {
            let numbers = parts.iter().flat_map(|(column, height)| {
                match column.map(|column| &column.values) {
                    Some(Values::Numbers(values)) => values.clone(),
                    _ => vec![None; *height],
                }
            });
            Values::Numbers(numbers.collect())
        } else if all_ids {
            let ids = parts.iter().flat_map(|(column, height)| {
                match column.map(|column| &column.values) {
                    Some(Values::Ids(values)) => values.clone(),
                    _ => vec![None; *height],
                }
            });
            Values::Ids(ids.collect())
        } else {
            let texts = parts.iter().flat_map(|(column, height)| {
                (0..*height).map(|row| column.and_then(|column| column.cell(row)))
            });
            Values::Text(texts.collect())
        };
    let stored = match first {
        Some(first) if there().all(|column| column.stored == first.stored) => first.stored,
        _ => Stored::Float,
    };
    Column {
        name: name.to_owned(),
        values,
        decimals: first.map_or(Some(3), |first| first.decimals),
        stored,
        place: first.map_or(Place::Own, |first| first.place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(policy: &str, names: &[&str], rewards: &[f64]) -> (Labels, Table) {
        let mut table = Table::new("part");
        table.text_column("name", names.iter().map(|name| Some((*name).to_owned())));
        table.number_column("reward", 3, rewards.iter().copied().map(Some));
        let labels = Labels::from_iter([("policy".to_owned(), policy.to_owned())]);
        (labels, table)
    }

    #[test]
    fn tables_behind_one_another_say_where_each_row_is_from() {
        let (labels, mut second) = part("ppo", &["b", "c"], &[2.0, 3.0]);
        second.truth_column("is_long", [true, false]);
        let parts = [part("sft", &["a"], &[1.0]), (labels, second)];
        let joined = Table::joined("both", &parts);
        let rows = serde_json::json!([
            { "policy": "sft", "name": "a", "reward": 1.0, "is_long": null },
            { "policy": "ppo", "name": "b", "reward": 2.0, "is_long": true },
            { "policy": "ppo", "name": "c", "reward": 3.0, "is_long": false },
        ]);
        assert_eq!(joined.rows_json(), rows);
        for (column, value, expected) in [
            ("policy", "ppo", [false, true, true]),
            ("reward", "3", [false, false, true]),
            ("is_long", "false", [false, false, true]),
            ("name", "d", [false; 3]),
        ] {
            assert_eq!(joined.rows_where(column, value).unwrap(), expected);
        }
        assert!(joined.rows_where("nmae", "a").is_err());
    }
}
