//! Rows of text out of parquet, Arrow, CSV and JSON files, one at a time.
//!
//! The format is told by the first bytes: a file from a cache has no telling name. Files come from outside: what is
//! unpacked or kept of them is limited, however much a small one claims to hold.

use std::borrow::Cow;
use std::cell::{Cell as Counter, RefCell};
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use indexmap::IndexSet;

use self::cell::Cell;
use self::classes::ClassColumns;
use self::meter::Metered;
use crate::excerpt::listed;
use crate::files::regular;
use crate::hint::Hint;

pub use self::cell::{Checked, Nested};
pub use self::error::RowsError;
pub use self::field::{Field, GREATEST_WHOLE};

mod arrow;
mod cell;
mod classes;
mod csv;
mod error;
mod field;
mod json;
mod lines;
mod meter;
mod parquet;
mod saved;
mod split;

/// No row of a file may be longer.
const MAXIMUM_ROW: u64 = 32 << 20;
/// What any file may unpack to.
const LEAST_UNPACKED: u64 = 48 << 20;
/// What a large file may unpack to, as a multiple of its size: text packs to a third or a tenth.
const UNPACKED_SHARE: u64 = 8;
/// What a row, or that there is one, costs beside its text.
const ROW_BYTES: u64 = 256;

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
    /// Names the row as errors do.
    pub fn place(&self) -> String {
        format!("{}, row {}", self.file, self.number)
    }

    /// Makes an error about this row.
    pub fn error(&self, reason: impl Into<String>) -> RowsError {
        RowsError::Row {
            file: Arc::clone(&self.file),
            row: self.number,
            reason: reason.into(),
        }
    }
}

/// Why a row has not all its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lacking {
    /// A cell is empty.
    Empty(String),
    /// A cell is not what it should be.
    Faulty(String),
}

impl<T> Row<Checked<T>> {
    /// Takes the values out, which are those of `columns`.
    pub fn whole<const N: usize>(&mut self, columns: [&str; N]) -> Result<[T; N], Lacking> {
        let mut whole = Vec::with_capacity(N);
        for (column, value) in columns.iter().zip(std::mem::take(&mut self.values)) {
            let value = value.map_err(|what| Lacking::Faulty(format!("`{column}` is {what}")))?;
            whole.push(value.ok_or_else(|| Lacking::Empty(format!("`{column}` is empty")))?);
        }
        whole.try_into().map_err(|values: Vec<T>| {
            Lacking::Faulty(format!("it has {} values, expected {N}", values.len()))
        })
    }
}

impl Row<Checked<Field>> {
    /// Takes the values, which are those of `columns`, of which none may be what it should not be.
    fn fields(mut self, columns: &[&str]) -> Result<Row<Field>, RowsError> {
        let mut values = Vec::with_capacity(self.values.len());
        for (column, value) in columns.iter().zip(std::mem::take(&mut self.values)) {
            let value = value.map_err(|what| self.error(format!("`{column}` is {what}")))?;
            values.push(value.unwrap_or(Field::Empty));
        }
        Ok(Row {
            file: self.file,
            number: self.number,
            values,
        })
    }
}

/// A file of rows, or the part files of a folder.
#[derive(Debug)]
pub struct RowFiles {
    /// Paths, with what messages call them and their sizes.
    files: Vec<(PathBuf, Arc<str>, u64)>,
    most_text: Option<u64>,
    /// Bytes of the files that were read so far.
    passed: Counter<u64>,
    /// Whether they are plain text, a row in each line.
    is_lines: bool,
    /// What is said beside them of their columns.
    classes: ClassColumns,
}

impl RowFiles {
    /// Finds a file, which messages call `name`, or the part files of a folder in the order of their names.
    ///
    /// `split` chooses the files of one split, such as `train`, out of a folder of several. `most_text` limits the
    /// bytes of text that may be kept, which otherwise follow from the sizes of the files.
    pub fn find(
        path: &Path,
        name: &str,
        split: Option<&str>,
        most_text: Option<u64>,
    ) -> Result<Self, RowsError> {
        Self::found(path, name, split, most_text, false)
    }

