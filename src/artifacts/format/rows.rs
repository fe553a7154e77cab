//! Rows that others wrote, as parquet, JSON or CSV: checked against the table of formats, and made an artifact's own.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{ArtifactFormat, ColumnFormat, Further, Holds, Presence, RowsFormat};
use crate::artifacts::embeddings::EmbeddingMatrix;
use crate::artifacts::table::Table;
use crate::engine::diagnostic::did_you_mean;
use crate::excerpt::{excerpt, listed};
use crate::hint::Hint;
use crate::sources::rows::{Field, RowFiles, RowsError};

/// What a message shows of a value.
const SHOWN: usize = 80;

/// Rows as an artifact holds them.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// Columns of a table.
    Table(Table),
    /// Vectors.
    Vectors(EmbeddingMatrix),
}

impl Rows {
    /// Returns how many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Table(table) => table.height(),
            Self::Vectors(matrix) => matrix.values.len() / matrix.dimension.max(1),
        }
    }
}

/// The cells of a column, with the rows that they stand in.
struct Cells<'a> {
    file: &'a Arc<str>,
    name: &'a str,
    rows: &'a [usize],
    fields: Vec<Field>,
}

/// Reads rows of a kind out of a file, which messages call `name`, and checks them.
///
/// # Errors
/// The first fault: file, row and column, what is there and what was expected.
pub fn read_rows(
    format: &ArtifactFormat,
    rows: &RowsFormat,
    path: &Path,
    name: &str,
) -> Result<Rows, RowsError> {
    let files = RowFiles::find(path, name, None, None)?;
    let found = files.columns()?;
    let file: Arc<str> = name.into();
    check_columns(format, rows, &found, &file)?;
    let columns: Vec<&str> = found.iter().map(String::as_str).collect();
    let mut fields: Vec<Vec<Field>> = vec![Vec::new(); columns.len()];
    let mut numbers = Vec::new();
    let mut allowance = files.allowance();
    files.read_fields(&columns, |row| {
        let row = row?;
        let bytes = row.values.iter().map(Field::bytes);
        allowance.keep(&row.file, bytes.sum())?;
        numbers.push(row.number);
        for (column, field) in fields.iter_mut().zip(row.values) {
            column.push(field);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let mut all: Vec<Cells> = Vec::new();
    for (name, fields) in columns.iter().copied().zip(fields) {
        all.push(Cells {
            file: &file,
            name,
            rows: &numbers,
            fields,
        });
    }
    let mut table = Table::new("");
    // Those with a meaning first, in the order of the format.
    for column in rows.columns {
        let Some(at) = all.iter().position(|cells| cells.name == column.name) else {
            continue;
        };
        let cells = all.remove(at);
        if matches!(column.holds, Holds::Vector) {
            return cells.vectors().map(Rows::Vectors);
        }
        let may_be_null = column.presence == Presence::MayBeNull;
        cells.add_to(&mut table, column.holds, may_be_null)?;
    }
    for cells in all {
        match rows.further {
            Further::Texts => cells.add_as_text(&mut table),
            Further::Numbers => cells.add_to(&mut table, Holds::Number, true)?,
            Further::Any | Further::SomeNumber | Further::Refused => {
                let holds = cells.guess();
                cells.add_to(&mut table, holds, true)?;
            }
        }
    }
    if rows.further == Further::SomeNumber {
        let own = rows
            .columns
            .iter()
            .filter(|column| column.presence != Presence::MayBeLeftOut);
        let own: Vec<&str> = own.map(|column| column.name).collect();
        let has_numbers = |name: &str| {
            table
                .numbers(name)
                .is_ok_and(|all| all.iter().any(Option::is_some))
        };
        let is_score = |name: &str| !own.contains(&name) && has_numbers(name);
        if table.height() > 0 && !table.columns.iter().any(|column| is_score(&column.name)) {
            return Err(RowsError::Column {
                file,
                column: "reward".to_owned(),
                found: listed(&found),
            });
        }
    }
    Ok(Rows::Table(table))
}

/// Checks that the columns are there that must be, and no others.
fn check_columns(
    format: &ArtifactFormat,
    rows: &RowsFormat,
    found: &[String],
    file: &Arc<str>,
) -> Result<(), RowsError> {
    let known = || rows.columns.iter().map(|column| column.name);
    let is_known = |name: &str| known().any(|known| known == name);
    for ColumnFormat { name, presence, .. } in rows.columns {
        if *presence == Presence::Required && !found.iter().any(|found| found == name) {
            return Err(RowsError::Column {
                file: Arc::clone(file),
                column: (*name).to_owned(),
                found: listed(found),
            });
        }
    }
    if found.is_empty() {
        return Err(RowsError::Unsupported {
            file: Arc::clone(file),
            what: "it has no columns".to_owned(),
            hint: Hint::new(
                "write parquet, one JSON object a line, or CSV with names in its first line",
            ),
        });
    }
    if rows.further != Further::Refused {
        return Ok(());
    }
    let Some(further) = found.iter().find(|name| !is_known(name)) else {
        return Ok(());
    };
    let hint = did_you_mean(further, known()).unwrap_or_else(|| "leave the column out".to_owned());
    Err(RowsError::Unsupported {
        file: Arc::clone(file),
        what: format!(
            "`{}` has no column `{}`; expected {}",
            format.kind,
            excerpt(further, SHOWN),
            listed(known())
        ),
        hint: hint.into(),
    })
}

impl Cells<'_> {
    /// An error about a cell.
    fn fault(&self, at: usize, found: &str, expected: &str) -> RowsError {
        RowsError::Row {
            file: Arc::clone(self.file),
            row: self.rows[at],
            reason: format!(
                "`{}` is {}, expected {expected}",
                self.name,
                excerpt(found, SHOWN)
            ),
        }
    }

    /// Takes every cell by `take`; `None` of it is none of that type.
    fn each<T>(
        &self,
        holds: Holds,
        may_be_null: bool,
        take: impl Fn(&Field) -> Option<T>,
    ) -> Result<Vec<Option<T>>, RowsError> {
        let cells = self.fields.iter().enumerate().map(|(at, field)| {
            let is_empty = match field {
                Field::Empty => true,
                // In CSV an empty text and no text look alike.
                Field::Written(text) => {
                    text.is_empty() && (may_be_null || !matches!(holds, Holds::Text))
                }
                Field::Typed(_) => false,
            };
            if is_empty {
                let found = if matches!(field, Field::Empty) {
                    "null"
                } else {
                    "empty"
                };
                let expected = holds.in_words();
                return if may_be_null {
                    Ok(None)
                } else {
                    Err(self.fault(at, found, &expected))
                };
            }
            let taken = take(field).ok_or_else(|| {
                let found = match field {
                    Field::Typed(value) => value.as_json(),
                    Field::Written(text) => text,
                    Field::Empty => "null",
                };
                self.fault(at, found, &holds.in_words())
            });
            taken.map(Some)
        });
        cells.collect()
    }

    /// Adds the column to a table.
    fn add_to(&self, table: &mut Table, holds: Holds, may_be_null: bool) -> Result<(), RowsError> {
        match holds {
            Holds::Text => {
                table.text_column(self.name, self.each(holds, may_be_null, Field::text)?);
            }
            Holds::Word(words) => {
                let word = |field: &Field| field.text().filter(|text| words().contains(&&**text));
                table.text_column(self.name, self.each(holds, may_be_null, word)?);
            }
            Holds::Whole => {
                table.whole_column(self.name, self.each(holds, may_be_null, Field::whole)?);
            }
            Holds::Number => {
                table.number_column(self.name, 3, self.each(holds, may_be_null, Field::number)?);
            }
            Holds::Truth => {
                let truths = self.each(holds, may_be_null, Field::truth)?;
                table.truths_column(self.name, truths);
            }
            Holds::TokenIds | Holds::Vector => {
                let ids = self.each(holds, may_be_null, Field::ids)?;
                if ids.iter().any(Option::is_some) {
                    table.ids_column(self.name, ids);
                }
            }
        }
        Ok(())
    }

    /// Adds the column as text; what is no text is JSON.
    fn add_as_text(&self, table: &mut Table) {
        table.text_column(self.name, self.fields.iter().map(Field::to_text));
    }

    /// Tells what a column without a meaning holds: what its first value is, or of CSV what all values can be.
    fn guess(&self) -> Holds {
        let is_value = |field: &&Field| {
            !matches!(field, Field::Empty) && **field != Field::Written(String::new())
        };
        let values = || self.fields.iter().filter(is_value);
        match values().next() {
            Some(Field::Written(_)) => {
                let all = |take: fn(&Field) -> bool| values().all(take);
                if all(|field| field.whole().is_some()) {
                    Holds::Whole
                } else if all(|field| field.number().is_some()) {
                    Holds::Number
                } else if all(|field| field.truth().is_some()) {
                    Holds::Truth
                } else {
                    Holds::Text
                }
            }
            Some(first) if first.number().is_some() => {
                // Whether others are fractions, too.
                if values().all(|field| field.whole().is_some()) {
                    Holds::Whole
                } else {
                    Holds::Number
                }
            }
            Some(first) if first.truth().is_some() => Holds::Truth,
            Some(first) if first.ids().is_some() => Holds::TokenIds,
            _ => Holds::Text,
        }
    }

    fn vectors(&self) -> Result<EmbeddingMatrix, RowsError> {
        let vectors = self.each(Holds::Vector, false, Field::vector)?;
        let dimension = vectors.iter().flatten().map(Vec::len).next().unwrap_or(0);
        let mut values = Vec::with_capacity(vectors.len() * dimension);
        for (at, vector) in vectors.into_iter().flatten().enumerate() {
            if vector.len() != dimension || dimension == 0 {
                let found = format!("a list of {} numbers", vector.len());
                let expected = match dimension {
                    0 => "at least one".to_owned(),
                    _ => format!("{dimension}, as in the first row"),
                };
                return Err(self.fault(at, &found, &expected));
            }
            values.extend(vector);
        }
        Ok(EmbeddingMatrix { values, dimension })
    }
}
