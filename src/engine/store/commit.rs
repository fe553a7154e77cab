//! Bringing outputs into the store.

use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Store;
use super::object::{COARSE_TICK, ObjectStat, ObjectStats};
use super::publish::{make_folder, sync_folder};
use crate::engine::artifact::{Artifact, ArtifactFile, Digest, Outputs, is_inside};
use crate::engine::stage::{Output, StageError};

impl Store {
    /// Moves the outputs that a stage wrote below `folder/<output name>` into the store. Those may hold links to what
    /// the stage read, which lies in the store `inputs_from`.
    pub fn commit_outputs(
        &self,
        folder: &Path,
        outputs: &[Output],
        inputs_from: &Store,
    ) -> Result<(Outputs, ObjectStats), StageError> {
        let mut artifacts = Outputs::new();
        let mut stats = ObjectStats::new();
        for (output, written) in inputs_from.list_outputs(folder, outputs)? {
            let tree = folder.join(&output.name);
            let mut files = Vec::new();
            for Written { path, object } in written {
                let (mut file, stat) = self.commit_file(&tree, path, object, inputs_from)?;
                // Those of our own kinds mean nothing: a copied source has whatever its file system gives.
                file.executable &= output.foreign;
                stats.insert(file.digest, stat);
                files.push(file);
            }
            artifacts.insert(output.name.clone(), Artifact::new(&output.kind, files));
        }
        Ok((artifacts, stats))
    }

