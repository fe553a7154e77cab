//! `flowgraph push`: send what is not there.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde_json::json;

use super::bar::{Bar, Share};
use super::{RemoteOptions, asked, failure, writable};
use crate::cli::output::{Output, bytes, counted};
use crate::cli::{Failure, exit_code, gc, interrupts};
use crate::engine::plan::PlanOptions;
use crate::engine::stage::Registry;
use crate::engine::store::{Record, Sent, Store, in_parallel, made_by};

/// Results that are sent at once.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Pipeline files whose results are sent, with each of their profiles (default: all results)
    pipelines: Vec<PathBuf>,
    #[command(flatten)]
    remote: RemoteOptions,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
}

fn size_of(record: &Record) -> u64 {
    record.files().map(|file| file.size).sum()
}

pub(crate) fn push(
    args: &PushArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let remote = args.remote.needed()?;
    writable(&remote)?;
    interrupts::count_interrupts()?;
    let (mut records, damaged) = store.read_records();
    for error in &damaged {
        output.warning(&error.to_string(), "`flowgraph verify --repair` removes it");
    }
    if !args.pipelines.is_empty() {
        let options = PlanOptions {
            records_alone: true,
            ..PlanOptions::default()
        };
        let kept = gc::reached(&args.pipelines, registry, store, &options)?;
        records.retain(|record| kept.contains(&record.fingerprint));
    }
    let listed = asked(&remote, remote.list())?;
    let all = records.len();
    records.retain(|record| !listed.has(record));
    if args.dry_run {
        for record in &records {
            let (stage, size) = (&record.provenance.stage, bytes(size_of(record)));
            let pipeline = &record.provenance.pipeline;
            output.line(&format!("{size:>10}  {stage} of {pipeline}"));
        }
        output.line(&format!(
            "would send {} of {}",
            counted(records.len(), "result"),
            counted(all, "result")
        ));
        return Ok(exit_code::OK);
    }
    let bar = Bar::new(output, records.iter().map(size_of).sum());
    let given_up = AtomicBool::new(false);
    let sent = in_parallel(&records, AT_ONCE, |record| {
        if given_up.load(Ordering::Relaxed) {
            return None;
        }
        let share = Share::of(&bar);
        let sent = remote.send(store, record, Some(&listed), &|done, _| share.tell(done));
        // The next would fail for the same reason.
        if sent.as_ref().is_err_and(|error| !error.is_of_this_result()) {
            given_up.store(true, Ordering::Relaxed);
        }
        Some(sent)
    });
    let went = bytes(bar.done());
    drop(bar);
    let (mut done, mut there, mut broken) = (0, all - records.len(), None);
    let (mut others, mut failed) = (Vec::new(), Vec::new());
    for (record, sent) in records.iter().zip(sent) {
        let stage = &record.provenance.stage;
        match sent {
            None => {}
            Some(Ok(Sent::First)) => done += 1,
            Some(Ok(Sent::Same)) => there += 1,
            Some(Ok(Sent::Other(made))) => others.push(format!(
                "`{stage}` has other bytes there, {}, which stay: it is not reproducible",
                made_by(&made)
            )),
            Some(Ok(Sent::Instead(made))) => {
                done += 1;
                others.push(format!(
                    "`{stage}` took the place of a result of other bytes, {}, whose objects are damaged there",
                    made_by(&made)
                ));
            }
            Some(Err(error)) if error.is_of_this_result() => {
                failed.push(format!("`{stage}`: {}", remote.said(&error)));
            }
            Some(Err(error)) => broken = broken.or(Some(error)),
        }
    }
    for other in others.iter().filter(|_| !output.json) {
        output.warning(other, "");
    }
    if remote.is_last_winning() {
        let address = remote.address();
        output.warning(
            &format!("{address} overwrites what is there though it is asked not to"),
            "of two results that are sent at once the last one stays",
        );
    }
    if let Some(error) = broken {
        let so_far = format!(" ({} of {} sent)", done, counted(records.len(), "result"));
        return Err(failure(&remote, &error, &so_far));
    }
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "sent": done, "were_there": there, "others": others, "failed": failed,
        }));
    } else {
        for failed in &failed {
            let hint = "`flowgraph verify --repair` drops it, and `run` makes it again";
            output.error(failed, Some(hint));
        }
        let were = if there == 1 { "was" } else { "were" };
        output.line(&format!(
            "sent {} ({went}) to {}; {there} {were} there",
            counted(done, "result"),
            remote.address(),
        ));
    }
    Ok(if failed.is_empty() {
        exit_code::OK
    } else {
        exit_code::STORE_DAMAGED
    })
}
