//! Data that does not fit into memory.

use std::io::Write;

use super::space::Space;

const ROWS: usize = 2_000_000;
const MOST_RESIDENT: i64 = 400 << 20;

/// The most memory that a process which this one waited for, or waited for by it, had at a time.
fn most_resident() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    #[expect(unsafe_code, reason = "there is no safe call for this")]
    // SAFETY: the kernel fills the structure that it is given.
    let usage = unsafe {
        assert_eq!(
            libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()),
            0
        );
        usage.assume_init()
    };
    usage.ru_maxrss * 1024
}

#[test]
#[ignore = "needs 8 GB of disk, and takes a minute"]
fn a_file_of_2_gb_loads_in_400_mb() {
    let space = Space::new(
        "name: large\nstages:\n  data: { kind: load_dataset, params: { source: large.jsonl } }\n",
    );
    let file = std::fs::File::create(space.path("large.jsonl")).unwrap();
    let mut file = std::io::BufWriter::new(file);
    let words = "some words of an answer that is long enough to be one ".repeat(9);
    for row in 0..ROWS {
        writeln!(
            file,
            r#"{{"prompt": "question {row}: {words}", "completion": " {row} {words}"}}"#
        )
        .unwrap();
    }
    file.flush().unwrap();
    drop(file);
    assert!(std::fs::metadata(space.path("large.jsonl")).unwrap().len() > 2_000_000_000);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let found = most_resident();
    assert!(found < MOST_RESIDENT, "{found} bytes");
}
