//! Stores and files of more than one disk, and disks that cannot be written.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::disk::Disk;
use crate::space::Space;
use crate::tiny;

#[test]
fn objects_may_lie_on_another_disk() {
    let space = Space::new(
        r#"
name: n
stages:
  s: { kind: command, params: { run: "mkdir d; echo one > d/a; echo two > d/b", outputs: { d: d } } }
  t: { kind: command, inputs: { x: s }, params: { run: "cat $x/a $x/b > o", outputs: { o: o } } }
"#,
    );
    let memory = Path::new("/dev/shm");
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    if device(memory).is_none() || device(memory) == device(&space.path("")) {
        return;
    }
    let other = tempfile::tempdir_in(memory).unwrap();
    fs::create_dir(space.path(".flowgraph")).unwrap();
    symlink(other.path(), space.path(".flowgraph/objects")).unwrap();
    let run = space.run(&[]);
    assert_eq!(run.outcomes(), "s done, t done", "{}", run.stderr);
    assert_eq!(
        space.flowgraph(&["show", "p.yaml", "t"]).stdout,
        "one\ntwo\n"
    );
    assert_eq!(space.run(&[]).outcomes(), "s cached, t cached");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
    let left = space.files(".flowgraph/scratch");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn end_states_may_lie_on_another_disk() {
    let sft = "
  sft:
    kind: train_sft
    inputs: { model: random_model, data: world.finetune }
    params: { steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-2 }, seed: 1 }
";
    let space = Space::new(&tiny::pipeline("params: { steps: 3 }", sft));
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(space.path(".flowgraph")).unwrap();
    symlink(other.path(), space.path(".flowgraph/states")).unwrap();
    assert_eq!(space.run(&["--only", "sft"]).code, 0);
    let plan = space.flowgraph(&["plan", "p.yaml", "--set", "steps=5"]);
    assert!(
        plan.stdout.contains("continues from step 3"),
        "{}",
        plan.stdout
    );
    assert_eq!(space.run(&["--only", "sft", "--set", "steps=5"]).code, 0);
}

#[test]
fn a_table_is_shown_without_a_place_for_temporary_files() {
    let space = Space::new(&tiny::pipeline(
        "",
        "
  scores: { kind: score_world, inputs: { completions: answers }, params: { reward: exact } }
  answers: { kind: enumerate_answers, inputs: { prompts: world.evaluation }, params: { n: 1 } }
  table: { kind: normality, inputs: { scores: [scores] }, params: { row: stage } }
",
    ));
    let first = space.run(&["--only", "table"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let without = |args: &[&str]| {
        let mut program = space.program(args);
        let output = program.env("TMPDIR", "/nonexistent").output().unwrap();
        space.outcome(output)
    };
    let again = without(&["run", "p.yaml", "--only", "table"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stdout.contains("table"), "{}", again.stdout);
    assert_eq!(without(&["show", "p.yaml", "table"]).code, 0);
}

#[test]
fn an_image_in_place_of_another_is_read_whatever_its_times_say() {
    let space = Space::new(
        r#"
name: n
stages:
  s: { kind: command, params: { run: "cat disk/f > o", outputs: { o: o }, code: [disk/f] } }
"#,
    );
    // Two images with the same inode, size and times, and the same name of the file system.
    for (image, text) in [("a", "1000"), ("b", "2000")] {
        space.write(&format!("{image}/f"), text);
        if Disk::image_of(&space.path(image), &space.path(&format!("{image}.img"))).is_err() {
            return;
        }
    }
    let results: Vec<String> = ["a.img", "b.img", "a.img"]
        .into_iter()
        .map_while(|image| {
            let _disk = Disk::of_image(&space.path("disk"), space.path(image)).ok()?;
            assert_eq!(space.run(&[]).code, 0);
            // While it stays there, it is not read again and again.
            let remembered = || {
                let files = space.files(".flowgraph/stat");
                let inodes = files.iter().map(|file| fs::metadata(file).unwrap().ino());
                inodes.collect::<Vec<u64>>()
            };
            let before = remembered();
            assert_eq!(space.run(&[]).outcomes(), "s cached");
            assert_eq!(before, remembered());
            Some(space.flowgraph(&["show", "p.yaml", "s"]).stdout)
        })
        .collect();
    let expected = ["1000", "2000", "1000"];
    assert_eq!(results, expected[..results.len()]);
}
