//! Where a loader's rows come from: a source, or what another stage made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::engine::context::RunContext;
use crate::engine::diagnostic::did_you_mean;
use crate::engine::stage::{Port, Problem, SourceParam, StageError};
use crate::excerpt::listed;
use crate::sources::rows::{RowFiles, RowsError};
use crate::sources::{Sha256, Source};

const PORT: &str = "data";
/// Rows in which columns are looked for.
pub(super) const LOOKED_AT: usize = 1000;

/// The port for rows, which is there if there is no source: so exactly one of them is given.
pub(super) fn source_or_port(source: Option<&Source>) -> Vec<Port> {
    match source {
        Some(_) => Vec::new(),
        None => vec![Port::one(
            PORT,
            &["file"],
            "the rows, where no `source` is given",
        )],
    }
}

/// The source, if there is one.
pub(super) fn source_params(source: Option<&Source>, sha256: Option<Sha256>) -> Vec<SourceParam> {
    let source = source.map(|source| SourceParam {
        key: "source".to_owned(),
        source: source.clone(),
        sha256,
    });
    source.into_iter().collect()
}

/// What a stage made has a digest already.
pub(super) fn check_sha256(
    source: Option<&Source>,
    sha256: Option<Sha256>,
    problems: &mut Vec<Problem>,
) {
    if source.is_none() && sha256.is_some() {
        problems.push(
            Problem::new(
                "sha256",
                "`sha256` is that of a `source`, and there is none",
            )
            .hint("leave it out: what a stage made is checked anyway"),
        );
    }
}

/// The file or folder with the rows.
pub(super) fn source_path(
    source: Option<&Source>,
    ctx: &RunContext,
) -> Result<PathBuf, StageError> {
    match source {
        Some(_) => Ok(ctx.source("source")?.to_owned()),
        None => Ok(ctx.input(PORT)?.file_or_folder()),
    }
}

/// Finds the files with the rows, which messages call `name`; a folder has no SHA-256, so that none can be asked of it.
pub(super) fn row_files(
    path: &Path,
    name: &str,
    split: Option<&str>,
    sha256: Option<Sha256>,
    max_text_mb: Option<u64>,
) -> Result<RowFiles, StageError> {
    files_by(RowFiles::find, path, name, split, sha256, max_text_mb)
}

type Find = fn(&Path, &str, Option<&str>, Option<u64>) -> Result<RowFiles, RowsError>;

/// Finds files as [`row_files`] does, by [`RowFiles::find`] or [`RowFiles::find_lines`].
pub(super) fn files_by(
    find: Find,
    path: &Path,
    name: &str,
    split: Option<&str>,
    sha256: Option<Sha256>,
    max_text_mb: Option<u64>,
) -> Result<RowFiles, StageError> {
    if path.is_dir() && sha256.is_some() {
        return Err(
            StageError::new(format!("{}: a folder has no SHA-256", path.display()))
                .hint("give a file, or leave `sha256` out"),
        );
    }
    let most_text = max_text_mb.map(|most| most.saturating_mul(1 << 20));
    Ok(find(path, name, split, most_text)?)
}

/// What the file calls a column of a layout.
pub(super) fn named<'a>(columns: &'a BTreeMap<String, String>, name: &'a str) -> &'a str {
    columns.get(name).map_or(name, String::as_str)
}

/// Refuses names of columns that are not among those that are `known`; `owner` is whose these are.
pub(super) fn check_columns(
    columns: &BTreeMap<String, String>,
    known: &[&str],
    owner: &str,
    problems: &mut Vec<Problem>,
) {
    for name in columns
        .keys()
        .filter(|name| !known.contains(&name.as_str()))
    {
        let all = || format!("the columns are `{}`", known.join("`, `"));
        let hint = did_you_mean(name, known.iter().copied()).unwrap_or_else(all);
        problems.push(
            Problem::new(
                &format!("columns.{name}"),
                format!("{owner} no column `{name}`"),
            )
            .hint(hint),
        );
    }
}

/// Checks that the columns which `columns` names are among those that were found.
pub(super) fn check_found<'a>(
    columns: &BTreeMap<String, String>,
    found: impl IntoIterator<Item = &'a String>,
    name: &str,
) -> Result<(), StageError> {
    let found: Vec<&str> = found.into_iter().map(String::as_str).collect();
    let absent = columns
        .values()
        .find(|column| !found.contains(&column.as_str()));
    absent.map_or(Ok(()), |column| {
        let all = listed(found.iter().copied());
        let error = StageError::new(format!(
            "{name}: `columns` names the column `{column}`, which it has not; found: {all}"
        ));
        Err(match did_you_mean(column, found) {
            Some(hint) => error.hint(hint),
            None => error,
        })
    })
}

/// What messages call it.
pub(super) fn source_name(source: Option<&Source>) -> String {
    source.map_or_else(|| format!("input `{PORT}`"), ToString::to_string)
}
