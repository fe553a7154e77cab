//! `flowgraph export`: copy a result out of the store.

use std::path::PathBuf;

use clap::Args;

use super::output::{Output, bytes, counted};
use super::{Failure, PipelineOptions, exit_code, show};
use crate::engine::artifact::is_inside;
use crate::engine::stage::Registry;
use crate::engine::store::Store;

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
}

pub(super) fn run(
    args: &ExportArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let artifact = show::find(&pipeline, store, &args.result)?.artifact;
    for file in &artifact.files {
        let target = args.folder.join(&file.path);
        if !is_inside(&file.path) {
            return Err(Failure::usage(format!(
                "artifact path `{}` leaves its tree",
                file.path
            )));
        }
        if target.exists() && !args.force {
            return Err(Failure::Other {
                message: format!("{} exists", target.display()),
                hint: Some("choose another folder, or give `--force`".to_owned()),
                code: exit_code::USAGE,
            });
        }
    }
    for file in &artifact.files {
        store
            .check_object(&file.digest)
            .map_err(|damage| Failure::Other {
                message: damage.to_string(),
                hint: Some("`flowgraph run` makes it again".to_owned()),
                code: exit_code::STORE_DAMAGED,
            })?;
        let target = args.folder.join(&file.path);
        let parent = target.parent().unwrap_or(&args.folder);
        fs_err::create_dir_all(parent)?;
        // Not a link and not read-only: the copy is the user's.
        let mut temporary = tempfile::NamedTempFile::new_in(parent)?;
        let mut source = fs_err::File::open(store.object_path(&file.digest))?;
        std::io::copy(&mut source, temporary.as_file_mut())?;
        use std::os::unix::fs::PermissionsExt;
        temporary
            .as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))?;
        temporary.persist(&target).map_err(|error| error.error)?;
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
