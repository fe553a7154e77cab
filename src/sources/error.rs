//! What can go wrong between here and the outside.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::Sha256;
use crate::hint::Hint;

/// Why a source cannot be read. Addresses in it carry no credentials and no query.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A text that names no source.
    #[error("`{text}` is no source: {problem}")]
    Syntax {
        /// The text, without what may be a secret.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
        /// How to write it.
        #[source]
        hint: Hint,
    },
    /// A text that is not the hexadecimal form of a sha256 digest.
    #[error("`{0}` is no sha256 digest, expected 64 hexadecimal digits")]
    DigestSyntax(String),
    /// The embedded world was asked for as a file.
    #[error("`embedded:world` is generated and not a file")]
    Generated(#[source] Hint),
    /// The file system failed; the error names the path.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are not the pinned ones.
    #[error("{what} has sha256 {found}, expected {expected}")]
    Digest {
        /// What was read.
        what: String,
        /// The pinned digest.
        expected: Sha256,
        /// The digest of what was read.
        found: Sha256,
        /// How that may be.
        #[source]
        hint: Hint,
    },
    /// More bytes than allowed.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was read.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The server answered with an error that trying again does not mend.
    #[error("{address} answered with status {status}")]
    Status {
        /// What was asked for.
        address: String,
        /// The HTTP status.
        status: u16,
        /// What it usually means.
        #[source]
        hint: Hint,
    },
    /// The server refused a request, and says why.
    #[error("{address} answered with status {status}: {said}")]
    Refused {
        /// What was asked.
        address: String,
        /// The HTTP status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// A key that no header can hold.
    #[error("the key is empty, or holds spaces, line breaks or letters beyond ASCII")]
    Key,
    /// The network failed, also when tried again.
    #[error("{address} could not be read ({attempts} attempts): {problem}")]
    Network {
        /// What was asked for.
        address: String,
        /// The last problem.
        problem: String,
        /// How often it was tried without progress.
        attempts: u32,
        /// What may help.
        #[source]
        hint: Option<Hint>,
    },
    /// A file of trusted certificates is unusable.
    #[error("no certificates can be read from {}: {problem}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// Where its path comes from.
        #[source]
        hint: Hint,
    },
    /// An answer of a package index that cannot be understood.
    #[error("{address} is no page of a package index: {problem}")]
    Index {
        /// The page.
        address: String,
        /// What is wrong with it.
        problem: String,
        /// Where the address of the index comes from.
        #[source]
        hint: Hint,
    },
    /// The index has no wheel of this version.
    #[error("there is no wheel of {name} {version} at {address}")]
    NoWheel {
        /// The package.
        name: String,
        /// The version asked for.
        version: String,
        /// The page of the index.
        address: String,
        /// The versions that have wheels.
        #[source]
        hint: Hint,
    },
    /// A wheel that cannot be unpacked.
    #[error("{archive} cannot be unpacked: {problem}")]
    Archive {
        /// The wheel.
        archive: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A wheel without the file asked for.
    #[error("{archive} has no file `{path}`")]
    NotInArchive {
        /// The wheel.
        archive: String,
        /// The path asked for.
        path: String,
        /// Similar paths in the wheel.
        #[source]
        hint: Hint,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl SourceError {
    pub(super) const fn generated() -> Self {
        Self::Generated(Hint::new("stages that read a file need another source"))
    }

    pub(super) fn digest(what: String, expected: Sha256, found: Sha256) -> Self {
        let hint = Hint::new("it was changed, or the pinned digest is that of another file");
        Self::Digest {
            what,
            expected,
            found,
            hint,
        }
    }
}
