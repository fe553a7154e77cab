//! System calls that fail, a full inode table, clocks that jump, and stores that move.

use std::fs::{self, FileTimes};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::disk::Disk;
use crate::space::{Space, processes_in, wait_until};

const PIPELINE: &str = r#"
name: small
params: { last: two }
stages:
  a: { kind: command, params: { run: "echo one > out; echo more > second", outputs: { out: out, second: second } } }
  b: { kind: command, inputs: { x: a }, params: { run: "cat $x > out; echo two >> out", outputs: { out: out } } }
  world: { kind: generate_world, params: { seed: 1, pretraining_documents: 20, finetune_pairs: 20, reward_pairs: 20, rl_questions: 10 } }
  c: { kind: command, inputs: { x: b, y: a.second, z: world.rl }, params: { run: "cat $x $y > out; echo ${last} >> out; ls $z >> out", outputs: { out: out } } }
"#;

/// Fails unless a program is there: a proof that was not made must not look like one that was.
fn needs(program: &str, package: &str) {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        found.is_ok(),
        "this test needs `{program}`: install the package {package}"
    );
}

#[test]
#[ignore = "needs strace, and takes some minutes"]
fn whatever_call_fails_the_next_run_gives_the_same_bytes() {
    needs("strace", "strace");
    let space = Space::new(PIPELINE);
    let undisturbed = space.run(&["--store", "calm"]);
    assert_eq!(undisturbed.code, 0, "{}", undisturbed.stderr);
    let (mut failed, mut rounds) = (0, 0);
    for calls in [
        "fsync",
        "rename,renameat,renameat2",
        "write",
        "mkdir,mkdirat",
        "flock",
        "openat",
    ] {
        for fault in ["error=EIO", "error=ENOSPC", "signal=KILL"] {
            // Each process counts for itself, and `openat` comes first in the loading of a program.
            let first = if calls == "openat" { 6 } else { 1 };
            for nth in first..first + 10 {
                let case = format!("{calls}: {fault} at call {nth}");
                let traced = format!("trace={calls}");
                let injected = format!("inject={calls}:{fault}:when={nth}");
                // Whoever hangs is ended with its tracer.
                let tracer = ["timeout", "-s", "KILL", "120", "strace", "-f", "-qq"];
                let options = ["-o", "/dev/null", "-e", &traced, "-e", &injected];
                let starter = [&tracer[..], &options].concat();
                let mut program = space.under(&starter, &["run", "p.yaml", "--json"]);
                let output = program.output().unwrap();
                let hangs = output.status.code() == Some(137) || output.status.signal() == Some(9);
                assert!(!hangs || fault == "signal=KILL", "{case}: it hangs");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(!said.contains("panicked"), "{case}: {said}");
                if output.status.success() {
                    // Standard output may be what failed.
                    let report = space.report(&output);
                    let made = report.digests();
                    assert!(made.is_empty() || made == undisturbed.digests(), "{case}");
                } else {
                    failed += 1;
                }
                rounds += 1;
                // The store itself may be what could not be made.
                if space.path(".flowgraph").exists() {
                    let verified = space.flowgraph(&["verify"]);
                    assert_eq!(verified.code, 0, "{case}: {}", verified.stderr);
                }
                let report = space.run(&[]);
                assert_eq!(report.code, 0, "{case}: {}", report.stderr);
                assert_eq!(report.digests(), undisturbed.digests(), "{case}");
                wait_until("nothing is left", || {
                    processes_in(&space.path("")).is_empty().then_some(())
                });
                fs::remove_dir_all(space.path(".flowgraph")).unwrap();
            }
        }
    }
    eprintln!("{failed} of {rounds} runs with a fault failed");
    assert!(failed * 3 > rounds, "most faults hit nothing");
}

#[test]
fn a_full_inode_table_is_a_clear_error_and_loses_nothing() {
    let space = Space::new(
        r#"
name: many
params: { files: 300 }
stages:
  small: { kind: command, params: { run: "echo 1 > out", outputs: { out: out } } }
  many: { kind: command, inputs: { x: small }, params: { run: "mkdir d; for i in $(seq ${files}); do echo $i > d/$i; done", outputs: { out: d } } }
"#,
    );
    let path = space.path("disk");
    let Some(_disk) = Disk::in_memory(&path, "size=20m,nr_inodes=120") else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let store = ["--store", "disk/store"];
    let report = space.run(&store);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "many failed, small done")
    );
    let report = space.run(&[&store[..], &["--set", "files=3"]].concat());
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (0, "many done, small cached")
    );
    // Not a single file more.
    let mut taken = 0;
    while fs::write(path.join(format!("filler{taken}")), "").is_ok() {
        taken += 1;
    }
    let full = space.flowgraph(&["run", "p.yaml", "--set", "files=4", store[0], store[1]]);
    assert_eq!(full.code, 1);
    assert!(
        full.stderr.contains("No space left on device") && full.stderr.contains("disk/store"),
        "{}",
        full.stderr
    );
    let cached = space.flowgraph(&[
        "plan",
        "p.yaml",
        "--set",
        "files=3",
        "--exit-code",
        store[0],
        store[1],
    ]);
    assert_eq!(cached.code, 0, "{}", cached.stdout);
    assert_eq!(space.flowgraph(&["verify", store[0], store[1]]).code, 0);
    for file in 0..taken {
        fs::remove_file(path.join(format!("filler{file}"))).unwrap();
    }
    let report = space.run(&[&store[..], &["--set", "files=4"]].concat());
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (0, "many done, small cached")
    );
}

