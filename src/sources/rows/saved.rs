//! Folders that `save_to_disk` of Hugging Face's `datasets` made: a data set, or a folder of one for each split.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::RowsError;
use super::classes::ClassColumns;
use super::split::no_split;
use crate::excerpt::{NAME, excerpt};
use crate::files::read_text;
use crate::hint::Hint;

/// Which splits there are.
const SPLITS: &str = "dataset_dict.json";
/// Which files a data set has.
const STATE: &str = "state.json";
/// What its columns are.
const INFO: &str = "dataset_info.json";
/// None is longer.
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
    /// Files with the places of the rows that the data set has, as old versions wrote them.
    #[serde(rename = "_indices_data_files", default)]
    indices: Value,
    #[serde(rename = "_indices_files", default)]
    other_indices: Value,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

/// Returns the files of a folder that `save_to_disk` made, in the order of their rows; `None` of any other folder.
///
/// # Errors
/// A folder of several splits where none is chosen, one without the split that is, one that is damaged, and one whose
/// rows are a selection of those in its files.
pub(super) fn part_files(
    folder: &Path,
    split: Option<&str>,
) -> Result<Option<Vec<PathBuf>>, RowsError> {
    let has_state = |path: &Path| path.join(STATE).exists();
    let Some(Splits { splits }) = read(folder, SPLITS, has_state)? else {
        let Some(state) = read_state(folder)? else {
            return Ok(None);
        };
        if let Some(split) = split
            && state.split.as_deref() != Some(split)
        {
            let is_of = match &state.split {
                Some(other) => format!("the split `{}`", excerpt(other, NAME)),
                None => "of no split".to_owned(),
            };
            return Err(RowsError::Unsupported {
                file: folder.to_string_lossy().into(),
                what: format!("it has no split `{split}`: it is one data set, {is_of}"),
                hint: Hint::new("leave `split` out"),
            });
        }
        return files(folder, folder, &state).map(Some);
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
    let below = within(folder, folder, chosen, SPLITS)?;
    let missing = || damaged(folder, format!("it has no {chosen}/{STATE}"));
    let state = read_state(&below)?.ok_or_else(missing)?;
    files(folder, &below, &state).map(Some)
}

fn read_state(folder: &Path) -> Result<Option<State>, RowsError> {
    let is_data = |path: &Path| path.extension().is_some_and(|ending| ending == "arrow");
    read(folder, STATE, is_data)
}

/// Returns the files of the data set in `below`, which is `folder` or lies in it.
fn files(folder: &Path, below: &Path, state: &State) -> Result<Vec<PathBuf>, RowsError> {
    for (name, indices) in [
        ("_indices_data_files", &state.indices),
        ("_indices_files", &state.other_indices),
    ] {
        if !indices.is_null() && indices.as_array().is_none_or(|files| !files.is_empty()) {
            return Err(RowsError::Unsupported {
                file: folder.to_string_lossy().into(),
                what: format!(
                    "its rows are a selection of those in its files, by `{name}` of {STATE}, which is not read"
                ),
                hint: Hint::new("save `dataset.flatten_indices()` instead"),
            });
        }
    }
    if state.files.is_empty() {
        return Err(damaged(folder, format!("{STATE} names no file")));
    }
    let names = state.files.iter().map(|file| &file.filename);
    let paths = names.map(|name| {
        let path = within(folder, below, name, STATE)?;
        if path.exists() {
            return Ok(path);
        }
        let name = excerpt(name, NAME);
        let reason = format!("{STATE} names {name:?}, which is not there");
        Err(damaged(folder, reason))
    });
    paths.collect()
}

/// Reads which columns have classes, of the data set that a file belongs to.
pub(super) fn classes_beside(file: &Path) -> Result<ClassColumns, RowsError> {
    let folder = file.parent().unwrap_or(file);
    let path = folder.join(INFO);
    // It may be rows of one's own.
    if !path.exists() || file == path {
        return Ok(ClassColumns::default());
    }
    let read = ClassColumns::read(&read_text(&path, LONGEST)?);
    read.map_err(|error| damaged(folder, format!("{INFO} cannot be read: {error}")))
}

/// The path of what a file names, which must be in the folder.
fn within(folder: &Path, below: &Path, name: &str, named_by: &str) -> Result<PathBuf, RowsError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(below.join(name)),
        _ => {
            let name = excerpt(name, NAME);
            let reason = format!("{named_by} names {name:?}, which is not in it");
            Err(damaged(folder, reason))
        }
    }
}

/// Reads what `save_to_disk` wrote. Rows of one's own may be called so, but not beside what it is written beside.
fn read<T: DeserializeOwned>(
    folder: &Path,
    name: &str,
    is_beside: impl Fn(&Path) -> bool,
) -> Result<Option<T>, RowsError> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    match serde_json::from_str(&read_text(&path, LONGEST)?) {
        Ok(read) => Ok(Some(read)),
        Err(error) => {
            for entry in fs_err::read_dir(folder)? {
                if is_beside(&entry?.path()) {
                    return Err(damaged(folder, format!("{name} cannot be read: {error}")));
                }
            }
            Ok(None)
        }
    }
}

fn damaged(folder: &Path, reason: String) -> RowsError {
    RowsError::Damaged {
        file: folder.to_string_lossy().into(),
        reason,
    }
}
