//! Several runs on one store.

use std::process::{Child, Stdio};

use crate::space::Space;

fn start(space: &Space, args: &[&str]) -> Child {
    space
        .program(&[&["run", "p.yaml"], args].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn runs_of_one_pipeline_do_each_stage_once() {
    let mut text = "name: shared\nstages:\n".to_owned();
    for at in 0..6 {
        let inputs = if at >= 2 {
            format!("x: s{}", at - 2)
        } else {
            String::new()
        };
        text.push_str(&format!(
            "  s{at}: {{ kind: command, inputs: {{ {inputs} }}, params: {{ run: 'echo s{at} >> {{here}}/ran; sleep 0.1; echo {at} > out', outputs: {{ out: out }} }} }}\n"
        ));
    }
    let space = Space::new(&text);
    let children: Vec<Child> = (0..3).map(|_| start(&space, &["--json"])).collect();
    let reports: Vec<_> = children
        .into_iter()
        .map(|child| space.report(&child.wait_with_output().unwrap()))
        .collect();
    for report in &reports {
        assert_eq!(report.code, 0, "{}", report.stderr);
        assert_eq!(report.digests(), reports[0].digests());
    }
    assert_eq!(space.ran(), ["s0", "s1", "s2", "s3", "s4", "s5"]);
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

const SLOW: &str = r#"
name: slow
stages:
  a:
    kind: command
    timeout: 20
    params: { run: "echo a >> {here}/ran; echo 1 > {here}/started; while [ ! -e {here}/go ]; do sleep 0.01; done; echo 1 > out", outputs: { out: out } }
"#;

#[test]
fn who_waits_names_the_holder_and_takes_its_result() {
    let space = Space::new(SLOW);
    let first = start(&space, &[]);
    space.wait_for("started");
    let second = start(&space, &[]);
    crate::space::wait_until("the second run waits", || {
        let logs = space.files(".flowgraph/runs");
        let events = logs.iter().filter(|file| file.ends_with("events.jsonl"));
        events
            .map(|file| std::fs::read_to_string(file).unwrap())
            .any(|text| text.contains("stage_waiting"))
            .then_some(())
    });
    space.write("go", "");
    let first = space.outcome(first.wait_with_output().unwrap());
    let second = space.outcome(second.wait_with_output().unwrap());
    assert_eq!((first.code, second.code), (0, 0));
    assert_eq!(
        second.stderr,
        "         RUN a  no earlier result
     WAITING a  waits for stage `a` of pipeline `slow`, process PID on HOST
        DONE (1/1) a  TIME  (by another process)
     Summary [TIME] 1 stage: 0 cached, 1 done
"
    );
    assert_eq!(space.ran(), ["a"]);
}

#[test]
fn waiting_does_not_count_as_running_too_long() {
    let space = Space::new(SLOW);
    let first = start(&space, &[]);
    space.wait_for("started");
    let second = start(&space, &["--json", "--set", "stages.a.timeout=0.2"]);
    crate::space::wait_until("the second run waits", || {
        let logs = space.files(".flowgraph/locks");
        (!logs.is_empty()).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(700));
    space.write("go", "");
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(0));
    let report = space.report(&second.wait_with_output().unwrap());
    assert_eq!(report.outcomes(), "a done");
}

#[test]
fn who_waits_does_the_work_if_the_holder_dies() {
    let space = Space::new(SLOW);
    let mut first = start(&space, &[]);
    space.wait_for("started");
    let second = start(&space, &["--json"]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    first.kill().unwrap();
    first.wait().unwrap();
    space.write("go", "");
    let report = space.report(&second.wait_with_output().unwrap());
    assert_eq!((report.code, report.outcomes().as_str()), (0, "a done"));
    assert_eq!(space.ran(), ["a", "a"]);
}

#[test]
fn stages_run_beside_each_other_up_to_jobs() {
    let space = Space::new(
        r#"
name: jobs
stages:
  a: { kind: command, params: { run: "echo a > {here}/a; n=0; while [ ! -e {here}/b ] && [ $n -lt 100 ]; do sleep 0.01; n=$((n+1)); done; test -e {here}/b && echo met > out || echo alone > out", outputs: { out: out } } }
  b: { kind: command, params: { run: "echo b > {here}/b; echo 1 > out", outputs: { out: out } } }
"#,
    );
    assert_eq!(space.run(&["--jobs", "1"]).code, 0);
    assert_eq!(
        std::fs::read_to_string(space.object("a")).unwrap(),
        "alone\n"
    );
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: one core runs one stage at a time");
        return;
    }
    for file in ["a", "b"] {
        std::fs::remove_file(space.path(file)).unwrap();
    }
    std::fs::remove_dir_all(space.path(".flowgraph")).unwrap();
    assert_eq!(space.run(&["--jobs", "2"]).code, 0);
    assert_eq!(std::fs::read_to_string(space.object("a")).unwrap(), "met\n");
}
