//! Files and folders that a stage works on copies of: their digest, and the copies.
//!
//! What a program can see of its code is in the digest: bytes, names, links and executable bits; not owners, times and
//! other permissions. A stage reads the copy, and it is the copy that is digested before the stage begins, so that no
//! change of the original can slip in between.

use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use super::artifact::Digest;
use super::store::{digest_file, is_executable};

/// What programs and version control leave in a folder of code, which is neither digested nor copied.
const LEFT_OUT: [&str; 3] = [".git", ".flowgraph", "__pycache__"];

enum Entry {
    Folder,
    File {
        executable: bool,
    },
    /// A link within the folder.
    Link(PathBuf),
}

/// Something below a folder of code, by its relative path.
struct Found {
    path: PathBuf,
    entry: Entry,
}

/// Digests a file or folder of code; `digest_file` may know the digest of a file without reading it.
///
/// # Errors
/// What is neither a file, a folder nor a link to one, and whatever the file system refuses.
pub(super) fn digest(
    path: &Path,
    digest_file: &mut dyn FnMut(&Path) -> std::io::Result<Digest>,
) -> std::io::Result<String> {
    if let Some(executable) = file_at(path)? {
        return Ok(text(digest_file(path)?, executable));
    }
    digest_folder(&list(path)?, |found| digest_file(&path.join(&found.path)))
}

/// Copies a file or folder of code and digests the copy.
///
/// # Errors
/// As for [`digest`].
pub(crate) fn copy(from: &Path, to: &Path) -> std::io::Result<String> {
    if let Some(folder) = to.parent() {
        fs_err::create_dir_all(folder)?;
    }
    if let Some(executable) = file_at(from)? {
        copy_file(from, to, executable)?;
        return Ok(text(digest_file(to)?, executable));
    }
    let found = list(from)?;
    fs_err::create_dir_all(to)?;
    for Found { path, entry } in &found {
        let target = to.join(path);
        match entry {
            Entry::Folder => fs_err::create_dir_all(&target)?,
            Entry::File { executable } => copy_file(&from.join(path), &target, *executable)?,
            Entry::Link(leads_to) => fs_err::os::unix::fs::symlink(leads_to, &target)?,
        }
    }
    digest_folder(&found, |found| digest_file(&to.join(&found.path)))
}

/// Whether a file is executable; `None` for a folder.
fn file_at(path: &Path) -> std::io::Result<Option<bool>> {
    let metadata = fs_err::metadata(path)?;
    if metadata.is_file() {
        return Ok(Some(is_executable(&metadata)));
    }
    if metadata.is_dir() {
        return Ok(None);
    }
    Err(refused(path, "is neither a file nor a folder"))
}

fn copy_file(from: &Path, to: &Path, executable: bool) -> std::io::Result<()> {
    // The kernel copies, and shares the blocks where the file system can.
    fs_err::copy(from, to)?;
    // All that counts of the original's permissions.
    let mode = if executable { 0o755 } else { 0o644 };
    fs_err::set_permissions(to, std::fs::Permissions::from_mode(mode))
}

fn text(digest: Digest, executable: bool) -> String {
    let suffix = if executable { " executable" } else { "" };
    format!("blake3:{digest}{suffix}")
}

fn digest_folder(
    found: &[Found],
    mut digest_file: impl FnMut(&Found) -> std::io::Result<Digest>,
) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("flowgraph folder of code v1");
    let mut part = |part: &OsStr| {
        let bytes = part.as_encoded_bytes();
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for found in found {
        part(found.path.as_os_str());
        match &found.entry {
            Entry::Folder => part(OsStr::new("folder")),
            Entry::File { executable } => {
                part(OsStr::new(&text(digest_file(found)?, *executable)));
            }
            Entry::Link(leads_to) => {
                part(OsStr::new("link"));
                part(leads_to.as_os_str());
            }
        }
    }
    Ok(format!("blake3:{}", Digest::from(hasher.finalize())))
}