    /// Finds plain text as [`Self::find`] finds rows, in a folder the files that end in .txt: each line that is not blank
    /// is a row of one value, whatever its column is called.
    pub fn find_lines(
        path: &Path,
        name: &str,
        split: Option<&str>,
        most_text: Option<u64>,
    ) -> Result<Self, RowsError> {
        Self::found(path, name, split, most_text, true)
    }

    fn found(
        path: &Path,
        name: &str,
        split: Option<&str>,
        most_text: Option<u64>,
        is_lines: bool,
    ) -> Result<Self, RowsError> {
        let mut files = Vec::new();
        let mut classes = ClassColumns::default();
        if fs_err::metadata(path)?.is_dir() {
            let in_folder = |error: RowsError| error.of_folder(name);
            let parts = split::part_files(path, split, is_lines).map_err(in_folder)?;
            if let Some(first) = parts.first() {
                classes = saved::classes_beside(first).map_err(in_folder)?;
            }
            for part in parts {
                let bytes = regular(&part)?.len();
                // Where it lies is nobody's business: a copy of what is called `name`.
                let below = part.strip_prefix(path).unwrap_or(&part);
                let name = format!("{name}/{}", below.display());
                files.push((part, name.into(), bytes));
            }
        } else {
            if let Some(split) = split {
                return Err(RowsError::Unsupported {
                    file: name.into(),
                    what: format!(
                        "it is one file, `split: {split}` chooses among those of a folder"
                    ),
                    hint: Hint::new("leave `split` out, or give the folder"),
                });
            }
            files.push((path.to_owned(), name.into(), regular(path)?.len()));
        }
        Ok(Self {
            files,
            most_text,
            passed: Counter::new(0),
            is_lines,
            classes,
        })
    }

    /// Returns how many bytes the files have, packed as they are.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// Returns how many of these the reading under way has gone through, roughly.
    pub fn bytes_passed(&self) -> u64 {
        self.passed.get()
    }

    /// Returns how much text of the files may be kept.
    pub fn allowance(&self) -> Allowance {
        let limit = self.most_text.unwrap_or_else(|| unpacked(self.bytes()));
        Allowance { limit, left: limit }
    }

    /// Reads `columns` row by row until `take` breaks off; numbers become text.
    pub fn read(
        &self,
        columns: &[&str],
        mut take: impl FnMut(Row<Checked<String>>) -> Result<ControlFlow<()>, RowsError>,
    ) -> Result<(), RowsError> {
        self.each(columns, None, &mut take)
    }

    /// Reads `columns` as [`Self::read`] does, lists and structures included.
    ///
    /// CSV files have text only.
    pub fn read_nested(
        &self,
        columns: &[&str],
        mut take: impl FnMut(Row<Checked<Nested>>) -> Result<ControlFlow<()>, RowsError>,
    ) -> Result<(), RowsError> {
        self.each(columns, None, &mut take)
    }

    /// Reads `columns` as [`Self::read_nested`] does, each row or what is wrong with it; a column that a JSON object does
    /// not have is an empty [`Field`].
    pub fn read_fields(
        &self,
        columns: &[&str],
        mut take: impl FnMut(Result<Row<Field>, RowsError>) -> Result<ControlFlow<()>, RowsError>,
    ) -> Result<(), RowsError> {
        self.each(columns, None, &mut |row| take(row.fields(columns)))
    }

    /// Returns the names of the columns, those of JSON in the order in which they first appear.
    pub fn columns(&self) -> Result<Vec<String>, RowsError> {
        self.columns_of_first(usize::MAX)
    }

