//! Tables: named columns of text or numbers, with a title and notes.
//!
//! `table.parquet` holds the cells, `table.json` the title, notes and number formats. Tables for people have
//! `table.md` as well, the same as Markdown.

use std::path::{Path, PathBuf};

use comfy_table::{
    CellAlignment, ContentArrangement, LineStyle, Table as TextTable, TableStyle, presets,
};
use polars::prelude::{
    Column as PolarsColumn, DataFrame, ParquetReader, ParquetWriter, PolarsError, SerReader,
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::engine::artifact::Artifact;
use crate::engine::store::Store;
use crate::excerpt::listed;

mod column;
mod csv;
mod latex;
mod markdown;

pub use column::{Column, Place, Stored, Values};
use column::{label_of, values_of};

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
    decimals: Vec<Option<usize>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    places: Vec<Place>,
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
        let values = Values::Text(values.into_iter().collect());
        self.add(name, values, Some(0), Stored::default());
    }

    /// Adds a column of labels, such as axis values: numbers if all of them are.
    pub fn label_column(
        &mut self,
        name: impl Into<String>,
        labels: impl IntoIterator<Item = Option<String>>,
    ) {
        let labels: Vec<Option<String>> = labels.into_iter().collect();
        let number = |label: &Option<String>| match label {
            Some(label) => {
                let number = label
                    .parse()
                    .ok()
                    .filter(|number| label_of(*number) == *label);
                number.map(Some)
            }
            None => Some(None),
        };
        let numbers: Option<Vec<Option<f64>>> = labels.iter().map(number).collect();
        match numbers {
            Some(numbers) if numbers.iter().any(Option::is_some) => {
                let whole = numbers
                    .iter()
                    .flatten()
                    .all(|number| number.trunc() == *number);
                let stored = if whole { Stored::Whole } else { Stored::Float };
                self.add(name, Values::Numbers(numbers), None, stored);
            }
            _ => self.text_column(name, labels),
        }
    }

    /// Adds a column of whole numbers.
    pub fn whole_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<f64>>,
    ) {
        let values = Values::Numbers(values.into_iter().collect());
        self.add(name, values, Some(0), Stored::Whole);
    }

    /// Adds a column of truth values.
    pub fn truth_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = bool>,
    ) {
        let numbers = values
            .into_iter()
            .map(|value| Some(f64::from(u8::from(value))));
        let values = Values::Numbers(numbers.collect());
        self.add(name, values, Some(0), Stored::Truth);
    }

    /// Adds a column of token ids.
    pub fn ids_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<Vec<u32>>>,
    ) {
        let values = Values::Ids(values.into_iter().collect());
        self.add(name, values, Some(0), Stored::default());
    }

    /// Adds a column of numbers, shown with `decimals` digits.
    pub fn number_column(
        &mut self,
        name: impl Into<String>,
        decimals: usize,
        values: impl IntoIterator<Item = Option<f64>>,
    ) {
        let values = Values::Numbers(values.into_iter().collect());
        self.add(name, values, Some(decimals), Stored::default());
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        values: Values,
        decimals: Option<usize>,
        stored: Stored,
    ) {
        self.columns.push(Column {
            name: name.into(),
            values,
            decimals,
            stored,
            place: Place::Own,
        });
    }

    /// Adds the spread of the last column: people see `value ± spread`.
    pub fn spread_of_last(&mut self, name: &str, values: impl IntoIterator<Item = Option<f64>>) {
        self.add_to_last(name, Place::Spread, values.into_iter().collect());
    }

    /// Adds bounds of the last column: people see `value [low, high]`.
    pub fn interval_of_last(
        &mut self,
        bounds: impl IntoIterator<Item = (Option<f64>, Option<f64>)>,
    ) {
        let (low, high) = bounds.into_iter().unzip();
        self.add_to_last("low", Place::Low, low);
        self.add_to_last("high", Place::High, high);
    }

    fn add_to_last(&mut self, name: &str, place: Place, values: Vec<Option<f64>>) {
        let last = self
            .columns
            .iter()
            .rfind(|column| column.place == Place::Own);
        let (heading, decimals) = last.map_or((String::new(), Some(0)), |last| {
            (format!("{} {name}", last.name), last.decimals)
        });
        self.columns.push(Column {
            name: heading,
            values: Values::Numbers(values),
            decimals,
            stored: Stored::default(),
            place,
        });
    }

    pub(super) fn missing(&self, column: &str, expected: &'static str) -> TableError {
        let names: Vec<&str> = self
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        TableError::Column {
            what: self.title.clone(),
            column: column.to_owned(),
            expected,
            found: listed(names),
        }
    }

    /// Returns a column of text, or of labels as text.
    pub fn texts(&self, name: &str) -> Result<Vec<Option<String>>, TableError> {
        let found = self.columns.iter().find(|column| column.name == name);
        match found {
            Some(column) if column.decimals.is_none() => {
                Ok((0..self.height()).map(|row| column.cell(row)).collect())
            }
            Some(Column {
                values: Values::Text(values),
                ..
            }) => Ok(values.clone()),
            _ => Err(self.missing(name, "text")),
        }
    }

    /// Returns a column of token ids.
    pub fn ids(&self, name: &str) -> Result<&[Option<Vec<u32>>], TableError> {
        let found = self.columns.iter().find(|column| column.name == name);
        match found.map(|column| &column.values) {
            Some(Values::Ids(values)) => Ok(values),
            _ => Err(self.missing(name, "lists of token ids")),
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
        let values: Option<Vec<String>> = self.texts(name)?.into_iter().collect();
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
                Values::Ids(values) => values.len(),
            })
    }

    /// Keeps the rows that are marked.
    pub fn keep_rows(&mut self, kept: &[bool]) {
        fn keep<T>(values: &mut Vec<T>, kept: &[bool]) {
            let mut kept = kept.iter();
            values.retain(|_| kept.next() == Some(&true));
        }
        for column in &mut self.columns {
            match &mut column.values {
                Values::Text(values) => keep(values, kept),
                Values::Numbers(values) => keep(values, kept),
                Values::Ids(values) => keep(values, kept),
            }
        }
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
            .map(|column| column.to_series().into())
            .collect();
        let mut frame = DataFrame::new(self.height(), columns).map_err(wrap)?;
        let file = fs_err::File::create(&path)?;
        ParquetWriter::new(file).finish(&mut frame).map_err(wrap)?;
        let description = Description {
            title: self.title.clone(),
            notes: self.notes.clone(),
            decimals: self.columns.iter().map(|column| column.decimals).collect(),
            places: if self.columns.iter().all(|column| column.place == Place::Own) {
                Vec::new()
            } else {
                self.columns.iter().map(|column| column.place).collect()
            },
        };
        let text = serde_json::to_string_pretty(&description).map_err(std::io::Error::from)?;
        fs_err::write(folder.join("table.json"), text)?;
        Ok(())
    }

    /// Reads a table from a folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        Self::read_parts(folder.join("table.json"), folder.join("table.parquet"))
    }

    /// Reads the table whose artifact lies in a store.
    pub fn of_artifact(store: &Store, artifact: &Artifact) -> Result<Self, TableError> {
        let part = |name: &str| {
            let file = artifact.files.iter().find(|file| file.path == name);
            let found = file.map(|file| store.object_path(&file.digest));
            found.ok_or_else(|| std::io::Error::other(format!("the table has no file {name}")))
        };
        Self::read_parts(part("table.json")?, part("table.parquet")?)
    }

    fn read_parts(description: PathBuf, columns: PathBuf) -> Result<Self, TableError> {
        let path = description;
        let text = fs_err::read_to_string(&path)?;
        let description: Description = serde_json::from_str(&text)
            .map_err(|source| TableError::Description { path, source })?;
        let path = columns;
        let wrap = |source| TableError::Parquet {
            path: path.clone(),
            source,
        };
        let file = std::fs::File::open(&path)?;
        let frame = ParquetReader::new(file).finish().map_err(wrap)?;
        let mut columns = Vec::new();
        for (at, column) in frame.columns().iter().enumerate() {
            let (values, stored) = values_of(column).map_err(wrap)?;
            columns.push(Column {
                name: column.name().to_string(),
                values,
                decimals: description.decimals.get(at).copied().unwrap_or(Some(3)),
                stored,
                place: description.places.get(at).copied().unwrap_or_default(),
            });
        }
        Ok(Self {
            title: description.title,
            notes: description.notes,
            columns,
        })
    }

    /// The columns as people see them: each with those that stand in its cells.
    fn shown(&self) -> Vec<&[Column]> {
        self.columns
            .chunk_by(|_, next| next.place != Place::Own)
            .collect()
    }

    /// Returns what people see in the cell of a row.
    fn cell(shown: &[Column], row: usize) -> String {
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

    /// Returns the table with every text in it changed by `change`.
    #[must_use]
    pub fn map_texts(&self, change: impl Fn(&str) -> String) -> Self {
        let columns = self.columns.iter().map(|column| Column {
            name: change(&column.name),
            values: match &column.values {
                Values::Text(values) => {
                    let values = values.iter().map(|value| value.as_deref().map(&change));
                    Values::Text(values.collect())
                }
                other => other.clone(),
            },
            ..*column
        });
        Self {
            title: change(&self.title),
            columns: columns.collect(),
            notes: self.notes.iter().map(|note| change(note)).collect(),
        }
    }

    /// Returns the table for a terminal.
    pub fn text(&self) -> String {
        let shown = self.shown();
        let mut table = TextTable::new();
        table
            .load_style(RULES)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(shown.iter().map(|columns| columns[0].name.as_str()));
        for row in 0..self.height() {
            table.add_row(shown.iter().map(|columns| Self::cell(columns, row)));
        }
        for (at, columns) in shown.iter().enumerate() {
            if columns[0].is_number()
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

    /// Returns the rows as JSON objects.
    pub fn rows_json(&self) -> Json {
        (0..self.height())
            .map(|row| {
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
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::DataType;

    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Table 1");
        table.notes.push("a note".to_owned());
        table.text_column("policy", ["ppo", "sft"].map(|text| Some(text.to_owned())));
        table.number_column("mean", 3, [Some(0.12345), None]);
        table
    }

    #[test]
    fn columns_keep_their_types_in_the_file() {
        let mut table = Table::new("types");
        let words = |words: [&str; 2]| words.map(|word| Some(word.to_owned()));
        table.label_column("seed", words(["1", "2"]));
        table.label_column("temperature", words(["0.7", "0.25"]));
        table.label_column("policy", words(["1", "ppo"]));
        table.label_column("version", words(["1.0", "2.0"]));
        table.whole_column("n", [Some(3.0), None]);
        table.truth_column("truncated", [true, false]);
        table.ids_column("token_ids", [Some(vec![3, 70_000]), None]);
        table.number_column("nan", 3, [Some(-f64::NAN), Some(1.0)]);
        let folder = tempfile::tempdir().unwrap();
        table.write_data(folder.path()).unwrap();
        let file = std::fs::File::open(folder.path().join("table.parquet")).unwrap();
        let frame = ParquetReader::new(file).finish().unwrap();
        let types = frame.columns().iter().map(|column| column.dtype().clone());
        let list = DataType::List(Box::new(DataType::UInt32));
        assert_eq!(
            types.collect::<Vec<_>>(),
            [
                DataType::Int64,
                DataType::Float64,
                DataType::String,
                DataType::String,
                DataType::Int64,
                DataType::Boolean,
                list,
                DataType::Float64,
            ]
        );
        let read = Table::read(folder.path()).unwrap();
        assert_eq!(read.texts("temperature").unwrap(), words(["0.7", "0.25"]));
        assert_eq!(read.texts("seed").unwrap(), words(["1", "2"]));
        assert!(read.texts("n").is_err());
        assert_eq!(
            read.ids("token_ids").unwrap()[0].as_deref(),
            Some(&[3, 70_000][..])
        );
        assert_eq!(read.columns[..7], table.columns[..7]);
        let rows = read.rows_json();
        assert_eq!(rows[0]["n"], 3);
        assert_eq!(rows[1]["truncated"], false);
        let nan = read.numbers("nan").unwrap()[0].unwrap();
        assert_eq!(nan.to_bits(), f64::NAN.to_bits());
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
