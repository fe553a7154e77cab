//! Documents of models from outside: only regular files are opened, and what is parsed is bounded first.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::files::regular;

/// Bytes of the largest configuration; a parsed document takes up to forty times as many.
const LARGEST_CONFIGURATION: u64 = 4 << 20;
/// Bytes of the largest `tokenizer.json`; those of today's largest vocabularies have a third of them.
const LARGEST_TOKENIZER: u64 = 128 << 20;
/// Bytes of the largest SentencePiece file; XLM-R's and Gemma's have five million.
const LARGEST_PIECES: u64 = 32 << 20;
/// Values in the largest `tokenizer.json`: tokens, ids, merges and their halves.
const MOST_VALUES: usize = 3 << 20;
/// What an entry of an object, and an object that has one, count for: so much more memory than a value of a list they take.
const ENTRY: usize = 3;
const OBJECT: usize = 6;

/// Opens a regular file, or says what the path names instead.
pub(crate) fn open_file(path: &Path) -> io::Result<fs_err::File> {
    regular(path)?;
    fs_err::File::open(path)
}

/// Reads a configuration, such as `config.json`, whole.
pub(crate) fn read_configuration(path: &Path) -> io::Result<Vec<u8>> {
    read(path, LARGEST_CONFIGURATION)
}

/// Reads a `tokenizer.json` whole.
pub(crate) fn read_tokenizer(path: &Path) -> io::Result<Vec<u8>> {
    read(path, LARGEST_TOKENIZER)
}

/// Reads a SentencePiece file whole.
pub(crate) fn read_pieces(path: &Path) -> io::Result<Vec<u8>> {
    read(path, LARGEST_PIECES)
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long, however long it grows meanwhile.
    open_file(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!(
            "{}: more than {} MiB, expected a model's document",
            path.display(),
            most >> 20
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}

/// Checks that a JSON document is one and has no more values than a tokenizer's may, without keeping any.
pub(crate) fn check_values(document: &[u8]) -> serde_json::Result<()> {
    let left = Cell::new(MOST_VALUES);
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    Values(&left).deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Takes one from what is left for every value beneath it.
#[derive(Clone, Copy)]
struct Values<'a>(&'a Cell<usize>);

impl Values<'_> {
    fn count<E: Error>(self) -> Result<(), E> {
        self.count_as(1)
    }

    fn count_as<E: Error>(self, values: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(values);
        self.0
            .set(left.ok_or_else(|| E::custom(format!("more than {MOST_VALUES} values")))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.count()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.count()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.count()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.count()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.count()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.count()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        self.count()?;
        while values.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.count_as(OBJECT)?;
        while entries.next_key::<IgnoredAny>()?.is_some() {
            // The value counts for itself.
            self.count_as(ENTRY - 1)?;
            entries.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_named_and_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("config.json");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for (path, found) in [
            (pipe.as_path(), "a named pipe"),
            (folder.path(), "a folder"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = read_configuration(path).unwrap_err().to_string();
            let expected = format!("{} is {found}, expected a regular file", path.display());
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_document_is_bounded_before_it_is_parsed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let file = fs_err::File::create(&path).unwrap();
        file.set_len(LARGEST_CONFIGURATION).unwrap();
        assert!(read_configuration(&path).is_ok());
        file.set_len(LARGEST_CONFIGURATION + 1).unwrap();
        let error = read_configuration(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("more than 4 MiB, expected a model's document"),
            "{error}"
        );
        // Gemma's pieces are longer than any configuration.
        file.set_len(LARGEST_PIECES).unwrap();
        assert!(read_pieces(&path).is_ok());
        file.set_len(LARGEST_PIECES + 1).unwrap();
        assert!(read_pieces(&path).is_err());
    }

    #[test]
    fn values_are_counted_wherever_they_are() {
        // An object of two entries, one of which is a list.
        let around = OBJECT + 2 * ENTRY;
        let document = |values: usize| {
            format!(
                "{{\"a\":[{}0],\"b\":null}}",
                "0,".repeat(values - around - 1)
            )
        };
        check_values(document(MOST_VALUES).as_bytes()).unwrap();
        let error = check_values(document(MOST_VALUES + 1).as_bytes()).unwrap_err();
        assert!(
            error.to_string().starts_with("more than 3145728 values"),
            "{error}"
        );
        assert!(check_values(b"[1] 2").is_err());
        // Eleven megabytes of these would take a gigabyte.
        let objects = |count: usize| format!("[{}0]", "{\"\":0},".repeat(count));
        let most = (MOST_VALUES - 2) / (OBJECT + ENTRY);
        check_values(objects(most).as_bytes()).unwrap();
        assert!(check_values(objects(most + 1).as_bytes()).is_err());
    }
}
