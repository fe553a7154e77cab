//! `flowgraph verify`: re-hash the store and name what is damaged.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::output::{Output, counted};
use super::{Failure, exit_code};
use crate::engine::artifact::Digest;
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Remove what is damaged, so that the next run makes it again
    #[arg(long)]
    repair: bool,
}

pub(super) fn run(args: &VerifyArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    let (records, record_errors) = store.read_records();
    let mut problems: Vec<(String, Vec<String>)> = Vec::new();
    for error in &record_errors {
        problems.push((error.to_string(), Vec::new()));
    }
    let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for record in &records {
        for file in record.files() {
            users
                .entry(file.digest)
                .or_default()
                .push(record.provenance.stage.clone());
        }
    }
    let mut damaged = Vec::new();
    for (digest, stages) in &mut users {
        stages.sort();
        stages.dedup();
        if let Err(damage) = store.check_object(digest) {
            problems.push((damage.to_string(), stages.clone()));
            damaged.push(store.object_path(digest));
        }
    }
    // Objects that no record names can still be there, of a stage that was killed; they are only checked.
    let mut objects = users.len();
    for digest in store.objects()? {
        if users.contains_key(&digest) {
            continue;
        }
        objects += 1;
        if let Err(damage) = store.check_object(&digest) {
            problems.push((damage.to_string(), Vec::new()));
            damaged.push(store.object_path(&digest));
        }
    }
    if args.repair {
        damaged.extend(record_errors.iter().map(|error| error.path().to_owned()));
        for path in &damaged {
            match fs_err::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    if output.json {
        let rows: Vec<_> = problems
            .iter()
            .map(|(message, stages)| json!({ "message": message, "stages": stages }))
            .collect();
        output.json(&json!({ "records": records.len(), "objects": objects, "damaged": rows }));
    } else {
        for (message, stages) in &problems {
            let hint = (!stages.is_empty()).then(|| format!("made by {}", stages.join(", ")));
            output.error(message, hint.as_deref());
        }
        output.line(&format!(
            "{} and {} verified, {} damaged",
            counted(records.len(), "record"),
            counted(objects, "object"),
            problems.len()
        ));
        if args.repair && !problems.is_empty() {
            output.line("what was damaged is removed; the next run makes it again");
        } else if !problems.is_empty() {
            output.line("`flowgraph verify --repair` removes what is damaged, so that the next run makes it again");
        }
    }
    Ok(if problems.is_empty() || args.repair {
        exit_code::OK
    } else {
        exit_code::STORE_DAMAGED
    })
}
