//! Where the files of a model come from: one source, or several files by name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::context::RunContext;
use crate::engine::stage::{Problem, SourceParam, StageError};
use crate::sources::{Sha256, Source};

/// A file from outside.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelFile {
    /// Where it comes from.
    pub source: Source,
    /// The SHA-256 that it must have.
    #[serde(default)]
    pub sha256: Option<Sha256>,
}

/// Files by the names that they have in a model's folder.
pub(super) type ModelFiles = BTreeMap<String, ModelFile>;

/// The params of a kind that reads a model.
pub(super) struct Given<'a> {
    /// A file or a local folder.
    pub source: Option<&'a Source>,
    /// Pins the file.
    pub sha256: Option<Sha256>,
    /// Instead of `source`: the files of a folder.
    pub files: &'a ModelFiles,
}

impl Given<'_> {
    /// Checks that there is one way to the model, and that names are names.
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        match (self.source, self.files.is_empty()) {
            (None, true) => problems.push(
                Problem::new("source", "the model comes from nowhere")
                    .hint("give `source` (a file or a local folder) or `files`"),
            ),
            (Some(_), false) => problems.push(Problem::new(
                "files",
                "`source` and `files` exclude each other",
            )),
            _ => {}
        }
        if self.sha256.is_some() && self.source.is_none() {
            problems.push(Problem::new(
                "sha256",
                "`sha256` pins `source`; with `files` each has its own",
            ));
        }
        for name in self.files.keys() {
            let parts = || name.split('/');
            if name.contains(['\\', '\0'])
                || parts().any(|part| part.is_empty() || part.starts_with('.'))
            {
                problems.push(Problem::new(
                    "files",
                    format!("`{name}` is not the name of a file"),
                ));
            }
        }
    }

    /// Returns what the engine has to fetch.
    pub(super) fn sources(&self) -> Vec<SourceParam> {
        let one = self.source.map(|source| SourceParam {
            key: "source".to_owned(),
            source: source.clone(),
            sha256: self.sha256,
        });
        let files = self.files.iter().map(|(name, file)| SourceParam {
            key: format!("files.{name}"),
            source: file.source.clone(),
            sha256: file.sha256,
        });
        one.into_iter().chain(files).collect()
    }

    /// Returns the file or folder; `files` are linked into a folder under their names.
    pub(super) fn path(&self, ctx: &RunContext) -> Result<PathBuf, StageError> {
        if self.files.is_empty() {
            let path = ctx.source("source")?.to_owned();
            if path.is_dir() && self.sha256.is_some() {
                return Err(StageError::new(format!(
                    "{}: a folder has no SHA-256",
                    path.display()
                ))
                .hint("pin its files one by one with `files`, or leave `sha256` out"));
            }
            return Ok(path);
        }
        let folder = ctx.scratch("model")?;
        for name in self.files.keys() {
            // Not where it leads to: that path may lead elsewhere meanwhile.
            let file = std::path::absolute(ctx.source(&format!("files.{name}"))?)?;
            let link = folder.join(name);
            if let Some(parent) = link.parent() {
                fs_err::create_dir_all(parent)?;
            }
            fs_err::os::unix::fs::symlink(file, link)?;
        }
        Ok(folder)
    }
}
