//! Why a model file could not be read or written.

use std::path::{Path, PathBuf};

use crate::ml::tokenizer::TokenizerError;

/// A model file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused; the message carries the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// The bytes do not follow the format.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where in the file.
        reason: String,
    },

    /// The file is well formed but asks for something that is not implemented.
    #[error("{}: {what} is not supported{hint}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key and value, or the encoding.
        what: String,
        /// What to do about it, starting with a separator; may be empty.
        hint: String,
    },

    /// A tensor that the architecture needs is not in the file.
    #[error("{}: tensor `{name}` of shape {expected:?} is missing{hint}", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// Name in the Hugging Face manner.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// What to do about it, starting with a separator; may be empty.
        hint: String,
    },

    /// A tensor is in the file that the architecture has no place for.
    #[error("{}: unexpected tensor `{name}` of shape {found:?}; the configuration has no place for it", path.display())]
    UnexpectedTensor {
        /// The file or folder.
        path: PathBuf,
        /// Name as in the file.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },

    /// A tensor has another shape than the configuration implies.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The file or folder.
        path: PathBuf,
        /// Name in the Hugging Face manner.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },

    /// The tokenizer is damaged or of an unknown kind.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: TokenizerError,
    },

    /// A tensor operation failed.
    #[error("{}: {source}", path.display())]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: candle_core::Error,
    },
}

/// Characters of what is quoted from a file, where a name or value can be as long as the file.
const LONGEST_QUOTE: usize = 1000;

/// Cuts what a message quotes from a file.
pub(super) fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_QUOTE) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

impl FormatError {
    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: shortened(reason.into()),
        }
    }

    pub(in crate::ml) fn unsupported(path: &Path, what: impl Into<String>, hint: &str) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            what: shortened(what.into()),
            hint: if hint.is_empty() {
                String::new()
            } else {
                format!("; {hint}")
            },
        }
    }

    pub(super) fn tokenizer(path: &Path) -> impl FnOnce(TokenizerError) -> Self + '_ {
        move |source| Self::Tokenizer {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn tensor(path: &Path) -> impl Fn(candle_core::Error) -> Self + '_ {
        move |source| Self::Tensor {
            path: path.to_owned(),
            source,
        }
    }
}
