//! Writing files such that nobody ever sees half of one.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file under a temporary name, syncs it, renames it into place and syncs the folder.
pub fn publish(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folder(folder)?;
    write_and_rename(path, folder, bytes, true)
        .and_then(|()| sync_folder(folder))
        .map_err(|error| {
            std::io::Error::new(
                error.kind(),
                format!("cannot write {}: {error}", path.display()),
            )
        })
}

/// Writes a file as [`publish`] does, unless there is one already; says whether it was written.
pub(super) fn publish_first(path: &Path, bytes: &[u8]) -> std::io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folder(folder)?;
    match written(folder, bytes, true)?.persist_noclobber(path) {
        Ok(_) => sync_folder(folder).map(|()| true),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        // Where a file system knows neither links nor such renames, a look must do.
        Err(_) if path.exists() => Ok(false),
        Err(_) => publish(path, bytes).map(|()| true),
    }
}

/// Writes a file that only saves work: it is whole or absent, but after a power cut it may be empty.
pub(super) fn publish_unsynced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(folder)?;
    write_and_rename(path, folder, bytes, false)
}

fn write_and_rename(path: &Path, folder: &Path, bytes: &[u8], sync: bool) -> std::io::Result<()> {
    let temporary = written(folder, bytes, sync)?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Writes a file under a temporary name.
fn written(folder: &Path, bytes: &[u8], sync: bool) -> std::io::Result<tempfile::NamedTempFile> {
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary
        .as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))?;
    if sync {
        temporary.as_file().sync_all()?;
    }
    Ok(temporary)
}

/// Makes a folder such that it outlives a power cut.
pub(super) fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    make_folder(parent)?;
    match fs_err::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder(parent)
}

pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    fs_err::File::open(folder)?.sync_all()
}
