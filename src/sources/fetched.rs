//! What is here after a fetch.

use std::path::{Path, PathBuf};

use super::{SourceError, options::FetchOptions, sha256::Sha256};
use crate::files::regular;

/// A file that is here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it lies. Files of the cache must not be changed.
    pub path: PathBuf,
    /// The digest of its bytes.
    pub sha256: Sha256,
    /// Its length.
    pub bytes: u64,
}

impl Fetched {
    /// Reads a file that is on this machine already.
    pub(super) fn read_here(path: &Path, options: &FetchOptions) -> Result<Self, SourceError> {
        let metadata = regular(path)?;
        if metadata.len() > options.maximum_bytes {
            return Err(SourceError::TooLarge {
                what: path.display().to_string(),
                limit: options.maximum_bytes,
            });
        }
        let (sha256, bytes) = Sha256::of_file(path, &|| options.is_cancelled())?;
        Ok(Self {
            path: path.to_owned(),
            sha256,
            bytes,
        })
    }
}
