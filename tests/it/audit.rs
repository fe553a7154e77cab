//! `audit` says only what it has seen: bytes that it computed anew from what is recorded, beside the bytes that are stored.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use flowgraph::engine::store::ObjectStat;
use serde_json::Value as Json;

use crate::space::{Space, wait_until};

/// How an audit ended, its verdicts by stage, its reasons and its counts.
struct Audit {
    code: i32,
    verdicts: String,
    reasons: String,
    report: Json,
}

fn audit(space: &Space, args: &[&str]) -> Audit {
    let outcome = space.flowgraph(&[&["audit", "p.yaml", "--json"], args].concat());
    let report: Json = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", outcome.stderr));
    let findings = report["findings"].as_array().unwrap();
    let list = |key: &str| {
        let texts: Vec<String> = findings
            .iter()
            .filter(|found| !found[key].is_null())
            .map(|found| format!("{} {}", found["stage"], found[key]).replace('"', ""))
            .collect();
        texts.join(", ")
    };
    Audit {
        code: outcome.code,
        verdicts: list("verdict"),
        reasons: list("reason"),
        report: report.clone(),
    }
}

const CHAIN: &str = r#"
name: n
stages:
  s: { kind: command, params: { run: "echo s > o; cat {here}/slow > /dev/null", outputs: { o: o } } }
  t: { kind: command, inputs: { x: s }, params: { run: "sh t.sh > o", outputs: { o: o }, code: [t.sh] } }
"#;

#[test]
fn what_was_edited_is_not_auditable_before_and_while_the_audit_runs() {
    let space = Space::new(CHAIN);
    space.write("t.sh", "echo one");
    space.write("slow", "");
    assert_eq!(space.run(&[]).code, 0);
    // While `s` reads from a pipe, the audit goes on.
    fs::remove_file(space.path("slow")).unwrap();
    let status = std::process::Command::new("mkfifo")
        .arg(space.path("slow"))
        .status();
    assert!(status.unwrap().success());
    let child = space
        .program(&["audit", "p.yaml", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let writer = fs::OpenOptions::new()
        .write(true)
        .open(space.path("slow"))
        .unwrap();
    space.write("t.sh", "echo two");
    drop(writer);
    let output = space.outcome(child.wait_with_output().unwrap());
    assert_eq!(output.code, 0, "{}", output.stderr);
    let report: Json = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["findings"][0]["verdict"], "reproduced");
    assert_eq!(report["findings"][1]["verdict"], "not_auditable");
    assert_eq!(report["counts"]["compared"], 1);

    // As the pipeline stands now, there is no result of `t`.
    fs::remove_file(space.path("slow")).unwrap();
    space.write("slow", "");
    let edited = audit(&space, &[]);
    assert_eq!(
        (edited.code, edited.verdicts.as_str()),
        (0, "s reproduced, t not_auditable")
    );
    assert!(
        edited.reasons.contains("sources.t.sh"),
        "{}",
        edited.reasons
    );
    assert_eq!(audit(&space, &["--require-all"]).code, 1);
}

#[test]
fn stored_bytes_that_the_disk_changed_are_different() {
    let space = Space::new(CHAIN);
    space.write("t.sh", "cat $x; echo t");
    space.write("slow", "");
    assert_eq!(space.run(&[]).code, 0);
    // Below the file system: all that it says of the file is as it was.
    let object = space.object("t");
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&object, "z\n").unwrap();
    let mut record = space.record("t");
    for stat in record.stats.values_mut() {
        let now = ObjectStat::of(&fs::metadata(&object).unwrap());
        let checked_ns = now.checked_ns + 1_000_000_000;
        *stat = ObjectStat { checked_ns, ..now };
    }
    space.store().write_record(&record).unwrap();
    assert_eq!(space.plan(&[])[1].decision, "cached", "nothing shows");
    let rotten = audit(&space, &[]);
    assert_eq!(
        (rotten.code, rotten.verdicts.as_str()),
        (5, "s reproduced, t different")
    );
    // What file times show is no less different.
    fs::write(&object, "y\n").unwrap();
    assert_eq!(audit(&space, &["t"]).verdicts, "t different");
    // What is not there cannot be compared, and what reads it cannot be computed.
    let object = space.object("s");
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&object, "q\n").unwrap();
    assert_eq!(audit(&space, &[]).verdicts, "s different, t not_auditable");
    fs::remove_file(object).unwrap();
    let gone = audit(&space, &[]);
    assert_eq!(
        (gone.code, gone.verdicts.as_str()),
        (1, "s not_auditable, t not_auditable")
    );
    assert!(
        gone.reasons.contains("nothing to compare with"),
        "{}",
        gone.reasons
    );
    assert!(
        gone.reasons.contains("an input is not what is recorded"),
        "{}",
        gone.reasons
    );
}

