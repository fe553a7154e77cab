//! A damaged store never gives a wrong result, says what is damaged, and heals.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use flowgraph::engine::store::ObjectStat;

use crate::disk::Disk;
use crate::space::{Space, lines};

const PIPELINE: &str = r#"
name: small
stages:
  a: { kind: command, params: { run: "echo one > out; echo more > second", outputs: { out: out, second: second } } }
  b: { kind: command, inputs: { x: a }, params: { run: "cat $x > out; echo two >> out", outputs: { out: out } } }
  c: { kind: command, inputs: { x: b, y: a.second }, params: { run: "cat $x $y > out", outputs: { out: out } } }
"#;

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    overwrite(path, &bytes);
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    overwrite(path, &bytes[..bytes.len() - 1]);
}

fn delete(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn restore(store: &Path, good: &BTreeMap<std::path::PathBuf, Vec<u8>>) {
    for folder in ["objects", "records"] {
        let _ = fs::remove_dir_all(store.join(folder));
    }
    for (path, bytes) in good {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn whatever_is_damaged_is_named_and_the_next_run_gives_the_right_bytes() {
    let space = Space::new(PIPELINE);
    let first = space.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let mut good = BTreeMap::new();
    for folder in [".flowgraph/objects", ".flowgraph/records"] {
        for file in space.files(folder) {
            good.insert(file.clone(), fs::read(file).unwrap());
        }
    }
    assert_eq!(good.len(), 7, "four objects and three records");
    for path in good.keys() {
        for (what, damage) in [
            ("flip", flip as fn(&Path)),
            ("truncate", truncate),
            ("delete", delete),
        ] {
            restore(&space.path(".flowgraph"), &good);
            damage(path);
            let case = format!(
                "{what} {}",
                path.strip_prefix(space.path("")).unwrap().display()
            );
            let is_record = path.extension().is_some();
            let verified = space.program(&["verify"]).output().unwrap();
            let said = String::from_utf8_lossy(&verified.stderr).into_owned();
            if is_record && what == "delete" {
                // A record that is gone is a result that was never made.
                assert_eq!(verified.status.code(), Some(0), "{case}: {said}");
            } else {
                assert_eq!(verified.status.code(), Some(4), "{case}: {said}");
                let name = path.strip_prefix(space.path("")).unwrap().to_str().unwrap();
                assert!(said.contains(name), "{case}: {said}");
            }
            let plan = space.plan(&[]);
            assert!(
                plan.iter()
                    .any(|stage| stage.decision == "run" && !stage.causes.is_empty()),
                "{case}: {:?}",
                lines(&plan)
            );
            let report = space.run(&[]);
            assert_eq!(report.code, 0, "{case}: {}", report.stderr);
            assert_eq!(report.digests(), first.digests(), "{case}");
            assert_eq!(space.flowgraph(&["verify"]).code, 0, "{case}");
            assert!(
                space
                    .plan(&[])
                    .iter()
                    .all(|stage| stage.decision == "cached"),
                "{case}"
            );
        }
    }
}

#[test]
fn verify_says_which_stages_made_what_is_damaged_and_repair_removes_it() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    let object = space.object("b");
    flip(&object);
    let record = space.store().record_path(&space.record("c").fingerprint);
    truncate(&record);
    let verified = space.flowgraph(&["verify"]);
    assert_eq!(verified.code, 4);
    let shown = |path: &Path| {
        let text = path
            .strip_prefix(space.path(""))
            .unwrap()
            .display()
            .to_string();
        let (folder, name) = text.rsplit_once('/').unwrap();
        let kind = name.find(".json").map_or("", |_| ".json");
        format!("{folder}/DIGEST{kind}")
    };
    let expected = format!(
        "error: record {} is damaged: it is cut short\n\
         error: object {} is damaged: its bytes have another digest\n\
         hint: made by b\n\
         2 records and 4 objects verified, 2 damaged\n",
        shown(&record),
        shown(&object)
    );
    let ending = "`flowgraph verify --repair` removes what is damaged, so that the next run makes it again\n";
    assert_eq!(verified.stderr, format!("{expected}{ending}"));
    assert_eq!(verified.stdout, "");
    let json = space.flowgraph(&["verify", "--json"]);
    assert_eq!(json.code, 4);
    let rows: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows["damaged"][1]["stages"], serde_json::json!(["b"]));

    let repaired = space.flowgraph(&["verify", "--repair"]);
    assert_eq!(repaired.code, 0);
    assert!(!object.exists() && !record.exists());
    assert_eq!(space.run(&[]).outcomes(), "a cached, b done, c done");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn damage_is_the_cause_that_plan_gives() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    delete(&space.object("b"));
    let plan = space.flowgraph(&["plan", "p.yaml"]);
    let text: Vec<&str> = plan
        .stdout
        .lines()
        .map(|line| line.split(" (about").next().unwrap())
        .collect();
    assert_eq!(text[0], "      CACHED a");
    assert!(
        text[1].starts_with("         RUN b  object .flowgraph/objects/"),
        "{text:?}"
    );
    assert!(text[1].ends_with("/DIGEST is missing"), "{text:?}");
    assert!(
        text[2].starts_with("      RUN IF c  b: object .flowgraph/objects/"),
        "{text:?}"
    );
    // The same words as for any other reason, in the run.
    let run = space.flowgraph(&["run", "p.yaml"]);
    assert!(run.stderr.starts_with(text[1]), "{}", run.stderr);
    assert_eq!(run.code, 0);
}

#[test]
fn damage_that_file_times_do_not_show_is_found_when_the_object_is_used() {
    let space = Space::new(PIPELINE);
    let first = space.run(&[]);
    let object = space.object("a");
    flip(&object);
    // As if the disk had lost the bit: the record vouches for the file as it is now.
    std::thread::sleep(std::time::Duration::from_millis(60));
    let mut record = space.record("a");
    let digest = record.outputs["out"].files[0].digest;
    record
        .stats
        .insert(digest, ObjectStat::of(&fs::metadata(&object).unwrap()));
    space.store().write_record(&record).unwrap();
    assert!(
        space
            .plan(&[])
            .iter()
            .all(|stage| stage.decision == "cached"),
        "{:?}",
        lines(&space.plan(&[]))
    );
    assert_eq!(space.flowgraph(&["verify"]).code, 4);
    assert_eq!(space.flowgraph(&["show", "p.yaml", "a"]).code, 4);
    assert_eq!(
        space.flowgraph(&["export", "p.yaml", "a", "folder"]).code,
        4
    );
    assert_eq!(
        space
            .flowgraph(&["plan", "p.yaml", "--paranoid", "--exit-code"])
            .code,
        10
    );
    let report = space.run(&["--set", "stages.b.params.run=tac $x > out"]);
    assert_eq!(report.code, 0, "{:?}", report.events);
    assert_eq!(report.outcomes(), "a done, b done, c done");
    assert_eq!(report.digests()["a"], first.digests()["a"]);
    assert_eq!(fs::read_to_string(&object).unwrap(), "one\n");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn whole_folders_that_are_gone_are_made_again() {
    let space = Space::new(PIPELINE);
    let first = space.run(&[]);
    for folder in ["objects", "records", "locks", "runs", "scratch"] {
        fs::remove_dir_all(space.path(".flowgraph").join(folder)).unwrap();
        let report = space.run(&[]);
        assert_eq!(
            (report.code, report.digests()),
            (0, first.digests()),
            "{folder}: {}",
            report.stderr
        );
    }
}

#[test]
fn files_that_are_no_part_of_the_store_are_left_alone() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    for stray in [
        "objects/stray",
        "objects/ab/.new-x",
        "records/notes.txt",
        "records/.new-y",
        "scratch/z",
        "README",
    ] {
        space.write(&format!(".flowgraph/{stray}"), "stray");
    }
    assert_eq!(space.run(&[]).outcomes(), "a cached, b cached, c cached");
    let verified = space.flowgraph(&["verify", "--repair"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert_eq!(space.read(".flowgraph/objects/stray"), "stray");
}

/// Runs the program as a user who cannot write to the space; `None` where that is not possible.
fn as_nobody(space: &Space, args: &[&str]) -> Option<crate::space::Outcome> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let mut folder = Some(space.path(""));
    while let Some(path) = folder {
        let mode = fs::metadata(&path).ok()?.permissions().mode();
        if mode & 0o005 != 0o005
            && path.starts_with(std::env::temp_dir())
            && path != std::env::temp_dir()
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o055)).ok()?;
        }
        folder = path.parent().map(Path::to_owned);
    }
    // The program may lie where only root can reach it.
    let program = space.path("flowgraph-copy");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_flowgraph"), &program).ok()?;
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ])
        .arg(program)
        .args(args)
        .current_dir(space.path(""))
        .env_remove("FLOWGRAPH_STORE")
        .env_remove("RUST_BACKTRACE");
    let outcome = space.outcome(command.output().ok()?);
    (!outcome.stderr.starts_with("setpriv:")).then_some(outcome)
}

