//! `flowgraph remote status` and `remote verify`: what is there, and whether it is whole.

use std::collections::BTreeSet;

use serde_json::json;

use super::bar::Bar;
use super::{asked, writable};
use crate::cli::output::{Output, bytes, counted};
use crate::cli::{Failure, exit_code};
use crate::engine::artifact::Digest;
use crate::engine::store::{Remote, Store};

pub(super) fn status(remote: &Remote, store: &Store, output: &Output) -> Result<u8, Failure> {
    let listed = asked(remote, remote.list())?;
    let first_wins = (!remote.is_read_only()).then(|| {
        let first_wins = remote.first_wins(store, true);
        first_wins.map_err(|error| remote.said(&error.into()))
    });
    let (records, _) = store.read_records();
    let here = records.iter().filter(|record| !listed.has(record)).count();
    let own: BTreeSet<Digest> = records.iter().map(|record| record.fingerprint).collect();
    let there = listed.fingerprints().difference(&own).count();
    let writes = match &first_wins {
        None => "read only".to_owned(),
        Some(Ok(true)) => "the first writer of a result wins".to_owned(),
        Some(Ok(false)) => {
            "it overwrites what is there though it is asked not to: the last writer of a result wins".to_owned()
        }
        Some(Err(why)) => format!("nothing can be written: {why}"),
    };
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "results": listed.records.len(), "objects": listed.objects.len(),
            "bytes": listed.bytes(), "writes": writes, "first_writer_wins": first_wins.and_then(Result::ok),
            "only_here": here, "only_there": there,
        }));
        return Ok(exit_code::OK);
    }
    output.data(&format!(
        "{}: {}, {} ({})\n{writes}\n{} of {} here are not there{}\n{} there are not here",
        remote.address(),
        counted(listed.records.len(), "result"),
        counted(listed.objects.len(), "object"),
        bytes(listed.bytes()),
        here,
        counted(records.len(), "result"),
        if here > 0 {
            ": `flowgraph push` sends them"
        } else {
            ""
        },
        counted(there, "result"),
    ));
    Ok(exit_code::OK)
}

pub(super) fn verify(remote: &Remote, repair: bool, output: &Output) -> Result<u8, Failure> {
    if repair {
        writable(remote)?;
    }
    let listed = asked(remote, remote.list())?;
    let bar = Bar::new(output, listed.bytes());
    let damaged = asked(remote, remote.verify(&listed, &|bytes| bar.more(bytes)))?;
    drop(bar);
    if repair {
        asked(remote, remote.remove(damaged.keys().cloned().collect()))?;
    }
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "results": listed.records.len(), "objects": listed.objects.len(),
            "damaged": damaged, "removed": repair,
        }));
    } else {
        for what in damaged.values() {
            output.error(what, None);
        }
        output.line(&format!(
            "{} and {} verified, {} damaged",
            counted(listed.records.len(), "result"),
            counted(listed.objects.len(), "object"),
            damaged.len()
        ));
        match (damaged.is_empty(), repair) {
            (true, _) => {}
            (false, true) => output.line("what was damaged is removed; whoever has it may `push` it"),
            (false, false) => output.line(
                "`flowgraph remote verify --repair` removes what is damaged, so that whoever has it may `push` it",
            ),
        }
    }
    Ok(if damaged.is_empty() || repair {
        exit_code::OK
    } else {
        exit_code::STORE_DAMAGED
    })
}