    /// Lists what a stage wrote below `folder/<output name>`, sorted: files, and links to objects of this store.
    ///
    /// # Errors
    /// Missing outputs, and what is in one but is neither: to open it could wait forever, or read without an end.
    pub fn list_outputs<'a>(
        &self,
        folder: &Path,
        outputs: &'a [Output],
    ) -> Result<Vec<(&'a Output, Vec<Written>)>, StageError> {
        let mut all = Vec::new();
        for output in outputs {
            let tree = folder.join(&output.name);
            let mut written = Vec::new();
            let is_there = tree.is_dir();
            if is_there {
                self.list_files(&tree, "", &mut written).map_err(|error| {
                    let StageError::Failed { message, hint } = error else {
                        return error;
                    };
                    let message = format!("output `{}`: {message}", output.name);
                    StageError::Failed { message, hint }
                })?;
            }
            if written.is_empty() && !(is_there && output.foreign) {
                return Err(StageError::new(format!(
                    "the stage did not write its output `{}`",
                    output.name
                )));
            }
            written.sort_by(|a, b| a.path.cmp(&b.path));
            all.push((output, written));
        }
        Ok(all)
    }

    fn commit_file(
        &self,
        tree: &Path,
        path: String,
        object: Option<Digest>,
        inputs_from: &Store,
    ) -> Result<(ArtifactFile, ObjectStat), StageError> {
        let source = tree.join(&path);
        let metadata = fs_err::symlink_metadata(&source)?;
        let (digest, stat) = match object {
            Some(digest) => {
                let stat = inputs_from.check_object(&digest).map_err(|damage| {
                    StageError::new(format!("input changed while the stage ran: {damage}"))
                })?;
                (digest, stat)
            }
            None => {
                if metadata.nlink() > 1 {
                    self.part_from_other_names(&source)?;
                }
                self.take_in(&source)?
            }
        };
        let file = ArtifactFile {
            path,
            size: stat.size,
            digest,
            executable: metadata.is_file() && is_executable(&metadata),
        };
        Ok((file, stat))
    }

    /// Makes an object of a file.
    pub(super) fn take_in(&self, source: &Path) -> Result<(Digest, ObjectStat), StageError> {
        set_back(source)?;
        let hashed = ObjectStat::of(&fs_err::metadata(source)?);
        let digest = self.digest_file(source)?;
        let target = self.object_path(&digest);
        let folder = target.parent().unwrap_or(self.root());
        // An object that is there already is kept if its bytes are right, and healed if they are not.
        if let Ok(stat) = self.check_object(&digest) {
            // Whoever put it there may have been killed before this.
            sync_folder(folder)?;
            return Ok((digest, stat));
        }
        let file = fs_err::OpenOptions::new().read(true).open(source)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
        file.sync_all()?;
        make_folder(folder)?;
        let hashed = match std::fs::rename(source, &target) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                self.move_to_other_disk(source, &target, &digest)?
            }
            Err(error) => {
                let (source, target) = (source.display(), target.display());
                return Err(StageError::new(format!(
                    "cannot rename {source} to {target}: {error}"
                )));
            }
            Ok(()) => hashed,
        };
        sync_folder(folder)?;
        let stat = ObjectStat::of_renamed(&fs_err::metadata(&target)?, &hashed);
        Ok((digest, stat))
    }

    /// A link to an object stands for that object: this is how an adapter's artifact shares its base weights.
    fn linked_object(&self, link: &Path) -> Option<Digest> {
        let target = std::fs::canonicalize(link).ok()?;
        let objects = std::fs::canonicalize(self.root().join("objects")).ok()?;
        let name = target.strip_prefix(&objects).ok()?.components();
        let name: String = name
            .map(|part| part.as_os_str().to_string_lossy())
            .collect();
        name.parse().ok()
    }

    fn list_files(
        &self,
        folder: &Path,
        prefix: &str,
        written: &mut Vec<Written>,
    ) -> Result<(), StageError> {
        for entry in fs_err::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| {
                let name = PathBuf::from(name);
                StageError::new(format!("the file name {} is not UTF-8", name.display()))
            })?;
            let path = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}/{name}")
            };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.list_files(&entry.path(), &path, written)?;
            } else if kind.is_file() {
                written.push(Written { path, object: None });
            } else if kind.is_symlink() {
                let object = self.linked_object(&entry.path());
                if object.is_none() {
                    let message = format!("{path} is a link that leads outside the store");
                    return Err(StageError::new(message).hint("write a copy instead of a link"));
                }
                written.push(Written { path, object });
            } else {
                return Err(StageError::new(format!(
                    "{path} is neither a file nor a folder"
                )));
            }
        }
        Ok(())
    }

    /// Lays out an artifact's files below `folder`: as links, but for executable ones, since an object is nobody's
    /// program.
    pub fn lay_out(&self, artifact: &Artifact, folder: &Path) -> std::io::Result<()> {
        let root = fs_err::canonicalize(self.root())?;
        let store = Store::new(root);
        fs_err::create_dir_all(folder)?;
        for file in &artifact.files {
            if !is_inside(&file.path) {
                return Err(std::io::Error::other(format!(
                    "artifact path `{}` leaves its tree",
                    file.path
                )));
            }
            let link = folder.join(&file.path);
            if let Some(parent) = link.parent() {
                fs_err::create_dir_all(parent)?;
            }
            let object = store.object_path(&file.digest);
            if file.executable {
                fs_err::copy(object, &link)?;
                fs_err::set_permissions(&link, std::fs::Permissions::from_mode(0o555))?;
            } else {
                fs_err::os::unix::fs::symlink(object, link)?;
            }
        }
        Ok(())
    }

    /// Replaces a file that has other names by a copy of its own: under those it may be somebody's, and stays as it is.
    fn part_from_other_names(&self, path: &Path) -> std::io::Result<()> {
        let mut from = fs_err::File::open(path)?.into_parts().0;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut copy = tempfile::NamedTempFile::new_in(folder)?;
        self.copy_with_holes(&mut from, copy.as_file_mut())?;
        copy.as_file()
            .set_permissions(from.metadata()?.permissions())?;
        copy.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Moves a file into place where a rename cannot: the bytes are copied, synced and read back before it appears.
    ///
    /// Returns what the file system said of the copy before it was read back.
    fn move_to_other_disk(
        &self,
        source: &Path,
        target: &Path,
        digest: &Digest,
    ) -> Result<ObjectStat, StageError> {
        let folder = target.parent().unwrap_or(Path::new("."));
        let mut temporary = tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(folder)?;
        let mut from = fs_err::File::open(source)?.into_parts().0;
        self.copy_with_holes(&mut from, temporary.as_file_mut())?;
        temporary
            .as_file()
            .set_permissions(from.metadata()?.permissions())?;
        temporary.as_file().sync_all()?;
        set_back(temporary.path())?;
        let hashed = ObjectStat::of(&temporary.as_file().metadata()?);
        if self.digest_file(temporary.path())? != *digest {
            return Err(StageError::new(format!(
                "{} changed while it was copied to {}",
                source.display(),
                target.display()
            )));
        }
        temporary.persist(target).map_err(|error| error.error)?;
        fs_err::remove_file(source)?;
        Ok(hashed)
    }

    /// Copies a file such that what takes no room in it takes none in the copy.
    fn copy_with_holes(
        &self,
        from: &mut std::fs::File,
        to: &mut std::fs::File,
    ) -> std::io::Result<()> {
        use rustix::fs::{SeekFrom, seek};
        /// Bytes that are copied between two looks at whether to go on.
        const PIECE: u64 = 16 << 20;
        let length = from.metadata()?.len();
        let mut at = 0;
        // At the end, or in a last hole, there is no further data; where holes are not known, all is data.
        while let Ok(data) = seek(&*from, SeekFrom::Data(at)) {
            self.go_on()?;
            let end = seek(&*from, SeekFrom::Hole(data))?.min(data + PIECE);
            from.seek(std::io::SeekFrom::Start(data))?;
            to.seek(std::io::SeekFrom::Start(data))?;
            std::io::copy(&mut (&*from).take(end - data), to)?;
            at = end;
        }
        to.set_len(length)
    }
}