#[test]
fn a_store_whose_files_are_from_tomorrow_works() {
    let space = Space::new(PIPELINE);
    let first = space.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let tomorrow = SystemTime::now() + Duration::from_hours(24);
    for file in space.files(".flowgraph") {
        let times = FileTimes::new()
            .set_modified(tomorrow)
            .set_accessed(tomorrow);
        fs::File::open(file).unwrap().set_times(times).unwrap();
    }
    for _ in 0..2 {
        let report = space.run(&[]);
        assert_eq!(
            report.outcomes(),
            "a cached, b cached, c cached, world cached"
        );
    }
    let report = space.run(&["--set", "last=three"]);
    assert_eq!(
        report.outcomes(),
        "a cached, b cached, c done, world cached"
    );
    // A file of that age is not believed for its times alone.
    let object = space.object("b");
    let times = FileTimes::new().set_modified(tomorrow);
    let mut permissions = fs::metadata(&object).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(&object, permissions).unwrap();
    fs::write(&object, "one\nTWO\n").unwrap();
    fs::File::open(&object).unwrap().set_times(times).unwrap();
    let report = space.run(&[]);
    assert_eq!(report.digests(), first.digests());
    assert_eq!(report.stages["b"].0, "done");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
#[ignore = "needs faketime"]
fn a_clock_that_jumps_back_changes_nothing() {
    needs("faketime", "faketime");
    let space = Space::new(PIPELINE);
    let at = |time: &str, args: &[&str]| {
        let mut program = space.under(&["faketime", time], args);
        program.output().unwrap()
    };
    let run = ["run", "p.yaml", "--json"];
    let tomorrow = space.report(&at("+1 day", &run));
    assert_eq!(tomorrow.code, 0, "{}", tomorrow.stderr);
    for time in ["+0 days", "-400 days", "+2 days"] {
        let report = space.report(&at(time, &run));
        assert_eq!(
            report.outcomes(),
            "a cached, b cached, c cached, world cached",
            "{time}"
        );
        let set = format!("last='{time}'");
        let changed = [&run[..], &["--set", &set]].concat();
        let report = space.report(&at(time, &changed));
        assert_eq!(
            report.outcomes(),
            "a cached, b cached, c done, world cached",
            "{time}: {}",
            report.stderr
        );
        for args in [
            &["runs"][..],
            &["verify"],
            &["gc", "--dry-run", "p.yaml"],
            &["why", "p.yaml", "c"],
        ] {
            let output = at(time, args);
            assert!(
                output.status.success(),
                "{time} {args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    // A change of the present is seen whatever the records' times say.
    let object = space.object("b");
    fs::remove_file(&object).unwrap();
    fs::write(&object, "one\nTWO\n").unwrap();
    let report = space.run(&[]);
    assert_eq!(
        (report.stages["b"].0.as_str(), report.digests()),
        ("done", tomorrow.digests())
    );
}

#[test]
fn a_copied_store_is_as_good_as_the_first() {
    let space = Space::new(PIPELINE);
    let first = space.run(&[]);
    fs::create_dir(space.path("elsewhere")).unwrap();
    let copied = Command::new("cp")
        .args(["-r", ".flowgraph", "elsewhere/store"])
        .current_dir(space.path(""))
        .status();
    assert!(copied.unwrap().success());
    fs::remove_dir_all(space.path(".flowgraph")).unwrap();
    let copy = ["--store", "elsewhere/store"];
    let all = "a cached, b cached, c cached, world cached";
    let report = space.run(&copy);
    assert_eq!(
        (report.outcomes().as_str(), report.digests()),
        (all, first.digests())
    );
    assert_eq!(space.flowgraph(&["verify", copy[0], copy[1]]).code, 0);
    // Moved once more, and used by what runs anew.
    fs::rename(space.path("elsewhere"), space.path("yonder")).unwrap();
    let report = space.run(&["--store", "yonder/store", "--set", "last=three"]);
    assert_eq!(
        report.outcomes(),
        "a cached, b cached, c done, world cached"
    );
}
