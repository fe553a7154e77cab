//! Two runs of one store that no lock holds apart, as on two machines: in process namespaces of their own, by leases alone.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::space::Space;

/// Seconds after which a holder that is not heard of is gone.
const PATIENCE: u64 = 3;

fn pipeline(seconds: u32) -> String {
    format!(
        "name: n\nstages:\n  slow: {{ kind: command, params: {{ run: \"echo begun >> {{here}}/ran; sleep {seconds}; echo a > out\", outputs: {{ out: out }} }} }}\n"
    )
}

/// A run on a machine of its own, as far as processes tell.
struct Machine {
    child: Child,
    said: std::path::PathBuf,
}

impl Machine {
    fn start(space: &Space, name: &str) -> Self {
        let starter = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
        let mut command = space.under(&starter, &["run", "p.yaml", "--json"]);
        let said = space.path(name);
        let file = fs::File::create(&said).unwrap();
        let child = command
            .env("FLOWGRAPH_LEASES", "alone")
            .env("FLOWGRAPH_LEASE_SECONDS", PATIENCE.to_string())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, said }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Sends a signal to all processes of the machine.
    fn signal(&self, signal: &str) {
        let text = format!(
            "all() {{ for child in $(pgrep -P $1); do echo $child; all $child; done; }}; kill -{signal} $(all {})",
            self.child.id()
        );
        let status = Command::new("bash").args(["-c", &text]).status();
        assert!(status.unwrap().success());
    }

    #[track_caller]
    fn wait(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.said());
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn of_two_machines_one_does_the_work_and_the_other_waits_for_it() {
    let space = Space::new(&pipeline(5));
    let first = Machine::start(&space, "first");
    until(|| space.path("ran").exists());
    let second = Machine::start(&space, "second");
    // Longer than a holder may be silent: it is heard of.
    let (code, said) = first.wait();
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = second.wait();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("stage_waiting") && said.contains("stage `slow` of pipeline `n`"),
        "{said}"
    );
    assert!(said.contains("\"elsewhere\":true"), "{said}");
    assert_eq!(space.ran(), ["begun"]);
    let left = fs::read_dir(space.path(".flowgraph/locks")).unwrap();
    let leases = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".lease")
    });
    assert_eq!(leases.count(), 0);
}

#[test]
fn a_machine_that_was_lost_is_replaced_after_a_while() {
    let space = Space::new(&pipeline(3));
    let first = Machine::start(&space, "first");
    until(|| space.path("ran").exists());
    first.signal("KILL");
    let (code, said) = first.wait();
    assert_ne!(code, Some(0), "{said}");
    let begun = Instant::now();
    let (code, said) = Machine::start(&space, "second").wait();
    assert_eq!(code, Some(0), "{said}");
    assert!(begun.elapsed() >= Duration::from_secs(PATIENCE), "{said}");
    assert_eq!(space.ran(), ["begun", "begun"]);
}

#[test]
fn a_machine_that_was_held_up_finds_itself_replaced_and_stops() {
    let space = Space::new(&pipeline(4));
    let first = Machine::start(&space, "first");
    until(|| space.path("ran").exists());
    first.signal("STOP");
    let second = Machine::start(&space, "second");
    until(|| {
        let ran = fs::read_to_string(space.path("ran")).unwrap();
        ran.lines().count() == 2
    });
    first.signal("CONT");
    let (code, said) = first.wait();
    // It has no result of its own: either it was told in time, or it found that of the other.
    assert!(
        said.contains("stage_failed") || said.contains("\"elsewhere\":true"),
        "{code:?} {said}"
    );
    let (code, said) = second.wait();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("\"elsewhere\":true"), "{said}");
    assert_eq!(space.ran(), ["begun", "begun"]);
    assert_eq!(space.run(&[]).stages["slow"].0, "cached");
}
