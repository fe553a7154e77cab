//! What stages wrote when they were last started, and why those failed that did.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::engine::artifact::Digest;
use crate::engine::runs::Run;
use crate::engine::store::Store;
use crate::files::last_bytes;

/// Bytes of one log that are shown: its end.
const MOST_BYTES: u64 = 4_000;
/// Bytes of all logs together.
const ALL_BYTES: u64 = 400_000;

/// The last start of a stage.
#[derive(Debug)]
struct Start {
    run: String,
    log: PathBuf,
    bytes: u64,
    failure: Option<String>,
}

/// The last starts of stages, by fingerprint.
#[derive(Debug, Default)]
pub(super) struct Logs {
    starts: BTreeMap<Digest, Start>,
    /// Bytes that are shown of a log of a stage that did not fail.
    share: u64,
}

/// The end of a log.
#[derive(Debug, Serialize)]
pub(super) struct LogView {
    /// The run that it is of.
    run: String,
    /// Its end.
    text: String,
    /// How many bytes of it stand before.
    left_out: u64,
    /// Why the stage failed in this run, if it did.
    failure: Option<String>,
}

impl Logs {
    /// Finds the last start of each stage in the runs of a store.
    pub(super) fn find(store: &Store) -> Self {
        let mut starts = BTreeMap::new();
        // Logs are beside the results: a report without them is one.
        for run in Run::all(store).unwrap_or_default().iter().rev() {
            let mut failures = run.failures();
            for (fingerprint, stage) in run.started() {
                starts.entry(fingerprint).or_insert_with(|| {
                    let log = run.log_path(&stage);
                    Start {
                        run: run.description.run.clone(),
                        bytes: std::fs::metadata(&log).map_or(0, |found| found.len()),
                        log,
                        failure: failures.remove(&stage),
                    }
                });
            }
        }
        let written = starts.values().filter(|start| start.bytes > 0).count() as u64;
        let share = ALL_BYTES / written.max(1);
        Self {
            starts,
            share: share.min(MOST_BYTES),
        }
    }

    /// Returns why a stage failed when it was last started, if it did.
    pub(super) fn failure(&self, fingerprint: &Digest) -> Option<&str> {
        self.starts.get(fingerprint)?.failure.as_deref()
    }

    /// Returns the end of what a stage wrote, if it wrote anything or failed.
    pub(super) fn of(&self, fingerprint: &Digest) -> Option<LogView> {
        let start = self.starts.get(fingerprint)?;
        if start.bytes == 0 && start.failure.is_none() {
            return None;
        }
        let most = if start.failure.is_some() {
            MOST_BYTES
        } else {
            self.share
        };
        let (text, left_out) = end_of(&start.log, most).unwrap_or_default();
        Some(LogView {
            run: start.run.clone(),
            text,
            left_out,
            failure: start.failure.clone(),
        })
    }
}

/// Reads the end of a log, from the beginning of a line on where there is one, and says how many bytes stand before.
fn end_of(path: &Path, most: u64) -> std::io::Result<(String, u64)> {
    let (mut bytes, mut from) = last_bytes(path, most)?;
    if from > 0
        && let Some(line) = bytes.iter().position(|byte| *byte == b'\n')
    {
        bytes.drain(..=line);
        from += line as u64 + 1;
    }
    Ok((String::from_utf8_lossy(&bytes).into_owned(), from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_begins_with_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let end = |text: &str, most| {
            fs_err::write(&path, text).unwrap();
            end_of(&path, most).unwrap()
        };
        assert_eq!(
            end("one\ntwo\nthree\n", 100),
            ("one\ntwo\nthree\n".to_owned(), 0)
        );
        assert_eq!(end("one\ntwo\nthree\n", 8), ("three\n".to_owned(), 8));
        assert_eq!(end("oneline", 4), ("line".to_owned(), 3));
        assert_eq!(end("", 4), (String::new(), 0));
    }
}
