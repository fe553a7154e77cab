//! Tables: named columns of text or numbers, with a title and notes.
//!
//! `table.parquet` holds the cells, `table.json` the title, notes and number formats. Tables for people have
//! `table.md` as well, the same as Markdown.

use std::path::PathBuf;

use polars::prelude::PolarsError;

use crate::excerpt::listed;

mod adding;
mod column;
mod csv;
mod files;
mod json;
mod latex;
pub mod markdown;
mod parts;
mod shown;
mod text;

use column::label_of;
pub use column::{Column, Place, Stored, Values};
pub use files::TableWriter;

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

impl Table {
    /// Makes an empty table.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
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

    /// Returns a column of text or numbers, the numbers as axes spell them.
    pub fn labels(&self, name: &str) -> Result<Vec<Option<String>>, TableError> {
        if let Ok(texts) = self.texts(name) {
            return Ok(texts);
        }
        let numbers = self.numbers(name);
        let numbers = numbers.map_err(|_| self.missing(name, "text or numbers"))?;
        Ok(numbers.iter().map(|number| number.map(label_of)).collect())
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
}
