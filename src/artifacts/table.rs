//! Tables: named columns of text or numbers, with a title and notes.
//!
//! `table.parquet` holds the cells, `table.json` the title, notes and number formats. Tables for people have
//! `table.md` as well, the same as Markdown.

use std::path::{Path, PathBuf};

use comfy_table::{
    CellAlignment, ContentArrangement, LineStyle, Table as TextTable, TableStyle, presets,
};
use polars::prelude::{
    Column as PolarsColumn, DataFrame, DataType, NamedFrom, ParquetReader, ParquetWriter,
    PolarsError, SerReader, Series,
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// The artifact kind of tables for people.
pub const TABLE: &str = "table";

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The parquet file is not one, or has columns of another type.
    #[error("{}: {source}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What polars says.
        source: PolarsError,
    },
    /// A column is not there, or holds something else.
    #[error("{what}: no column `{column}` of {expected}; found: {found}")]
    Column {
        /// The table.
        what: String,
        /// The column.
        column: String,
        /// What it should hold.
        expected: &'static str,
        /// The columns that are there.
        found: String,
    },
    /// The description is not what was written.
    #[error("{}: {source}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What serde says.
        source: serde_json::Error,
    },
}

/// The values of one column; `None` is an empty cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Text.
    Text(Vec<Option<String>>),
    /// Numbers.
    Numbers(Vec<Option<f64>>),
}

/// One column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// Its values.
    pub values: Values,
    /// Digits after the decimal point, for numbers.
    pub decimals: usize,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// What must be known to read it.
    pub notes: Vec<String>,
    /// The columns, all of one length.
    pub columns: Vec<Column>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    title: String,
    notes: Vec<String>,
    decimals: Vec<usize>,
}

/// Rules above, below and under the headings; rows need none.
const RULES: TableStyle = presets::NOTHING
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