    /// Returns the names of the columns in the first `rows` rows.
    pub fn columns_of_first(&self, rows: usize) -> Result<Vec<String>, RowsError> {
        let names = Names::default();
        let mut seen = 0;
        let mut take = |_: Row<Checked<Nested>>| {
            seen += 1;
            Ok(if seen < rows {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        };
        self.each(&[], Some(&names), &mut take)?;
        Ok(names.into_inner().into_iter().collect())
    }

    fn each<T: Cell>(
        &self,
        columns: &[&str],
        names: Option<&Names>,
        take: &mut dyn FnMut(Row<Checked<T>>) -> Result<ControlFlow<()>, RowsError>,
    ) -> Result<(), RowsError> {
        let mut before = 0;
        for (path, name, bytes) in &self.files {
            self.passed.set(before);
            before += bytes;
            let mut rows = Reading {
                file: name,
                passed: &self.passed,
                columns,
                names,
                is_lines: self.is_lines,
                most_unpacked: self.most_text.unwrap_or_else(|| unpacked(*bytes)),
                classes: Cow::Borrowed(&self.classes),
                take: &mut *take,
            };
            if rows.file(path)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Names of columns.
type Names = RefCell<IndexSet<String>>;

/// Notes the name of a column, unless a file has more of them than any table.
fn note(names: &Names, name: &str) {
    const MOST: usize = 10_000;
    let mut names = names.borrow_mut();
    if names.len() < MOST && !names.contains(name) {
        names.insert(name.to_owned());
    }
}

/// What files of so many bytes may unpack to.
fn unpacked(bytes: u64) -> u64 {
    LEAST_UNPACKED.saturating_add(bytes.saturating_mul(UNPACKED_SHARE))
}

/// How much text may be kept.
#[derive(Debug)]
pub struct Allowance {
    limit: u64,
    left: u64,
}

impl Allowance {
    /// Counts a row of `file` that is kept, with texts of so many bytes.
    pub fn keep(&mut self, file: &Arc<str>, bytes: usize) -> Result<(), RowsError> {
        match self.left.checked_sub(bytes as u64 + ROW_BYTES) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(RowsError::TooLarge {
                file: Arc::clone(file),
                what: "its rows hold",
                limit: self.limit,
                hint: Hint::new(
                    "take fewer rows, or raise `max_text_mb` if there is memory for several times as much",
                ),
            }),
        }
    }
}

/// A file that counts what is read of it.
struct Passing<'a> {
    file: File,
    passed: &'a Counter<u64>,
}

impl Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.passed.set(self.passed.get() + read as u64);
        Ok(read)
    }
}

/// The rows of one file on their way.
struct Reading<'a, T> {
    file: &'a Arc<str>,
    passed: &'a Counter<u64>,
    columns: &'a [&'a str],
    /// Where the names of all columns are noted, if only they are asked for.
    names: Option<&'a Names>,
    is_lines: bool,
    /// Bytes that what is packed in the file may unpack to at a time.
    most_unpacked: u64,
    /// Columns whose numbers stand for names.
    classes: Cow<'a, ClassColumns>,
    take: &'a mut dyn FnMut(Row<Checked<T>>) -> Result<ControlFlow<()>, RowsError>,
}

