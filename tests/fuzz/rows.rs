//! Parquet, CSV and JSON-lines files.

use std::io::Write;
use std::ops::ControlFlow;

use flate2::Compression;
use flate2::write::GzEncoder;
use flowgraph::sources::rows::RowFiles;
use polars::prelude::{DataFrame, NamedFrom, ParquetCompression, ParquetWriter, Series};

use crate::space::Space;
use crate::watch::Reader;

const PIPELINE: &str = "
name: rows
stages:
  pairs: { kind: load_preferences, params: { source: 'file:data.parquet', layout: anthropic_hh } }
";

/// Pairs in the layout of the pipeline.
fn parquet_file(compression: ParquetCompression) -> Vec<u8> {
    let dialogues = |answer: &str| -> Vec<String> {
        let question = |row| format!("\n\nHuman: question {row}\n\nAssistant: {answer} na\u{ef}ve");
        (0..4).map(question).collect()
    };
    let columns = vec![
        Series::new("chosen".into(), dialogues("good")).into(),
        Series::new("rejected".into(), dialogues("bad")).into(),
        Series::new("other".into(), [Some(0.5f64), None, Some(1.0), None]).into(),
    ];
    let mut frame = DataFrame::new(4, columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(compression)
        .finish(&mut frame)
        .unwrap();
    bytes
}

/// Parquet files, read by a stage in its own process: polars asks for whatever memory a forged file tells it to, and
/// ends the process when it does not get it. That must be one failed stage that says so.
pub(crate) fn parquet() -> Reader {
    let space = Space::new(PIPELINE);
    Reader {
        name: "parquet",
        corpus: vec![
            parquet_file(ParquetCompression::Uncompressed),
            parquet_file(ParquetCompression::Snappy),
        ],
        words: &["PAR1", "chosen"],
        short: 15,
        read: Box::new(move |bytes| {
            std::fs::write(space.path("data.parquet"), bytes).unwrap();
            let limited = ["sh", "-c", "ulimit -v 4000000; exec \"$@\"", "sh"];
            let mut program = space.under(&limited, &["run", "p.yaml", "--quiet"]);
            let outcome = space.outcome(program.output().unwrap());
            let said = &outcome.stderr;
            let _ = std::fs::remove_dir_all(space.path(".flowgraph"));
            let asked_too_much = said.contains("signal: 6") && said.contains("memory allocation");
            match outcome.code {
                0 => Ok(true),
                1 if said.contains("data.parquet") || asked_too_much => Ok(false),
                code => Err(format!("exit code {code}, and {said}")),
            }
        }),
    }
}

pub(crate) fn rows() -> Reader {
    let csv = b"id,text,other\n1,one,\n2,\"two, \"\"quoted\"\"\",x\n3,\"a\nb\",\n".to_vec();
    let json = b"{\"id\": 1, \"text\": \"one\"}\n\n{\"text\": \"t\\u00efwo\", \"id\": 2.5, \"more\": [null, {}]}\n"
        .to_vec();
    let array =
        b"[{\"id\": 1, \"text\": \"one\"},\n {\"text\": \"two\", \"id\": null, \"more\": [[]]}]"
            .to_vec();
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&json).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Reader {
        name: "rows",
        corpus: vec![csv, json, array, packed.finish().unwrap()],
        words: &[
            "id", "text", ",", "\"", "\n", "\r", "{", "}", "[", "]", "\u{feff}",
        ],
        short: 300,
        read: Box::new(move |bytes| {
            let path = folder.path().join("data");
            std::fs::write(&path, bytes).unwrap();
            let read = RowFiles::find(&path, "the-data", None, None)
                .and_then(|files| files.read(&["id", "text"], |_| Ok(ControlFlow::Continue(()))));
            match read {
                Ok(()) => Ok(true),
                Err(error) if error.to_string().contains("the-data") => Ok(false),
                Err(error) => Err(format!("the error does not name the file: {error}")),
            }
        }),
    }
}