/// A file of an output, by its path within that.
#[derive(Debug)]
pub struct Written {
    /// The path.
    pub path: String,
    /// What it stands for, if it is a link.
    object: Option<Digest>,
}

/// Whether anybody may execute a file.
pub(in crate::engine) fn is_executable(metadata: &std::fs::Metadata) -> bool {
    metadata.permissions().mode() & 0o111 != 0
}

/// Puts a file's time of modification into the past, so that a further write could not hide behind it; see
/// [`ObjectStat::of_renamed`].
fn set_back(path: &Path) -> std::io::Result<()> {
    let file = fs_err::File::open(path)?.into_parts().0;
    // Where that is refused, the object is hashed once more when it is used.
    let _ = file.set_modified(SystemTime::now() - 2 * COARSE_TICK);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn outputs_become_objects_once_and_links_to_objects_are_shared() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let staging = folder.path().join("try");
        fs_err::create_dir_all(staging.join("model/sub")).unwrap();
        fs_err::write(staging.join("model/weights"), "abc").unwrap();
        fs_err::write(staging.join("model/sub/config"), "{}").unwrap();
        let outputs = [Output::new("model", "language_model")];
        let (artifacts, stats) = store.commit_outputs(&staging, &outputs, &store).unwrap();
        let model = &artifacts["model"];
        assert_eq!(stats.len(), 2);
        for (digest, stat) in &stats {
            let glance = store.glance_at_object(digest, Some(stat)).unwrap();
            assert_eq!(glance, None, "the bytes had to be read again");
        }
        assert_eq!(
            model
                .files
                .iter()
                .map(|file| file.path.as_str())
                .collect::<Vec<_>>(),
            ["sub/config", "weights"]
        );
        assert_eq!(
            fs_err::read_to_string(store.object_path(&model.files[1].digest)).unwrap(),
            "abc"
        );

        let view = folder.path().join("view");
        store.lay_out(model, &view).unwrap();
        assert_eq!(
            fs_err::read_to_string(view.join("sub/config")).unwrap(),
            "{}"
        );

        fs_err::create_dir_all(staging.join("model")).unwrap();
        fs_err::os::unix::fs::symlink(
            fs_err::read_link(view.join("weights")).unwrap(),
            staging.join("model/weights"),
        )
        .unwrap();
        let (again, _) = store.commit_outputs(&staging, &outputs, &store).unwrap();
        assert_eq!(again["model"].files[0].digest, model.files[1].digest);
    }

    #[test]
    fn missing_outputs_and_links_out_of_the_store_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let staging = folder.path().join("try");
        let outputs = [Output::new("table", "table")];
        assert!(store.commit_outputs(&staging, &outputs, &store).is_err());
        fs_err::create_dir_all(staging.join("table")).unwrap();
        let link = staging.join("table/rows");
        // Both without objects and with them.
        for make_objects in [false, true] {
            if make_objects {
                fs_err::create_dir_all(folder.path().join("store/objects")).unwrap();
            }
            for leads_to in ["/etc/hostname", "/dev/zero", "nowhere"] {
                fs_err::os::unix::fs::symlink(leads_to, &link).unwrap();
                let error = store.list_outputs(&staging, &outputs).unwrap_err();
                let StageError::Failed { message, .. } = error else {
                    panic!("{error:?}");
                };
                assert_eq!(
                    message,
                    "output `table`: rows is a link that leads outside the store"
                );
                fs_err::remove_file(&link).unwrap();
            }
        }
    }

    #[test]
    fn long_work_ends_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let stop = Arc::new(AtomicBool::new(true));
        let store = Store::new(folder.path().join("store")).stopped_by(stop);
        fs_err::create_dir_all(folder.path().join("try/out")).unwrap();
        let file = fs_err::File::create(folder.path().join("try/out/o")).unwrap();
        // Nobody waits until so much is read.
        file.set_len(1 << 42).unwrap();
        let outputs = [Output::new("out", "file")];
        let staging = folder.path().join("try");
        assert!(store.commit_outputs(&staging, &outputs, &store).is_err());
        assert!(store.digest_outside(&staging, false).is_err());
        let (mut from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all(b"something").unwrap();
        assert!(store.copy_with_holes(&mut from, &mut to).is_err());
    }

    #[test]
    fn a_file_with_other_names_is_copied_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let staging = folder.path().join("try");
        fs_err::create_dir_all(staging.join("out")).unwrap();
        // A megabyte of nothing, something, and nothing again.
        let precious = folder.path().join("precious");
        let mut file = fs_err::File::create(&precious).unwrap();
        file.seek(std::io::SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(b"mine").unwrap();
        file.set_len(3 << 20).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o4755))
            .unwrap();
        let before = fs_err::metadata(&precious).unwrap();
        fs_err::hard_link(&precious, staging.join("out/o")).unwrap();
        let outputs = [Output::new("out", "file").foreign()];
        let (artifacts, _) = store.commit_outputs(&staging, &outputs, &store).unwrap();
        let file = &artifacts["out"].files[0];
        assert!(file.executable);
        let object = store.object_path(&file.digest);
        let stored = fs_err::metadata(&object).unwrap();
        assert_eq!(stored.permissions().mode() & 0o7777, 0o444);
        assert!(
            fs_err::read(object).unwrap() == fs_err::read(&precious).unwrap(),
            "the bytes differ"
        );
        assert!(stored.blocks() <= before.blocks() + 8, "holes were filled");
        let after = fs_err::metadata(&precious).unwrap();
        assert_eq!(
            (after.mode(), after.modified().unwrap(), after.ino()),
            (before.mode(), before.modified().unwrap(), before.ino())
        );
        assert_eq!(after.len(), 3 << 20);
    }

    #[test]
    fn executable_bits_and_empty_trees_of_programs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let staging = folder.path().join("try");
        let write = || {
            fs_err::create_dir_all(staging.join("tools")).unwrap();
            fs_err::create_dir_all(staging.join("none")).unwrap();
            fs_err::write(staging.join("tools/run"), "#!/bin/sh\n").unwrap();
            let mode = std::fs::Permissions::from_mode(0o700);
            fs_err::set_permissions(staging.join("tools/run"), mode).unwrap();
        };
        write();
        let outputs = ["tools", "none"].map(|name| Output::new(name, "file").foreign());
        let (artifacts, _) = store.commit_outputs(&staging, &outputs, &store).unwrap();
        let view = folder.path().join("view");
        store.lay_out(&artifacts["tools"], &view).unwrap();
        assert!(is_executable(&fs_err::metadata(view.join("run")).unwrap()));
        assert!(artifacts["none"].files.is_empty());
        let empty = folder.path().join("empty");
        store.lay_out(&artifacts["none"], &empty).unwrap();
        assert!(empty.is_dir());
        // What our own kinds write is no program, and never empty.
        write();
        let ours = [Output::new("tools", "file")];
        let (same, _) = store.commit_outputs(&staging, &ours, &store).unwrap();
        assert!(!same["tools"].files[0].executable);
        assert_ne!(same["tools"].digest, artifacts["tools"].digest);
        assert!(
            store
                .commit_outputs(&staging, &[Output::new("none", "file")], &store)
                .is_err()
        );
    }

    #[test]
    fn a_damaged_object_is_healed_by_the_next_commit_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let staging = folder.path().join("try");
        let outputs = [Output::new("table", "table")];
        let write = || {
            fs_err::create_dir_all(staging.join("table")).unwrap();
            fs_err::write(staging.join("table/rows"), "abc").unwrap();
        };
        write();
        let (artifacts, _) = store.commit_outputs(&staging, &outputs, &store).unwrap();
        let path = store.object_path(&artifacts["table"].files[0].digest);
        fs_err::remove_file(&path).unwrap();
        fs_err::write(&path, "abd").unwrap();
        assert!(
            store
                .check_object(&artifacts["table"].files[0].digest)
                .is_err()
        );
        write();
        store.commit_outputs(&staging, &outputs, &store).unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "abc");
    }
}
