//! What people see of a table: several columns may stand in the cells of one.

use super::Table;
use super::column::{Column, Place};

impl Table {
    /// Returns the columns as people see them: each with those that stand in its cells.
    pub fn shown(&self) -> Vec<&[Column]> {
        self.columns
            .chunk_by(|_, next| next.place != Place::Own)
            .collect()
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
                Place::Spread => text.push_str(&format!(" ± {cell}")),
                Place::Low => text.push_str(&format!(" [{cell}")),
                Place::High => text.push_str(&format!(", {cell}]")),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
