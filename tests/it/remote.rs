//! A shared store in a folder: what one machine made is used on another, and what goes wrong is said and costs nothing.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::space::{Report, Space};

/// Three stages, of which each notes that it ran.
const CHAIN: &str = r#"
name: n
params: { k: 1 }
stages:
  a: { kind: command, params: { run: "echo a >> {here}/ran; echo a > o", secret_env: [NOTES], outputs: { o: o } } }
  b: { kind: command, inputs: { x: a }, params: { run: "echo b >> {here}/ran; cat $x > o; echo ${k} >> o", secret_env: [NOTES], outputs: { o: o } } }
  c: { kind: command, inputs: { x: b }, params: { run: "echo c >> {here}/ran; cat $x $x > o", secret_env: [NOTES], outputs: { o: o } } }
"#;

/// A group: machines with stores of their own, and a folder that they share.
struct Group {
    shared: tempfile::TempDir,
}

impl Group {
    fn new() -> Self {
        Self {
            shared: tempfile::tempdir().unwrap(),
        }
    }

    fn address(&self) -> String {
        format!("file://{}", self.shared.path().display())
    }

    /// A machine whose pipeline is the same text as on all others, wherever it notes what ran.
    fn machine(&self, pipeline: &str) -> Machine<'_> {
        let space = Space::new(&pipeline.replace("{here}/ran", "$NOTES"));
        Machine { space, group: self }
    }

    fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.shared.path().join(below)];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

struct Machine<'a> {
    space: Space,
    group: &'a Group,
}

