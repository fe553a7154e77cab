//! Rows of text out of parquet, CSV and JSON-lines files.
//!
//! The format is told by the first bytes: a file from a cache has no telling name.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use polars::prelude::{CsvReadOptions, DataFrame, DataType, ParquetReader, PolarsError, SerReader};
use serde_json::{Map, Value};

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

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its file, as messages name it.
    pub file: Arc<str>,
    /// Its number in the file, from 1.
    pub number: usize,
    /// The values of the columns that were asked for, in that order.
    pub values: Vec<String>,
}

impl Row {
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

fn read_file(path: &Path, name: Arc<str>, columns: &[&str]) -> Result<Vec<Row>, RowsError> {
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
fn frame_file(
    file: File,
    is_parquet: bool,
    name: &Arc<str>,
    columns: &[&str],
) -> Result<Vec<Row>, RowsError> {
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

fn frame_rows(frame: &DataFrame, name: &Arc<str>, columns: &[&str]) -> Result<Vec<Row>, RowsError> {
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
    let mut rows: Vec<Row> = (1..=frame.height())
        .map(|number| Row {
            file: Arc::clone(name),
            number,
            values: Vec::with_capacity(columns.len()),
        })
        .collect();
    for column in columns {
        let values = frame.column(column).map_err(wrap)?;
        let values = values.cast(&DataType::String).map_err(wrap)?;
        for (row, value) in rows.iter_mut().zip(values.str().map_err(wrap)?.iter()) {
            match value {
                Some(value) => row.values.push(value.to_owned()),
                None => return Err(row.error(format!("`{column}` is empty"))),
            }
        }
    }
    Ok(rows)
}

fn json_rows(
    mut reader: impl BufRead,
    name: &Arc<str>,
    columns: &[&str],
) -> Result<Vec<Row>, RowsError> {
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
            let value = match object.get(*column) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Number(number)) => number.to_string(),
                Some(_) => {
                    return Err(row.error(format!("`{column}` is neither text nor a number")));
                }
                None => return Err(row.error(format!("`{column}` is missing"))),
            };
            row.values.push(value);
        }
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use polars::prelude::{NamedFrom, ParquetWriter, Series};

    use super::*;

    const COLUMNS: [&str; 2] = ["id", "text"];

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<String>>, String> {
        let (_folder, path) = written("data", bytes);
        match read_rows(&path, "DATA", &COLUMNS) {
            Ok(rows) => Ok(rows.into_iter().map(|row| row.values).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn parquet(texts: &[Option<&str>]) -> Vec<u8> {
        let ids: Vec<i64> = (0..texts.len() as i64).collect();
        let columns = vec![
            Series::new("text".into(), texts).into(),
            Series::new("id".into(), ids).into(),
            Series::new("other".into(), vec![0.5f64; texts.len()]).into(),
        ];
        let mut frame = DataFrame::new(texts.len(), columns).unwrap();
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
        bytes
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_format_gives_the_same_rows() {
        let expected = vec![vec!["0", "a, b"], vec!["1", "c\nd"]];
        let csv = b",id,text\n7,0,\"a, b\"\n8,1,\"c\nd\"\n";
        assert_eq!(read(csv).unwrap(), expected);
        let lines = "{\"text\": \"a, b\", \"id\": 0}\n\n{\"id\": \"1\", \"text\": \"c\\nd\"}";
        assert_eq!(read(lines.as_bytes()).unwrap(), expected);
        assert_eq!(read(&gzip(lines)).unwrap(), expected);
        assert_eq!(
            read(&parquet(&[Some("a, b"), Some("c\nd")])).unwrap(),
            expected
        );
    }

    #[test]
    fn faults_name_file_and_row() {
        for (bytes, message) in [
            (
                b"id,words\n0,a\n".to_vec(),
                "DATA: no column `text`; found: id, words",
            ),
            (
                b"id,text\n0,a\n1,\n".to_vec(),
                "DATA, row 2: `text` is empty",
            ),
            (
                b"{\"id\": 0, \"text\": \"a\"}\n{\"id\": 1, \"text\": ".to_vec(),
                "DATA, row 2: EOF while parsing a value",
            ),
            (b"{\"id\": 0}".to_vec(), "DATA, row 1: `text` is missing"),
            (
                b"{\"id\": 0, \"text\": [1]}".to_vec(),
                "DATA, row 1: `text` is neither text nor a number",
            ),
            (parquet(&[Some("a"), None]), "DATA, row 2: `text` is empty"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn truncated_files_are_refused() {
        let texts: Vec<String> = (0..300).map(|row| format!("text {row}")).collect();
        let texts: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
        let whole = parquet(&texts);
        let error = read(&whole[..whole.len() / 2]).unwrap_err();
        assert!(error.starts_with("DATA: "), "{error}");
        let lines: String = (0..300)
            .map(|row| format!("{{\"id\": {row}, \"text\": \"{}\"}}\n", row * 7919))
            .collect();
        let whole = gzip(&lines);
        let error = read(&whole[..whole.len() / 2]).unwrap_err();
        assert!(error.starts_with("DATA, row "), "{error}");
    }

    #[test]
    fn part_files_come_in_the_order_of_their_names() {
        let (folder, _) = written("part-1.csv", b"id,text\n2,c\n");
        fs_err::write(
            folder.path().join("part-0.parquet"),
            parquet(&[Some("a"), Some("b")]),
        )
        .unwrap();
        fs_err::write(folder.path().join("README"), "not data").unwrap();
        let rows = read_rows(folder.path(), "", &COLUMNS).unwrap();
        let texts: Vec<&str> = rows.iter().map(|row| row.values[1].as_str()).collect();
        assert_eq!(texts, ["a", "b", "c"]);
        assert!(rows[2].file.ends_with("part-1.csv") && rows[2].number == 1);
        let empty = tempfile::tempdir().unwrap();
        let error = read_rows(empty.path(), "", &COLUMNS).unwrap_err();
        assert!(error.to_string().contains("no file ends in"), "{error}");
    }
}
