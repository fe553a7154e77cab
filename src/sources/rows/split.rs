//! Part files of a folder, and the splits that they belong to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{RowsError, saved};
use crate::excerpt::listed;
use crate::hint::Hint;

const ENDINGS: [&str; 5] = [".parquet", ".arrow", ".csv", ".json", ".jsonl"];
/// Files of plain text.
const TEXT: [&str; 1] = [".txt"];

/// What the names of files say of usual splits, by the words in them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Returns the part files of a folder in the order of their names, those of one split if it is given. If plain text is
/// wanted, they are the files that end in .txt, if there is one.
///
/// # Errors
/// A folder without part files, one of several splits where none is given, and one without the split that is.
pub(super) fn part_files(
    folder: &Path,
    split: Option<&str>,
    are_texts: bool,
) -> Result<Vec<PathBuf>, RowsError> {
    if let Some(files) = saved::part_files(folder, split)? {
        return Ok(files);
    }
    let (mut parts, mut texts) = (Vec::new(), Vec::new());
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        for (files, endings) in [(&mut parts, &ENDINGS[..]), (&mut texts, &TEXT)] {
            if let Some(stem) = stem(&name, endings) {
                files.push((entry.path(), split_of(stem)));
            }
        }
    }
    let has_texts = !texts.is_empty();
    if are_texts && has_texts {
        parts = texts;
    }
    // Beside files of other formats, those of JSON say what they hold, as `dataset_infos.json` does.
    let is_json = |path: &Path| path.extension().is_some_and(|ending| ending == "json");
    if parts.iter().any(|(path, _)| !is_json(path)) {
        parts.retain(|(path, _)| !is_json(path));
    }
    if parts.is_empty() {
        return Err(RowsError::NoFiles {
            folder: folder.display().to_string(),
            hint: has_texts.then_some(Hint::new(
                "files that end in .txt are plain text: `load_texts` reads them with `format: lines`",
            )),
        });
    }
    parts.sort();
    let splits: BTreeSet<&Option<String>> = parts.iter().map(|(_, split)| split).collect();
    let problem = match split {
        None if splits.len() > 1 => Some((
            "its files belong to several splits".to_owned(),
            "choose one, such as `split: train`",
        )),
        Some(split) if !splits.contains(&Some(usual(split))) => Some((
            format!("it has no split `{split}`"),
            "splits are told by the names of files, such as train-00000-of-00001.parquet",
        )),
        _ => None,
    };
    if let Some((problem, hint)) = problem {
        let mut error = no_split(
            folder,
            problem,
            splits.iter().copied().flatten().map(String::as_str),
            hint,
        );
        if let RowsError::Split { found, .. } = &mut error
            && splits.contains(&None)
        {
            *found = match splits.len() {
                1 => "the names of its files tell none".to_owned(),
                _ => format!("{found}, and files whose names tell none"),
            };
        }
        return Err(error);
    }
    let wanted = split.map(usual);
    let files = parts
        .into_iter()
        .filter(|(_, split)| wanted.is_none() || *split == wanted);
    Ok(files.map(|(path, _)| path).collect())
}

pub(super) fn no_split<'a>(
    folder: &Path,
    problem: String,
    found: impl Iterator<Item = &'a str>,
    hint: &'static str,
) -> RowsError {
    RowsError::Split {
        folder: folder.display().to_string(),
        problem,
        found: format!("it has the splits {}", listed(found)),
        hint: Hint::new(hint),
    }
}

/// The name of a part file without its ending.
fn stem<'a>(name: &'a str, endings: &[&str]) -> Option<&'a str> {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    endings.iter().find_map(|ending| name.strip_suffix(ending))
}

/// The split of a part file: `train-00000-of-00002` is of `train`, as is `my_train.part1`.
fn split_of(stem: &str) -> Option<String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let pieces: Vec<&str> = stem.rsplitn(4, '-').collect();
    if let [count, "of", number, name] = pieces[..]
        && is_number(count)
        && is_number(number)
    {
        return Some(usual(name));
    }
    let mut words = stem.split(|letter: char| !letter.is_alphanumeric());
    words.find_map(|word| known(word).map(str::to_owned))
}

fn known(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    let found = WORDS
        .iter()
        .find(|(_, words)| words.contains(&word.as_str()));
    found.map(|(split, _)| *split)
}

/// The usual name of a split, if it has one.
fn usual(split: &str) -> String {
    known(split).map_or_else(|| split.to_owned(), str::to_owned)
}