impl<T: Cell> Reading<'_, T> {
    fn file(&mut self, path: &Path) -> Result<ControlFlow<()>, RowsError> {
        let mut file: File = fs_err::File::open(path)?.into();
        let mut start = Vec::new();
        file.by_ref().take(8).read_to_end(&mut start)?;
        file.rewind()?;
        let packed = [
            (b"\x28\xb5\x2f\xfd".as_slice(), "zstd"),
            (b"PK\x03\x04", "zip"),
            (b"\xfd7zXZ", "xz"),
            (b"BZh", "bzip2"),
        ];
        if let Some((_, what)) = packed.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Err(RowsError::Unsupported {
                file: Arc::clone(self.file),
                what: format!("it is packed with {what}, which is not read"),
                hint: Hint::new("unpack it, or pack it with gzip"),
            });
        }
        if start.starts_with(b"PAR1") {
            self.parquet(file)
        } else if start.starts_with(&arrow::FILE) || start.starts_with(&arrow::MESSAGE) {
            self.arrow(file, start.starts_with(&arrow::FILE))
        } else {
            let passed = self.passed;
            let file = Passing { file, passed };
            if start.starts_with(&[0x1f, 0x8b]) {
                self.text(MultiGzDecoder::new(BufReader::new(file)))
            } else {
                self.text(file)
            }
        }
    }

    /// Reads a text file: JSON lines, a JSON array, or CSV.
    fn text(&mut self, mut reader: impl Read) -> Result<ControlFlow<()>, RowsError> {
        let mut start = Vec::new();
        let begin = reader.by_ref().take(512).read_to_end(&mut start);
        begin.map_err(|error| self.unreadable(1, &error))?;
        let start = start
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(&start)
            .to_vec();
        let of_two = [[0xff, 0xfe], [0xfe, 0xff]];
        let is_marked = of_two.iter().any(|mark| start.starts_with(mark));
        if is_marked || start.contains(&0) {
            let what = if is_marked {
                "it is UTF-16, expected UTF-8"
            } else {
                "it holds zero bytes, which no text in UTF-8 does"
            };
            return Err(RowsError::Unsupported {
                file: Arc::clone(self.file),
                what: what.to_owned(),
                hint: Hint::new("write it as UTF-8: `iconv -f UTF-16 -t UTF-8 FILE`"),
            });
        }
        let first = start.trim_ascii_start().first().copied();
        if start.is_empty() && !self.is_lines {
            return Err(self.damaged("it is empty, it has not one byte".to_owned()));
        }
        let reader = Cursor::new(start).chain(reader);
        match first {
            _ if self.is_lines => self.lines(BufReader::new(reader)),
            Some(b'{') => self.json_lines(BufReader::new(reader)),
            Some(b'[') => self.json_array(Metered::new(reader, MAXIMUM_ROW)),
            _ => self.csv(Metered::new(reader, MAXIMUM_ROW)),
        }
    }

    fn fault(&self, number: usize, reason: impl Into<String>) -> RowsError {
        RowsError::Row {
            file: Arc::clone(self.file),
            row: number,
            reason: reason.into(),
        }
    }

    fn damaged(&self, reason: String) -> RowsError {
        RowsError::Damaged {
            file: Arc::clone(self.file),
            reason,
        }
    }

    /// Takes what the file itself says of its columns, rather than what is said beside it.
    fn take_classes(&mut self, said: &str) -> Result<(), RowsError> {
        let read = ClassColumns::read(said);
        let read = read.map_err(|error| {
            let key = classes::KEY;
            self.damaged(format!("what it says as `{key}` cannot be read: {error}"))
        })?;
        self.classes = Cow::Owned(read);
        Ok(())
    }

    /// A truncated or damaged gzip file, say.
    fn unreadable(&self, number: usize, error: &std::io::Error) -> RowsError {
        self.fault(number, format!("cannot be read: {error}"))
    }

    /// Passes a row on.
    fn row(
        &mut self,
        number: usize,
        values: impl Iterator<Item = Checked<T>>,
    ) -> Result<ControlFlow<()>, RowsError> {
        let classes = self.columns.iter().map(|column| self.classes.of(column));
        let values = values.zip(classes).map(|(value, classes)| match classes {
            Some(classes) => value?.map_or(Ok(None), |value| value.named(classes)),
            None => value,
        });
        let values = values.collect();
        (self.take)(Row {
            file: Arc::clone(self.file),
            number,
            values,
        })
    }

    /// An error about a column that is not among those that are there.
    fn no_column(&self, column: &str, known: &[&str]) -> RowsError {
        RowsError::Column {
            file: Arc::clone(self.file),
            column: column.to_owned(),
            found: listed(known),
        }
    }
}

#[cfg(test)]
mod tests;
