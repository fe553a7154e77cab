//! Local sources, held open: the files that are digested are the files that the stage reads.
//!
//! A path can lead elsewhere for a while and back again, since links are turned and folders renamed; the times of the
//! files at either end tell nothing of it. So the stage gets links to open files instead of the path.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::engine::limits;
use crate::engine::stage::StageError;
use crate::engine::store::ObjectStat;
use crate::files::irregular;

/// A file or folder of a source.
pub(super) struct Held {
    path: PathBuf,
    files: Vec<(File, ObjectStat)>,
}

impl Held {
    /// Opens what is at `source`, and lays out links to it below `folder`, under the names that it has there.
    pub(super) fn open(source: &Path, folder: &Path) -> Result<Self, StageError> {
        allow_many_files();
        let mut held = Self {
            path: folder.join(source.file_name().unwrap_or("source".as_ref())),
            files: Vec::new(),
        };
        fs_err::create_dir_all(folder)?;
        held.lay_out(source, &held.path.clone())?;
        Ok(held)
    }

    fn lay_out(&mut self, source: &Path, at: &Path) -> Result<(), StageError> {
        // Neither waits for the writer of a pipe nor asks for the right to read.
        let opened = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let file = File::from(opened.map_err(|error| {
            limits::explain(&format!("cannot open {}", source.display()), &error.into())
        })?);
        let metadata = file.metadata()?;
        if metadata.is_file() {
            let open = format!("/proc/self/fd/{}", file.as_raw_fd());
            fs_err::os::unix::fs::symlink(open, at)?;
            self.files.push((file, ObjectStat::of(&metadata)));
            return Ok(());
        }
        if !metadata.is_dir() {
            return Err(irregular(source, metadata.file_type()).into());
        }
        fs_err::create_dir(at)?;
        for entry in fs_err::read_dir(source)? {
            let name = entry?.file_name();
            self.lay_out(&source.join(&name), &at.join(&name))?;
        }
        Ok(())
    }

    /// Where the stage finds it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether no file was written to since, as far as its times tell. Nobody can set the time of the last change back.
    pub(super) fn is_unchanged(&self) -> std::io::Result<bool> {
        for (file, before) in &self.files {
            if !ObjectStat::of(&file.metadata()?).is_like(before) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A folder may hold more files than a shell's usual limit lets a program open.
fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused, the limit is named when it is met.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sources(tempfile::TempDir);

    impl Sources {
        fn new() -> Self {
            let space = Self(tempfile::tempdir().unwrap());
            for version in ["v1", "v2"] {
                fs_err::create_dir_all(space.at(&format!("{version}/parts"))).unwrap();
                fs_err::write(space.at(&format!("{version}/parts/a.csv")), version).unwrap();
            }
            space.link("v1");
            space
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn link(&self, to: &str) {
            fs_err::os::unix::fs::symlink(to, self.at("new")).unwrap();
            fs_err::rename(self.at("new"), self.at("current")).unwrap();
        }

        fn hold(&self, source: &str) -> Held {
            Held::open(&self.at(source), &self.at("held")).unwrap()
        }
    }

    #[test]
    fn what_is_read_stays_the_same_file_when_the_path_leads_to_another() {
        for (source, file) in [("current/parts/a.csv", ""), ("current", "parts/a.csv")] {
            let space = Sources::new();
            let held = space.hold(source);
            let read = || fs_err::read_to_string(held.path().join(file).components()).unwrap();
            space.link("v2");
            assert_eq!(read(), "v1");
            space.link("v1");
            // A parent folder instead of a link.
            fs_err::rename(space.at("v1"), space.at("v3")).unwrap();
            fs_err::rename(space.at("v2"), space.at("v1")).unwrap();
            assert_eq!(read(), "v1");
            assert!(held.is_unchanged().unwrap());
        }
    }

    #[test]
    fn a_file_that_was_another_meanwhile_shows_it() {
        let space = Sources::new();
        let held = space.hold("v1");
        let file = space.at("v1/parts/a.csv");
        // Longer than a tick of the file system's clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = fs_err::metadata(&file).unwrap().modified().unwrap();
        fs_err::write(&file, "B").unwrap();
        fs_err::write(&file, "v1").unwrap();
        let opened = std::fs::File::options().write(true).open(&file);
        opened.unwrap().set_modified(modified).unwrap();
        assert!(!held.is_unchanged().unwrap());
    }

    #[test]
    fn pipes_are_refused_and_never_waited_for() {
        let space = Sources::new();
        let made = std::process::Command::new("mkfifo")
            .arg(space.at("v1/pipe"))
            .status();
        assert!(made.unwrap().success());
        assert!(Held::open(&space.at("v1"), &space.at("held")).is_err());
    }
}
