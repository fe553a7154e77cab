//! Fetching any source.

use super::{
    Source, SourceError, cache::Cache, client::Client, download::Download, fetched::Fetched, hub,
    options::FetchOptions, pypi, sha256::Sha256,
};

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
        Source::World => Err(SourceError::generated()),
        Source::File(path) => {
            let found = Fetched::read_here(path, options)?;
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

fn check(what: &str, expected: Option<Sha256>, found: Fetched) -> Result<Fetched, SourceError> {
    match expected {
        Some(expected) if expected != found.sha256 => {
            Err(SourceError::digest(what.to_owned(), expected, found.sha256))
        }
        _ => Ok(found),
    }
}
