//! Folders that `save_to_disk` of Hugging Face's `datasets` made: a data set, or a folder of one for each split.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::RowsError;
use super::split::no_split;
use crate::excerpt::{NAME, excerpt};
use crate::files::read_text;

/// Which splits there are.
const SPLITS: &str = "dataset_dict.json";
/// Which files a data set has.
const STATE: &str = "state.json";
/// Neither is longer.
const LONGEST: u64 = 16 << 20;

#[derive(Deserialize)]
struct Splits {
    splits: Vec<String>,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    files: Vec<DataFile>,
    #[serde(rename = "_split", default)]
    split: Option<String>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

/// Returns the files of a folder that `save_to_disk` made, in the order of their rows; `None` of any other folder.
///
/// # Errors
/// A folder of several splits where none is chosen, and one without the split that is.
pub(super) fn part_files(
    folder: &Path,
    split: Option<&str>,
) -> Result<Option<Vec<PathBuf>>, RowsError> {
    let Some(Splits { splits }) = read(folder, SPLITS)? else {
        let Some(state) = read::<State>(folder, STATE)? else {
            return Ok(None);
        };
        if let Some(split) = split
            && state.split.as_deref() != Some(split)
        {
            let found = state.split.as_deref().unwrap_or("none");
            let problem = format!("it has no split `{split}`");
            let hint = "the folder is one data set: leave `split` out";
            return Err(no_split(folder, problem, std::iter::once(found), hint));
        }
        return files(folder, &state).map(Some);
    };
    let names = || splits.iter().map(String::as_str);
    let chosen = match (split, &splits[..]) {
        (Some(split), _) if names().any(|name| name == split) => split,
        (None, [only]) => only,
        (Some(split), _) => {
            let problem = format!("it has no split `{split}`");
            return Err(no_split(folder, problem, names(), "choose one of these"));
        }
        (None, _) => {
            let problem = "it has several splits".to_owned();
            let hint = "choose one, such as `split: train`";
            return Err(no_split(folder, problem, names(), hint));
        }
    };
    let folder = within(folder, chosen, SPLITS)?;
    let state = read(&folder, STATE)?;
    let state = state.ok_or_else(|| damaged(&folder, "it has no state.json"))?;
    files(&folder, &state).map(Some)
}

fn files(folder: &Path, state: &State) -> Result<Vec<PathBuf>, RowsError> {
    if state.files.is_empty() {
        return Err(RowsError::NoFiles {
            folder: folder.display().to_string(),
        });
    }
    let names = state.files.iter().map(|file| &file.filename);
    names.map(|name| within(folder, name, STATE)).collect()
}

/// The path of what a file names, which must be in the folder.
fn within(folder: &Path, name: &str, named_by: &str) -> Result<PathBuf, RowsError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(folder.join(name)),
        _ => {
            let name = excerpt(name, NAME);
            Err(damaged(
                folder,
                &format!("{named_by} names {name:?}, which is not in it"),
            ))
        }
    }
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, RowsError> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    // Rows of one's own may be called so.
    Ok(serde_json::from_str(&read_text(&path, LONGEST)?).ok())
}

fn damaged(folder: &Path, reason: &str) -> RowsError {
    RowsError::Damaged {
        file: folder.to_string_lossy().into(),
        reason: reason.to_owned(),
    }
}
