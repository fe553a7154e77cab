//! Fetching any source.

use std::path::{Path, PathBuf};

use super::{
    Source, SourceError,
    cache::Cache,
    client::{Client, Patience},
    download::Download,
    hub, pypi,
    settings::Settings,
    sha256::Sha256,
};
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

/// How far a download has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received, those of earlier tries with them.
    pub bytes: u64,
    /// Bytes of the whole file, where the server says so.
    pub total: Option<u64>,
}

/// How sources are fetched.
pub struct FetchOptions<'a> {
    /// The folder that keeps what was fetched; shared by processes.
    pub cache_dir: PathBuf,
    /// No file may be larger.
    pub maximum_bytes: u64,
    /// Look again for sources without a pinned digest.
    pub refresh: bool,
    /// Index, certificates and hub.
    pub settings: Settings,
    /// Retries and time limits.
    pub patience: Patience,
    /// Called while bytes arrive.
    pub progress: Option<&'a dyn Fn(Progress)>,
    /// Asked now and then whether to stop; a stopped download continues next time.
    pub cancelled: Option<&'a dyn Fn() -> bool>,
}

impl FetchOptions<'_> {
    /// Options with the settings of the environment and a limit of 64 GiB a file.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            maximum_bytes: 64 << 30,
            refresh: false,
            settings: Settings::from_environment(),
            patience: Patience::default(),
            progress: None,
            cancelled: None,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|cancelled| cancelled())
    }

    pub(super) fn report(&self, progress: Progress) {
        if let Some(report) = self.progress {
            report(progress);
        }
    }
}

/// Makes the bytes of `source` available as a file and verifies them against `expected`.
///
/// A file on this machine is read where it lies. Anything else is downloaded once into the cache: a pinned
/// source that is there is never asked for again, an unpinned one only with `refresh`. Downloads continue
/// after interruptions, also those of earlier processes, and appear in the cache complete or not at all.
pub fn fetch(
    source: &Source,
    expected: Option<Sha256>,
    options: &FetchOptions,
) -> Result<Fetched, SourceError> {
    match source {
        Source::World => Err(SourceError::Generated),
        Source::File(path) => {
            let found = read_here(path, options)?;
            check(&source.to_string(), expected, found)
        }
        Source::Web(_) | Source::Pypi(_) | Source::Hub(_) => remote(source, expected, options),
    }
}

fn remote(
    source: &Source,
    expected: Option<Sha256>,
    options: &FetchOptions,
) -> Result<Fetched, SourceError> {
    let name = source.to_string();
    let cache = Cache::open(&options.cache_dir)?;
    let cancelled = || options.is_cancelled();
    let known = || {
        let named = || cache.named(&name).filter(|_| !options.refresh);
        match expected.or_else(named) {
            Some(sha256) => cache.find(sha256, &cancelled),
            None => Ok(None),
        }
    };
    if let Some(found) = known()? {
        return Ok(found);
    }
    let _lock = cache.lock(&name, &cancelled)?;
    // Another process may have fetched it meanwhile.
    if let Some(found) = known()? {
        return Ok(found);
    }
    let client = Client::new(&options.settings, options.patience)?;
    let found = match source {
        Source::Web(file) => {
            let download = Download {
                address: &file.address()?,
                headers: &[],
                expected,
                name: &name,
            };
            download.run(&client, &cache, options)?
        }
        Source::Pypi(file) => pypi::fetch(file, expected, &client, &cache, options)?,
        Source::Hub(file) => hub::fetch(file, expected, &name, &client, &cache, options)?,
        Source::World | Source::File(_) => return fetch(source, expected, options),
    };
    let found = check(&name, expected, found)?;
    cache.name(&name, found.sha256)?;
    Ok(found)
}

/// Reads a file that is on this machine already.
pub(super) fn read_here(path: &Path, options: &FetchOptions) -> Result<Fetched, SourceError> {
    let metadata = regular(path)?;
    if metadata.len() > options.maximum_bytes {
        return Err(SourceError::TooLarge {
            what: path.display().to_string(),
            limit: options.maximum_bytes,
        });
    }
    let (sha256, bytes) = Sha256::of_file(path, &|| options.is_cancelled())?;
    Ok(Fetched {
        path: path.to_owned(),
        sha256,
        bytes,
    })
}

fn check(what: &str, expected: Option<Sha256>, found: Fetched) -> Result<Fetched, SourceError> {
    match expected {
        Some(expected) if expected != found.sha256 => Err(SourceError::Digest {
            what: what.to_owned(),
            expected,
            found: found.sha256,
        }),
        _ => Ok(found),
    }
}
