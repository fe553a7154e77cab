//! The bytes that one small instance of each kind makes. Other bytes under the same fingerprint would mean that a store
//! holds results which nobody could make again: then the kind's `VERSION` has to be bumped, or the change undone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use flowgraph::artifacts::curve::Curve;
use flowgraph::ml::kernels::form;
use flowgraph::ml::kernels::simd::{Path, VARIABLE};
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

/// One file for all processors, numbers of threads and C libraries.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/outputs.txt");

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

/// Runs both pipelines in an environment; returns what the stages made.
fn run(environment: &[(&str, &str)]) -> BTreeMap<String, Made> {
    run_as("cpu/2", environment)
}

/// Runs both pipelines in an environment, where results have a numerics class; returns what the stages made.
fn run_as(class: &str, environment: &[(&str, &str)]) -> BTreeMap<String, Made> {
    let space = Space::new(KINDS);
    run_in(&space, environment);
    made_in(&space, class)
}

/// What the stages made of which there are records in a space.
fn made_in(space: &Space, class: &str) -> BTreeMap<String, Made> {
    let (records, errors) = space.store().read_records();
    assert!(errors.is_empty(), "{errors:?}");
    let made = records.into_iter().map(|record| {
        let outputs = record.outputs.into_iter();
        let made = Made {
            kind: record.manifest.kind,
            fingerprint: record.fingerprint.to_string(),
            outputs: outputs
                .map(|(name, artifact)| (name, artifact.digest.to_string()))
                .collect(),
        };
        assert_eq!(record.provenance.numerics, class);
        (record.provenance.stage, made)
    });
    made.collect()
}

/// Writes what the pipeline of all kinds reads.
fn write_inputs(space: &Space) {
    write_encoder(space);
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
}

/// Runs both pipelines in a space.
fn run_in(space: &Space, environment: &[(&str, &str)]) {
    let program = |args: &[&str]| {
        let mut program = space.program(args);
        program.envs(environment.iter().copied());
        program.output().unwrap()
    };
    let run = || {
        let report = space.report(&program(&["run", "p.yaml", "--json"]));
        assert_eq!(report.code, 0, "{environment:?}: {}", report.stderr);
    };
    write_inputs(space);
    run();
    for (stage, folder) in [("sft", "model"), ("reward_model", "reward_model")] {
        let export = space.outcome(program(&["export", "p.yaml", stage, folder]));
        assert_eq!(export.code, 0, "{}", export.stderr);
    }
    write_reward(space, "reward_model");
    space.write("p.yaml", LOADED);
    run();
}

/// Fills the folder that KINDS names with the pipeline of all kinds and what it reads, for `benches/gpu.sh`.
#[test]
#[ignore = "writes a folder for another machine"]
fn kinds_for_others() {
    let folder = std::path::PathBuf::from(std::env::var_os("KINDS").expect("KINDS names a folder"));
    let space = Space::new(KINDS);
    write_inputs(&space);
    std::fs::create_dir_all(folder.join("encoder")).unwrap();
    std::fs::copy(space.path("p.yaml"), folder.join("kinds.yaml")).unwrap();
    for name in ["davidson.csv", "pairs.csv"] {
        std::fs::copy(space.path(name), folder.join(name)).unwrap();
    }
    for entry in std::fs::read_dir(space.path("encoder")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join("encoder").join(entry.file_name())).unwrap();
    }
}

fn golden() -> BTreeMap<String, Made> {
    parse(&std::fs::read_to_string(GOLDEN).unwrap_or_default())
}

/// `UPDATE_GOLDEN=1` writes what has another fingerprint than before, and nothing that changed without one.
#[test]
fn outputs_change_with_the_fingerprint_alone() {
    let found = run(&[]);
    let kinds: BTreeSet<&str> = found.values().map(|made| made.kind.as_str()).collect();
    let all: BTreeSet<&str> = REGISTRY.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, all, "kinds.yaml has an instance of each kind");

    let golden = golden();
    let wrong: Vec<&str> = found
        .iter()
        .filter(|(stage, made)| {
            let old = golden.get(*stage);
            old.is_some_and(|old| old.fingerprint == made.fingerprint && old != *made)
        })
        .map(|(stage, _)| stage.as_str())
        .collect();
    assert!(
        wrong.is_empty(),
        "other bytes under the same fingerprint: bump the kind's VERSION or restore what it did: {wrong:?}"
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, write(&found)).unwrap();
        return;
    }
    assert!(
        golden == found,
        "run this test with UPDATE_GOLDEN=1 after a fingerprint was meant to change"
    );
}

/// Names what an environment changed.
fn assert_golden(what: &str, environment: &[(&str, &str)]) {
    let (golden, found) = (golden(), run(environment));
    let changed: Vec<&String> = found
        .iter()
        .filter(|(stage, made)| golden.get(*stage) != Some(*made))
        .map(|(stage, _)| stage)
        .collect();
    assert!(
        changed.is_empty(),
        "{what} changes the bytes of {changed:?}"
    );
    assert_eq!(golden.len(), found.len(), "{what}");
}

