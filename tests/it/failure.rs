//! What happens when stages fail.

use std::time::Instant;

use crate::space::Space;

/// `bad` fails until `fixed` exists; `after` needs it, `last` needs `after`, `other` needs nothing.
const PIPELINE: &str = r#"
name: failing
stages:
  bad: { kind: command, params: { run: "echo bad >> {here}/ran; echo about to fail; test -e {here}/fixed; echo done > out", outputs: { out: out } } }
  after: { kind: command, inputs: { x: bad }, params: { run: "echo after >> {here}/ran; cp $x out", outputs: { out: out } } }
  last: { kind: command, inputs: { x: after }, params: { run: "echo last >> {here}/ran; cp $x out", outputs: { out: out } } }
  other: { kind: command, params: { run: "echo other >> {here}/ran; echo 1 > out", outputs: { out: out } } }
"#;

#[test]
fn what_does_not_need_the_failed_stage_is_done_and_the_next_run_continues() {
    let space = Space::new(PIPELINE);
    let report = space.run(&[]);
    assert_eq!(report.code, 1);
    assert_eq!(
        report.outcomes(),
        "after skipped, bad failed, last skipped, other done"
    );
    assert_eq!(space.ran(), ["bad", "other"]);
    let report = space.run(&[]);
    assert_eq!(
        report.outcomes(),
        "after skipped, bad failed, last skipped, other cached"
    );
    assert_eq!(space.ran(), ["bad"]);
    space.write("fixed", "");
    let report = space.run(&[]);
    assert_eq!(report.code, 0);
    assert_eq!(
        report.outcomes(),
        "after done, bad done, last done, other cached"
    );
    assert_eq!(space.ran(), ["after", "bad", "last"]);
}

#[test]
fn people_see_the_end_of_the_log_and_what_to_do() {
    let space = Space::new(PIPELINE);
    let outcome = space.flowgraph(&["run", "p.yaml", "--jobs", "1"]);
    assert_eq!(outcome.code, 1);
    assert_eq!(outcome.stdout, "");
    assert_eq!(
        outcome.stderr,
        "         RUN bad  no earlier result
      FAILED (1/4) bad  the command failed: exit status: 1
     SKIPPED after  needs `bad`
     SKIPPED last  needs `after`
         RUN other  no earlier result
        DONE (4/4) other  TIME
     Summary [TIME] 4 stages: 0 cached, 1 done, 1 failed, 2 skipped

error: stage `bad` failed: the command failed: exit status: 1
hint: its output is in the stage's log; `sh -e` stops at the first failing line
  the end of .flowgraph/runs/RUN/logs/bad.log:
  | about to fail
1 stage failed; mend the cause and give the same command again: what is done stays done
"
    );
    let logs: Vec<_> = space
        .files(".flowgraph/runs")
        .into_iter()
        .filter(|file| file.ends_with("logs/bad.log"))
        .collect();
    assert_eq!(logs.len(), 1);
    assert_eq!(
        std::fs::read_to_string(&logs[0]).unwrap(),
        "about to fail\n"
    );
}

#[test]
fn a_failed_stage_leaves_no_result_and_no_scratch() {
    let space = Space::new(PIPELINE);
    space.run(&["--only", "bad"]);
    assert_eq!(
        space.files(".flowgraph/records"),
        [""; 0].map(std::path::PathBuf::from)
    );
    assert_eq!(
        space.files(".flowgraph/objects"),
        [""; 0].map(std::path::PathBuf::from)
    );
    assert_eq!(
        space.files(".flowgraph/scratch"),
        [""; 0].map(std::path::PathBuf::from)
    );
}

#[test]
fn a_stage_with_retries_is_tried_again() {
    let space = Space::new(
        r#"
name: retries
stages:
  flaky:
    kind: command
    retries: 1
    params: { run: "echo try >> {here}/ran; echo try; test $(wc -l < {here}/ran) -ge 2; echo 1 > out", outputs: { out: out } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (0, "flaky done"),
        "{}",
        report.stderr
    );
    assert_eq!(space.ran(), ["try", "try"]);
    let retried = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_retried")
        .unwrap();
    assert_eq!(retried["next_try"], 2);
    assert_eq!(retried["message"], "the command failed: exit status: 1");
    // The log holds both tries.
    let log = space
        .files(".flowgraph/runs")
        .into_iter()
        .find(|file| file.ends_with("logs/flaky.log"));
    assert_eq!(std::fs::read_to_string(log.unwrap()).unwrap(), "try\ntry\n");
}

#[test]
fn a_stage_is_ended_after_its_timeout_with_everything_it_started() {
    let space = Space::new(
        r#"
name: timeout
stages:
  slow: { kind: command, timeout: 0.3, params: { run: "sleep 100 & sleep 100; echo 1 > out", outputs: { out: out } } }
"#,
    );
    let start = Instant::now();
    let report = space.run(&[]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "slow failed")
    );
    assert!(
        start.elapsed().as_secs() < 50,
        "the timeout was not enforced"
    );
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed")
        .unwrap();
    assert_eq!(failed["message"], "ended after its timeout of 0.3 s");
    crate::space::wait_until("nothing of the stage is left", || {
        crate::space::processes_in(&space.path(""))
            .is_empty()
            .then_some(())
    });
}

