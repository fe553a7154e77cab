//! The store's own files, which a damaged disk or another program may have written.

use flowgraph::engine::artifact::Digest;
use flowgraph::engine::overrides::Overrides;
use flowgraph::engine::plan::{PlanOptions, Planner};
use flowgraph::engine::runs::Run;
use flowgraph::engine::spec::Pipeline;
use flowgraph::engine::store::Store;
use flowgraph::registry::REGISTRY;

use crate::space::Space;
use crate::watch::Reader;

const PIPELINE: &str = r#"
name: small
stages:
  a: { kind: command, params: { run: "echo one > out", outputs: { out: out } } }
  b: { kind: command, inputs: { x: a }, params: { run: "cat $x > out", outputs: { out: out } } }
"#;

/// A record whose body is sealed with a right digest, as somebody might who wants it to be believed.
fn sealed(body: &[u8]) -> Vec<u8> {
    let head = format!("{{\"digest\":\"{}\",\"record\":", Digest::of(body));
    [head.as_bytes(), body, b"}\n"].concat()
}

pub(crate) fn record() -> Reader {
    let space = Space::new(PIPELINE);
    assert_eq!(space.run(&[]).code, 0);
    let record = space.record("a");
    let path = space.store().record_path(&record.fingerprint);
    let file = std::fs::read(&path).unwrap();
    let start = file
        .windows(10)
        .position(|window| window == b",\"record\":")
        .unwrap()
        + 10;
    // The first byte says whether the rest is a body to be sealed.
    let body = [b"s", &file[start..file.len() - 2]].concat();
    Reader {
        name: "record",
        corpus: vec![body, [b"r", &file[..]].concat()],
        words: &[
            "null",
            "{}",
            "[]",
            "\"\"",
            "../",
            "/",
            "\"files\":",
            "\"seconds\":",
            "-1",
            ",",
            ":",
        ],
        short: 150,
        read: Box::new(move |bytes| {
            let (first, rest) = bytes.split_first().unwrap_or((&b'r', bytes));
            let written = if first % 2 == b's' % 2 {
                sealed(rest)
            } else {
                rest.to_vec()
            };
            std::fs::write(&path, written).unwrap();
            let store = Store::new(space.path(".flowgraph"));
            let (records, errors) = store.read_records();
            for error in errors {
                if !error.to_string().contains(path.to_str().unwrap()) {
                    return Err(format!("the error does not name the file: {error}"));
                }
            }
            let read = records.len() == 2;
            for mut record in records {
                let _ = store.check_record(&mut record, true);
                for artifact in record.outputs.values() {
                    let view = tempfile::tempdir().unwrap();
                    let _ = store.lay_out(artifact, &view.path().join("view"));
                    if std::fs::read_dir(view.path()).unwrap().count() > 1 {
                        return Err("an artifact was laid out beside its folder".to_owned());
                    }
                }
            }
            let pipeline =
                Pipeline::load(&space.path("p.yaml"), &Overrides::default(), REGISTRY).unwrap();
            let _ = Planner::new(&pipeline, &store, PlanOptions::default()).plan();
            Ok(read)
        }),
    }
}

pub(crate) fn run() -> Reader {
    let space = Space::new(PIPELINE);
    assert_eq!(space.run(&[]).code, 0);
    let folder = Run::all(&space.store()).unwrap()[0].folder().to_owned();
    let names = ["run.json", "events.jsonl", "stages.jsonl"];
    let good = names.map(|name| std::fs::read(folder.join(name)).unwrap());
    // The first byte says which file it is.
    let tag = |index: usize| [[b'0' + index as u8].as_slice(), &good[index]].concat();
    Reader {
        name: "run",
        corpus: (0..names.len()).map(tag).collect(),
        words: &["null", "{}", "[]", "\"\"", "\n", ",", ":", "\"event\":"],
        short: 200,
        read: Box::new(move |bytes| {
            let store = space.store();
            let (first, rest) = bytes.split_first().unwrap_or((&0, bytes));
            let damaged = usize::from(*first) % names.len();
            for (index, name) in names.iter().enumerate() {
                let bytes = if index == damaged { rest } else { &good[index] };
                std::fs::write(folder.join(name), bytes).unwrap();
            }
            let runs = Run::all(&store).unwrap();
            for run in &runs {
                let _ = (run.stages(), run.end());
            }
            let _ = Run::find(&store, "last-1");
            Ok(!runs.is_empty())
        }),
    }
}