impl Machine<'_> {
    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.space.program(args);
        command
            .env("FLOWGRAPH_REMOTE", self.group.address())
            .env("NOTES", self.space.path("ran"));
        command
    }

    fn run(&self, args: &[&str]) -> Report {
        let args = [&["run", "p.yaml", "--json"], args].concat();
        let report = self.space.report(&self.command(&args).output().unwrap());
        assert_eq!(report.code, 0, "{} {:?}", report.stderr, report.events);
        report
    }

    /// The answer of a command, and what it said.
    fn says(&self, code: i32, args: &[&str]) -> String {
        let outcome = self.space.outcome(self.command(args).output().unwrap());
        assert_eq!(outcome.code, code, "{} {}", outcome.stdout, outcome.stderr);
        outcome.stdout + &outcome.stderr
    }

    fn asks(&self, args: &[&str]) -> Json {
        let args = [args, &["--json"]].concat();
        let output = self.command(&args).output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// The warnings of a run, each with its stage.
fn warnings(report: &Report) -> Vec<String> {
    let notes = report
        .events
        .iter()
        .filter(|event| event["importance"] == "warning");
    notes
        .map(|note| note["text"].as_str().unwrap().to_owned())
        .collect()
}

fn origins(report: &Report) -> Vec<String> {
    let cached = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_cached");
    let notes = cached.flat_map(|event| event["notes"].as_array().unwrap());
    notes
        .map(|note| note.as_str().unwrap().to_owned())
        .collect()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 1;
    // As another program would that may write there.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_one_machine_made_another_uses_and_says_whose_it_is() {
    let group = Group::new();
    let (here, there) = (group.machine(CHAIN), group.machine(CHAIN));
    let made = here.run(&[]);
    assert_eq!(here.space.ran(), ["a", "b", "c"]);
    assert_eq!(origins(&made), [""; 0]);
    let found = there.run(&[]);
    assert_eq!(there.space.ran(), [""; 0]);
    assert_eq!(found.outcomes(), "a cached, b cached, c cached");
    assert_eq!(found.digests(), made.digests());
    let origins = origins(&found);
    assert_eq!(origins.len(), 3);
    let whose = format!("from {}: made by ", group.address());
    assert!(
        origins
            .iter()
            .all(|note| note.starts_with(&whose) && note.contains(" on "))
    );
    assert_eq!(
        there.says(0, &["verify"]).trim(),
        "3 records and 3 objects verified, 0 damaged"
    );
    let quiet = group.machine(CHAIN);
    assert_eq!(
        quiet
            .says(0, &["run", "p.yaml", "-q"])
            .matches("CACHED")
            .count(),
        0
    );
    // From now on nothing is asked, not even whether it is there.
    fs::remove_dir_all(group.shared.path()).unwrap();
    for machine in [&here, &there] {
        let again = machine.run(&[]);
        assert_eq!(again.outcomes(), "a cached, b cached, c cached");
        assert_eq!(warnings(&again), [""; 0]);
    }
}

#[test]
fn what_changed_runs_and_what_needs_it_is_looked_for_with_what_came_out() {
    let group = Group::new();
    let (here, there) = (group.machine(CHAIN), group.machine(CHAIN));
    here.run(&[]);
    // `b` is another stage now, and gives the same: `c` is found once that is known.
    let other = CHAIN.replace("cat $x > o; echo ${k}", "cp $x o; echo ${k}");
    there
        .space
        .write("p.yaml", &other.replace("{here}/ran", "$NOTES"));
    let report = there.run(&[]);
    assert_eq!(report.outcomes(), "a cached, b done, c cached");
    assert_eq!(there.space.ran(), ["b"]);
    // And what it made is there for others.
    let third = group.machine(&other);
    assert_eq!(third.run(&[]).outcomes(), "a cached, b cached, c cached");
    // What is asked to run again runs.
    third.run(&["--rerun", "b"]);
    assert_eq!(third.space.ran(), ["b"]);
}

#[test]
fn without_the_shared_store_all_is_computed_here_and_sent_later() {
    let group = Group::new();
    let here = group.machine(CHAIN);
    fs::remove_dir_all(group.shared.path()).unwrap();
    let report = here.run(&[]);
    assert_eq!(report.outcomes(), "a done, b done, c done");
    let warnings = warnings(&report);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("cannot be used now") && warnings[0].contains("flowgraph push"));
    assert!(
        report
            .stderr
            .contains("3 results of this run did not go to file://"),
        "{}",
        report.stderr
    );
    assert!(here.says(1, &["push"]).contains("made or mounted"));
    fs::create_dir(group.shared.path()).unwrap();
    let status = here.asks(&["remote", "status"]);
    assert_eq!(
        (&status["only_here"], &status["results"]),
        (&3.into(), &0.into())
    );
    assert_eq!(status["first_writer_wins"], true);
    assert!(
        here.says(0, &["push", "--dry-run"])
            .contains("would send 3 results of 3 results")
    );
    assert_eq!(group.files(".").len(), 0);
    let sent = here.asks(&["push", "p.yaml"]);
    assert_eq!((&sent["sent"], &sent["were_there"]), (&3.into(), &0.into()));
    let again = here.asks(&["push"]);
    assert_eq!(
        (&again["sent"], &again["were_there"]),
        (&0.into(), &3.into())
    );
    let there = group.machine(CHAIN);
    let pulled = there.asks(&["pull", "p.yaml"]);
    assert_eq!(
        (&pulled["fetched"], &pulled["cached"]),
        (&3.into(), &3.into())
    );
    let report = there.space.run(&["--remote", "none"]);
    assert_eq!(report.outcomes(), "a cached, b cached, c cached");
    assert_eq!(there.asks(&["remote", "status"])["only_there"], 0);
}

#[test]
fn what_is_damaged_there_is_named_computed_and_healed() {
    for kind in ["objects", "records"] {
        let group = Group::new();
        let here = group.machine(CHAIN);
        here.run(&[]);
        for file in group.files(kind) {
            flip(&file);
        }
        let puller = group.machine(CHAIN);
        let said = puller.says(4, &["pull", "p.yaml"]);
        assert!(
            said.contains(&format!("{}/{kind}/", group.address())),
            "{said}"
        );
        assert!(said.contains("is damaged"), "{said}");
        let there = group.machine(CHAIN);
        let report = there.run(&[]);
        assert_eq!(report.outcomes(), "a done, b done, c done");
        let warnings = warnings(&report);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|warning| warning.contains("is damaged"))
        );
        let third = group.machine(CHAIN);
        assert_eq!(
            third.run(&[]).outcomes(),
            "a cached, b cached, c cached",
            "{kind}"
        );
        // What is whole there and damaged here comes from there.
        let object = third.space.store().root().join("objects");
        let object = fs::read_dir(object)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let object = fs::read_dir(object)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        flip(&object);
        assert_eq!(
            third.run(&["--paranoid"]).outcomes(),
            "a cached, b cached, c cached"
        );
        assert_eq!(third.space.ran(), [""; 0]);
    }
}

