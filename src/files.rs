//! Files that people and the world outside name: only regular ones are opened, and no more of them is read than asked for.
//!
//! Opening a pipe waits for a writer, a device may never end, and neither has bytes that a digest could stand for.

use std::fs::{FileType, Metadata, Permissions};
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Returns what is known of a file, a link followed.
///
/// # Errors
/// Pipes, devices, sockets and folders: the message names the path and what it is.
pub fn regular(path: &Path) -> Result<Metadata> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        let message = format!("failed to open file `{}`: {error}", path.display());
        Error::new(error.kind(), message)
    })?;
    if metadata.is_file() {
        Ok(metadata)
    } else {
        Err(irregular(path, metadata.file_type()))
    }
}

/// The error about something that is no regular file.
pub fn irregular(path: &Path, kind: FileType) -> Error {
    let what = if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "no file"
    };
    let path = path.display();
    Error::new(
        ErrorKind::InvalidInput,
        format!("{path} is {what}, expected a regular file"),
    )
}

/// Reads a regular file of text.
///
/// # Errors
/// More than `most` bytes, and what is not UTF-8, named by the path.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    regular(path)?;
    let mut bytes = Vec::new();
    fs_err::File::open(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)?;
    let fault = |what: String| {
        let path = path.display();
        Error::new(ErrorKind::InvalidData, format!("{path} {what}"))
    };
    if bytes.len() as u64 > most {
        return Err(fault(format!("is longer than {most} bytes")));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(fault("is UTF-16: save it as UTF-8".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        fault(format!(
            "is not UTF-8 from byte {} on",
            error.utf8_error().valid_up_to()
        ))
    })
}

/// Writes a file of the user's, readable for all: whole or not at all.
///
/// # Errors
/// What the file system refuses, with the path.
pub fn write_whole(path: &Path, from: &mut dyn Read) -> Result<()> {
    let mut write = || -> Result<()> {
        // What is there and no file (`/dev/stdout`, a pipe) cannot be replaced by one.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            std::io::copy(from, &mut std::fs::File::create(path)?)?;
            return Ok(());
        }
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        std::io::copy(from, temporary.as_file_mut())?;
        temporary
            .as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        temporary.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|error| {
        let message = format!("cannot write {}: {error}", path.display());
        Error::new(error.kind(), message)
    })
}

/// Reads the last bytes of a file, at most so many, and says how many stand before them.
pub fn last_bytes(path: &Path, most: u64) -> Result<(Vec<u8>, u64)> {
    let mut file = fs_err::File::open(path)?;
    let before = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(before))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok((bytes, before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_named_and_never_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (pipe.as_path(), "a named pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
            (folder.path(), "a folder"),
        ] {
            let error = read_text(path, 10).unwrap_err().to_string();
            let expected = format!("{} is {what}, expected a regular file", path.display());
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn texts_are_read_up_to_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs_err::write(&path, "twelve bytes").unwrap();
        assert_eq!(read_text(&path, 12).unwrap(), "twelve bytes");
        let error = read_text(&path, 11).unwrap_err().to_string();
        assert!(error.ends_with("text is longer than 11 bytes"), "{error}");
        fs_err::write(&path, b"caf\xe9").unwrap();
        let error = read_text(&path, 12).unwrap_err().to_string();
        assert!(
            error.ends_with("text is not UTF-8 from byte 3 on"),
            "{error}"
        );
        fs_err::write(&path, b"\xff\xfen\0").unwrap();
        let error = read_text(&path, 12).unwrap_err().to_string();
        assert!(
            error.ends_with("text is UTF-16: save it as UTF-8"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_whole_stays_as_it_was() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> Result<usize> {
                Err(Error::other("no more"))
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/file");
        write_whole(&path, &mut "one".as_bytes()).unwrap();
        let error = write_whole(&path, &mut "two".as_bytes().chain(Broken)).unwrap_err();
        let expected = format!("cannot write {}: no more", path.display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "one");
        let beside = fs_err::read_dir(folder.path().join("sub")).unwrap().count();
        assert_eq!(beside, 1);
        write_whole(Path::new("/dev/null"), &mut "".as_bytes()).unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
