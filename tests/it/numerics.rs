//! Results of another numerics class are reused unless they are not wanted; then each class has a result of its own.

use crate::space::Space;

const PIPELINE: &str = r#"
name: n
stages:
  s: { kind: command, params: { run: "cat /proc/sys/kernel/random/uuid > o", outputs: { o: o } } }
  t: { kind: command, inputs: { x: s }, params: { run: "cat $x > o", outputs: { o: o } } }
"#;

/// Makes the records those of another processor.
fn computed_elsewhere(space: &Space) {
    for mut record in space.store().read_records().0 {
        record.provenance.numerics = "cpu-other".to_owned();
        space.store().write_record(&record).unwrap();
    }
}

#[test]
fn exact_numerics_compute_anew_and_both_results_stay() {
    let space = Space::new(PIPELINE);
    let show = || space.flowgraph(&["show", "p.yaml", "s"]).stdout;
    let uuid = || {
        space
            .program(&["show", "p.yaml", "s"])
            .output()
            .unwrap()
            .stdout
    };
    assert_eq!(space.run(&[]).code, 0);
    computed_elsewhere(&space);
    let theirs = uuid();
    assert_eq!(space.run(&[]).outcomes(), "s cached, t cached");
    assert_eq!(uuid(), theirs);

    let exact = ["--numerics", "exact"];
    assert_eq!(
        space.plan(&exact)[0].text(),
        "s: run (s: its result was computed as cpu-other)"
    );
    assert_eq!(space.run(&exact).outcomes(), "s done, t done");
    let ours = uuid();
    assert_ne!(ours, theirs);
    // From then on it is found, and the result of the other class still is one.
    for args in [&exact[..], &[]] {
        assert_eq!(space.run(args).outcomes(), "s cached, t cached");
        assert_eq!(uuid(), ours);
    }
    // `s` has two; `t` has two manifests.
    assert_eq!(space.store().read_records().0.len(), 4);
    assert!(show().len() > 1);
    // Both outlive a collection, and a run of the past has what it had.
    assert_eq!(space.flowgraph(&["gc", "--keep", "9"]).code, 0);
    assert_eq!(space.store().read_records().0.len(), 4);
    let then = space
        .program(&["show", "p.yaml", "s", "--run", "last-3"])
        .output()
        .unwrap();
    assert_eq!(then.stdout, theirs);
    let now = space
        .program(&["show", "p.yaml", "s", "--run", "last"])
        .output()
        .unwrap();
    assert_eq!(now.stdout, ours);
    assert_eq!(space.flowgraph(&["verify"]).code, 0);

    // The other machine has its own as before, however often each asks for its own.
    let own = space.store().read_records().0;
    let own = own.iter().find(|record| record.beside).unwrap();
    let other = space
        .store()
        .find_record(&own.fingerprint, "cpu-other")
        .unwrap()
        .unwrap();
    assert_eq!(
        (other.provenance.numerics.as_str(), other.beside),
        ("cpu-other", false)
    );
}

#[test]
fn a_damaged_result_of_another_class_is_replaced() {
    let space = Space::new(PIPELINE);
    assert_eq!(space.run(&[]).code, 0);
    computed_elsewhere(&space);
    std::fs::remove_file(space.object("s")).unwrap();
    assert_eq!(
        space
            .run(&["--numerics", "exact", "--only", "s"])
            .outcomes(),
        "s done"
    );
    let records = space.store().read_records().0;
    let of_s: Vec<bool> = records
        .iter()
        .filter(|record| record.provenance.stage == "s")
        .map(|record| record.beside)
        .collect();
    assert_eq!(of_s, [false]);
}

#[test]
fn results_of_the_composed_form_stand_in_for_nothing() {
    let space = Space::new(PIPELINE);
    let run = |form: &str| {
        let mut program = space.program(&["run", "p.yaml", "--json"]);
        let output = program.env("FLOWGRAPH_KERNELS", form).output().unwrap();
        space.report(&output).outcomes()
    };
    let (made, found) = ("s done, t done", "s cached, t cached");
    for (form, expected) in [
        ("composed", made),
        ("", made),
        ("fused", found),
        ("composed", found),
    ] {
        assert_eq!(run(form), expected, "{form}");
    }
    let classes: Vec<String> = space
        .store()
        .read_records()
        .0
        .into_iter()
        .map(|record| record.provenance.numerics)
        .collect();
    for class in ["composed/1", "cpu/2"] {
        assert_eq!(
            classes.iter().filter(|found| *found == class).count(),
            2,
            "{classes:?}"
        );
    }
    let wrong = space
        .program(&["plan", "p.yaml"])
        .env("FLOWGRAPH_KERNELS", "blended")
        .output()
        .unwrap();
    let wrong = space.outcome(wrong);
    assert_eq!(wrong.code, 2);
    assert!(
        wrong
            .stderr
            .contains("FLOWGRAPH_KERNELS is `blended`, expected fused or composed"),
        "{}",
        wrong.stderr
    );
}
