//! Small disks of their own, mounted for a test and unmounted at its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::space::wait_until;

/// A mounted disk.
pub(crate) struct Disk {
    at: PathBuf,
    image: Option<PathBuf>,
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let ok = output.status.success();
    ok.then_some(())
        .ok_or_else(|| format!("{command:?}: {said}"))
}

impl Disk {
    /// A disk in memory; `None` where none may be mounted.
    pub(crate) fn in_memory(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        done(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "tmpfs"])
                .arg(at),
        )
        .ok()?;
        Some(Self {
            at: at.to_owned(),
            image: None,
        })
    }

    /// A disk with a journal in the file `image`, which keeps what it was not asked to sync to itself for minutes.
    pub(crate) fn with_journal(at: &Path, image: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let file = fs::File::create(&image).and_then(|file| file.set_len(64 << 20));
        file.map_err(|error| error.to_string())?;
        done(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let disk = Self {
            at: at.to_owned(),
            image: Some(image),
        };
        disk.mount()?;
        Ok(disk)
    }

    /// Makes an image of a folder's file `f` that says nothing of when it was made.
    pub(crate) fn image_of(folder: &Path, image: &Path) -> Result<(), String> {
        let file = fs::File::create(image).and_then(|file| file.set_len(1 << 20));
        file.map_err(|error| error.to_string())?;
        let id = "01234567-89ab-cdef-0123-456789abcdef";
        done(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-U", id, "-d"])
                .args([folder, image]),
        )?;
        for field in ["ctime", "mtime", "ctime_extra", "mtime_extra"] {
            let value = if field.ends_with("extra") {
                "0"
            } else {
                "@1700000000"
            };
            let request = format!("set_inode_field f {field} {value}");
            done(
                Command::new("debugfs")
                    .args(["-w", "-R", &request])
                    .arg(image),
            )?;
        }
        Ok(())
    }

    /// Mounts an image for reading alone.
    pub(crate) fn of_image(at: &Path, image: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        done(
            Command::new("mount")
                .args(["-o", "loop,ro"])
                .args([&image, at]),
        )?;
        Ok(Self {
            at: at.to_owned(),
            image: Some(image),
        })
    }

    fn mount(&self) -> Result<(), String> {
        let image = self
            .image
            .as_ref()
            .ok_or("a disk in memory cannot come back")?;
        let options = "loop,commit=300,noauto_da_alloc";
        done(
            Command::new("mount")
                .args(["-o", options])
                .arg(image)
                .arg(&self.at),
        )
    }

    fn unmount(&self) -> Result<(), String> {
        done(Command::new("umount").arg(&self.at))
    }

    /// Ends the disk as a power cut does: what is neither synced nor in its journal is gone.
    #[expect(unsafe_code, reason = "there is no safe call for this")]
    pub(crate) fn cut_power(&self) {
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        const WITHOUT_FLUSHING_THE_JOURNAL: u32 = 2;
        let folder = fs::File::open(&self.at).unwrap();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&folder);
        // SAFETY: the call reads one number, which outlives it.
        let code = unsafe { libc::ioctl(descriptor, SHUTDOWN, &WITHOUT_FLUSHING_THE_JOURNAL) };
        assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    }

    /// Mounts the disk again after a power cut; those who used it are dead, but perhaps some of their threads are not.
    pub(crate) fn come_back(&self) {
        wait_until("the disk can be unmounted", || self.unmount().ok());
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}
