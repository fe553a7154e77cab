//! `flowgraph export`: copy a result out of the store.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::{Output, bytes, counted};
use super::{Failure, PipelineOptions, exit_code, show};
use crate::artifacts::language_model::{COPIED_FILES, LANGUAGE_MODEL, complete_copy};
use crate::artifacts::reward_model::REWARD_MODEL;
use crate::engine::artifact::{Artifact, is_inside};
use crate::engine::stage::Registry;
use crate::engine::store::Store;
use crate::files::write_whole;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stage, or `stage.output`, or `stage[axis=value].output`
    result: String,
    /// Folder to copy into; made if it is not there
    folder: PathBuf,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
    /// Write a table in this format instead of copying its files; repeatable
    #[arg(long, value_enum)]
    format: Vec<Format>,
    /// With `--format csv`: put an apostrophe before texts that a spreadsheet would run as formulas
    #[arg(long)]
    spreadsheet: bool,
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Format {
    /// `table.md`, as people see it
    Markdown,
    /// `table.tex`, as people see it, with the rules of booktabs
    Latex,
    /// `table.csv`, every column, numbers in full
    Csv,
    /// `table.parquet`, the same
    Parquet,
}

impl Format {
    fn file_name(self) -> &'static str {
        match self {
            Self::Markdown => "table.md",
            Self::Latex => "table.tex",
            Self::Csv => "table.csv",
            Self::Parquet => "table.parquet",
        }
    }
}

pub(super) fn run(
    args: &ExportArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let artifact = show::find(&pipeline, store, &args.result)?.artifact;
    if !args.format.is_empty() {
        return export_table(args, store, &artifact, output);
    }
    for file in &artifact.files {
        let target = args.folder.join(&file.path);
        if !is_inside(&file.path) {
            return Err(Failure::usage(format!(
                "artifact path `{}` leaves its tree",
                file.path
            )));
        }
        args.refuse_existing(&target)?;
    }
    let is_model = [LANGUAGE_MODEL, REWARD_MODEL].contains(&&*artifact.kind);
    // What another model left in the folder would be taken for a part of this one.
    let left = COPIED_FILES.map(|name| args.folder.join(name));
    let left = left.iter().filter(|path| is_model && path.exists());
    for path in left.clone() {
        args.refuse_existing(path)?;
    }
    check_objects(store, &artifact)?;
    fs_err::create_dir_all(&args.folder)?;
    for path in left {
        fs_err::remove_file(path)?;
    }
    for file in &artifact.files {
        let target = args.folder.join(&file.path);
        let mut source = fs_err::File::open(store.object_path(&file.digest))?;
        write_whole(&target, &mut source)?;
        if file.executable {
            fs_err::set_permissions(&target, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    if is_model || artifact.kind == "tokenizer" {
        complete_copy(&args.folder).map_err(|error| Failure::Other {
            message: error.to_string(),
            hint: None,
            code: exit_code::STAGE_FAILED,
        })?;
    }
    output.line(&format!(
        "{} ({}, {}) -> {}",
        args.result,
        counted(artifact.files.len(), "file"),
        bytes(artifact.size()),
        args.folder.display()
    ));
    Ok(exit_code::OK)
}

impl ExportArgs {
    fn refuse_existing(&self, target: &Path) -> Result<(), Failure> {
        if target.exists() && !self.force {
            return Err(Failure::Other {
                message: format!("{} exists", target.display()),
                hint: Some("choose another folder, or give `--force`".to_owned()),
                code: exit_code::USAGE,
            });
        }
        Ok(())
    }
}

fn check_objects(store: &Store, artifact: &Artifact) -> Result<(), Failure> {
    for file in &artifact.files {
        store
            .check_object(&file.digest)
            .map_err(|damage| Failure::Other {
                message: damage.to_string(),
                hint: Some("`flowgraph run` makes it again".to_owned()),
                code: exit_code::STORE_DAMAGED,
            })?;
    }
    Ok(())
}

/// Writes a table in the formats asked for.
fn export_table(
    args: &ExportArgs,
    store: &Store,
    artifact: &Artifact,
    output: &Output,
) -> Result<u8, Failure> {
    let parquet = artifact
        .files
        .iter()
        .find(|file| file.path == "table.parquet")
        .ok_or_else(|| Failure::Other {
            message: format!("`{}` is no table but {}", args.result, artifact.kind),
            hint: Some("leave `--format` out to copy its files".to_owned()),
            code: exit_code::USAGE,
        })?;
    let formats: BTreeSet<Format> = args.format.iter().copied().collect();
    for format in &formats {
        args.refuse_existing(&args.folder.join(format.file_name()))?;
    }
    check_objects(store, artifact)?;
    let table = show::read_table(store, artifact)?;
    for format in formats {
        let target = args.folder.join(format.file_name());
        let text = match format {
            Format::Markdown => table.markdown(),
            Format::Latex => table.latex(),
            Format::Csv => table.csv(args.spreadsheet),
            Format::Parquet => {
                let mut source = fs_err::File::open(store.object_path(&parquet.digest))?;
                write_whole(&target, &mut source)?;
                output.line(&format!("{} -> {}", args.result, target.display()));
                continue;
            }
        };
        write_whole(&target, &mut text.as_bytes())?;
        output.line(&format!("{} -> {}", args.result, target.display()));
        let formulas = table.formulas();
        if format == Format::Csv && !args.spreadsheet && formulas > 0 {
            output.line(&format!(
                "note: {} begin with =, +, -, @ or a tab, which a spreadsheet runs as formulas; `--spreadsheet` puts an \
                 apostrophe before them",
                counted(formulas, "cell")
            ));
        }
    }
    Ok(exit_code::OK)
}
