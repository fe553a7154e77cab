//! `flowgraph gc --remote`: what nobody needs there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{asked, needed, writable};
use crate::cli::output::{Output, bytes, counted};
use crate::cli::{Failure, exit_code, gc, interrupts};
use crate::engine::plan::PlanOptions;
use crate::engine::stage::Registry;
use crate::engine::store::{Remote, Store, by_class, made_by};

/// What `gc --remote` is asked.
pub(crate) struct Collection<'a> {
    pub(crate) address: &'a str,
    pub(crate) pipelines: &'a [PathBuf],
    pub(crate) days: u32,
    pub(crate) remove: bool,
}

/// Says what nobody needs there, and takes it away if asked to.
pub(crate) fn collect(
    collection: &Collection,
    registry: &Registry,
    output: &Output,
) -> Result<u8, Failure> {
    if let Some(address) = collection.pipelines.iter().find_map(|path| {
        let text = path.to_str()?;
        text.contains("://").then_some(text)
    }) {
        return Err(Failure::usage(format!(
            "`{address}` is no pipeline: the address is given as `--remote={address}`"
        )));
    }
    let remote = needed(collection.address)?;
    if collection.remove {
        writable(&remote)?;
    }
    if collection.pipelines.is_empty() {
        // Without this a slip would empty a group's store.
        return Err(Failure::Other {
            message: "nothing says what to keep".to_owned(),
            hint: Some("name the pipelines whose results stay".to_owned()),
            code: exit_code::USAGE,
        });
    }
    interrupts::count_interrupts()?;
    let listed = asked(&remote, remote.list())?;
    // What the pipelines reach is found as if all that is there were here.
    let folder = tempfile::tempdir()?;
    let mirror = Store::new(folder.path().join("all"));
    let read = asked(&remote, remote.mirror(&listed, &mirror))?;
    let options = PlanOptions {
        records_alone: true,
        ..PlanOptions::default()
    };
    let mut kept = BTreeSet::new();
    for mirror in by_class(&mirror, folder.path())? {
        kept.extend(gc::reached(
            collection.pipelines,
            registry,
            &mirror,
            &options,
        )?);
    }
    let age = Duration::from_hours(24 * u64::from(collection.days));
    let before = SystemTime::now().checked_sub(age);
    let before = before.unwrap_or(SystemTime::UNIX_EPOCH);
    let garbage = Remote::garbage(&listed, read, &kept, before);
    let spared = if collection.remove {
        asked(&remote, remote.collect(&garbage))?
    } else {
        0
    };
    if output.json {
        let results: Vec<_> = (garbage.results.iter())
            .map(|made| {
                json!({
                    "stage": made.stage, "pipeline": made.pipeline, "started": made.started, "user": made.user,
                    "host": made.host,
                })
            })
            .collect();
        output.json(&json!({
            "remote": remote.address(), "removed": collection.remove, "results": results, "damaged": garbage.damaged,
            "unreadable": garbage.unreadable, "objects": garbage.objects.len(), "leftovers": garbage.leftovers(), "bytes": garbage.bytes,
            "spared": spared,
        }));
        return Ok(exit_code::OK);
    }
    if !output.quiet {
        for made in &garbage.results {
            output.line(&format!(
                "{} of {}, {}: in no pipeline given, and sent more than {} ago",
                made.stage,
                made.pipeline,
                made_by(made),
                counted(collection.days as usize, "day")
            ));
        }
        (garbage.damaged.iter()).for_each(|damage| output.line(damage));
    }
    for damage in &garbage.unreadable {
        let hint =
            "it stays, and since it may need anything, no object goes; `run` or `push` heals it";
        output.warning(damage, hint);
    }
    output.line(&format!(
        "{}: {}, {}, {}, {}; {}",
        if collection.remove {
            "removed"
        } else {
            "would remove"
        },
        counted(garbage.results.len(), "result"),
        counted(garbage.damaged.len(), "damaged record"),
        counted(garbage.objects.len() - spared, "object"),
        counted(garbage.leftovers(), "leftover"),
        bytes(garbage.bytes),
    ));
    if !collection.remove && garbage.bytes > 0 {
        output.line("`--remove` takes it away; what somebody sends at that moment may have to be sent again");
    }
    Ok(exit_code::OK)
}