#[test]
fn an_audit_that_compares_nothing_fails_and_says_so() {
    let space = Space::new(CHAIN);
    space.write("t.sh", "echo one");
    space.write("slow", "");
    let nothing = space.flowgraph(&["audit", "p.yaml"]);
    assert_eq!(nothing.code, 1);
    assert!(
        nothing.stdout.contains("compared 0 of 2 results"),
        "{}",
        nothing.stdout
    );
    assert_eq!(audit(&space, &[]).report["counts"]["asked"], 2);
}

#[test]
fn as_many_threads_are_used_as_are_named() {
    let space = Space::new(
        r#"
name: n
stages:
  s: { kind: command, params: { run: "tr '\\0' '\\n' < /proc/$PPID/environ | grep ^RAYON_NUM_THREADS >> {here}/ran; echo > o", outputs: { o: o } } }
"#,
    );
    assert_eq!(space.run(&[]).code, 0);
    space.ran();
    let said = space.flowgraph(&["audit", "p.yaml", "--threads", "1,64"]);
    assert_eq!(space.ran(), ["RAYON_NUM_THREADS=1", "RAYON_NUM_THREADS=64"]);
    assert!(
        said.stdout.contains("s  cpu, 1 thread\n"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout.contains("s  cpu, 64 threads\n"),
        "{}",
        said.stdout
    );
    assert_eq!(
        space.flowgraph(&["audit", "p.yaml", "--threads", "0"]).code,
        2
    );
}

#[test]
fn audits_leave_the_audited_files_as_they_are_and_one_another_alone() {
    let space = Space::new(
        r#"
name: n
stages:
  s: { kind: command, retries: 2, params: { run: "echo >> {here}/ran; while [ -e {here}/hold ]; do sleep 0.01; done; cat /proc/sys/kernel/random/uuid > o", outputs: { o: o } } }
"#,
    );
    assert_eq!(space.run(&[]).code, 0);
    let files = || {
        let mut stats = Vec::new();
        for folder in ["objects", "records"] {
            for file in space.files(&format!(".flowgraph/{folder}")) {
                let found = ObjectStat::of(&fs::metadata(file).unwrap());
                stats.push((found.size, found.mtime_ns, found.ctime_ns, found.inode));
            }
        }
        stats
    };
    let before = files();
    space.ran();
    space.write("hold", "");
    let children: Vec<_> = (0..2)
        .map(|_| space.program(&["audit", "p.yaml", "-q"]).spawn().unwrap())
        .collect();
    wait_until("both audits compute", || {
        let ran = fs::read_to_string(space.path("ran")).unwrap_or_default();
        (ran.len() == 2).then_some(())
    });
    assert_eq!(
        before,
        files(),
        "a link would renew an object's change time"
    );
    // A run beside them sweeps nothing of theirs away.
    let hold = space.path("hold");
    assert_eq!(space.run(&[]).outcomes(), "s cached");
    fs::remove_file(hold).unwrap();
    for child in children {
        let code = child.wait_with_output().unwrap().status.code();
        assert_eq!(code, Some(5), "each gave bytes of its own");
    }
    assert_eq!(before, files());
    assert_eq!(
        space.files(".flowgraph/audit"),
        Vec::<std::path::PathBuf>::new()
    );
}

#[test]
fn trainings_are_audited_with_the_operations_of_other_devices() {
    let space = Space::new(&crate::tiny::pipeline("", ""));
    assert_eq!(space.run(&[]).code, 0);
    let audit = space.flowgraph(&["audit", "p.yaml", "base", "--device", "cpu,composed"]);
    assert_eq!(audit.code, 0, "{}", audit.stdout);
    for (words, condition) in [
        ("reproduced base", "cpu, 1 thread"),
        ("within tolerance base", "cpu, composed, 1 thread"),
    ] {
        let is_it = |line: &str| line.contains(words) && line.ends_with(condition);
        assert!(audit.stdout.lines().any(is_it), "{words}: {}", audit.stdout);
    }
}
