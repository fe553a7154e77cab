//! What each kind of artifact is made of: one table, by which formats are documented and what others write is checked.

mod kinds;
mod rows;

pub use kinds::FORMATS;
pub use rows::{Rows, read_rows};

/// What the cells of a column hold.
#[derive(Debug, Clone, Copy)]
pub enum Holds {
    /// Text.
    Text,
    /// One of some words.
    Word(fn() -> Vec<&'static str>),
    /// A whole number from 0.
    Whole,
    /// A finite number.
    Number,
    /// True or false.
    Truth,
    /// A list of token ids.
    TokenIds,
    /// A list of finite numbers, of the same length in every row.
    Vector,
}

impl Holds {
    /// Says it in words.
    pub fn in_words(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Word(words) => format!("one of {}", words().join(", ")),
            Self::Whole => "a whole number from 0".to_owned(),
            Self::Number => "a finite number".to_owned(),
            Self::Truth => "true or false".to_owned(),
            Self::TokenIds => "a list of token ids".to_owned(),
            Self::Vector => "a list of finite numbers, as long in every row".to_owned(),
        }
    }

    /// Names the type in the file.
    pub fn stored_as(self) -> &'static str {
        match self {
            Self::Text | Self::Word(_) => "string",
            Self::Whole => "int64",
            Self::Number => "float64",
            Self::Truth => "bool",
            Self::TokenIds => "list of uint32",
            Self::Vector => "list of float32",
        }
    }
}

/// Whether a column must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// In every row.
    Required,
    /// In every row, or in none.
    MayBeLeftOut,
    /// Cells may be null, or the whole column left out.
    MayBeNull,
}

/// A column of a kind of rows.
#[derive(Debug, Clone, Copy)]
pub struct ColumnFormat {
    /// Its name.
    pub name: &'static str,
    /// What its cells hold.
    pub holds: Holds,
    /// Whether it must be there.
    pub presence: Presence,
    /// What it means.
    pub about: &'static str,
    /// A cell, as JSON.
    pub example: &'static str,
}

/// Columns beside those that a kind names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Further {
    /// There are none.
    Refused,
    /// They hold text; what is no text is JSON.
    Texts,
    /// They hold finite numbers.
    Numbers,
    /// They hold text, finite numbers, truths or token ids.
    Any,
    /// The same, and at least one of them holds numbers.
    SomeNumber,
}

impl Further {
    /// Says it in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Refused => "no further columns",
            Self::Texts => {
                "further columns of text stay with their rows; what is no text is kept as JSON"
            }
            Self::Numbers => "further columns hold finite numbers or null",
            Self::Any => {
                "further columns of text, finite numbers, truths or token ids stay with their rows"
            }
            Self::SomeNumber => {
                "further columns of text, finite numbers, truths or token ids stay with their rows; at least one of \
                 numbers beside those of completions, such as `reward`"
            }
        }
    }
}

/// What the rows of a kind are.
#[derive(Debug, Clone, Copy)]
pub struct RowsFormat {
    /// The columns that mean something.
    pub columns: &'static [ColumnFormat],
    /// Those beside them.
    pub further: Further,
}

/// One file of an artifact.
#[derive(Debug, Clone, Copy)]
pub struct FileFormat {
    /// Its name.
    pub name: &'static str,
    /// Whether the artifact may be without it.
    pub is_optional: bool,
    /// What it holds.
    pub about: &'static str,
}

/// What an artifact kind is made of.
#[derive(Debug, Clone, Copy)]
pub struct ArtifactFormat {
    /// The artifact kind.
    pub kind: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Its files.
    pub files: &'static [FileFormat],
    /// Its rows, if it has any.
    pub rows: Option<RowsFormat>,
    /// Whether a program can write it: whether it can be checked and taken into our own files.
    pub is_writable: bool,
}

impl ArtifactFormat {
    /// Returns a row as JSON, if the kind has rows.
    pub fn example(&self) -> Option<String> {
        let columns = self.rows?.columns;
        let cells = columns
            .iter()
            .map(|column| format!("\"{}\": {}", column.name, column.example));
        let cells: Vec<String> = cells.collect();
        (!cells.is_empty()).then(|| format!("{{{}}}", cells.join(", ")))
    }
}

/// Finds the format of an artifact kind.
pub fn find(kind: &str) -> Option<&'static ArtifactFormat> {
    FORMATS.iter().find(|format| format.kind == kind)
}

/// Names the kinds that a program can write.
pub fn writable() -> impl Iterator<Item = &'static str> {
    let formats = FORMATS.iter().filter(|format| format.is_writable);
    formats.map(|format| format.kind)
}

#[cfg(test)]
mod tests;