#[test]
fn outputs_are_the_same_with_lower_instructions() {
    for path in Path::ALL.into_iter().filter(|path| *path < Path::best()) {
        assert_golden(path.name(), &[(VARIABLE, path.name())]);
    }
}

/// No loop of ours runs then: each refuses to.
#[test]
fn every_kind_finishes_with_operations_that_other_devices_have() {
    let found = run_as("composed/1", &[(form::VARIABLE, "composed")]);
    let golden = golden();
    assert!(golden.keys().eq(found.keys()), "{:?}", found.keys());
    // It was no other form under another name.
    assert_ne!(golden["sft"].outputs, found["sft"].outputs);
}

/// The losses of every training, by stage.
fn losses(environment: &[(&str, &str)]) -> BTreeMap<String, Vec<f64>> {
    let space = Space::new(KINDS);
    run_in(&space, environment);
    let curves = space
        .store()
        .read_records()
        .0
        .into_iter()
        .filter_map(|record| {
            let (_, curve) = record
                .outputs
                .iter()
                .find(|(_, artifact)| artifact.kind == "curve")?;
            let folder = tempfile::tempdir().unwrap();
            space.store().lay_out(curve, folder.path()).unwrap();
            let curve = Curve::read(folder.path()).unwrap();
            let losses = curve.metrics.get("loss")?;
            Some((
                record.provenance.stage,
                losses.iter().flatten().copied().collect(),
            ))
        });
    curves.collect()
}

#[test]
fn trainings_go_the_same_way_with_operations_that_other_devices_have() {
    let (fused, composed) = (losses(&[]), losses(&[(form::VARIABLE, "composed")]));
    assert!(fused.len() >= 12, "{:?}", fused.keys());
    for (stage, fused) in &fused {
        let composed = &composed[stage];
        assert_eq!(fused.len(), composed.len(), "{stage}");
        for (step, (fused, composed)) in fused.iter().zip(composed).enumerate() {
            let error = (fused - composed).abs() / fused.abs().max(1e-3);
            assert!(
                error < 1e-4,
                "{stage}, step {step}: {composed}, not {fused}"
            );
        }
    }
}

