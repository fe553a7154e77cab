//! Bounded reading of little-endian binary files.

use std::path::Path;

use memmap2::Mmap;

use super::FormatError;
use crate::ml::documents::open_file;

/// Maps a file into memory.
///
/// The mapping is shared: a program that truncates the file while it is read ends this process with
/// SIGBUS, as for every memory-mapped loader. Stores never change a published file in place.
pub(super) fn map_file(path: &Path) -> Result<Mmap, FormatError> {
    let file = open_file(path)?;
    #[expect(
        unsafe_code,
        reason = "read-only map; see above for the only hazard, which a copy would share with slower code"
    )]
    // SAFETY: the map is only read, and its bytes are validated like those of any untrusted file.
    let map = unsafe { Mmap::map(file.file()) };
    map.map_err(|error| FormatError::malformed(path, format!("cannot map it: {error}")))
}

/// A cursor over the bytes of a file that knows the file's name.
#[derive(Debug)]
pub(super) struct Bytes<'a> {
    path: &'a Path,
    data: &'a [u8],
    position: usize,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(path: &'a Path, data: &'a [u8]) -> Self {
        Self {
            path,
            data,
            position: 0,
        }
    }

    /// Returns the offset of the next byte.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Returns the number of bytes that are left.
    pub(super) fn remaining(&self) -> usize {
        self.data.len() - self.position
    }

    /// Makes an error of this file.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> FormatError {
        FormatError::malformed(self.path, reason)
    }

    /// Takes `count` bytes for `what`.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], FormatError> {
        let left = self.remaining();
        if count > left as u64 {
            return Err(self.malformed(format!(
                "truncated or forged: {what} takes {count} bytes at offset {}, {left} are left",
                self.position
            )));
        }
        let start = self.position;
        self.position += count as usize;
        Ok(&self.data[start..self.position])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn i32(&mut self, what: &str) -> Result<i32, FormatError> {
        Ok(i32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn f32(&mut self, what: &str) -> Result<f32, FormatError> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }

    /// Reads a count of things that take at least `least` bytes each: as many must be left.
    pub(super) fn count(&mut self, least: u64, what: &str) -> Result<usize, FormatError> {
        let count = self.u64(what)?;
        let left = self.remaining();
        if count > left as u64 / least.max(1) {
            return Err(self.malformed(format!(
                "forged: {count} {what} cannot lie in the {left} bytes that are left"
            )));
        }
        Ok(count as usize)
    }

    /// Takes `count` bytes of UTF-8.
    pub(super) fn text(&mut self, count: u64, what: &str) -> Result<&'a str, FormatError> {
        let start = self.position;
        let bytes = self.take(count, what)?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.malformed(format!("{what} at offset {start} is not UTF-8")))
    }
}

/// Decodes little-endian `f32` values.
pub(super) fn f32_values(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
}
