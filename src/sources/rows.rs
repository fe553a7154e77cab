//! Rows of text out of parquet, CSV and JSON-lines files.
//!
//! The format is told by the first bytes: a file from a cache has no telling name.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use polars::prelude::{CsvReadOptions, DataFrame, ParquetReader, PolarsError, SerReader};
use serde_json::{Map, Value};

use self::cell::Cell;

mod cell;

/// No line of a JSON-lines file may be longer.
const MAXIMUM_LINE: u64 = 64 << 20;

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// The operating system refused; the message carries the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A parquet or CSV file is damaged.
    #[error("{file}: {source}")]
    Frame {
        /// The file.
        file: Arc<str>,
        /// What polars says.
        source: PolarsError,
    },
    /// A parquet or CSV file is damaged in a way that polars does not expect.
    #[error("{file}: damaged: expected a whole parquet or CSV file")]
    Damaged {
        /// The file.
        file: Arc<str>,
    },
    /// A column is not there.
    #[error("{file}: no column `{column}`; found: {found}")]
    Column {
        /// The file.
        file: Arc<str>,
        /// The column.
        column: String,
        /// The columns that are there.
        found: String,
    },
    /// A row is not what it should be.
    #[error("{file}, row {row}: {reason}")]
    Row {
        /// The file.
        file: Arc<str>,
        /// Counted from 1; the header is not counted.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// A folder without a file that could be read.
    #[error("{}: no file ends in .parquet, .csv, .jsonl or .jsonl.gz", folder.display())]
    NoFiles {
        /// The folder.
        folder: PathBuf,
    },
}

/// One row, of text or of nested values.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<T = String> {
    /// Its file, as messages name it.
    pub file: Arc<str>,
    /// Its number in the file, from 1.
    pub number: usize,
    /// The values of the columns that were asked for, in that order.
    pub values: Vec<T>,
}

impl<T> Row<T> {
    /// Makes an error about this row.
    pub fn error(&self, reason: impl Into<String>) -> RowsError {
        RowsError::Row {
            file: Arc::clone(&self.file),
            row: self.number,
            reason: reason.into(),
        }
    }
}

/// Reads `columns` of a file, or of all part files of a folder in the order of their names.
///
/// `name` stands for a single file in messages. Every row must have a value in every column; numbers become text.
pub fn read_rows(path: &Path, name: &str, columns: &[&str]) -> Result<Vec<Row>, RowsError> {
    read(path, name, columns)
}

/// Reads `columns` as [`read_rows`] does, lists and structures included.
///
/// CSV files have text only.
pub fn read_nested_rows(
    path: &Path,
    name: &str,
    columns: &[&str],
) -> Result<Vec<Row<Value>>, RowsError> {
    read(path, name, columns)
}

fn read<T: Cell>(path: &Path, name: &str, columns: &[&str]) -> Result<Vec<Row<T>>, RowsError> {
    if !fs_err::metadata(path)?.is_dir() {
        return read_file(path, name.into(), columns);
    }
    let mut parts = Vec::new();
    for entry in fs_err::read_dir(path)? {
        let part = entry?.path();
        let name = part.to_string_lossy().into_owned();
        let known = [".parquet", ".csv", ".jsonl", ".jsonl.gz"];
        if known.iter().any(|ending| name.ends_with(ending)) {
            parts.push((part, name));
        }
    }
    parts.sort();
    if parts.is_empty() {
        return Err(RowsError::NoFiles {
            folder: path.to_owned(),
        });
    }
    let mut rows = Vec::new();
    for (part, name) in parts {
        rows.extend(read_file(&part, name.into(), columns)?);
    }
    Ok(rows)
}

fn read_file<T: Cell>(
    path: &Path,
    name: Arc<str>,
    columns: &[&str],
) -> Result<Vec<Row<T>>, RowsError> {
    let mut file: File = fs_err::File::open(path)?.into();
    let mut start = Vec::new();
    file.by_ref().take(64).read_to_end(&mut start)?;
    file.rewind()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        json_rows(BufReader::new(MultiGzDecoder::new(file)), &name, columns)
    } else if start.trim_ascii_start().starts_with(b"{") {
        json_rows(BufReader::new(file), &name, columns)
    } else {
        // polars panics on some of the files that are not what they should be.
        let read = || frame_file(file, start.starts_with(b"PAR1"), &name, columns);
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
            Err(RowsError::Damaged {
                file: Arc::clone(&name),
            })
        })
    }
}