#[test]
fn fail_fast_ends_what_runs_and_starts_nothing_more() {
    let space = Space::new(
        r#"
name: fast
stages:
  bad: { kind: command, params: { run: "while [ ! -e {here}/slow ]; do sleep 0.01; done; exit 1", outputs: { out: out } } }
  slow: { kind: command, params: { run: "echo 1 > {here}/slow; sleep 100; echo 1 > out", outputs: { out: out } } }
  later: { kind: command, inputs: { x: slow }, params: { run: "echo later >> {here}/ran; cp $x out", outputs: { out: out } } }
"#,
    );
    let start = Instant::now();
    let report = space.run(&["--fail-fast"]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "bad failed, slow interrupted")
    );
    assert!(start.elapsed().as_secs() < 50, "`slow` was waited for");
    assert_eq!(space.ran(), [""; 0]);
}

#[test]
fn what_waits_for_another_try_when_the_run_ends_has_failed() {
    let space = Space::new(
        r#"
name: fast
stages:
  again: { kind: command, retries: 6, params: { run: "echo 1 >> {here}/tries; exit 3", outputs: { out: out } } }
  bad: { kind: command, params: { run: "while [ ! -e {here}/tries ]; do sleep 0.01; done; sleep 0.3; exit 1", outputs: { out: out } } }
  after: { kind: command, inputs: { x: again }, params: { run: "cp $x out", outputs: { out: out } } }
"#,
    );
    let report = space.run(&["--fail-fast", "--jobs", "2"]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "after skipped, again failed, bad failed")
    );
    let failed =
        |event: &&serde_json::Value| event["event"] == "stage_failed" && event["stage"] == "again";
    let failed = report.events.iter().find(failed).unwrap();
    assert_eq!(failed["message"], "the command failed: exit status: 3");
}

fn failure(run: &str) -> String {
    let space = Space::new(&format!(
        r#"
name: one
stages:
  seed: {{ kind: command, params: {{ run: "echo 1 > out", outputs: {{ out: out }} }} }}
  a: {{ kind: command, inputs: {{ x: seed }}, params: {{ run: "{run}", outputs: {{ first: out, second: other/out }} }} }}
"#
    ));
    let report = space.run(&[]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "a failed, seed done")
    );
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed")
        .unwrap();
    // Whatever it did, the next run finds or makes right results.
    assert_eq!(
        space.flowgraph(&["run", "p.yaml", "--only", "seed"]).code,
        0
    );
    assert_eq!(
        std::fs::read_to_string(space.object("seed")).unwrap(),
        "1\n"
    );
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
    failed["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_missing_output_is_an_error() {
    assert_eq!(
        failure("echo 1 > out"),
        "the command did not write `other/out`"
    );
}

#[test]
fn a_changed_input_is_an_error_and_its_stage_runs_again() {
    let works = "mkdir other; touch out other/out";
    for change in [
        "chmod u+w $x; echo 2 > $x",
        "cp -p $x old; chmod u+w $x; echo 2 > $x; touch -r old $x",
        "rm $(readlink $x); echo 2 > $(readlink $x)",
    ] {
        let message = failure(&format!("{works}; {change}"));
        assert!(
            message.starts_with("the command changed one of its inputs")
                || message.starts_with("input `x` changed while the stage ran"),
            "{change}: {message}"
        );
    }
}

#[test]
fn a_killed_worker_is_one_failed_stage() {
    let space = Space::new(
        r#"
name: killed
stages:
  victim: { kind: command, params: { run: "sleep 0.2; kill -9 $PPID; sleep 100", outputs: { out: out } } }
  asked: { kind: command, params: { run: "kill -TERM $PPID; sleep 100", outputs: { out: out } } }
  other: { kind: command, params: { run: "echo 1 > out", outputs: { out: out } } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "asked failed, other done, victim failed")
    );
    let mut messages: Vec<&str> = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_failed")
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    messages.sort_unstable();
    assert_eq!(
        messages,
        [
            "its worker ended early: signal: 9 (SIGKILL)",
            "its worker was asked to stop by somebody else"
        ]
    );
    crate::space::wait_until("nothing of the stages is left", || {
        crate::space::processes_in(&space.path(""))
            .is_empty()
            .then_some(())
    });
}
