//! Whether a file's times tell of every change, which depends on where it lies.

use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Where a file lies: with its times and inode, what identifies its bytes.
///
/// - Disks (ext4, XFS, ...) renew a file's change time with every write, and nobody can set it. What is mounted only
///   for reading may be an image that is replaced by another with the same inodes and times, so that the mount counts
///   as well; images that nobody can write (squashfs, ISO 9660, ...) are such disks. The lower layers of an overlay
///   may be, so that its mount counts where the kernel can tell it.
/// - Network file systems have the server's times.
/// - In memory (tmpfs), writes through a map need not renew any time. FAT has no change time, and what a FUSE program
///   answers is its own affair. Files there, and on what is not known here, have no place: they are read each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    file_system: u64,
    /// The mount, of all since the machine was started, if only that tells an image from another.
    mount: Option<String>,
}

enum Family {
    Disk,
    Layers,
    Image,
    Network,
    Other,
}

fn family(magic: i64) -> Family {
    match magic {
        // ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, JFS, ReiserFS, NILFS.
        0xEF53 | 0x5846_5342 | 0x9123_683E | 0xF2F5_2010 | 0xCA45_1A4E | 0x2FC1_2FC1
        | 0x3153_464A | 0x5265_4973 | 0x3434 => Family::Disk,
        // overlay.
        0x794C_7630 => Family::Layers,
        // squashfs, ISO 9660, EROFS, cramfs, romfs, UDF.
        0x7371_7368 | 0x9660 | 0xE0F5_E1E2 | 0x28CD_3D45 | 0x7275 | 0x1501_3346 => Family::Image,
        // NFS, Lustre, GPFS, Ceph, AFS, 9P.
        0x6969 | 0x0BD0_0BD0 | 0x4750_4653 | 0x00C3_6400 | 0x5346_414F | 0x0102_1997 => {
            Family::Network
        }
        _ => Family::Other,
    }
}

/// Whether a folder lies on a disk that no other machine writes to, where locks of files are all that is needed.
pub fn is_of_this_machine(path: &Path) -> bool {
    /// `tmpfs`.
    const MEMORY: i64 = 0x0102_1994;
    // What does not exist yet will lie where its folder does.
    let there = path.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("."));
    rustix::fs::statfs(there).is_ok_and(|found| match family(found.f_type) {
        Family::Disk | Family::Layers | Family::Image => true,
        Family::Network => false,
        Family::Other => found.f_type == MEMORY,
    })
}

impl Place {
    /// Returns where a file lies, or `None` if its times do not tell of every change there.
    pub(super) fn of(path: &Path) -> std::io::Result<Option<Self>> {
        let magic = rustix::fs::statfs(path)?.f_type;
        let found = rustix::fs::statvfs(path)?;
        let is_read_only = found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        let mount = match (family(magic), is_read_only) {
            (Family::Disk, false) | (Family::Network, _) => None,
            (Family::Layers, false) => mount_of(path),
            (Family::Disk | Family::Layers | Family::Image, true) => match mount_of(path) {
                Some(mount) => Some(mount),
                None => return Ok(None),
            },
            (Family::Image, false) | (Family::Other, _) => return Ok(None),
        };
        Ok(Some(Self {
            file_system: found.f_fsid,
            mount,
        }))
    }
}

/// Names the mount that a path lies on, as no other is named; `None` where the kernel (before 6.8) cannot tell.
fn mount_of(path: &Path) -> Option<String> {
    const MNT_ID_UNIQUE: u32 = 0x4000;
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let flags = rustix::fs::StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
    let found = rustix::fs::statx(rustix::fs::CWD, path, rustix::fs::AtFlags::empty(), flags);
    let found = found
        .ok()
        .filter(|found| found.stx_mask & MNT_ID_UNIQUE != 0)?;
    let boot = BOOT.get_or_init(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok());
    let boot = boot.as_ref()?.trim();
    Some(format!("{} of {boot}", found.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_have_no_place() {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            assert_eq!(Place::of(memory).unwrap(), None);
        }
        assert_eq!(Place::of(Path::new("/proc/self/status")).unwrap(), None);
    }
}
