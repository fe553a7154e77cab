use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use polars::prelude::{DataFrame, NamedFrom, ParquetCompression, ParquetWriter, Series};

use super::*;
use crate::hint::in_one_line;

const COLUMNS: [&str; 2] = ["id", "text"];

fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs_err::write(&path, bytes).unwrap();
    (folder, path)
}

/// The first `most` rows, and how many before them were left out.
fn first(bytes: &[u8], most: usize) -> Result<(Vec<Vec<String>>, usize), String> {
    let (_folder, path) = written("data", bytes);
    let mut rows = Vec::new();
    let files = RowFiles::find(&path, "DATA", None, None).unwrap();
    let mut allowance = files.allowance();
    let mut left_out = 0;
    let read = files.read(&COLUMNS, |mut row| {
        let values = match row.whole(COLUMNS) {
            Ok(values) => values,
            Err(Lacking::Faulty(fault)) => return Err(row.error(fault)),
            Err(Lacking::Empty(_)) => {
                left_out += 1;
                return Ok(ControlFlow::Continue(()));
            }
        };
        allowance.keep(&row.file, values.iter().map(String::len).sum())?;
        rows.push(values.to_vec());
        Ok(if rows.len() == most {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    });
    match read {
        Ok(()) => Ok((rows, left_out)),
        Err(error) => Err(in_one_line(&error)),
    }
}

fn read(bytes: &[u8]) -> Result<Vec<Vec<String>>, String> {
    first(bytes, usize::MAX).map(|(rows, _)| rows)
}

fn parquet(texts: &[Option<&str>]) -> Vec<u8> {
    let ids: Vec<i64> = (0..texts.len() as i64).collect();
    let columns = vec![
        Series::new("text".into(), texts).into(),
        Series::new("id".into(), ids).into(),
        Series::new("other".into(), vec![0.5f64; texts.len()]).into(),
    ];
    let mut frame = DataFrame::new(texts.len(), columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    bytes
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

const LINES: &str =
    "{\"text\": \"a, b\", \"id\": 0}\n\n{\"id\": \"1\", \"more\": [{}], \"text\": \"c\\nd\"}";
const CSV: &str = ",id,text\n7,0,\"a, b\"\n8,1,\"c\nd\"\n";

#[test]
fn every_format_gives_the_same_rows() {
    let expected = vec![vec!["0", "a, b"], vec!["1", "c\nd"]];
    let objects: Vec<&str> = LINES.split("\n\n").collect();
    let array = format!(" [{}\n, {}] \n", objects[0], objects[1]);
    for text in [
        CSV,
        &CSV.replace('\n', "\r\n").replace("c\r", "c"),
        LINES,
        &array,
    ] {
        assert_eq!(read(text.as_bytes()).unwrap(), expected, "{text}");
        let marked = format!("\u{feff}{text}");
        assert_eq!(read(marked.as_bytes()).unwrap(), expected, "{marked}");
        assert_eq!(read(&gzip(&marked)).unwrap(), expected, "{text}");
    }
    assert_eq!(
        read(&parquet(&[Some("a, b"), Some("c\nd")])).unwrap(),
        expected
    );
}

#[test]
fn rows_with_an_empty_cell_are_left_out_and_counted() {
    let csv = b"id,text\n0,a\n1,\n\n2,b\n,\n3\n4,\"\"\n5,c".to_vec();
    let lines = b"{\"id\": 0, \"text\": \"a\"}\n{\"id\": null, \"text\": \"x\"}\n\n{\"id\": 2, \"text\": \"b\"}\n\
                  {\"id\": 5, \"text\": \"c\"}";
    let array = b"[{\"id\": 0, \"text\": \"a\"}, {\"id\": 1, \"text\": null}, {\"id\": 2, \"text\": \"b\"}, \
                  {\"id\": 5, \"text\": \"c\"}]";
    let expected = [["0", "a"], ["2", "b"], ["5", "c"]].map(|row| row.map(str::to_owned).to_vec());
    let left_out = |bytes: &[u8], count| {
        assert_eq!(first(bytes, 9).unwrap(), (expected.to_vec(), count));
    };
    left_out(&csv, 4);
    left_out(lines, 1);
    left_out(array, 1);
    let nulls = parquet(&[Some("a"), None, Some("b")]);
    let (rows, count) = first(&nulls, 9).unwrap();
    assert_eq!((rows, count), (expected[..2].to_vec(), 1));
}

#[test]
fn faults_name_file_and_row() {
    for (bytes, message) in [
        (
            b"id,words\n0,a\n".to_vec(),
            "DATA: no column `text`; found: id, words",
        ),
        (
            b"id,text\n0,a\n1,b,c\n".to_vec(),
            "DATA, row 2: 3 values under 2 names",
        ),
        (
            b"id,text\n0,\"a\"\"\nb\"\n1,\"c\n2,d\n".to_vec(),
            "DATA, row 2: opens a quote that is not closed before the end of the file",
        ),
        (
            b"id,\"text\n0,a\n".to_vec(),
            "DATA: damaged: its first line opens a quote that is not closed",
        ),
        (
            b"id,text,text\n0,a,b\n".to_vec(),
            "DATA: damaged: several columns are named `text`",
        ),
        (
            b"id,text\n0,a\n\n1,caf\xe9\n".to_vec(),
            "DATA, row 2: `text` is not UTF-8",
        ),
        (
            b"{\"id\": 0, \"text\": \"a\"}\n{\"id\": 1, \"text\": ".to_vec(),
            "DATA, row 2: EOF while parsing a value",
        ),
        (b"{\"id\": 0}".to_vec(), "DATA, row 1: `text` is missing"),
        (
            b"{\"id\": 0, \"text\": [1]}".to_vec(),
            "DATA, row 1: `text` is neither text nor a number",
        ),
        (
            b"[{\"id\": 0, \"text\": \"a\"}, 7]".to_vec(),
            "DATA, row 2: `id` is not there: the row is no object",
        ),
        (
            b"{\"id\": 0, \"text\": \"a\"}\n[{\"id\": 1}]\n".to_vec(),
            "DATA, row 2: `id` is not there: the row is no object",
        ),
        (
            b"{\"id\": 0, \"text\": \"a\"}\n{\"id\": 1, \"text\": caf\xe9}\n".to_vec(),
            "DATA, row 2: not UTF-8 (expected value at column 19)",
        ),
        (
            b"{\"id\": 0, \"text\": \"a \\ud83d b\"}\n".to_vec(),
            "DATA, row 1: `text` is text with one half of a surrogate pair",
        ),
        (
            b"".to_vec(),
            "DATA: damaged: it is empty, it has not one byte",
        ),
        (gzip(""), "DATA: damaged: it is empty, it has not one byte"),
        (
            b"\xff\xfei\0d\0,\0".to_vec(),
            "DATA: it is UTF-16, expected UTF-8; hint: write it as UTF-8: `iconv",
        ),
        (
            b"\0i\0d\0,".to_vec(),
            "DATA: it holds zero bytes, which no text in UTF-8 does",
        ),
        (gzip("id,te\0xt\n"), "DATA: it holds zero bytes"),
        (
            b"[{\"id\": 0, \"text\": \"a\"}".to_vec(),
            "DATA, row 2: EOF while parsing a list",
        ),
        (b"[] []".to_vec(), "DATA, row 1: trailing characters"),
        (
            b"\x28\xb5\x2f\xfd....".to_vec(),
            "DATA: it is packed with zstd, which is not read; hint: unpack it",
        ),
    ] {
        let error = read(&bytes).unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn halves_of_letters_are_told_from_whole_ones() {
    let text = |json: &str| {
        let line = format!("{{\"id\": 0, \"text\": \"{json}\"}}");
        let (_folder, path) = written("data", line.as_bytes());
        let files = RowFiles::find(&path, "DATA", None, None).unwrap();
        let mut found = Vec::new();
        let read = files.read_fields(&["text"], |row| {
            found.push(row.map(|row| row.values[0].text().unwrap()));
            Ok(ControlFlow::Continue(()))
        });
        read.unwrap();
        found.remove(0).map_err(|error| in_one_line(&error))
    };
    for (json, expected) in [
        (r"\ud83d\ude00", "\u{1f600}"),
        (r"\uD83D\uDE00\u00e9", "\u{1f600}é"),
        (r"\\ud83d \u005cud83d", r"\ud83d \ud83d"),
        (r"\\\ud83d\ude00", "\\\u{1f600}"),
    ] {
        assert_eq!(text(json).unwrap(), expected);
    }
    for json in [
        r"\ud83d",
        r"\ude00",
        r"\ud83d \ude00",
        r"\ude00\ud83d",
        r"\ud83d\\ude00",
        r"\ud83d\n",
        r"\\\ud83d",
    ] {
        let error = text(json).unwrap_err();
        assert!(
            error.contains("one half of a surrogate pair"),
            "{json}: {error}"
        );
    }
}

#[test]
fn whole_numbers_are_those_that_are_told_apart() {
    let whole = |text: &str| {
        let typed = Field::Written(text.to_owned()).whole();
        let (_folder, path) = written("data", format!("{{\"id\": {text}}}").as_bytes());
        let files = RowFiles::find(&path, "DATA", None, None).unwrap();
        let read = files.read_fields(&["id"], |row| {
            assert_eq!(row?.values[0].whole(), typed);
            Ok(ControlFlow::Continue(()))
        });
        read.unwrap();
        typed
    };
    for (text, expected) in [
        ("7", Some(7.0)),
        ("7.0", Some(7.0)),
        ("1e3", Some(1000.0)),
        ("9007199254740992", Some(9_007_199_254_740_992.0)),
        ("9007199254740993", None),
        ("9007199254740992.5", None),
        ("18446744073709551616", None),
        ("-1", None),
        ("0.5", None),
    ] {
        assert_eq!(whole(text), expected, "{text}");
    }
}

#[test]
fn numbers_beyond_63_bits_keep_their_digits() {
    let columns = vec![Series::new("id".into(), [u64::MAX, 1 << 63, 7]).into()];
    let mut frame = DataFrame::new(3, columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    let (_folder, path) = written("data", &bytes);
    let files = RowFiles::find(&path, "DATA", None, None).unwrap();
    let mut found = Vec::new();
    let read = files.read_fields(&["id"], |row| {
        found.push(row?.values[0].to_text().unwrap());
        Ok(ControlFlow::Continue(()))
    });
    read.unwrap();
    assert_eq!(found, ["18446744073709551615", "9223372036854775808", "7"]);
}

#[test]
fn a_long_header_is_not_repeated_whole() {
    let header = format!("{},{}", "x".repeat(1000), "y,".repeat(1000));
    let error = read(header.as_bytes()).unwrap_err();
    assert!(
        error.len() < 400 && error.contains("and 972 more"),
        "{error}"
    );
}

#[test]
fn numbers_keep_their_digits() {
    let long = "123456789012345678901234567890";
    let line = format!("{{\"id\": 1e2, \"text\": -{long}}}");
    assert_eq!(
        read(line.as_bytes()).unwrap(),
        [["100.0".to_owned(), format!("-{long}")]]
    );
}

/// Pages of text, one row group for each.
fn groups(texts: &[&str]) -> Vec<u8> {
    let ids: Vec<i64> = (0..texts.len() as i64).collect();
    let columns = vec![
        Series::new("text".into(), texts).into(),
        Series::new("id".into(), ids).into(),
    ];
    let mut frame = DataFrame::new(texts.len(), columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Uncompressed)
        .with_row_group_size(Some(1))
        .finish(&mut frame)
        .unwrap();
    bytes
}

#[test]
fn nothing_is_read_beyond_what_is_wanted() {
    let mut whole = gzip(&"{\"id\": 0, \"text\": \"a\"}\n".repeat(100_000));
    whole.truncate(whole.len() / 2);
    assert_eq!(first(&whole, 2).unwrap().0.len(), 2);
    assert!(first(&whole, usize::MAX).is_err());
    let mut bytes = groups(&["first text", "other text"]);
    assert_eq!(first(&bytes, 2).unwrap().0[1][1], "other text");
    let other = bytes.windows(10).position(|text| text == b"other text");
    // Its length becomes nonsense.
    bytes[other.unwrap() - 2] = 0xff;
    assert_eq!(first(&bytes, 1).unwrap().0[0][1], "first text");
    assert!(first(&bytes, 2).is_err());
}

#[test]
fn many_small_row_groups_are_read() {
    // Work that grew with their square would show: minutes.
    let texts: Vec<String> = (0..2000).map(|row| format!("text {row}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let bytes = groups(&texts);
    let rows = read(&bytes).unwrap();
    assert!(rows.iter().map(|row| row[1].as_str()).eq(texts));
}

#[test]
fn what_unpacks_to_too_much_is_refused_before_it_is_unpacked() {
    let huge = "a".repeat(50 << 20);
    let line = format!("{{\"id\": 0, \"text\": \"{huge}\"}}");
    let error = read(&gzip(&line)).unwrap_err();
    assert_eq!(error, "DATA, row 1: the line is longer than 32 MiB");
    let error = read(&gzip(&format!("[{line}]"))).unwrap_err();
    let expected = "DATA, row 1: the row is longer than 32 MiB";
    assert!(error.starts_with(expected), "{error}");
    let error = read(&gzip(&format!("id,text\n0,{huge}"))).unwrap_err();
    let expected = "DATA, row 1: cannot be read: the row is longer than 32 MiB";
    assert!(error.starts_with(expected), "{error}");
    let packed = parquet(&[Some(&huge)]);
    assert!(packed.len() < 1 << 20);
    let error = read(&packed).unwrap_err();
    let expected = "DATA: a row group of it unpacks to more than 4";
    assert!(error.starts_with(expected), "{error}");
    // One text a million times, by reference to the same bytes.
    let text = "b".repeat(1 << 20);
    let error = read(&parquet(&vec![Some(text.as_str()); 60])).unwrap_err();
    assert!(error.contains(" MiB; hint: "), "{error}");
    let lines = "{\"id\": 0, \"text\": \"a\"}\n".repeat(400_000);
    let error = read(&gzip(&lines)).unwrap_err();
    let expected = "DATA: its rows hold more than 48 MiB; hint: take fewer rows";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn types_that_are_not_read_are_named() {
    let columns = vec![
        Series::new("text".into(), [b"a".as_slice()]).into(),
        Series::new("id".into(), [1i64]).into(),
    ];
    let mut frame = DataFrame::new(1, columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    let error = read(&bytes).unwrap_err();
    assert!(
        error.starts_with("DATA: `text` holds Binary") && error.contains("hint: write the column"),
        "{error}"
    );
    let decimals = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/rows/decimal.parquet"
    );
    let error = read(&fs_err::read(decimals).unwrap()).unwrap_err();
    assert!(
        error.starts_with("DATA: `text` holds Decimal") && error.contains("hint: write the column"),
        "{error}"
    );
}

#[test]
fn truncated_files_are_refused() {
    let texts: Vec<String> = (0..300).map(|row| format!("text {row}")).collect();
    let texts: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
    let whole = parquet(&texts);
    let error = read(&whole[..whole.len() / 2]).unwrap_err();
    assert!(error.starts_with("DATA: "), "{error}");
    let lines: String = (0..300)
        .map(|row| format!("{{\"id\": {row}, \"text\": \"{}\"}}\n", row * 7919))
        .collect();
    let whole = gzip(&lines);
    let error = read(&whole[..whole.len() / 2]).unwrap_err();
    assert!(error.starts_with("DATA, row "), "{error}");
}

/// The texts of a folder's files.
fn texts(folder: &Path, split: Option<&str>) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    let files = RowFiles::find(folder, "DATA", split, None).map_err(|error| in_one_line(&error))?;
    let read = files.read(&["text"], |mut row| {
        texts.extend(row.whole(["text"]).unwrap());
        Ok(ControlFlow::Continue(()))
    });
    read.map_err(|error| in_one_line(&error))?;
    Ok(texts)
}

#[test]
fn part_files_come_in_the_order_of_their_names() {
    let (folder, _) = written("part-1.csv", b"id,text\n2,c\n");
    fs_err::write(
        folder.path().join("part-0.parquet"),
        parquet(&[Some("a"), Some("b")]),
    )
    .unwrap();
    fs_err::write(folder.path().join("README"), "not data").unwrap();
    assert_eq!(texts(folder.path(), None).unwrap(), ["a", "b", "c"]);
    let empty = tempfile::tempdir().unwrap();
    let error = texts(empty.path(), None).unwrap_err();
    assert!(error.starts_with("DATA: no file ends in"), "{error}");
    fs_err::write(empty.path().join("part-0.csv"), "words\na\n").unwrap();
    let error = texts(empty.path(), None).unwrap_err();
    assert!(
        error.starts_with("DATA/part-0.csv: no column `text`"),
        "{error}"
    );
    let made = std::process::Command::new("mkfifo")
        .arg(folder.path().join("part-2.csv"))
        .status();
    assert!(made.unwrap().success());
    let error = texts(folder.path(), None).unwrap_err();
    assert!(
        error.ends_with("part-2.csv is a named pipe, expected a regular file"),
        "{error}"
    );
}

#[test]
fn splits_are_told_apart_and_one_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let text = format!("text\n{name}\n");
        fs_err::write(folder.path().join(name), text).unwrap();
    };
    write("train-00000-of-00002.csv");
    write("train-00001-of-00002.csv");
    assert_eq!(texts(folder.path(), None).unwrap().len(), 2);
    write("test-00000-of-00001.csv");
    let error = texts(folder.path(), None).unwrap_err();
    assert!(
        error.starts_with("DATA: its files belong to several splits; it has the splits test, train; hint: choose one"),
        "{error}"
    );
    let train = ["train-00000-of-00002.csv", "train-00001-of-00002.csv"];
    assert_eq!(texts(folder.path(), Some("train")).unwrap(), train);
    let error = texts(folder.path(), Some("validation")).unwrap_err();
    assert!(
        error.contains("no split `validation`; it has the splits test, train"),
        "{error}"
    );
    write("hard-00000-of-00001.csv");
    write("dataset_infos.json");
    write("my_dev.csv");
    assert_eq!(texts(folder.path(), Some("hard")).unwrap().len(), 1);
    assert_eq!(
        texts(folder.path(), Some("validation")).unwrap(),
        ["my_dev.csv"]
    );
    write("notes.csv");
    let error = texts(folder.path(), None).unwrap_err();
    assert!(
        error.contains(
            "it has the splits hard, test, train, validation, and files whose names tell none; "
        ),
        "{error}"
    );
    let (alone, _) = written("notes.csv", b"text\na\n");
    let error = texts(alone.path(), Some("train")).unwrap_err();
    assert!(
        error
            .starts_with("DATA: it has no split `train`; the names of its files tell none; hint: "),
        "{error}"
    );
    let file = folder.path().join("my_dev.csv");
    let error = texts(&file, Some("train")).unwrap_err();
    assert!(error.contains("it is one file"), "{error}");
}
