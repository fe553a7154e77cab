//! Why rows could not be read.

use std::sync::Arc;

use polars::prelude::PolarsError;

use crate::hint::Hint;

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// The operating system refused; the message carries the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A parquet file is damaged.
    #[error("{file}: {source}")]
    Frame {
        /// The file.
        file: Arc<str>,
        /// What polars says.
        source: PolarsError,
    },
    /// A file that is not what it seems.
    #[error("{file}: damaged: {reason}")]
    Damaged {
        /// The file.
        file: Arc<str>,
        /// What is wrong.
        reason: String,
    },
    /// A file of another format, or a column of another type.
    #[error("{file}: {what}")]
    Unsupported {
        /// The file.
        file: Arc<str>,
        /// What it is.
        what: String,
        /// What can be done.
        #[source]
        hint: Hint,
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
    /// More text than a file of this size may hold.
    #[error("{file}: {what} more than {} MiB", limit >> 20)]
    TooLarge {
        /// The file.
        file: Arc<str>,
        /// What is too large.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
        /// What can be done.
        #[source]
        hint: Hint,
    },
    /// A folder without a file that could be read.
    #[error(
        "{folder}: no file ends in .parquet, .arrow, .csv, .json or .jsonl, or one of these and .gz"
    )]
    NoFiles {
        /// The folder.
        folder: String,
        /// What can be done, if it has other files.
        #[source]
        hint: Option<Hint>,
    },
    /// A folder of several splits, none of them chosen; or one that is not there.
    #[error("{folder}: {problem}; {found}")]
    Split {
        /// The folder.
        folder: String,
        /// What is wrong.
        problem: String,
        /// The splits that are there, in words.
        found: String,
        /// What can be done.
        #[source]
        hint: Hint,
    },
}

impl RowsError {
    /// Names the folder that it is about as messages do.
    pub(super) fn of_folder(mut self, name: &str) -> Self {
        match &mut self {
            Self::NoFiles { folder, .. } | Self::Split { folder, .. } => name.clone_into(folder),
            Self::Damaged { file, .. } | Self::Unsupported { file, .. } => *file = name.into(),
            _ => {}
        }
        self
    }
}
