//! Tables as JSON, for other programs.

use serde_json::Value as Json;

use super::Table;
use super::column::{Stored, Values};

impl Table {
    /// Returns the rows as JSON objects.
    pub fn rows_json(&self) -> Json {
        (0..self.height()).map(|row| self.row_json(row)).collect()
    }

    /// Returns the rows as JSON objects, one to a line.
    pub fn json_lines(&self) -> String {
        let rows = (0..self.height()).map(|row| format!("{}\n", self.row_json(row)));
        rows.collect()
    }

    fn row_json(&self, row: usize) -> Json {
        let cells = self.columns.iter().map(|column| {
            let value = match &column.values {
                Values::Text(values) => Json::from(values[row].clone()),
                Values::Numbers(values) => match (values[row], column.stored) {
                    (Some(value), Stored::Whole) => Json::from(value as i64),
                    (Some(value), Stored::Truth) => Json::from(value != 0.0),
                    (value, _) => Json::from(value),
                },
                Values::Ids(values) => Json::from(values[row].clone()),
            };
            (column.name.clone(), value)
        });
        Json::Object(cells.collect())
    }
}
