use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use polars::prelude::{NamedFrom, ParquetWriter, Series};

use super::*;

const COLUMNS: [&str; 2] = ["id", "text"];

fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs_err::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(bytes: &[u8]) -> Result<Vec<Vec<String>>, String> {
    let (_folder, path) = written("data", bytes);
    match read_rows(&path, "DATA", &COLUMNS) {
        Ok(rows) => Ok(rows.into_iter().map(|row| row.values).collect()),
        Err(error) => Err(error.to_string()),
    }
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

#[test]
fn every_format_gives_the_same_rows() {
    let expected = vec![vec!["0", "a, b"], vec!["1", "c\nd"]];
    let csv = b",id,text\n7,0,\"a, b\"\n8,1,\"c\nd\"\n";
    assert_eq!(read(csv).unwrap(), expected);
    let lines = "{\"text\": \"a, b\", \"id\": 0}\n\n{\"id\": \"1\", \"text\": \"c\\nd\"}";
    assert_eq!(read(lines.as_bytes()).unwrap(), expected);
    assert_eq!(read(&gzip(lines)).unwrap(), expected);
    assert_eq!(
        read(&parquet(&[Some("a, b"), Some("c\nd")])).unwrap(),
        expected
    );
}

#[test]
fn faults_name_file_and_row() {
    for (bytes, message) in [
        (
            b"id,words\n0,a\n".to_vec(),
            "DATA: no column `text`; found: id, words",
        ),
        (
            b"id,text\n0,a\n1,\n".to_vec(),
            "DATA, row 2: `text` is empty",
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
        (parquet(&[Some("a"), None]), "DATA, row 2: `text` is empty"),
    ] {
        let error = read(&bytes).unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
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

#[test]
fn part_files_come_in_the_order_of_their_names() {
    let (folder, _) = written("part-1.csv", b"id,text\n2,c\n");
    fs_err::write(
        folder.path().join("part-0.parquet"),
        parquet(&[Some("a"), Some("b")]),
    )
    .unwrap();
    fs_err::write(folder.path().join("README"), "not data").unwrap();
    let rows = read_rows(folder.path(), "", &COLUMNS).unwrap();
    let texts: Vec<&str> = rows.iter().map(|row| row.values[1].as_str()).collect();
    assert_eq!(texts, ["a", "b", "c"]);
    assert!(rows[2].file.ends_with("part-1.csv") && rows[2].number == 1);
    let empty = tempfile::tempdir().unwrap();
    let error = read_rows(empty.path(), "", &COLUMNS).unwrap_err();
    assert!(error.to_string().contains("no file ends in"), "{error}");
}
