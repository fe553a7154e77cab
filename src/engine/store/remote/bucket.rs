//! Named bytes that others see as well: what is asked of a bucket of a cloud, or of a folder.

use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

/// A place for bytes under names with `/`. All methods may be called from several threads at once.
pub(super) trait Bucket: Send + Sync {
    /// Reads bytes of one name, all or a part of them.
    ///
    /// # Errors
    /// [`BucketError::TooLong`] as soon as there are more than `limit`: nothing that a server claims is believed.
    /// [`BucketError::TooShort`] may tell that a part begins behind the end.
    fn read(&self, key: &str, part: Option<Range<u64>>, limit: u64)
    -> Result<Vec<u8>, BucketError>;

    /// Returns how many bytes there are, if there are any of that name.
    fn size(&self, key: &str) -> Result<Option<u64>, BucketError>;

    /// Writes bytes, whatever was there.
    fn write(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError>;

    /// Writes bytes if there are none of that name yet; says whether it did.
    fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, BucketError>;

    /// Writes a large file, whatever was there, without ever holding more than a few parts of it in memory.
    fn upload(&self, key: &str, upload: &mut Upload) -> Result<(), BucketError>;

    /// Lists all names that begin with a folder's, until an error of `each`.
    fn list(
        &self,
        folder: &str,
        each: &mut dyn FnMut(Entry) -> Result<(), BucketError>,
    ) -> Result<(), BucketError>;

    /// Removes names; one that is gone already is no error.
    fn remove(&self, keys: Vec<String>) -> Result<(), BucketError>;
}

/// A large file on its way to a bucket.
pub(super) struct Upload<'a> {
    /// The file.
    pub file: &'a Path,
    /// Its length.
    pub size: u64,
    /// Where it is noted how far the upload is, for the next try to go on from.
    #[cfg_attr(
        not(feature = "remote"),
        expect(dead_code, reason = "a folder is written in one go")
    )]
    pub notes: &'a Path,
    /// Is told how many bytes are there; an error ends the upload.
    pub tell: &'a mut dyn FnMut(u64) -> std::io::Result<()>,
}

/// A name in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written last, by the clock of whoever keeps it.
    pub modified: SystemTime,
}

/// Why a bucket did not do what it was asked. None of the messages holds a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// There is nothing of that name.
    #[error("`{0}` is not there")]
    Absent(String),
    /// There are more bytes than there may be.
    #[error("`{0}` is longer than it may be")]
    TooLong(String),
    /// There are fewer bytes than there should be.
    #[error("`{0}` is shorter than it should be")]
    TooShort(String),
    /// These credentials may not do that.
    #[error("it refuses: {0}")]
    Denied(String),
    /// It does not know what it was asked for.
    #[error("it cannot do that: {0}")]
    Unsupported(String),
    /// It did not answer, or not as it should: whether what was asked is done may be open.
    #[error("{0}")]
    Failed(String),
    /// This machine could not do its part, or was told to stop.
    #[error("{0}")]
    Here(String),
}

impl From<std::io::Error> for BucketError {
    fn from(error: std::io::Error) -> Self {
        Self::Here(error.to_string())
    }
}