/// Reads a parquet or CSV file.
fn frame_file<T: Cell>(
    file: File,
    is_parquet: bool,
    name: &Arc<str>,
    columns: &[&str],
) -> Result<Vec<Row<T>>, RowsError> {
    let frame = |source| RowsError::Frame {
        file: Arc::clone(name),
        source,
    };
    if is_parquet {
        let mut reader = ParquetReader::new(file);
        let schema = reader.schema().map_err(frame)?;
        let known: Vec<String> = schema.iter_names().map(ToString::to_string).collect();
        check_columns(name, columns, &known)?;
        let wanted = columns.iter().map(|column| (*column).to_owned()).collect();
        let read = reader.with_columns(Some(wanted)).finish();
        frame_rows(&read.map_err(frame)?, name, columns)
    } else {
        let options = CsvReadOptions::default()
            .with_has_header(true)
            // Every column as text.
            .with_infer_schema_length(Some(0));
        let read = options.into_reader_with_file_handle(file).finish();
        frame_rows(&read.map_err(frame)?, name, columns)
    }
}

fn check_columns(name: &Arc<str>, columns: &[&str], known: &[String]) -> Result<(), RowsError> {
    let missing = columns
        .iter()
        .find(|column| !known.iter().any(|known| known == *column));
    missing.map_or(Ok(()), |column| {
        Err(RowsError::Column {
            file: Arc::clone(name),
            column: (*column).to_owned(),
            found: known.join(", "),
        })
    })
}

fn frame_rows<T: Cell>(
    frame: &DataFrame,
    name: &Arc<str>,
    columns: &[&str],
) -> Result<Vec<Row<T>>, RowsError> {
    let wrap = |source| RowsError::Frame {
        file: Arc::clone(name),
        source,
    };
    let known: Vec<String> = frame
        .columns()
        .iter()
        .map(|column| column.name().to_string())
        .collect();
    check_columns(name, columns, &known)?;
    let mut rows: Vec<Row<T>> = (1..=frame.height())
        .map(|number| Row {
            file: Arc::clone(name),
            number,
            values: Vec::with_capacity(columns.len()),
        })
        .collect();
    for column in columns {
        let values = frame.column(column).map_err(wrap)?;
        for (row, value) in rows.iter_mut().zip(T::of_column(values).map_err(wrap)?) {
            match value {
                Ok(Some(value)) => row.values.push(value),
                Ok(None) => return Err(row.error(format!("`{column}` is empty"))),
                Err(what) => return Err(row.error(format!("`{column}` is {what}"))),
            }
        }
    }
    Ok(rows)
}

fn json_rows<T: Cell>(
    mut reader: impl BufRead,
    name: &Arc<str>,
    columns: &[&str],
) -> Result<Vec<Row<T>>, RowsError> {
    let mut rows = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        let mut row = Row {
            file: Arc::clone(name),
            number,
            values: Vec::with_capacity(columns.len()),
        };
        line.clear();
        let read = reader
            .by_ref()
            .take(MAXIMUM_LINE)
            .read_until(b'\n', &mut line)
            // A truncated or damaged gzip file ends here.
            .map_err(|error| row.error(format!("cannot be read: {error}")))?;
        if read == 0 {
            break;
        }
        if read as u64 == MAXIMUM_LINE {
            return Err(row.error(format!("the line is longer than {MAXIMUM_LINE} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let object: Map<String, Value> =
            serde_json::from_slice(&line).map_err(|error| row.error(error.to_string()))?;
        for column in columns {
            let value = object.get(*column).ok_or("missing").and_then(T::of_json);
            row.values
                .push(value.map_err(|what| row.error(format!("`{column}` is {what}")))?);
        }
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
