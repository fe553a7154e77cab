//! Pipelines to begin with.

use crate::space::Space;

#[test]
fn every_template_is_a_pipeline_that_checks_and_nothing_is_overwritten() {
    let space = Space::new("");
    for (template, pipeline) in [
        ("hello", "hello.yaml"),
        ("preferences", "preferences.yaml"),
        ("reward", "reward.yaml"),
        ("flowhf", "flowhf.yaml"),
    ] {
        let init = space.flowgraph(&["init", template, "--template", template]);
        assert_eq!(init.code, 0, "{}", init.stderr);
        let path = format!("{template}/{pipeline}");
        assert!(
            init.stderr.contains(&format!("`flowgraph run {path}`")),
            "{}",
            init.stderr
        );
        let check = space.flowgraph(&["check", &path]);
        assert_eq!(check.code, 0, "{}", check.stderr);
        assert!(!check.stderr.contains("warning"), "{}", check.stderr);
        space.write(&path, "mine");
        let again = space.flowgraph(&["init", template, "--template", template]);
        assert_eq!(again.code, 2);
        assert_eq!(space.read(&path), "mine");
    }
    let here = space.flowgraph(&["init"]);
    assert_eq!(here.code, 0, "{}", here.stderr);
    assert_eq!(space.flowgraph(&["run", "hello.yaml"]).code, 0);
}

#[test]
fn preferences_of_ones_own_become_policies_and_a_table() {
    let space = Space::new("");
    let init = space.flowgraph(&["init", "--template", "preferences"]);
    assert_eq!(init.code, 0, "{}", init.stderr);
    let few = [
        "run",
        "preferences.yaml",
        "--set",
        "seeds=[1]",
        "--set",
        "stages.sft.params.steps=4",
        "--set",
        "stages.dpo.params.steps=2",
        "--set",
        "stages.gdpo.params.steps=2",
        "--set",
        "stages.reward_model.params.steps=2",
    ];
    let run = space.flowgraph(&few);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("gdpo"), "{}", run.stdout);
}
