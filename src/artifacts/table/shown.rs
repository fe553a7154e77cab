//! What people see of a table: several columns may stand in the cells of one.

use super::column::{Column, Place, Values};
use super::{Table, TableError};

impl Table {
    /// Returns the columns as people see them: each with those that stand in its cells.
    pub fn shown(&self) -> Vec<&[Column]> {
        self.columns
            .chunk_by(|_, next| next.place != Place::Own)
            .collect()
    }

    /// Keeps the columns of these names, in this order, each with those that stand in its cells.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn keep_columns(&mut self, names: &[String]) -> Result<(), TableError> {
        let shown = self.shown();
        let kept = names.iter().map(|name| {
            let mut found = shown.iter().filter(|columns| columns[0].name == *name);
            found.next().ok_or_else(|| self.missing(name, "that name"))
        });
        let kept = kept.collect::<Result<Vec<_>, _>>()?;
        self.columns = kept
            .into_iter()
            .flat_map(|columns| columns.to_vec())
            .collect();
        Ok(())
    }

    /// Returns what people see in the cell of a row.
    pub fn cell(shown: &[Column], row: usize) -> String {
        let mut text = String::new();
        for column in shown {
            let Some(cell) = column.cell(row) else {
                continue;
            };
            match column.place {
                Place::Own => text.push_str(&cell),
                Place::Spread => {
                    text.push_str(&format!(" ± {}", spread(column, &shown[0], row, cell)));
                }
                Place::Low => text.push_str(&format!(" [{cell}")),
                Place::High => text.push_str(&format!(", {cell}]")),
            }
        }
        text
    }
}

/// Returns what people see of a spread that is written `cell`: what rounding leaves of equal values is 0.
pub(super) fn spread(spread: &Column, of: &Column, row: usize, cell: String) -> String {
    if is_noise(spread, of, row) {
        let decimals = spread.decimals.unwrap_or(0);
        format!("{:.decimals$}", 0.0)
    } else {
        cell
    }
}

fn is_noise(spread: &Column, of: &Column, row: usize) -> bool {
    let number = |column: &Column| match &column.values {
        Values::Numbers(values) => values[row],
        _ => None,
    };
    let (spread, value) = (number(spread), number(of));
    matches!((spread, value), (Some(spread), Some(value)) if spread.abs() <= 1e-12 * value.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounding_leaves_of_equal_values_is_no_spread() {
        let mut table = Table::new("means");
        table.number_column("Mean", 3, [Some(0.083), Some(0.083), Some(0.0)]);
        table.spread_of_last("sd", [Some(2.0e-17), Some(2.0e-9), Some(0.0)]);
        let shown = table.shown();
        let cells: Vec<String> = (0..3).map(|row| Table::cell(shown[0], row)).collect();
        assert_eq!(cells, ["0.083 ± 0.000", "0.083 ± 2.0e-9", "0.000 ± 0.000"]);
    }

    #[test]
    fn people_see_spread_and_bounds_in_the_cell_of_their_value() {
        let mut table = Table::new("means");
        table.number_column("Mean", 2, [Some(1.0), Some(2.0), Some(3.0)]);
        table.spread_of_last("sd", [Some(0.5), None, Some(0.001)]);
        table.interval_of_last([(Some(0.0), Some(2.0)), (Some(1.0), Some(3.0)), (None, None)]);
        table.number_column("Other", 0, [Some(7.0), None, Some(8.0)]);
        let markdown = table.markdown();
        assert_eq!(
            markdown.lines().skip(2).collect::<Vec<_>>(),
            [
                "| Mean | Other |",
                "| ---: | ---: |",
                "| 1.00 ± 0.50 [0.00, 2.00] | 7 |",
                "| 2.00 [1.00, 3.00] |  |",
                "| 3.00 ± 1.0e-3 | 8 |"
            ]
        );
        let names: Vec<&str> = table.columns.iter().map(|column| &*column.name).collect();
        assert_eq!(names, ["Mean", "Mean sd", "Mean low", "Mean high", "Other"]);
        let folder = tempfile::tempdir().unwrap();
        table.write(folder.path()).unwrap();
        assert_eq!(Table::read(folder.path()).unwrap(), table);
    }
}
