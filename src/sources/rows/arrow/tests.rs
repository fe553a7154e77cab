//! Types, folders of `save_to_disk`, and files that are not what they say.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::super::RowFiles;
use super::*;
use crate::hint::in_one_line;

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rows");
    folder.join(name)
}

/// The rows of a file, and what of them is no value.
fn read(path: &Path, columns: &[&str]) -> Result<Vec<Vec<Json>>, String> {
    let files = RowFiles::find(path, "DATA", None, None).map_err(|error| in_one_line(&error))?;
    let mut rows = Vec::new();
    let read = files.read_nested(columns, |row| {
        let values = row.values.into_iter().map(|value| match value {
            Ok(Some(value)) => value.parse().unwrap(),
            Ok(None) => Json::Null,
            Err(fault) => Json::from(format!("fault: {fault}")),
        });
        rows.push(values.collect());
        Ok(ControlFlow::Continue(()))
    });
    read.map_err(|error| in_one_line(&error))?;
    Ok(rows)
}

/// The names of the columns of a file, and those of them that are not of times.
fn columns(path: &Path) -> (Vec<String>, Vec<String>) {
    let files = RowFiles::find(path, "DATA", None, None).unwrap();
    let all = files.columns().unwrap();
    let read = all.iter().filter(|name| *name != "when").cloned();
    let read = read.collect();
    (all, read)
}

#[test]
fn every_type_is_read_as_it_would_be_as_json() {
    for (name, count) in [
        ("types.arrow", 16),
        ("types_file.arrow", 16),
        ("types.parquet", 14),
    ] {
        let path = fixture(name);
        let (all, names) = columns(&path);
        assert_eq!((all.len(), names.len()), (count + 1, count), "{name}");
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let expected = read(&fixture("types.jsonl"), &names).unwrap();
        assert_eq!(expected.len(), 3);
        let rows = read(&path, &names).unwrap();
        for (row, expected) in rows.iter().zip(&expected) {
            for (at, name) in names.iter().enumerate() {
                assert_eq!(row[at], expected[at], "{name}");
            }
        }
        assert_eq!(rows.len(), 3);
        let error = read(&path, &["text", "when"]).unwrap_err();
        assert!(error.starts_with("DATA: `when` holds "), "{error}");
        assert!(
            error
                .ends_with("hint: write the column as text, numbers, lists or structures of these"),
            "{error}"
        );
        let error = read(&path, &["texts"]).unwrap_err();
        assert!(
            error.starts_with("DATA: no column `texts`; found: text, large, "),
            "{error}"
        );
    }
}

#[test]
fn whole_numbers_and_words_are_texts_too() {
    let files = RowFiles::find(&fixture("types.arrow"), "DATA", None, None).unwrap();
    let mut rows = Vec::new();
    let taken = files.read(&["word", "whole", "structs"], |row| {
        rows.push(row.values);
        Ok(ControlFlow::Break(()))
    });
    taken.unwrap();
    let text = |text: &str| Ok(Some(text.to_owned()));
    let expected = [
        text("red"),
        text("9007199254740993"),
        Err("neither text nor a number"),
    ];
    assert_eq!(rows, [expected]);
}

#[test]
fn folders_of_save_to_disk_are_read_by_their_splits() {
    let texts = |folder: &str, split: Option<&str>| -> Result<Vec<Json>, String> {
        let files = RowFiles::find(&fixture(folder), "DATA", split, None);
        let mut texts = Vec::new();
        files
            .map_err(|error| in_one_line(&error))?
            .read_nested(&["text"], |mut row| {
                let value = row.values.remove(0).unwrap();
                texts.push(value.map_or(Json::Null, |value| value.parse().unwrap()));
                Ok(ControlFlow::Continue(()))
            })
            .map_err(|error| in_one_line(&error))?;
        Ok(texts)
    };
    let (one, three) = (Json::from("one"), Json::from("naïve"));
    assert_eq!(
        texts("saved/parts", None).unwrap(),
        [one.clone(), Json::Null, three.clone(), Json::from("")]
    );
    assert_eq!(
        texts("saved/splits", Some("train")).unwrap(),
        [one, Json::Null]
    );
    assert_eq!(texts("saved/splits", Some("hard")).unwrap(), [three]);
    for (folder, split, expected) in [
        (
            "saved/splits",
            None,
            "it has several splits; it has the splits train, hard; hint: choose one",
        ),
        (
            "saved/splits",
            Some("test"),
            "it has no split `test`; it has the splits train, hard",
        ),
        (
            "saved/parts",
            Some("train"),
            "it has no split `train`; it has the splits none",
        ),
    ] {
        let error = texts(folder, split).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_folder_names_no_file_outside_of_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["../data", "/etc/passwd", "a/b", ".."] {
        let state = serde_json::json!({ "_data_files": [{ "filename": name }] });
        fs_err::write(folder.path().join("state.json"), state.to_string()).unwrap();
        let error = RowFiles::find(folder.path(), "DATA", None, None).unwrap_err();
        assert!(
            in_one_line(&error).contains("which is not in it"),
            "{error}"
        );
    }
    // Rows of one's own may be called so.
    fs_err::write(folder.path().join("state.json"), "{\"text\": \"a\"}").unwrap();
    assert_eq!(read(folder.path(), &["text"]).unwrap(), [[Json::from("a")]]);
}

#[test]
fn packed_batches_are_refused() {
    assert_eq!(
        read(&fixture("packed.arrow"), &["text"]).unwrap_err(),
        "DATA: it has packed buffers, which is not read; hint: write it as parquet or JSON lines"
    );
}

#[test]
fn whatever_byte_is_wrong_or_missing_it_is_a_result_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let names = [
        "text", "view", "word", "tiny", "double", "list", "structs", "pair", "nothing",
    ];
    let tried = |bytes: &[u8]| {
        fs_err::write(&path, bytes).unwrap();
        let read = read(&path, &names);
        if let Err(error) = &read {
            assert!(error.starts_with("DATA"), "{error}");
        }
        read
    };
    let whole = fs_err::read(fixture("types.arrow")).unwrap();
    let rows = tried(&whole).unwrap();
    // The last eight bytes say that there is no further message.
    for end in (4..whole.len() - 8).step_by(13) {
        assert!(
            tried(&whole[..end]).map_or(true, |rows| rows.len() < 3),
            "{end}"
        );
    }
    let (mut refused, mut others) = (0, 0);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= [0xff, 0x01, 0x40][at % 3];
        match tried(&bytes) {
            Ok(found) => others += usize::from(found != rows),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 500 && others > 50, "{refused} {others}");
}

#[test]
fn a_length_that_is_not_there_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let whole = fs_err::read(fixture("types.arrow")).unwrap();
    for (length, expected) in [
        (u32::MAX - 1, "the header of a message has 4294967294 bytes"),
        (60 << 20, "it ends within a message"),
    ] {
        let mut bytes = whole.clone();
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(length));
        fs_err::write(&path, bytes).unwrap();
        let error = read(&path, &["text"]).unwrap_err();
        assert_eq!(error, format!("DATA: damaged: {expected}"));
    }
}