impl Table {
    /// Makes an empty table.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// Adds a column of text.
    pub fn text_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<String>>,
    ) {
        self.columns.push(Column {
            name: name.into(),
            values: Values::Text(values.into_iter().collect()),
            decimals: 0,
        });
    }

    /// Adds a column of numbers, shown with `decimals` digits.
    pub fn number_column(
        &mut self,
        name: impl Into<String>,
        decimals: usize,
        values: impl IntoIterator<Item = Option<f64>>,
    ) {
        self.columns.push(Column {
            name: name.into(),
            values: Values::Numbers(values.into_iter().collect()),
            decimals,
        });
    }

    fn missing(&self, column: &str, expected: &'static str) -> TableError {
        let names: Vec<&str> = self
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        TableError::Column {
            what: self.title.clone(),
            column: column.to_owned(),
            expected,
            found: names.join(", "),
        }
    }

    /// Returns a column of text.
    pub fn texts(&self, name: &str) -> Result<&[Option<String>], TableError> {
        match self
            .columns
            .iter()
            .find(|column| column.name == name)
            .map(|column| &column.values)
        {
            Some(Values::Text(values)) => Ok(values),
            _ => Err(self.missing(name, "text")),
        }
    }

    /// Returns a column of numbers.
    pub fn numbers(&self, name: &str) -> Result<&[Option<f64>], TableError> {
        match self
            .columns
            .iter()
            .find(|column| column.name == name)
            .map(|column| &column.values)
        {
            Some(Values::Numbers(values)) => Ok(values),
            _ => Err(self.missing(name, "numbers")),
        }
    }

    /// Returns a column of numbers without empty cells.
    pub fn all_numbers(&self, name: &str) -> Result<Vec<f64>, TableError> {
        let values: Option<Vec<f64>> = self.numbers(name)?.iter().copied().collect();
        values.ok_or_else(|| self.missing(name, "numbers in every row"))
    }

    /// Returns a column of text without empty cells.
    pub fn all_texts(&self, name: &str) -> Result<Vec<String>, TableError> {
        let values: Option<Vec<String>> = self.texts(name)?.iter().cloned().collect();
        values.ok_or_else(|| self.missing(name, "text in every row"))
    }

    /// Whether there is a column of that name.
    pub fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name == name)
    }

    /// Returns the number of rows.
    pub fn height(&self) -> usize {
        self.columns
            .first()
            .map_or(0, |column| match &column.values {
                Values::Text(values) => values.len(),
                Values::Numbers(values) => values.len(),
            })
    }

    /// Writes a table for people into a folder, with its Markdown.
    pub fn write(&self, folder: &Path) -> Result<(), TableError> {
        self.write_data(folder)?;
        fs_err::write(folder.join("table.md"), self.markdown())?;
        Ok(())
    }

    /// Writes the table into a folder, for stages that read it.
    pub fn write_data(&self, folder: &Path) -> Result<(), TableError> {
        let path = folder.join("table.parquet");
        let wrap = |source| TableError::Parquet {
            path: path.clone(),
            source,
        };
        let columns: Vec<PolarsColumn> = self
            .columns
            .iter()
            .map(|column| {
                let name = column.name.as_str().into();
                match &column.values {
                    Values::Text(values) => Series::new(name, values).into(),
                    Values::Numbers(values) => Series::new(name, values).into(),
                }
            })
            .collect();
        let mut frame = DataFrame::new(self.height(), columns).map_err(wrap)?;
        let file = fs_err::File::create(&path)?;
        ParquetWriter::new(file).finish(&mut frame).map_err(wrap)?;
        let description = Description {
            title: self.title.clone(),
            notes: self.notes.clone(),
            decimals: self.columns.iter().map(|column| column.decimals).collect(),
        };
        let text = serde_json::to_string_pretty(&description).map_err(std::io::Error::from)?;
        fs_err::write(folder.join("table.json"), text)?;
        Ok(())
    }

    /// Reads a table from a folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        let path = folder.join("table.json");
        let text = fs_err::read_to_string(&path)?;
        let description: Description = serde_json::from_str(&text)
            .map_err(|source| TableError::Description { path, source })?;
        let path = folder.join("table.parquet");
        let wrap = |source| TableError::Parquet {
            path: path.clone(),
            source,
        };
        let file = std::fs::File::open(&path)?;
        let frame = ParquetReader::new(file).finish().map_err(wrap)?;
        let mut columns = Vec::new();
        for (at, column) in frame.columns().iter().enumerate() {
            let values = if *column.dtype() == DataType::String {
                let text = column.str().map_err(wrap)?;
                Values::Text(text.iter().map(|value| value.map(str::to_owned)).collect())
            } else {
                let numbers = column.cast(&DataType::Float64).map_err(wrap)?;
                Values::Numbers(numbers.f64().map_err(wrap)?.iter().collect())
            };
            columns.push(Column {
                name: column.name().to_string(),
                values,
                decimals: description.decimals.get(at).copied().unwrap_or(3),
            });
        }
        Ok(Self {
            title: description.title,
            notes: description.notes,
            columns,
        })
    }

    /// Returns a cell as people see it.
    fn cell(&self, column: &Column, row: usize) -> String {
        match &column.values {
            Values::Text(values) => values[row].clone().unwrap_or_default(),
            Values::Numbers(values) => values[row].map_or_else(String::new, |value| {
                let text = format!("{value:.*}", column.decimals);
                // A tiny value must not look like zero.
                if value != 0.0 && value.abs() < 0.5 * 10f64.powi(-(column.decimals as i32)) {
                    format!("{value:.1e}")
                } else {
                    text
                }
            }),
        }
    }

    /// Returns the table for a terminal.
    pub fn text(&self) -> String {
        let mut table = TextTable::new();
        table
            .load_style(RULES)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(self.columns.iter().map(|column| column.name.as_str()));
        for row in 0..self.height() {
            table.add_row(self.columns.iter().map(|column| self.cell(column, row)));
        }
        for (at, column) in self.columns.iter().enumerate() {
            if matches!(column.values, Values::Numbers(_))
                && let Some(column) = table.column_mut(at)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let notes: String = self
            .notes
            .iter()
            .map(|note| format!("\n  {note}"))
            .collect();
        format!("{}\n{table}{notes}\n", self.title)
    }

    /// Returns the table as Markdown.
    pub fn markdown(&self) -> String {
        let escape = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
        let headings: Vec<String> = self
            .columns
            .iter()
            .map(|column| escape(&column.name))
            .collect();
        let rules: Vec<&str> = self
            .columns
            .iter()
            .map(|column| {
                if matches!(column.values, Values::Numbers(_)) {
                    "---:"
                } else {
                    "---"
                }
            })
            .collect();
        let mut text = format!(
            "**{}**\n\n| {} |\n| {} |\n",
            self.title,
            headings.join(" | "),
            rules.join(" | ")
        );
        for row in 0..self.height() {
            let cells: Vec<String> = self
                .columns
                .iter()
                .map(|column| escape(&self.cell(column, row)))
                .collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}\n"));
        }
        text
    }

    /// Returns the rows as JSON objects.
    pub fn rows_json(&self) -> Json {
        (0..self.height())
            .map(|row| {
                let cells = self.columns.iter().map(|column| {
                    let value = match &column.values {
                        Values::Text(values) => Json::from(values[row].clone()),
                        Values::Numbers(values) => Json::from(values[row]),
                    };
                    (column.name.clone(), value)
                });
                Json::Object(cells.collect())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Table 1");
        table.notes.push("a note".to_owned());
        table.text_column("policy", ["ppo", "a|b"].map(|text| Some(text.to_owned())));
        table.number_column("mean", 3, [Some(0.12345), None]);
        table
    }

    #[test]
    fn tables_round_trip_and_have_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        table().write(folder.path()).unwrap();
        assert_eq!(Table::read(folder.path()).unwrap(), table());
        let first = fs_err::read(folder.path().join("table.parquet")).unwrap();
        table().write(folder.path()).unwrap();
        assert_eq!(
            fs_err::read(folder.path().join("table.parquet")).unwrap(),
            first
        );
    }

    #[test]
    fn markdown_escapes_what_would_break_it() {
        assert_eq!(
            table().markdown(),
            "**Table 1**\n\n| policy | mean |\n| --- | ---: |\n| ppo | 0.123 |\n| a\\|b |  |\n\na note\n"
        );
    }
}
