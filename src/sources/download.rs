//! Downloads that continue where they broke off.

use std::{
    io::{Read, Write},
    path::Path,
};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, header};

use super::{
    SourceError,
    address::Address,
    cache::Cache,
    client::{Client, Failure},
    fetched::Fetched,
    options::{FetchOptions, Progress},
    sha256::Sha256,
};

/// One file to download.
pub(super) struct Download<'a> {
    pub(super) address: &'a Address,
    /// Further headers; they go along with redirects to the same server only if they authorise.
    pub(super) headers: &'a [(&'a str, String)],
    pub(super) expected: Option<Sha256>,
    /// The name under which an unfinished download is kept.
    pub(super) name: &'a str,
}

/// What must not have changed for a download to continue.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Validator {
    /// A strong entity tag.
    etag: Option<String>,
    /// The digest that the whole must have.
    expected: Option<Sha256>,
}

impl Download<'_> {
    /// Downloads the file into the cache, or finds it there.
    pub(super) fn run(
        &self,
        client: &Client,
        cache: &Cache,
        options: &FetchOptions,
    ) -> Result<Fetched, SourceError> {
        let cancelled = || options.is_cancelled();
        if let Some(expected) = self.expected
            && let Some(found) = cache.find(expected, &cancelled)?
        {
            return Ok(found);
        }
        let part = cache.partial(self.name);
        let mut first = true;
        loop {
            // Whether some bytes came by an earlier request, and may be of another state of the file.
            let mut continued = false;
            client.with_retries(self.address, &cancelled, || {
                self.attempt(client, &part, options, &mut continued)
            })?;
            let (found, bytes) = Sha256::of_file(&part, &cancelled)?;
            let Some(expected) = self.expected.filter(|expected| *expected != found) else {
                let kept = cache.keep(&part, found, bytes)?;
                forget(&sidecar(&part))?;
                return Ok(kept);
            };
            forget(&part)?;
            forget(&sidecar(&part))?;
            if !(first && continued) {
                return Err(SourceError::digest(
                    self.address.to_string(),
                    expected,
                    found,
                ));
            }
            first = false;
        }
    }

    /// One request: writes what comes to the end of the part. Success means that the part is whole.
    fn attempt(
        &self,
        client: &Client,
        part: &Path,
        options: &FetchOptions,
        continued: &mut bool,
    ) -> Result<(), Failure> {
        let validator = self.validator_of(part);
        let mut offset = match &validator {
            Some(_) => fs::metadata(part).map_or(0, |part| part.len()),
            None => 0,
        };
        let mut headers = self.headers.to_vec();
        if offset > 0 {
            headers.push(("range", format!("bytes={offset}-")));
            headers.extend(
                validator
                    .and_then(|validator| validator.etag)
                    .map(|etag| ("if-range", etag)),
            );
        }
        let mut response = client.get(self.address, &headers)?;
        let range = content_range(response.headers());
        let mut file = match (response.status().as_u16(), range) {
            (206, Some(range)) if offset > 0 && range.start == offset => {
                *continued = true;
                fs::OpenOptions::new().append(true).open(part)?
            }
            (200, _) => {
                offset = 0;
                *continued = false;
                self.begin(part, response.headers())?
            }
            // A range that is not the one asked for, or beyond the end: begin anew.
            _ => {
                forget(part)?;
                forget(&sidecar(part))?;
                return Err(Failure::transient(
                    "the server gives another range",
                    offset > 0,
                ));
            }
        };
        let rest = response.body().content_length();
        let total = rest.map(|rest| offset.saturating_add(rest));
        let too_large = || {
            Failure::Final(SourceError::TooLarge {
                what: self.address.to_string(),
                limit: options.maximum_bytes,
            })
        };
        if total.is_some_and(|total| total > options.maximum_bytes) {
            return Err(too_large());
        }
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 16];
        let mut received = offset;
        loop {
            if options.is_cancelled() {
                return Err(Failure::Final(SourceError::Cancelled));
            }
            options.report(Progress {
                bytes: received,
                total,
            });
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => {
                    return Err(Failure::transient(error.to_string(), received > offset));
                }
            };
            received += read as u64;
            if received > options.maximum_bytes {
                return Err(too_large());
            }
            file.write_all(&buffer[..read])?;
        }
        match total {
            Some(total) if received < total => {
                let problem = format!("it broke off after {received} of {total} bytes");
                Err(Failure::transient(problem, received > offset))
            }
            _ => Ok(()),
        }
    }

    /// Starts a new part and notes what its continuation depends on.
    fn begin(&self, part: &Path, headers: &HeaderMap) -> Result<fs::File, SourceError> {
        let etag = headers
            .get(header::ETAG)
            .and_then(|etag| etag.to_str().ok());
        let validator = Validator {
            etag: etag.filter(|etag| etag.starts_with('"')).map(str::to_owned),
            expected: self.expected,
        };
        let file = fs::File::create(part)?;
        let text = serde_json::to_vec(&validator).map_err(std::io::Error::from)?;
        fs::write(sidecar(part), text)?;
        Ok(file)
    }

    /// What an existing part may be continued with: the tag of the same state of the file, or the digest
    /// that tells in the end.
    fn validator_of(&self, part: &Path) -> Option<Validator> {
        let text = fs::read(sidecar(part)).ok()?;
        let validator: Validator = serde_json::from_slice(&text).ok()?;
        let usable = validator.expected == self.expected
            && (validator.etag.is_some() || validator.expected.is_some());
        usable.then_some(validator)
    }
}

fn sidecar(part: &Path) -> std::path::PathBuf {
    part.with_extension("json")
}

fn forget(path: &Path) -> Result<(), SourceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Where a partial answer begins: `Content-Range: bytes 5-9/10`.
struct ContentRange {
    start: u64,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = text.trim().strip_prefix("bytes ")?.split_once('-')?;
    Some(ContentRange {
        start: start.trim().parse().ok()?,
    })
}
