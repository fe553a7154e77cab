//! A folder as a bucket: what several machines mount, or a disk that travels.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;

use super::bucket::{Bucket, BucketError, Entry, Upload};
use crate::engine::store::publish::{publish, publish_first, sync_folder};

/// What `file:///path` means.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// The path of a name.
    ///
    /// # Errors
    /// If the folder itself is not there: a disk that is not mounted looks like an empty one, and is none.
    fn path(&self, key: &str) -> Result<PathBuf, BucketError> {
        if self.0.is_dir() {
            return Ok(self.0.join(key));
        }
        let root = self.0.display();
        Err(BucketError::Failed(format!(
            "there is no folder {root}: it is to be made or mounted"
        )))
    }
}

impl Folder {
    /// The path of a name that is to be written. Folders on the way there are made as the root is, for a group to write in.
    fn place(&self, key: &str) -> Result<PathBuf, BucketError> {
        let path = self.path(key)?;
        let root = fs_err::metadata(&self.0)?;
        let mut folder = self.0.clone();
        let names = path
            .parent()
            .and_then(|parent| parent.strip_prefix(&self.0).ok());
        for name in names.into_iter().flatten() {
            folder.push(name);
            match std::fs::create_dir(&folder) {
                Ok(()) => {
                    // Whoever may not give a folder to the group is alone in it, as the mode of the root says.
                    let _ = std::os::unix::fs::chown(&folder, None, Some(root.gid()));
                    let _ = std::fs::set_permissions(&folder, root.permissions());
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error, key)),
            }
        }
        Ok(path)
    }
}

fn failed(error: std::io::Error, key: &str) -> BucketError {
    match error.kind() {
        ErrorKind::NotFound => BucketError::Absent(key.to_owned()),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            BucketError::Denied(error.to_string())
        }
        _ => BucketError::Failed(error.to_string()),
    }
}

impl Bucket for Folder {
    fn read(
        &self,
        key: &str,
        part: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Vec<u8>, BucketError> {
        let failed = |error| failed(error, key);
        // What somebody put there may be a pipe, which would be waited for.
        let mut options = fs_err::OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(self.path(key)?).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(BucketError::Failed(format!("`{key}` is no file")));
        }
        let wanted = match part {
            Some(part) => {
                file.seek(SeekFrom::Start(part.start)).map_err(failed)?;
                (part.end - part.start).min(limit)
            }
            // One more tells that there are too many.
            None => limit.saturating_add(1),
        };
        let mut bytes = Vec::new();
        file.take(wanted).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(BucketError::TooLong(key.to_owned()));
        }
        Ok(bytes)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BucketError> {
        match std::fs::metadata(self.path(key)?) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Err(BucketError::Failed(format!("`{key}` is no file"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error, key)),
        }
    }

    fn write(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        publish(&self.place(key)?, &bytes).map_err(|error| failed(error, key))
    }

    fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, BucketError> {
        publish_first(&self.place(key)?, &bytes).map_err(|error| failed(error, key))
    }

    fn upload(&self, key: &str, upload: &mut Upload) -> Result<(), BucketError> {
        const PIECE: u64 = 4 << 20;
        let failed = |error| failed(error, key);
        let target = self.place(key)?;
        let folder = target.parent().unwrap_or(&self.0);
        let mut new = tempfile::Builder::new();
        let mut new = new.prefix(".new-").tempfile_in(folder).map_err(failed)?;
        let mut file = fs_err::File::open(upload.file)?;
        let mut done = 0;
        loop {
            match std::io::copy(&mut (&mut file).take(PIECE), &mut new).map_err(failed)? {
                0 => break,
                count => done += count,
            }
            (upload.tell)(done)?;
        }
        if done != upload.size {
            let what = format!("{} changed while it was sent", upload.file.display());
            return Err(BucketError::Here(what));
        }
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        new.as_file().set_permissions(readable).map_err(failed)?;
        new.as_file().sync_all().map_err(failed)?;
        new.persist(&target).map_err(|error| failed(error.error))?;
        sync_folder(folder).map_err(failed)
    }

    fn list(
        &self,
        folder: &str,
        each: &mut dyn FnMut(Entry) -> Result<(), BucketError>,
    ) -> Result<(), BucketError> {
        let mut open = vec![self.path(folder)?];
        while let Some(folder) = open.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error, &folder.display().to_string())),
            };
            for entry in entries {
                let entry = entry?;
                // Not followed: a link is nothing that was put here.
                let metadata = match entry.metadata() {
                    // Removed meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    other => other?,
                };
                if metadata.is_dir() {
                    open.push(entry.path());
                } else if metadata.is_file()
                    && let Ok(key) = entry.path().strip_prefix(&self.0)
                {
                    each(Entry {
                        key: key.to_string_lossy().into_owned(),
                        size: metadata.len(),
                        modified: metadata.modified()?,
                    })?;
                }
            }
        }
        Ok(())
    }

    fn remove(&self, keys: Vec<String>) -> Result<(), BucketError> {
        for key in keys {
            match fs_err::remove_file(self.path(&key)?) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed(error, &key));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns the folder that `file:///path` names.
///
/// # Errors
/// What is wrong with the address.
pub(super) fn of_address(address: &str) -> Result<PathBuf, String> {
    let path = address.strip_prefix("file://").unwrap_or(address);
    let path = path.strip_prefix("localhost").unwrap_or(path);
    if !path.starts_with('/') {
        return Err(format!(
            "`{address}`: expected an absolute path, as in file:///shared/flowgraph"
        ));
    }
    if path.contains(['%', '?', '#']) {
        return Err(format!(
            "`{address}`: a path with `%`, `?` or `#` cannot be told from an encoded one; choose another folder"
        ));
    }
    Ok(Path::new(path).to_owned())
}
