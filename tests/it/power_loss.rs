//! The power fails at some moment of a run: what records name is there, and the next run gives the same bytes.

use std::time::{Duration, Instant};

use flowgraph::random::Stream;
use serde_json::Value as Json;

use crate::disk::Disk;
use crate::random_kills::{kill_group, start_in_group, trainings};
use crate::space::{processes_in, wait_until};

const STORE: [&str; 2] = ["--store", "disk/store"];

#[test]
#[ignore = "needs root, and takes some minutes"]
fn after_a_power_cut_records_name_whole_bytes_and_the_next_run_gives_the_same() {
    assert!(
        rustix::process::getuid().is_root(),
        "this test mounts a disk of its own, which needs root"
    );
    let cuts: u64 = std::env::var("FLOWGRAPH_POWER_CUTS").map_or(60, |text| text.parse().unwrap());
    let space = trainings(6);
    let undisturbed = space.run(&["--store", "calm"]);
    assert_eq!(undisturbed.code, 0, "{}", undisturbed.stderr);
    let disk = Disk::with_journal(&space.path("disk"), space.path("image")).unwrap();
    let clock = Instant::now();
    assert_eq!(space.run(&STORE).code, 0);
    let mut usual = clock.elapsed();
    let store = space.path("disk/store");
    let stream = Stream::new(1, "power cuts");
    let (mut records, mut results) = (0, 0);
    for round in 0..cuts {
        let mut draws = stream.at(round);
        // Some cuts come upon what an earlier one left, most upon an empty store.
        if draws.chance(0.7) {
            let _ = std::fs::remove_dir_all(&store);
        }
        rustix::fs::sync();
        let moment = usual.mul_f64(draws.uniform() * 1.1);
        let case = format!("cut {round} after {moment:?}");
        let mut executor = start_in_group(&space, &STORE);
        std::thread::sleep(moment);
        disk.cut_power();
        kill_group(&space, &executor);
        executor.wait().unwrap();
        wait_until("nobody uses the disk", || {
            processes_in(&space.path("")).is_empty().then_some(())
        });
        std::thread::sleep(Duration::from_millis(20));
        disk.come_back();

        let verified = space.flowgraph(&["verify", "--json", STORE[0], STORE[1]]);
        let found: Json = serde_json::from_str(&verified.stdout).unwrap_or_default();
        records += found["records"].as_u64().unwrap_or(0);
        for damaged in found["damaged"].as_array().into_iter().flatten() {
            let message = damaged["message"].as_str().unwrap();
            let of_no_record = damaged["stages"].as_array().is_some_and(Vec::is_empty);
            assert!(
                of_no_record && !message.contains("record"),
                "{case}: {message}, made by {}",
                damaged["stages"]
            );
        }
        assert_eq!(
            verified.code,
            if found["damaged"][0].is_null() { 0 } else { 4 },
            "{case}: {}",
            verified.stderr
        );
        let plan = space.flowgraph(&["plan", "p.yaml", STORE[0], STORE[1]]);
        assert_eq!(plan.code, 0, "{case}: {}", plan.stderr);
        let runs = space.flowgraph(&["runs", STORE[0], STORE[1]]);
        assert_eq!(runs.code, 0, "{case}: {}", runs.stderr);
        if draws.chance(0.6) {
            let clock = Instant::now();
            let report = space.run(&STORE);
            // A busy machine must not make all cuts early ones.
            usual = usual.max(clock.elapsed());
            assert_eq!(report.code, 0, "{case}: {}", report.stderr);
            assert_eq!(report.digests(), undisturbed.digests(), "{case}");
            assert_eq!(
                space.flowgraph(&["verify", STORE[0], STORE[1]]).code,
                0,
                "{case}"
            );
            results += 1;
        }
    }
    eprintln!("{cuts} cuts, {records} records outlived them, {results} runs completed after one");
    assert!(
        records * 2 > cuts,
        "most cuts came before anything was done"
    );
}
