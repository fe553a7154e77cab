//! Checkpoints of trainings as files: whole or not there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::parameters::{Weights, load, save};
use crate::ml::trainer::TrainerState;

#[derive(Serialize, Deserialize)]
struct StoredValues {
    record: Record,
    trainer: serde_json::Value,
}

/// Writes parameters that are kept of a step.
pub(super) fn publish(path: &Path, weights: &Weights) -> Result<(), StageError> {
    let temporary = path.with_extension("new");
    save(weights, &temporary)?;
    fs_err::File::open(&temporary)?.sync_all()?;
    fs_err::rename(&temporary, path)?;
    Ok(())
}

/// Writes a checkpoint and removes those before it.
pub(super) fn write(
    folder: &Path,
    record: &Record,
    state: &TrainerState,
) -> Result<(), StageError> {
    let temporary = folder.join("checkpoint.new");
    let _ = fs_err::remove_dir_all(&temporary);
    fs_err::create_dir_all(&temporary)?;
    save(&state.tensors, &temporary.join("tensors.safetensors"))?;
    #[derive(Serialize)]
    struct Borrowed<'a> {
        record: &'a Record,
        trainer: &'a serde_json::Value,
    }
    let values = Borrowed {
        record,
        trainer: &state.values,
    };
    fs_err::write(temporary.join("values.json"), serde_json::to_vec(&values)?)?;
    let mut digests = BTreeMap::new();
    for name in ["tensors.safetensors", "values.json"] {
        let path = temporary.join(name);
        digests.insert(name.to_owned(), digest_of(&path)?);
        fs_err::File::open(path)?.sync_all()?;
    }
    for (name, path) in kept(folder)? {
        digests.insert(name, digest_of(&path)?);
    }
    let digests_path = temporary.join("digests.json");
    fs_err::write(&digests_path, serde_json::to_vec(&digests)?)?;
    fs_err::File::open(digests_path)?.sync_all()?;
    let target = folder.join(format!("checkpoint-{:012}", record.step));
    let _ = fs_err::remove_dir_all(&target);
    fs_err::rename(&temporary, &target)?;
    fs_err::File::open(folder)?.sync_all()?;
    for (path, step) in checkpoints(folder)? {
        if step < record.step {
            fs_err::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn checkpoints(folder: &Path) -> Result<Vec<(PathBuf, u64)>, StageError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let step = name
            .strip_prefix("checkpoint-")
            .and_then(|step| step.parse().ok());
        found.extend(step.map(|step: u64| (entry.path(), step)));
    }
    found.sort_by_key(|(_, step)| *step);
    Ok(found)
}

/// Lists what is kept of steps.
fn kept(folder: &Path) -> Result<Vec<(String, PathBuf)>, StageError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // One that is being written has an extension.
        if name.starts_with("at-") && entry.path().extension().is_none() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn digest_of(path: &Path) -> Result<Digest, StageError> {
    Ok(blake3::Hasher::new()
        .update_mmap_rayon(path)?
        .finalize()
        .into())
}

/// Reads the latest checkpoint, if it is whole and has what the labels need. Else the training begins anew: a
/// checkpoint only saves time.
pub(super) fn resumable(
    folder: &Path,
    labels: &BTreeMap<String, u64>,
    ctx: &mut RunContext,
) -> Result<Option<(Record, TrainerState)>, StageError> {
    let Some((path, step)) = checkpoints(folder)?.pop() else {
        return Ok(None);
    };
    let behind = labels.values().filter(|kept| **kept <= step);
    let missing = behind.clone().find(|kept| !ctx.kept_at(**kept).exists());
    let problem = match (missing, read_checkpoint(folder, &path)) {
        (None, Ok(found)) => return Ok(Some(found)),
        (Some(kept), _) => format!("it lacks the parameters of step {kept}"),
        (None, Err(StageError::Failed { message, .. })) => message,
        (None, Err(StageError::Interrupted)) => return Err(StageError::Interrupted),
    };
    ctx.note(&format!(
        "the checkpoint of step {step} cannot be used ({problem}): begins at the beginning"
    ));
    // What else lies there, such as the rewards that a program gave, stays.
    for (path, _) in checkpoints(folder)? {
        fs_err::remove_dir_all(path)?;
    }
    for (_, path) in kept(folder)? {
        fs_err::remove_file(path)?;
    }
    Ok(None)
}

fn read_checkpoint(folder: &Path, path: &Path) -> Result<(Record, TrainerState), StageError> {
    let digests: BTreeMap<String, Digest> =
        serde_json::from_slice(&fs_err::read(path.join("digests.json"))?)?;
    for (name, digest) in digests {
        let file = if name.starts_with("at-") {
            folder.join(&name)
        } else {
            path.join(&name)
        };
        if digest_of(&file)? != digest {
            return Err(StageError::new(format!("{name} is damaged")));
        }
    }
    let values: StoredValues = serde_json::from_slice(&fs_err::read(path.join("values.json"))?)?;
    let tensors = load(&path.join("tensors.safetensors"), &Device::Cpu)?;
    let state = TrainerState {
        tensors,
        values: values.trainer,
    };
    Ok((values.record, state))
}