#[test]
fn other_bytes_of_one_stage_are_reported_and_the_first_stay() {
    let random = r#"
name: n
stages:
  r: { kind: command, params: { run: "od -An -N8 -tx8 /dev/urandom > o", outputs: { o: o } } }
"#;
    let group = Group::new();
    let (here, there) = (group.machine(random), group.machine(random));
    let first = here.run(&[]);
    let report = there.run(&["--rerun", "r"]);
    assert_ne!(report.digests(), first.digests());
    let warnings = warnings(&report);
    assert!(
        warnings[0].starts_with("gave other bytes than the result in file://"),
        "{warnings:?}"
    );
    assert!(warnings[0].contains("which stays there: it is not reproducible"));
    assert_eq!(group.machine(random).run(&[]).digests(), first.digests());
}

#[test]
fn a_stage_that_fails_and_one_for_reading_alone_send_nothing() {
    let failing = "name: n\nstages:\n  f: { kind: command, params: { run: \"echo > o; false\", outputs: { o: o } } }\n";
    let group = Group::new();
    let here = group.machine(failing);
    assert!(here.says(1, &["run", "p.yaml"]).contains("FAILED"));
    assert_eq!(group.files(".").len(), 0);
    let reader = group.machine(CHAIN);
    let config = format!(
        "remote: {{ address: \"{}\", read_only: true }}\n",
        group.address()
    );
    reader.space.write("config/flowgraph/config.yaml", &config);
    let run = |args: &[&str]| {
        let mut command = reader.space.program(args);
        command
            .env_remove("FLOWGRAPH_REMOTE")
            .env("NOTES", reader.space.path("ran"))
            .env("XDG_CONFIG_HOME", reader.space.path("config"));
        reader.space.outcome(command.output().unwrap())
    };
    let ran = run(&["run", "p.yaml"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.stderr.contains("did not go"), "{}", ran.stderr);
    assert_eq!(group.files(".").len(), 0);
    let pushed = run(&["push"]);
    assert_eq!(pushed.code, 2);
    assert!(pushed.stderr.contains("read_only"), "{}", pushed.stderr);
    // A slip in the file is an error with its place, and no value of it is shown.
    for bad in [
        "remote: { address: \"s3://b\", optoins: { secret_access_key: verysecret } }\n",
        "remotes: verysecret\n",
        "remote: { address: \"s3://b\", options: { secret_access_key: [verysecret] } }\n",
    ] {
        reader.space.write("config/flowgraph/config.yaml", bad);
        let refused = run(&["run", "p.yaml"]);
        assert_eq!(refused.code, 2, "{bad} {}", refused.stderr);
        assert!(refused.stderr.contains("config.yaml"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("verysecret"), "{}", refused.stderr);
    }
}

#[test]
fn what_is_damaged_there_is_found_by_who_has_it_and_sent_again() {
    let group = Group::new();
    let here = group.machine(CHAIN);
    here.run(&[]);
    assert!(
        here.says(0, &["remote", "verify"])
            .contains("3 results and 3 objects verified, 0 damaged")
    );
    flip(&group.files("objects")[0]);
    flip(&group.files("records")[0]);
    // By names and sizes nothing shows.
    assert!(here.says(0, &["push"]).contains("sent 0 results"));
    let found = here.says(4, &["remote", "verify"]);
    assert_eq!(found.matches("is damaged: its").count(), 2, "{found}");
    assert_eq!(
        here.asks(&["remote", "verify", "--repair"])["removed"],
        true
    );
    let sent = here.says(0, &["push"]);
    assert!(
        sent.contains("sent 1 result ") || sent.contains("sent 2 results"),
        "{sent}"
    );
    here.says(0, &["remote", "verify"]);
    assert_eq!(
        group.machine(CHAIN).run(&[]).outcomes(),
        "a cached, b cached, c cached"
    );
}

#[test]
fn what_is_not_whole_here_is_named_and_the_rest_is_sent() {
    let group = Group::new();
    let here = group.machine(CHAIN);
    here.run(&["--remote", "none"]);
    fs::remove_file(here.space.object("a")).unwrap();
    let said = here.says(4, &["push"]);
    assert!(
        said.contains("`a`: object ") && said.contains("is missing"),
        "{said}"
    );
    assert!(said.contains("sent 2 results"), "{said}");
    here.says(0, &["verify", "--repair"]);
    here.run(&[]);
    assert_eq!(here.space.ran(), ["a", "a", "b", "c"]);
    assert_eq!(here.asks(&["remote", "status"])["only_here"], 0);
}

#[test]
fn an_address_is_the_same_with_a_slash_at_its_end_and_shows_no_credential() {
    let group = Group::new();
    let here = group.machine(CHAIN);
    let config = format!(
        "remote: {{ address: \"{}\", read_only: true }}\n",
        group.address()
    );
    here.space.write("config/flowgraph/config.yaml", &config);
    let mut pushed = here.command(&["push", "--remote", &format!("{}/", group.address())]);
    pushed.env("XDG_CONFIG_HOME", here.space.path("config"));
    let pushed = here.space.outcome(pushed.output().unwrap());
    assert!(
        pushed.code == 2 && pushed.stderr.contains("read_only"),
        "{}",
        pushed.stderr
    );
    let secret = "https://account.blob.core.windows.net/c?sig=verysecret";
    for args in [
        &["plan", "p.yaml"][..],
        &["run", "p.yaml"],
        &["push"],
        &["remote", "status", "--help"],
    ] {
        let mut command = here.command(args);
        let outcome = command.env("FLOWGRAPH_REMOTE", secret).output().unwrap();
        let outcome = here.space.outcome(outcome);
        let said = outcome.stdout + &outcome.stderr;
        assert!(!said.contains("verysecret"), "{said}");
    }
    let planned = here.says(0, &["plan", "p.yaml"]);
    assert!(
        planned.contains("was not asked: `run` looks there first"),
        "{planned}"
    );
    let refused = here.says(2, &["gc", "p.yaml", "--remote", &group.address()]);
    assert!(refused.contains("--remote=file://"), "{refused}");
}

#[test]
fn a_run_that_ends_early_leaves_no_stage_and_no_question_open() {
    let failing = r#"
name: n
stages:
  good: { kind: command, params: { run: "sleep 0.2; echo a > o", outputs: { o: o } } }
  bad: { kind: command, params: { run: "exit 1", outputs: { o: o } } }
  next: { kind: command, inputs: { x: good }, params: { run: "cat $x > o", outputs: { o: o } } }
"#;
    let group = Group::new();
    let here = group.machine(failing);
    let report = here
        .command(&["run", "p.yaml", "--json", "--fail-fast"])
        .output()
        .unwrap();
    assert_eq!(report.status.code(), Some(1));
    // What was done by then is there.
    let report = here.command(&["run", "p.yaml", "--json"]).output().unwrap();
    assert_eq!(
        here.space.report(&report).outcomes(),
        "bad failed, good done, next done"
    );
    let there = group.machine(failing);
    let report = there
        .command(&["run", "p.yaml", "--json"])
        .output()
        .unwrap();
    assert_eq!(
        there.space.report(&report).outcomes(),
        "bad failed, good cached, next cached"
    );
}

#[test]
fn a_collection_there_is_a_dry_run_unless_told_otherwise() {
    let group = Group::new();
    let here = group.machine(CHAIN);
    here.run(&[]);
    here.run(&["--set", "k=2"]);
    let all = group.files(".").len();
    assert!(
        here.says(2, &["gc", "--remote"])
            .contains("nothing says what to keep")
    );
    // All was sent a moment ago.
    let recent = here.asks(&["gc", "p.yaml", "--remote"]);
    assert_eq!(recent["results"].as_array().unwrap().len(), 0);
    let dry = here.asks(&["gc", "p.yaml", "--remote", "--days", "0"]);
    assert_eq!(
        (dry["results"].as_array().unwrap().len(), &dry["objects"]),
        (2, &2.into())
    );
    assert_eq!(group.files(".").len(), all);
    let said = here.says(0, &["gc", "p.yaml", "--remote", "--days", "0", "--remove"]);
    assert!(
        said.contains("removed: 2 results, 0 damaged records, 2 objects"),
        "{said}"
    );
    assert_eq!(group.files(".").len(), all - 4);
    let there = group.machine(CHAIN);
    assert_eq!(there.run(&[]).outcomes(), "a cached, b cached, c cached");
    there.space.ran();
    there.run(&["--set", "k=2"]);
    assert_eq!(there.space.ran(), ["b", "c"]);
}

#[test]
#[cfg(not(feature = "remote"))]
fn a_bucket_needs_another_build_and_says_so() {
    let space = Space::new(CHAIN);
    let outcome = space.flowgraph(&["run", "p.yaml", "--remote", "s3://bucket/lab"]);
    assert_eq!(outcome.code, 2);
    assert!(
        outcome.stderr.contains("--features remote"),
        "{}",
        outcome.stderr
    );
    let secret = space.flowgraph(&["run", "p.yaml", "--remote", "s3://id:verysecret@bucket/lab"]);
    assert_eq!(secret.code, 2);
    assert!(!secret.stderr.contains("verysecret"), "{}", secret.stderr);
}

/// Runs in a bucket as in a folder; what is stored and said holds no credential.
#[test]
#[cfg(feature = "remote")]
#[ignore = "needs a server: .ci/remote/test starts one"]
fn a_bucket_is_shared_and_credentials_stay_where_they_are() {
    let bucket = std::env::var("FLOWGRAPH_TEST_BUCKET").expect("FLOWGRAPH_TEST_BUCKET");
    let secret = std::env::var("AWS_SECRET_ACCESS_KEY").expect("AWS_SECRET_ACCESS_KEY");
    let group = Group::new();
    let name = group.shared.path().file_name().unwrap().to_str().unwrap();
    let address = format!("{bucket}/{name}");
    let (here, there) = (group.machine(CHAIN), group.machine(CHAIN));
    let mut said = String::new();
    let mut says = |machine: &Machine, code: i32, args: &[&str]| {
        let mut command = machine.command(args);
        let outcome = command.env("FLOWGRAPH_REMOTE", &address).output().unwrap();
        let outcome = machine.space.outcome(outcome);
        assert_eq!(outcome.code, code, "{} {}", outcome.stdout, outcome.stderr);
        let text = outcome.stdout + &outcome.stderr;
        said.push_str(&text);
        text
    };
    says(&here, 0, &["run", "p.yaml", "-v"]);
    let found = says(&there, 0, &["run", "p.yaml", "-v"]);
    assert_eq!(
        found.matches(&format!("from {address}: made by")).count(),
        3,
        "{found}"
    );
    assert_eq!(there.space.ran(), [""; 0]);
    let status = says(&here, 0, &["remote", "status"]);
    assert!(status.contains("3 results, 3 objects"), "{status}");
    assert!(
        status.contains("the first writer of a result wins"),
        "{status}"
    );
    says(&here, 0, &["run", "p.yaml", "--set", "k=2"]);
    assert!(says(&here, 0, &["push"]).contains("sent 0 results"));
    let gone = says(
        &here,
        0,
        &["gc", "p.yaml", "--remote", "--days", "0", "--remove"],
    );
    assert!(gone.contains("removed: 2 results"), "{gone}");
    let third = group.machine(CHAIN);
    let pulled = says(&third, 0, &["pull", "p.yaml"]);
    assert!(pulled.contains("brought 3 results"), "{pulled}");
    // A server that refuses, one that is not there, and a bucket that is not.
    let mut wrong = third.command(&["push", "--remote", &address]);
    let wrong = wrong
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .output()
        .unwrap();
    said.push_str(&String::from_utf8_lossy(&wrong.stderr));
    assert_eq!(wrong.status.code(), Some(1));
    let nowhere = third.command(&[
        "run",
        "p.yaml",
        "--rerun",
        "c",
        "--remote",
        "s3://no-such-bucket-here/x",
    ]);
    let nowhere = { nowhere }.output().unwrap();
    assert_eq!(nowhere.status.code(), Some(0));
    let told = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(
        told.contains("1 result of this run did not go to s3://no-such-bucket-here/x"),
        "{told}"
    );
    said.push_str(&told);
    assert!(!said.contains(&secret));
    for machine in [&here, &there, &third] {
        for file in machine.space.files(".flowgraph") {
            let bytes = fs::read(file).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(&secret));
        }
    }
}
