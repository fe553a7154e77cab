//! The bytes that one small instance of each kind makes. Other bytes under the same fingerprint would mean that a store
//! holds results which nobody could make again: then the kind's `VERSION` has to be bumped, or the change undone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use flowgraph::registry::REGISTRY;

use crate::space::Space;

const KINDS: &str = include_str!("../golden/kinds.yaml");
const LOADED: &str = include_str!("../golden/loaded.yaml");

/// What a stage made: kind and version, fingerprint, digests by output.
#[derive(Debug, PartialEq)]
struct Made {
    kind: String,
    fingerprint: String,
    outputs: BTreeMap<String, String>,
}

/// Trained numbers differ between kinds of processors: each has a file of its own.
fn golden_file(numerics: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/outputs.{numerics}.txt"))
}

fn parse(text: &str) -> BTreeMap<String, Made> {
    let mut made = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ').map(str::to_owned);
        let mut next = || words.next().unwrap();
        let (stage, kind, fingerprint) = (next(), next(), next());
        let outputs = words.map(|output| {
            let (name, digest) = output.split_once('=').unwrap();
            (name.to_owned(), digest.to_owned())
        });
        let outputs = outputs.collect();
        made.insert(
            stage,
            Made {
                kind,
                fingerprint,
                outputs,
            },
        );
    }
    made
}

fn write(made: &BTreeMap<String, Made>) -> String {
    let mut text = String::new();
    for (stage, made) in made {
        let _ = write!(text, "{stage} {} {}", made.kind, made.fingerprint);
        for (name, digest) in &made.outputs {
            let _ = write!(text, " {name}={digest}");
        }
        text.push('\n');
    }
    text
}

/// An encoder of letters with the weights of a fixture.
fn write_encoder(space: &Space) {
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert/bert");
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(str::to_owned);
    let words: Vec<String> = special
        .into_iter()
        .chain(('a'..='z').map(String::from))
        .collect();
    let vocabulary: BTreeMap<&String, usize> = words.iter().zip(0..).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": (0..4).map(|id| serde_json::json!({
            "id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })).collect::<Vec<_>>(),
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Split", "pattern": { "String": "" }, "behavior": "Isolated", "invert": false },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    space.write("encoder/tokenizer.json", &tokenizer.to_string());
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), space.path("encoder").join(name)).unwrap();
    }
}

/// A reward model in the Hugging Face layout, from the artifact `folder`, without its calibration.
fn write_reward(space: &Space, folder: &str) {
    std::fs::create_dir_all(space.path("reward")).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(
            space.path(folder).join(name),
            space.path("reward").join(name),
        )
        .unwrap();
    }
}

/// Runs both pipelines; returns the numerics class and what the stages made.
fn run() -> (String, BTreeMap<String, Made>) {
    let space = Space::new(KINDS);
    write_encoder(&space);
    let letters = ["abc", "xyz hij", "mno"];
    let rows: String = (0..24u8)
        .map(|at| {
            let class = usize::from(at) % 3;
            format!("{} {},{class}\n", letters[class], char::from(b'a' + at))
        })
        .collect();
    space.write("davidson.csv", &format!("tweet,class\n{rows}"));
    space.write(
        "pairs.csv",
        "qid,question,response_j,response_k\n7,why so,because,no idea\n9,how come,thus,\"a, b\"\n",
    );
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    for (stage, folder) in [("sft", "model"), ("reward_model", "reward_model")] {
        let export = space.flowgraph(&["export", "p.yaml", stage, folder]);
        assert_eq!(export.code, 0, "{}", export.stderr);
    }
    write_reward(&space, "reward_model");
    space.write("p.yaml", LOADED);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);

    let (records, errors) = space.store().read_records();
    assert!(errors.is_empty(), "{errors:?}");
    let numerics = records[0].provenance.numerics.clone();
    let made = records.into_iter().map(|record| {
        let outputs = record.outputs.into_iter();
        let made = Made {
            kind: record.manifest.kind,
            fingerprint: record.fingerprint.to_string(),
            outputs: outputs
                .map(|(name, artifact)| (name, artifact.digest.to_string()))
                .collect(),
        };
        (record.provenance.stage, made)
    });
    (numerics, made.collect())
}

/// `UPDATE_GOLDEN=1` writes what has another fingerprint than before, and nothing that changed without one.
///
/// A file is written on the class of processors that it is for: until that was done after a mend that changes a
/// fingerprint, those stages are listed as unrecorded and the others compared.
#[test]
fn outputs_change_with_the_fingerprint_alone() {
    let (numerics, found) = run();
    let kinds: BTreeSet<&str> = found.values().map(|made| made.kind.as_str()).collect();
    let all: BTreeSet<&str> = REGISTRY.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, all, "kinds.yaml has an instance of each kind");

    let file = golden_file(&numerics);
    let golden = parse(&std::fs::read_to_string(&file).unwrap_or_default());
    let is_recorded = |stage: &str, made: &Made| {
        let old = golden.get(stage);
        old.is_some_and(|old| old.fingerprint == made.fingerprint)
    };
    let (recorded, unrecorded): (Vec<_>, Vec<_>) = found
        .iter()
        .partition(|(stage, made)| is_recorded(stage, made));
    let wrong: Vec<&str> = recorded
        .iter()
        .filter(|(stage, made)| golden.get(*stage) != Some(*made))
        .map(|(stage, _)| stage.as_str())
        .collect();
    assert!(
        wrong.is_empty(),
        "other bytes under the same fingerprint: bump the kind's VERSION or restore what it did: {wrong:?}"
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(file, write(&found)).unwrap();
        return;
    }
    assert!(
        !recorded.is_empty(),
        "nothing is recorded of the class {numerics}: run this test with UPDATE_GOLDEN=1 on it, at a commit whose \
         results are known to be right, and commit {}",
        file.display()
    );
    let unrecorded: Vec<&str> = unrecorded
        .into_iter()
        .map(|(stage, _)| stage.as_str())
        .collect();
    println!("not recorded on {numerics} (UPDATE_GOLDEN=1 does): {unrecorded:?}");
}
