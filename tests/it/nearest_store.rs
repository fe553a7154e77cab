//! Which store is used when nobody names one.

use crate::space::Space;

const PIPELINE: &str = "\
name: p
stages:
  a:
    kind: command
    params: { run: echo x > out, outputs: { out: out } }
";

/// The command in a folder of the space.
fn flowgraph_in(space: &Space, folder: &str, args: &[&str]) -> crate::space::Outcome {
    let mut command = space.program(args);
    command.current_dir(space.path(folder));
    space.outcome(command.output().unwrap())
}

#[test]
fn the_store_above_the_pipeline_or_the_folder_is_found_and_named() {
    let space = Space::new(PIPELINE);
    space.write("inner/deep/q.yaml", PIPELINE);
    std::fs::create_dir(space.path("elsewhere")).unwrap();
    assert_eq!(space.flowgraph(&["run", "p.yaml"]).code, 0);
    let here = space.flowgraph(&["plan", "p.yaml"]);
    assert!(!here.stderr.contains("store:"), "{}", here.stderr);

    let named = "store: {here}/.flowgraph\n";
    for (folder, pipeline) in [
        ("elsewhere", "../p.yaml"),
        ("inner/deep", "q.yaml"),
        ("elsewhere", "../inner/deep/q.yaml"),
    ] {
        let plan = flowgraph_in(&space, folder, &["plan", pipeline, "--exit-code"]);
        assert_eq!((plan.code, plan.stderr.as_str()), (0, named), "{pipeline}");
    }
    // Commands without a pipeline look above the folder.
    let runs = flowgraph_in(&space, "inner/deep", &["runs"]);
    assert_eq!((runs.code, runs.stderr.as_str()), (0, named));
    let quiet = flowgraph_in(&space, "inner/deep", &["runs", "--quiet"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    assert!(!space.path("inner/deep/.flowgraph").exists());
}

#[test]
fn two_different_stores_are_refused_by_their_names() {
    let space = Space::new(PIPELINE);
    for folder in ["one", "two"] {
        space.write(&format!("{folder}/p.yaml"), PIPELINE);
        let run = flowgraph_in(&space, folder, &["run", "p.yaml"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let plan = flowgraph_in(&space, "one", &["plan", "../two/p.yaml"]);
    assert_eq!(plan.code, 2);
    assert!(
        plan.stderr.starts_with(
            "error: two stores could be meant: {here}/two/.flowgraph and {here}/one/.flowgraph\n"
        ),
        "{}",
        plan.stderr
    );
    // Whoever says which, or needs none, is not troubled.
    for args in [
        &["plan", "../two/p.yaml", "--store", ".flowgraph"][..],
        &["check", "../two/p.yaml"],
    ] {
        assert_eq!(flowgraph_in(&space, "one", args).code, 0, "{args:?}");
    }
    // Of two pipelines whose results are kept, each could have one of its own.
    let both = ["gc", "one/p.yaml", "two/p.yaml", "--dry-run"];
    assert_eq!(space.flowgraph(&both).code, 2);
}
