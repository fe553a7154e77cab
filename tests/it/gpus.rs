//! Handing stages over to the program for GPUs. No GPU is needed: a library that answers like a driver stands in for one,
//! and a script for the program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::space::{Report, Space};

const PIPELINE: &str = "name: n
stages:
  tree: { kind: generate_tree, params: { symbols: 2, horizon: 2, prompts: 2, spread: 1.5, hidden_size: 16, num_layers: 1, seed: 1 } }
  sampled:
    kind: sample
    resources: { gpus: 1 }
    inputs: { policy: tree.policy, prompts: tree.data }
    params: { strategy: greedy, n: 2, max_new_tokens: 2, seed: 1 }
";

/// Answers like the driver of CUDA; what it answers is in the environment.
const DRIVER: &str = r#"
#include <stdlib.h>
#include <string.h>
static int of(const char *name, int otherwise) { char *text = getenv(name); return text ? atoi(text) : otherwise; }
int cuInit(unsigned flags) { return of("DRIVER_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = of("DRIVER_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = of("DRIVER_GPUS", 1); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA Example", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = of("CUDA_VISIBLE_DEVICES", 0) == 5 ? 80000000000ul : 24000000000ul;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? of("DRIVER_MAJOR", 9) : 0;
    return 0;
}
"#;

/// Says of itself what it is told to, and of a job only that it has come.
const PROGRAM: &str = r#"#!/bin/sh
case "$1" in
about-cuda) printf '{"flowgraph":"%s","computes_on_gpus":%s,"cuda":13000,"capability":90}\n' "${PROGRAM_VERSION:-VERSION}" "${PROGRAM_FOR_GPUS:-true}" ;;
worker)
    kind=$(cat <&"$3" | sed 's/.*"kind":"\([a-z_]*\)","params".*/\1/')
    printf '{"event":"failed","message":"%s has come to GPU %s","hint":null}\n' "$kind" "$CUDA_VISIBLE_DEVICES"
    exit 1 ;;
esac
"#;

/// A folder with the pipeline, the driver and the program.
fn space() -> Space {
    let space = Space::new(PIPELINE);
    space.write("driver.c", DRIVER);
    let library = space.path("driver/libcuda.so.1");
    fs::create_dir_all(library.parent().unwrap()).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(space.path("driver.c"))
        .status();
    assert!(compiled.unwrap().success(), "a C compiler is needed");
    program(
        &space,
        "gpu/flowgraph-cuda",
        &PROGRAM.replace("VERSION}", concat!(env!("CARGO_PKG_VERSION"), "}")),
    );
    space
}