#[test]
fn a_store_that_cannot_be_written_is_good_to_read_and_says_so_when_it_is_not() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    let Some(plan) = as_nobody(&space, &["plan", "p.yaml", "--exit-code"]) else {
        eprintln!("skipped: this needs root and `setpriv`");
        return;
    };
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    let shown = as_nobody(&space, &["show", "p.yaml", "b"]).unwrap();
    assert_eq!((shown.code, shown.stdout.as_str()), (0, "one\ntwo\n"));
    let run = as_nobody(&space, &["run", "p.yaml"]).unwrap();
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr.contains(
            "warning: this run is not recorded: cannot create run folder .flowgraph/runs/RUN: Permission denied"
        ),
        "{}",
        run.stderr
    );
    let changed = ["run", "p.yaml", "--set", "stages.c.params.run=cp $x out"];
    let run = as_nobody(&space, &changed).unwrap();
    assert_eq!(run.code, 1);
    assert_eq!(
        run.stderr,
        "error: cannot create run folder .flowgraph/runs/RUN: Permission denied (os error 13)\n\
         hint: give a writable store with `--store DIR`\n"
    );

    // A record or object that may not be read is no reason to make it again.
    let record = space.store().record_path(&space.record("b").fingerprint);
    fs::set_permissions(&record, fs::Permissions::from_mode(0o600)).unwrap();
    let plan = as_nobody(&space, &["plan", "p.yaml"]).unwrap();
    assert_eq!(
        (plan.code, plan.stderr.as_str()),
        (
            1,
            "error: stage `b`: cannot read record .flowgraph/records/DIGEST.json: Permission denied (os error 13)\n\
             hint: the result may be there; make it readable for this user, or choose another store with `--store DIR`\n"
        )
    );
    // A folder in which a run may be noted, but no result written.
    fs::set_permissions(&record, fs::Permissions::from_mode(0o644)).unwrap();
    for folder in [".flowgraph/runs", ".flowgraph/scratch", ".flowgraph/locks"] {
        fs::set_permissions(space.path(folder), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let run = as_nobody(
        &space,
        &[
            "run",
            "p.yaml",
            "--set",
            "stages.c.params.run=cp $x out",
            "--quiet",
        ],
    )
    .unwrap();
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("Permission denied"), "{}", run.stderr);
    assert!(
        run.stderr.contains(".flowgraph/objects") || run.stderr.contains(".flowgraph/records"),
        "{}",
        run.stderr
    );
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
    assert_eq!(space.run(&[]).outcomes(), "a cached, b cached, c cached");
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let space = Space::new(
        r#"
name: full
stages:
  small: { kind: command, params: { run: "echo 1 > out", outputs: { out: out } } }
  large: { kind: command, inputs: { x: small }, params: { run: "head -c ${bytes} /dev/zero > out", outputs: { out: out } } }
params: { bytes: 600000 }
"#,
    );
    let path = space.path("disk");
    let Some(_disk) = Disk::in_memory(&path, "size=400k") else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let report = space.run(&["--store", "disk/store"]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (1, "large failed, small done")
    );
    let shown = space.flowgraph(&["run", "p.yaml", "--store", "disk/store"]);
    assert!(shown.stderr.contains("stage `large` failed: the command failed: exit status: 1 (no space left on the disk of disk/store)"), "{}", shown.stderr);
    assert_eq!(
        space.flowgraph(&["verify", "--store", "disk/store"]).code,
        0
    );
    let report = space.run(&["--store", "disk/store", "--set", "bytes=1000"]);
    assert_eq!(
        (report.code, report.outcomes().as_str()),
        (0, "large done, small cached")
    );
    // Not even a run can be noted on a disk without a byte left.
    let filler = Command::new("sh")
        .args(["-c", "cat /dev/zero > disk/filler"])
        .current_dir(space.path(""))
        .output()
        .unwrap();
    assert!(!filler.status.success());
    let full = space.flowgraph(&[
        "run",
        "p.yaml",
        "--store",
        "disk/store",
        "--set",
        "bytes=2000",
    ]);
    assert_eq!(full.code, 1);
    assert!(
        full.stderr.contains("No space left on device") && full.stderr.contains("disk/store"),
        "{}",
        full.stderr
    );
    let plan = space.flowgraph(&[
        "plan",
        "p.yaml",
        "--store",
        "disk/store",
        "--set",
        "bytes=1000",
        "--exit-code",
    ]);
    assert_eq!(plan.code, 0, "{}", plan.stdout);
    fs::remove_file(path.join("filler")).unwrap();
    assert_eq!(
        space
            .run(&["--store", "disk/store", "--set", "bytes=2000"])
            .code,
        0
    );
}