/// Lists what is below a folder, in an order that depends on names alone.
fn list(root: &Path) -> std::io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for entry in fs_err::read_dir(root.join(&folder))? {
            let name = entry?.file_name();
            if LEFT_OUT.iter().any(|left_out| name == *left_out) {
                continue;
            }
            let path = folder.join(name);
            let entry = entry_at(root, &path)?;
            if matches!(entry, Entry::Folder) {
                open.push(path.clone());
            }
            found.push(Found { path, entry });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn entry_at(root: &Path, path: &Path) -> std::io::Result<Entry> {
    let full = root.join(path);
    let kind = fs_err::symlink_metadata(&full)?.file_type();
    if !kind.is_symlink() {
        let file = file_at(&full)?;
        return Ok(file.map_or(Entry::Folder, |executable| Entry::File { executable }));
    }
    let leads_to = fs_err::read_link(&full)?;
    if stays_within(path.parent().unwrap_or(Path::new("")), &leads_to) {
        return Ok(Entry::Link(leads_to));
    }
    // The copy's link would lead elsewhere or to what is not digested: a file is copied instead.
    match file_at(&full)? {
        Some(executable) => Ok(Entry::File { executable }),
        None => Err(refused(
            &full,
            "is a link to a folder elsewhere; name that folder in `code`",
        )),
    }
}

/// Whether a link in `folder` leads to something below the folder of code.
fn stays_within(folder: &Path, leads_to: &Path) -> bool {
    let mut depth = folder.components().count();
    for component in leads_to.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn digest_of(path: &Path) -> String {
        digest(path, &mut digest_file).unwrap()
    }

    fn shell(folder: &Path, text: &str) {
        let status = Command::new("/bin/sh")
            .args(["-ec", text])
            .current_dir(folder)
            .status();
        assert!(status.unwrap().success(), "{text}");
    }

    #[test]
    fn what_a_program_can_see_changes_the_digest_and_nothing_else_does() {
        let space = tempfile::tempdir().unwrap();
        let folder = space.path().join("code");
        fs_err::create_dir(&folder).unwrap();
        shell(
            &folder,
            "mkdir sub empty; echo 1 > a; echo 2 > sub/b; ln -s ../a sub/link; echo 9 > ../outside",
        );
        let mut seen = vec![digest_of(&folder)];
        for change in [
            "echo 3 > a",
            "chmod +x a",
            "mv a c",
            "rmdir empty",
            "ln -sfn b sub/link",
            "rm sub/link",
            "mkdir sub/other",
            "ln -s ../outside d",
        ] {
            shell(&folder, change);
            let digest = digest_of(&folder);
            assert!(!seen.contains(&digest), "{change}");
            seen.push(digest);
        }
        for same in [
            "touch -d 2020-01-01 c sub",
            "chmod 600 sub/b",
            "chmod 700 c",
            "mkdir __pycache__ sub/.git; echo > __pycache__/x; echo > sub/.git/y",
        ] {
            shell(&folder, same);
            assert_eq!(digest_of(&folder), *seen.last().unwrap(), "{same}");
        }
    }

    #[test]
    fn a_copy_has_the_digest_of_its_original_and_none_of_its_other_traits() {
        let space = tempfile::tempdir().unwrap();
        let folder = space.path().join("code");
        fs_err::create_dir_all(&folder).unwrap();
        shell(
            &folder,
            "mkdir -p sub/deep empty .git; echo 1 > a; echo 2 > sub/deep/b; chmod 4711 a; chmod 600 sub/deep/b; \
             ln -s sub/deep here; ln -s nowhere dangling; echo x > ../outside; ln -s ../../outside sub/file; echo 3 > .git/c",
        );
        let copied = space.path().join("copy/of/code");
        assert_eq!(copy(&folder, &copied).unwrap(), digest_of(&folder));
        assert_eq!(digest_of(&copied), digest_of(&folder));
        let mode = |path: &str| {
            let metadata = fs_err::metadata(copied.join(path)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!((mode("a"), mode("sub/deep/b")), (0o755, 0o644));
        assert_eq!(
            fs_err::read_to_string(copied.join("here/b")).unwrap(),
            "2\n"
        );
        assert_eq!(
            fs_err::read_to_string(copied.join("sub/file")).unwrap(),
            "x\n"
        );
        assert!(!copied.join(".git").exists());
        assert!(copied.join("empty").is_dir());
        // A file by itself.
        let one = space.path().join("one");
        assert_eq!(
            copy(&folder.join("a"), &one).unwrap(),
            digest_of(&folder.join("a"))
        );
        assert!(digest_of(&folder.join("a")).ends_with(" executable"));
    }

    #[test]
    fn what_would_hang_or_lead_away_is_refused() {
        let space = tempfile::tempdir().unwrap();
        let folder = space.path().join("code");
        fs_err::create_dir(&folder).unwrap();
        let refused = |what: &str| {
            let error = digest(&folder, &mut digest_file).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        shell(&folder, "mkfifo pipe");
        refused("code/pipe is neither a file nor a folder");
        shell(&folder, "rm pipe; ln -s / all");
        refused("code/all is a link to a folder elsewhere");
        // Links in a ring are links within the folder.
        shell(&folder, "rm all; mkdir a; ln -s ../a a/a; ln -s . b");
        digest_of(&folder);
        assert!(digest(Path::new("/dev/zero"), &mut digest_file).is_err());
    }
}