fn program(space: &Space, name: &str, text: &str) {
    space.write(name, text);
    let path = space.path(name);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the pipeline on a machine that shows the GPUs 3 and 5, with more environment.
fn run(space: &Space, args: &[&str], environment: &[(&str, &str)]) -> Report {
    let mut command = space.program(&[&["run", "p.yaml", "--json"], args].concat());
    command
        .env("CUDA_VISIBLE_DEVICES", "3,5")
        .env("LD_LIBRARY_PATH", space.path("driver"))
        .env("FLOWGRAPH_CUDA", space.path("gpu/flowgraph-cuda"));
    for (name, value) in environment {
        command.env(
            name,
            value.replace(
                "{here}",
                space.path("").to_str().unwrap().trim_end_matches('/'),
            ),
        );
    }
    space.report(&command.output().unwrap())
}

fn events(report: &Report, event: &str, key: &str) -> Vec<String> {
    let found = report.events.iter().filter(|found| found["event"] == event);
    found
        .map(|found| found[key].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// What the one stage that failed says, and its hint.
#[track_caller]
fn refusal(report: &Report) -> (String, String) {
    assert_eq!(report.code, 1, "{}", report.stderr);
    let messages = events(report, "stage_failed", "message");
    assert_eq!(messages.len(), 1, "{messages:?}");
    (
        messages[0].clone(),
        events(report, "stage_failed", "hint")[0].clone(),
    )
}

#[test]
fn a_stage_with_tensors_is_handed_over_with_the_gpu_that_it_was_given() {
    let space = space();
    let (message, _) = refusal(&run(&space, &[], &[]));
    assert_eq!(message, "sample has come to GPU 3");
    let (message, _) = refusal(&run(&space, &["--device", "cuda:5"], &[]));
    assert_eq!(message, "sample has come to GPU 5");
    // Every stage that can compute there does, asked for or not; what has nothing to compute there does not.
    let without = PIPELINE.replace("    resources: { gpus: 1 }\n", "");
    space.write("p.yaml", &without);
    let (message, _) = refusal(&run(&space, &["--device", "cuda"], &[]));
    assert_eq!(message, "sample has come to GPU 3");
    assert_eq!(run(&space, &[], &[]).code, 0);
    assert_eq!(space.record("sampled").provenance.device, "cpu");
}

#[test]
fn what_is_missing_is_named() {
    let space = space();
    program(&space, "other/program", "#!/bin/sh\necho hello\n");
    program(
        &space,
        "other/library",
        "#!/bin/sh\necho 'x: error while loading shared libraries: libcublas.so.13: cannot open shared object file' >&2\nexit 127\n",
    );
    let of = |environment: &[(&str, &str)]| {
        let (message, hint) = refusal(&run(&space, &["--device", "cuda"], environment));
        let (_, told) = message
            .split_once(' ')
            .filter(|(on, _)| *on == "on")
            .map_or(("", &*message), |(_, rest)| rest.split_once(' ').unwrap());
        (
            told.replace(space.path("").to_str().unwrap(), "HERE/"),
            hint,
        )
    };
    let (told, hint) = of(&[("FLOWGRAPH_CUDA", "{here}/gpu/nothing")]);
    assert_eq!(
        told,
        "there is no program for GPUs: FLOWGRAPH_CUDA names HERE/gpu/nothing"
    );
    assert!(hint.contains("--features cuda"), "{hint}");
    let (told, _) = of(&[("FLOWGRAPH_CUDA", "")]);
    assert!(
        told.starts_with("there is no program for GPUs: it lies beside this one: "),
        "{told}"
    );
    assert!(told.ends_with("/flowgraph-cuda"), "{told}");
    let (told, hint) = of(&[("FLOWGRAPH_CUDA", "{here}/other/program")]);
    assert_eq!(
        told,
        "HERE/other/program says of itself what this flowgraph does not know"
    );
    assert!(hint.contains("--features cuda"), "{hint}");
    let (told, hint) = of(&[("PROGRAM_FOR_GPUS", "false")]);
    assert!(
        told.ends_with("is flowgraph, but not built for GPUs"),
        "{told}"
    );
    assert!(hint.contains("--features cuda"), "{hint}");
    // This program itself: it does not hand over to itself for ever.
    let (told, _) = of(&[("FLOWGRAPH_CUDA", env!("CARGO_BIN_EXE_flowgraph"))]);
    assert!(
        told.ends_with("is flowgraph, but not built for GPUs"),
        "{told}"
    );
    let (told, hint) = of(&[("FLOWGRAPH_CUDA", "{here}/other/library")]);
    assert!(told.contains("libcublas.so.13: cannot open"), "{told}");
    assert!(hint.contains("LD_LIBRARY_PATH"), "{hint}");
    let (told, hint) = of(&[("PROGRAM_VERSION", "0.0.1")]);
    assert!(told.contains("is flowgraph 0.0.1, and this is"), "{told}");
    assert_eq!(hint, "build both from the same source");
    let (told, hint) = of(&[("LD_LIBRARY_PATH", "")]);
    assert!(
        told.starts_with("there is no NVIDIA driver: libcuda.so.1"),
        "{told}"
    );
    assert!(hint.contains("--device cpu"), "{hint}");
    let (told, _) = of(&[("DRIVER_INIT", "803")]);
    assert_eq!(
        told,
        "the NVIDIA driver answers `cuInit` with error 803: the kernel's module and the library are of different versions"
    );
    let (told, hint) = of(&[("DRIVER_CUDA", "12040")]);
    assert_eq!(
        told,
        "the NVIDIA driver knows CUDA 12.4, and the program for GPUs needs 13.0"
    );
    assert!(hint.contains("580"), "{hint}");
    let (told, _) = of(&[("DRIVER_GPUS", "0")]);
    assert_eq!(told, "the NVIDIA driver shows no GPU, no number 0");
    let (told, hint) = of(&[("DRIVER_MAJOR", "8")]);
    assert_eq!(
        told,
        "the NVIDIA Example has compute capability 8.0, and the program for GPUs is built for 9.0"
    );
    assert_eq!(hint, "build it with `CUDA_COMPUTE_CAP=80`");
    // Nothing of this is asked where nothing is run.
    let mut plan = space.program(&["plan", "p.yaml"]);
    assert!(
        plan.env("CUDA_VISIBLE_DEVICES", "3")
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(space.flowgraph(&["check", "p.yaml"]).code, 0);
}

#[test]
fn where_no_gpu_can_be_had_the_processor_does_it_and_says_why() {
    let space = space();
    let report = run(&space, &[], &[("FLOWGRAPH_CUDA", "{here}/gpu/nothing")]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let notes = events(&report, "stage_note", "text");
    assert!(
        notes.iter().any(|note| note
            .starts_with("it and all others compute on the processor: on ")
            && note.contains("there is no program for GPUs")
            && note.contains("--features cuda")),
        "{notes:?}"
    );
    let made = space.record("sampled").provenance;
    assert_eq!(
        (made.device.as_str(), made.numerics.as_str(), made.gpu),
        ("cpu", "cpu/2", None)
    );
}

#[test]
fn a_stage_is_given_a_gpu_of_the_memory_that_it_asks_for() {
    let space = space();
    let asking = |memory: &str| {
        let asked = format!("resources: {{ gpus: 1, gpu_memory: {memory} }}");
        space.write(
            "p.yaml",
            &PIPELINE.replace("resources: { gpus: 1 }", &asked),
        );
    };
    asking("40GB");
    let (message, _) = refusal(&run(&space, &[], &[]));
    assert_eq!(message, "sample has come to GPU 5");
    asking("81GB");
    let (message, hint) = refusal(&run(&space, &["--device", "cuda"], &[]));
    assert!(message.starts_with("no GPU can be had on "), "{message}");
    assert!(hint.contains("resources.gpu_memory"), "{hint}");
    // A processor will do where nobody insists.
    let report = run(&space, &[], &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let notes = events(&report, "stage_note", "text");
    assert!(
        notes.contains(&"asks for 1 GPU; this machine shows 0 of that memory".to_owned()),
        "{notes:?}"
    );
    asking("much");
    let report = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!(report.code, 3);
    assert!(report.stderr.contains("`4GB`"), "{}", report.stderr);
}

#[test]
fn memory_that_cannot_hold_the_weights_is_told_before_the_work() {
    let space = Space::new(&PIPELINE.replace("{ gpus: 1 }", "{ memory: 1KB }"));
    let report = run(&space, &[], &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let notes = events(&report, "stage_note", "text");
    let told = |note: &String| {
        note.starts_with("warning: declares `resources.memory` of 1 MB, and the weights")
    };
    assert!(notes.iter().any(told), "{notes:?}");
}
