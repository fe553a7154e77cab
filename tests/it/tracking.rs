//! Runs that another program watches: what TensorBoard reads of them.

use serde_json::Value as Json;

use super::python::Python;
use super::space::Space;
use super::tiny;

/// A table beside the trainings of the tiny world.
const TABLE: &str = r"
  measured:
    kind: command
    params: { run: 'printf policy,Mean\\nppo,0.5\\n > t', outputs: { out: { path: t, kind: table } } }
";

/// The folders of the only run below `root`, each with its only file.
fn tracked(space: &Space, root: &str) -> Vec<(String, Vec<u8>)> {
    let files = space.files(root);
    let mut found: Vec<(String, Vec<u8>)> = files
        .iter()
        .map(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(name.starts_with("events.out.tfevents."), "{name}");
            let folder = file.parent().unwrap().file_name().unwrap();
            let folder = folder.to_str().unwrap().to_owned();
            (folder, std::fs::read(file).unwrap())
        })
        .collect();
    found.sort();
    found
}

/// How many records a file has.
fn records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some(length) = bytes.first_chunk::<8>() {
        bytes = &bytes[16 + u64::from_le_bytes(*length) as usize..];
        count += 1;
    }
    count
}

#[test]
fn every_step_is_tracked_once_whether_it_is_made_now_or_was_before() {
    let space = Space::new(&tiny::pipeline("", TABLE));
    assert_eq!(space.run(&["--track", "tensorboard:live"]).code, 0);
    let live = tracked(&space, "live");
    let names: Vec<&str> = live.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["base", "scorer", "tables"]);
    // What the file is, then four steps of each training; then the table.
    let counts: Vec<usize> = live.iter().map(|(_, bytes)| records(bytes)).collect();
    assert_eq!(counts, [5, 5, 2]);
    let has = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(
        has(&live[0].1, "loss")
            && has(&live[2].1, "measured.out")
            && has(&live[2].1, "| ppo | 0.5")
    );
    assert_eq!(space.run(&["--track", "tensorboard:again"]).code, 0);
    let again = tracked(&space, "again");
    let counts: Vec<usize> = again.iter().map(|(_, bytes)| records(bytes)).collect();
    assert_eq!(counts, [5, 5, 2]);
}

#[test]
fn what_cannot_be_tracked_is_told_before_anything_runs() {
    let space = Space::new(&tiny::pipeline("", TABLE));
    space.write("events", "a file where a folder would be");
    for (track, message) in [
        ("tensorboard:events", "`--track tensorboard:events`: "),
        ("wandb", "expected tensorboard:DIR"),
        ("tensorboard:", "expected tensorboard:DIR"),
    ] {
        let outcome = space.flowgraph(&["run", "p.yaml", "--track", track]);
        assert_eq!(outcome.code, 2, "{track}");
        assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
    }
    assert!(!space.path(".flowgraph/records").exists());
}

/// Prints for every folder its tags with steps and values, and its texts.
const READ: &str = r#"
import json, sys, glob, os
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
found = {}
for folder in sorted(glob.glob(sys.argv[1] + "/*/*")):
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]}
    texts = {tag: [tensor_util.make_ndarray(e.tensor_proto).item().decode() for e in events.Tensors(tag)] for tag in tags["tensors"]}
    found[os.path.basename(folder)] = {"scalars": scalars, "texts": texts}
print(json.dumps(found))
"#;

/// What PyPI's `tensorboard` reads.
fn read_by_tensorboard(space: &Space, root: &str) -> Json {
    let python = Python::with(space, &["tensorboard==2.20.0", "setuptools<81"]);
    serde_json::from_slice(&python.run(&["-c", READ, root], &[])).unwrap()
}

#[test]
#[ignore = "installs PyPI's tensorboard"]
fn tensorboard_reads_the_numbers_of_the_curves() {
    let space = Space::new(&tiny::pipeline("", TABLE));
    assert_eq!(space.run(&["--track", "tensorboard:live"]).code, 0);
    let found = read_by_tensorboard(&space, "live");
    let curve = space.flowgraph(&["show", "p.yaml", "base.curve", "--json"]);
    let curve: Json = serde_json::from_str(&curve.stdout).unwrap();
    let scalars = &found["base"]["scalars"]["loss"];
    assert_eq!(scalars.as_array().unwrap().len(), 4, "{found}");
    let steps: Vec<u64> = (0..4).map(|at| scalars[at][0].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 1, 2, 3]);
    for at in 0..4 {
        let value = scalars[at][1].as_f64().unwrap();
        let own = curve["rows"][at]["loss"].as_f64().unwrap();
        assert_eq!(value as f32, own as f32, "{curve}");
    }
    let table = found["tables"]["texts"]["measured.out"][0]
        .as_str()
        .unwrap();
    assert!(table.contains("| ppo | 0.5"), "{table}");
}

#[test]
fn a_folder_that_is_taken_away_meanwhile_is_told() {
    let pipeline = tiny::pipeline(
        "",
        "  gone: { kind: command, inputs: { x: scorer }, params: { run: 'rm -r {here}/live; echo > o', outputs: { o: o } } }\n",
    );
    let space = Space::new("");
    space.write("p.yaml", &pipeline);
    let run = space.flowgraph(&["run", "p.yaml", "--track", "tensorboard:live"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr.contains("this run is not tracked to its end: "),
        "{}",
        run.stderr
    );
}

/// Prints the values of every metric of every run.
const READ_MLFLOW: &str = r"
import json, mlflow
client = mlflow.MlflowClient()
found = {}
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        names = run.data.metrics
        found[run.info.run_name] = {name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)] for name in names}
print(json.dumps(found))
";

#[test]
#[ignore = "installs PyPI's tensorboard, mlflow and wandb"]
fn mlflow_and_wandb_take_the_curves_by_the_scripts_of_the_examples() {
    let space = Space::new(&tiny::pipeline("", TABLE));
    assert_eq!(space.run(&["--track", "tensorboard:live"]).code, 0);
    let python = Python::with(
        &space,
        &[
            "tensorboard==2.20.0",
            "setuptools<81",
            "mlflow==3.17.2",
            "wandb==0.31.0",
        ],
    );
    let script = |name: &str| {
        Python::example("tracking")
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    };
    let database = [("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")];
    python.run(&[&script("to_mlflow.py"), "live"], &database);
    let found = python.run(&["-c", READ_MLFLOW], &database);
    let found: Json = serde_json::from_slice(&found).unwrap();
    let curve = space.flowgraph(&["show", "p.yaml", "base.curve", "--json"]);
    let curve: Json = serde_json::from_str(&curve.stdout).unwrap();
    for at in 0..4 {
        let own = curve["rows"][at]["loss"].as_f64().unwrap();
        assert_eq!(found["base"]["loss"][at][0], at as u64);
        assert_eq!(
            found["base"]["loss"][at][1].as_f64().unwrap() as f32,
            own as f32
        );
    }
    let said = python.run(
        &[&script("to_wandb.py"), "live"],
        &[
            ("WANDB_MODE", "offline"),
            ("WANDB_PROJECT", "flowgraph"),
            ("WANDB_SILENT", "true"),
        ],
    );
    assert!(String::from_utf8_lossy(&said).contains("base: "));
    // Each training is a run that `wandb sync` uploads.
    let kept = space.files("wandb");
    let runs = kept.iter().filter(|file| {
        file.extension()
            .is_some_and(|extension| extension == "wandb")
    });
    assert_eq!(runs.count(), 2, "{kept:?}");
}