#[test]
fn nothing_is_taken_away_by_who_cannot_see_what_is_needed() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    // Somebody may write the store, and yet not read this.
    let everybody = |path: &Path| {
        let mode = if path.is_dir() { 0o777 } else { 0o666 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    everybody(&space.path(".flowgraph"));
    for entry in fs::read_dir(space.path(".flowgraph")).unwrap() {
        everybody(&entry.unwrap().path());
    }
    let objects = space.files(".flowgraph/objects");
    if as_nobody(&space, &["runs"]).is_none() {
        eprintln!("skipped: this needs root and `setpriv`");
        return;
    }
    let run = fs::read_dir(space.path(".flowgraph/runs"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let hidden = [
        space.path(".flowgraph/records"),
        space.path(".flowgraph/runs"),
        run.join("run.json"),
        run.join("stages.jsonl"),
    ];
    for path in hidden {
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
        for args in [&["gc"][..], &["gc", "--keep", "1"]] {
            let gc = as_nobody(&space, args).unwrap();
            assert_ne!(gc.code, 0, "{}", path.display());
            assert!(gc.stderr.contains("Permission denied"), "{}", gc.stderr);
        }
        fs::set_permissions(&path, before).unwrap();
    }
    assert_eq!(space.files(".flowgraph/objects"), objects);
    fs::set_permissions(
        space.path(".flowgraph/records"),
        fs::Permissions::from_mode(0o0),
    )
    .unwrap();
    let verify = as_nobody(&space, &["verify"]).unwrap();
    assert_eq!(verify.code, 4, "{}", verify.stderr);
}