#[test]
fn outputs_are_the_same_in_another_language() {
    assert_golden(
        "LANG",
        &[("LANG", "tr_TR.UTF-8"), ("LC_ALL", "tr_TR.UTF-8")],
    );
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn outputs_are_the_same_on_a_cluster() {
    assert_golden("a cluster", &[("FLOWGRAPH_EXECUTOR", "slurm")]);
}

/// Runs both pipelines on a machine that shares what it makes, and again on another: there nothing runs, and all bytes are
/// the same.
#[track_caller]
fn assert_shared(address: &str) {
    let environment = [("FLOWGRAPH_REMOTE", address)];
    assert_golden(address, &environment);
    let there = Space::new(KINDS);
    run_in(&there, &environment);
    assert!(made_in(&there, "cpu/2") == golden());
    let ends = there.files(".flowgraph/runs");
    let ends = ends.iter().filter(|file| file.ends_with("stages.jsonl"));
    let ends: Vec<String> = ends
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    assert_eq!(ends.len(), 2);
    assert!(!ends.concat().contains("\"done\""), "{}", ends.concat());
}

#[test]
fn outputs_are_the_same_from_a_shared_folder() {
    let shared = tempfile::tempdir().unwrap();
    assert_shared(&format!("file://{}", shared.path().display()));
}

#[test]
#[cfg(feature = "remote")]
#[ignore = "needs a server: .ci/remote/test starts one"]
fn outputs_are_the_same_from_a_bucket() {
    let bucket = std::env::var("FLOWGRAPH_TEST_BUCKET").expect("FLOWGRAPH_TEST_BUCKET");
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_shared(&format!("{bucket}/{name}"));
}

/// While the daemons of a cluster, its nodes and whoever submits to it are killed one after the other, all stages are done,
/// none of them twice at once, and their bytes are the same.
#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn deaths_on_a_cluster_change_nothing() {
    use crate::on_a_cluster::{begin_submitter, kill_controller, lose, recover, until};
    let deaths: usize = std::env::var("DEATHS").map_or(6, |text| text.parse().unwrap());
    let seed = std::time::SystemTime::now();
    let seed = seed
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    println!("seed {seed}");
    let mut random = seed;
    let mut below = |bound: u64| {
        // Knuth's linear congruence: what is killed when needs no better.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % bound
    };
    // A command of ours sees whether another is at the same work: its lock is the machine's own.
    let slow: String = (0..deaths.max(4) * 2)
        .map(|at| {
            format!(
                "  slow_{at}: {{ kind: command, params: {{ run: \"exec 9> {{here}}/busy.{at}; flock -n 9 || echo {at} >> {{here}}/twice; sleep 4; echo {at} > out\", outputs: {{ out: out }} }} }}\n"
            )
        })
        .collect();
    let space = Space::new(&(KINDS.to_owned() + &slow));
    write_inputs(&space);
    let mut submitter = begin_submitter(&space);
    for _ in 0..deaths {
        std::thread::sleep(std::time::Duration::from_millis(500 + below(3000)));
        match below(3) {
            0 => {
                submitter.kill().unwrap();
                submitter.wait().unwrap();
                submitter = begin_submitter(&space);
            }
            1 => kill_controller(below(2) == 0),
            _ => {
                let node = format!("n{}", 1 + below(3));
                lose(&node);
                std::thread::sleep(std::time::Duration::from_millis(below(8000)));
                recover(&node);
            }
        }
    }
    let begun = std::time::Instant::now();
    let mut status = None;
    while status.is_none() && begun.elapsed().as_secs() < 300 {
        status = submitter.try_wait().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let said = space.read("started");
    assert!(status.is_some_and(|status| status.success()), "{said}");
    assert!(
        !space.path("twice").exists(),
        "{} ran twice at once",
        space.read("twice")
    );
    let golden = golden();
    let mut made = made_in(&space, "cpu/2");
    made.retain(|stage, _| !stage.starts_with("slow_"));
    for (stage, made) in &made {
        assert_eq!(golden.get(stage), Some(made), "{stage}");
    }
    assert!(made.len() > 50, "{}", made.len());
    until("the queue is empty", || {
        crate::on_a_cluster::queue().is_empty()
    });
}

/// The functions of the C library whose last bits are its own; exact ones are not among them.
const APPROXIMATED: [&str; 25] = [
    "exp", "exp2", "exp10", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "tgamma",
    "lgamma", "cbrt",
];
const APPROXIMATED_OF_TWO: [&str; 3] = ["pow", "atan2", "hypot"];

/// A library that moves the results of approximated functions by one unit in the last place, and notes the processes
/// that load it.
fn shim() -> String {
    let mut code = "#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
  char command[4096] = {0};
  FILE *file = fopen(\"/proc/self/cmdline\", \"r\");
  if (file) { size_t n = fread(command, 1, sizeof command - 1, file); fclose(file);
    for (size_t i = 0; i + 1 < n; i++) if (!command[i]) command[i] = ' '; }
  const char *list = getenv(\"SHIM_LOADED\");
  if (!list) return;
  file = fopen(list, \"a\");
  if (file) { fprintf(file, \"%s\\n\", command); fclose(file); }
}
"
    .to_owned();
    for name in APPROXIMATED {
        for (kind, suffix) in [("double", ""), ("float", "f")] {
            let _ = writeln!(
                code,
                "{kind} {name}{suffix}({kind} x) {{ static {kind} (*next)({kind}); \
                 if (!next) next = dlsym(RTLD_NEXT, \"{name}{suffix}\"); \
                 return nextafter{suffix}(next(x), INFINITY); }}"
            );
        }
    }
    for name in APPROXIMATED_OF_TWO {
        for (kind, suffix) in [("double", ""), ("float", "f")] {
            let _ = writeln!(
                code,
                "{kind} {name}{suffix}({kind} x, {kind} y) {{ static {kind} (*next)({kind}, {kind}); \
                 if (!next) next = dlsym(RTLD_NEXT, \"{name}{suffix}\"); \
                 return nextafter{suffix}(next(x, y), INFINITY); }}"
            );
        }
    }
    for (kind, suffix) in [("double", ""), ("float", "f")] {
        let _ = writeln!(
            code,
            "void sincos{suffix}({kind} x, {kind} *s, {kind} *c) {{ *s = sin{suffix}(x); *c = cos{suffix}(x); }}
{kind} lgamma{suffix}_r({kind} x, int *sign) {{ static {kind} (*next)({kind}, int *); \
             if (!next) next = dlsym(RTLD_NEXT, \"lgamma{suffix}_r\"); \
             return nextafter{suffix}(next(x, sign), INFINITY); }}"
        );
    }
    code
}

#[test]
#[cfg(target_os = "linux")]
fn outputs_are_the_same_with_another_c_library() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (source, library, loaded) = (at("shim.c"), at("shim.so"), at("loaded"));
    std::fs::write(&source, shim()).unwrap();
    let options = ["-shared", "-fPIC", "-O1", "-fno-builtin", "-o"];
    let compiled = std::process::Command::new("cc")
        .args(options)
        .args([&library, &source, "-ldl", "-lm"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{said}");
    assert_golden(
        "a C library with other last bits",
        &[("LD_PRELOAD", &library), ("SHIM_LOADED", &loaded)],
    );
    let processes = std::fs::read_to_string(loaded).unwrap();
    let workers = processes.lines().filter(|line| line.contains(" worker"));
    let stages = golden().len();
    assert!(
        workers.count() >= stages / 2,
        "the workers did not load the library: {processes}"
    );
    let tunables = "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F";
    assert_golden("GLIBC_TUNABLES", &[("GLIBC_TUNABLES", tunables)]);
}
