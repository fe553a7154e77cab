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
            "it has no split `train`: it is one data set, of no split; hint: leave `split` out",
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

/// Copies a folder of `save_to_disk`, changed.
fn saved(change: impl Fn(&Path)) -> Result<Vec<Vec<Json>>, String> {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(fixture("saved/parts")).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    change(folder.path());
    read(folder.path(), &["text"])
}

#[test]
fn a_saved_folder_that_is_not_whole_is_refused() {
    let with_state = |key: &str, value: Json| {
        saved(|folder| {
            let path = folder.join("state.json");
            let mut state: Json =
                serde_json::from_str(&fs_err::read_to_string(&path).unwrap()).unwrap();
            state[key] = value.clone();
            fs_err::write(path, state.to_string()).unwrap();
        })
    };
    for indices in [Json::Null, serde_json::json!([])] {
        assert_eq!(with_state("_indices_files", indices).unwrap().len(), 4);
    }
    for key in ["_indices_files", "_indices_data_files"] {
        let indices = serde_json::json!([{ "filename": "indices.arrow" }]);
        let error = with_state(key, indices).unwrap_err();
        let expected = format!(
            "DATA: its rows are a selection of those in its files, by `{key}` of state.json, which is not read; hint: save \
             `dataset.flatten_indices()` instead"
        );
        assert_eq!(error, expected);
    }
    let damaged = |reason: &str, change: fn(&Path)| {
        let error = saved(change).unwrap_err();
        assert!(error.starts_with(&format!("DATA{reason}")), "{error}");
    };
    damaged(": damaged: state.json cannot be read: EOF", |folder| {
        fs_err::write(folder.join("state.json"), "{").unwrap();
    });
    damaged(
        ": damaged: state.json names \"data-00001-of-00002.arrow\", which is not there",
        |folder| fs_err::remove_file(folder.join("data-00001-of-00002.arrow")).unwrap(),
    );
    damaged(
        "/data-00001-of-00002.arrow: damaged: it is empty",
        |folder| fs_err::write(folder.join("data-00001-of-00002.arrow"), "").unwrap(),
    );
    damaged(": damaged: dataset_dict.json cannot be read: ", |folder| {
        fs_err::write(folder.join("dataset_dict.json"), "[]").unwrap();
        fs_err::create_dir(folder.join("train")).unwrap();
        let state = folder.join("state.json");
        fs_err::rename(state, folder.join("train/state.json")).unwrap();
    });
}

#[test]
fn a_file_that_is_cut_off_is_never_taken_for_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    for (name, expected) in [
        ("types_file.arrow", "it is cut off"),
        ("types.arrow", "it "),
    ] {
        let whole = fs_err::read(fixture(name)).unwrap();
        let starts = (0..whole.len() - 4).filter(|at| whole[*at..].starts_with(&MESSAGE));
        let starts: Vec<usize> = starts.chain([whole.len() - 1]).collect();
        // The schema, its dictionary, two batches, and the end.
        assert!(starts.len() > 4, "{starts:?}");
        for end in starts.into_iter().filter(|end| *end > 8) {
            fs_err::write(&path, &whole[..end]).unwrap();
            let error = read(&path, &["text"]).unwrap_err();
            assert!(
                error.starts_with(&format!("DATA: damaged: {expected}")),
                "{error}"
            );
        }
    }
    let whole = fs_err::read(fixture("types_file.arrow")).unwrap();
    let starts = (0..whole.len() - 4).filter(|at| whole[*at..].starts_with(&MESSAGE));
    let starts: Vec<usize> = starts.collect();
    let [.., last, end] = starts[..] else {
        panic!("{starts:?}");
    };
    // A batch is lost from its middle, and the footer is there.
    let bytes = [&whole[..last], &whole[end..]].concat();
    fs_err::write(&path, bytes).unwrap();
    assert_eq!(
        read(&path, &["text"]).unwrap_err(),
        "DATA: damaged: it has 1 batches of rows, its footer names 2"
    );
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
