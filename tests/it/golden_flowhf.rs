//! The bytes that all stages of `pipelines/flowhf.yaml` make, on whatever processor: README's numbers and verdicts
//! follow from them.

use std::collections::BTreeMap;
use std::fmt::Write;

use flowgraph::engine::store::Store;
use flowgraph::ml::kernels::simd::Path;

use crate::space::Space;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/flowhf.txt");
const PIPELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/flowhf.yaml");

/// Returns the name of this processor.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| Some(line.split_once(": ")?.1.to_owned()))
            .unwrap_or_default()
    };
    format!(
        "{}, family {}, model {}",
        value("model name"),
        value("cpu family"),
        value("model\t")
    )
}

/// `UPDATE_GOLDEN=1` records them; whoever changes the pipeline or a `VERSION` does so in the same commit.
#[test]
#[ignore = "takes some minutes"]
fn the_default_pipeline_makes_the_same_bytes_on_every_processor() {
    let space = Space::new("");
    let run = space.flowgraph(&["run", PIPELINE, "--store", ".flowgraph", "--quiet"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let (records, errors) = Store::new(space.path(".flowgraph")).read_records();
    assert!(errors.is_empty(), "{errors:?}");
    let found: BTreeMap<String, String> = records
        .into_iter()
        .map(|record| {
            let outputs = record.outputs.into_iter();
            let outputs = outputs.map(|(name, artifact)| format!("{name}={}", artifact.digest));
            let outputs = outputs.collect::<Vec<_>>().join(" ");
            (record.provenance.stage, outputs)
        })
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = Path::in_use().name();
        let mut text = format!("# made on {} with {path}\n", processor());
        for (stage, outputs) in &found {
            let _ = writeln!(text, "{stage}\t{outputs}");
        }
        std::fs::write(GOLDEN, text).unwrap();
        return;
    }
    let text = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let golden: BTreeMap<String, String> = lines
        .map(|line| {
            let (stage, outputs) = line.split_once('\t').unwrap();
            (stage.to_owned(), outputs.to_owned())
        })
        .collect();
    let differs = |(stage, outputs): &(&String, &String)| golden.get(*stage) != Some(*outputs);
    let changed: Vec<&String> = found
        .iter()
        .filter(differs)
        .map(|(stage, _)| stage)
        .collect();
    assert!(changed.is_empty(), "other bytes than recorded: {changed:?}");
    assert_eq!(found.len(), golden.len());
}
