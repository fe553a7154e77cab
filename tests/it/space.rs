//! A temporary folder with pipeline files, and the program run in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use flowgraph::engine::store::{Record, Store};
use serde_json::Value as Json;

/// A folder for one test.
pub(crate) struct Space {
    folder: tempfile::TempDir,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Space {
    /// Makes a folder with `p.yaml`. `{here}` in files stands for the folder's path.
    pub(crate) fn new(pipeline: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let space = Self { folder };
        space.write("p.yaml", pipeline);
        space
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, making its folders.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let here = self.folder.path().to_str().unwrap();
        fs::write(path, text.replace("{here}", here)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program in this folder, without the environment of whoever runs the tests.
    pub(crate) fn program(&self, args: &[&str]) -> Command {
        self.under(&[], args)
    }

    /// [`Self::program`], started by another program with its arguments, which come first.
    pub(crate) fn under(&self, starter: &[&str], args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_flowgraph");
        let mut words = [starter, &[program], args].concat().into_iter();
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .current_dir(self.folder.path())
            .env_remove("FLOWGRAPH_STORE")
            // Whatever the user's file says: tests share nothing.
            .env("FLOWGRAPH_REMOTE", "none")
            .env_remove("FLOWGRAPH_KERNELS")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn flowgraph(&self, args: &[&str]) -> Outcome {
        self.outcome(self.program(args).output().unwrap())
    }

    /// Converts what a child of [`Self::program`] did.
    pub(crate) fn outcome(&self, output: Output) -> Outcome {
        let scrub = |bytes: &[u8]| self.scrub(&String::from_utf8_lossy(bytes));
        Outcome {
            code: code(output.status),
            stdout: scrub(&output.stdout),
            stderr: scrub(&output.stderr),
        }
    }

    /// `flowgraph run p.yaml ARGS --json`: how each stage ended, and its output digests.
    pub(crate) fn run(&self, args: &[&str]) -> Report {
        let args = [&["run", "p.yaml", "--json"], args].concat();
        let output = self.program(&args).output().unwrap();
        self.report(&output)
    }

    pub(crate) fn report(&self, output: &Output) -> Report {
        let events: Vec<Json> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let mut stages = BTreeMap::new();
        if let Some(report) = events.last().filter(|last| last["event"] == "report") {
            for stage in report["stages"].as_array().unwrap() {
                let digests = stage["outputs"].as_object().unwrap().values();
                let digests: Vec<&str> = digests.map(|o| o["digest"].as_str().unwrap()).collect();
                stages.insert(
                    stage["name"].as_str().unwrap().to_owned(),
                    (
                        stage["outcome"].as_str().unwrap().to_owned(),
                        digests.join(" "),
                    ),
                );
            }
        }
        Report {
            code: code(output.status),
            stderr: self.scrub(&String::from_utf8_lossy(&output.stderr)),
            events,
            stages,
        }
    }

    /// `flowgraph plan p.yaml ARGS --json`: the decision about each stage.
    pub(crate) fn plan(&self, args: &[&str]) -> Vec<Planned> {
        let args = [&["plan", "p.yaml", "--json"], args].concat();
        let output = self.program(&args).output().unwrap();
        let plan: Json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no plan: {}", String::from_utf8_lossy(&output.stderr)));
        let stages = plan["stages"].as_array().unwrap();
        stages.iter().map(Planned::of).collect()
    }

    /// Returns the lines that commands appended to `ran` since the last call, sorted.
    pub(crate) fn ran(&self) -> Vec<String> {
        let path = self.path("ran");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(self.path(".flowgraph"))
    }

    /// Returns the record of a stage; there must be one only.
    pub(crate) fn record(&self, stage: &str) -> Record {
        let (records, errors) = self.store().read_records();
        assert!(errors.is_empty(), "{errors:?}");
        let mut found: Vec<Record> = records
            .into_iter()
            .filter(|record| record.provenance.stage == stage)
            .collect();
        assert_eq!(found.len(), 1, "records of `{stage}`");
        found.remove(0)
    }

    /// Returns the file that holds the only output file of a stage.
    pub(crate) fn object(&self, stage: &str) -> PathBuf {
        let record = self.record(stage);
        let file = &record.outputs.values().next().unwrap().files[0];
        self.store().object_path(&file.digest)
    }

    /// Every file below a folder of the space, sorted.
    pub(crate) fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.path(below)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        files
    }

    /// Waits for a file that a command writes.
    pub(crate) fn wait_for(&self, name: &str) -> String {
        wait_until(&format!("{name} appears"), || {
            fs::read_to_string(self.path(name))
                .ok()
                .filter(|text| !text.is_empty())
        })
    }

    /// Replaces what differs from run to run: the folder, run ids, seconds, process ids and the host.
    fn scrub(&self, text: &str) -> String {
        let host = flowgraph::engine::machine::host_name();
        let text = text
            .replace(self.folder.path().to_str().unwrap(), "{here}")
            .replace(&format!(" on {host}"), " on HOST");
        let mut clean = String::new();
        for (position, line) in text.split('\n').enumerate() {
            if position > 0 {
                clean.push('\n');
            }
            clean.push_str(&scrub_line(line));
        }
        clean
    }
}

/// The exit code, or minus the signal that ended a process.
fn code(status: ExitStatus) -> i32 {
    let signal = || -status.signal().unwrap_or_default();
    status.code().unwrap_or_else(signal)
}

/// Replaces `1.234s`, `20261122-162656-1`, `process 123` and digests in a line.
fn scrub_line(line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let mut clean = String::new();
    let mut rest = line;
    let mut last_word = "";
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end == 0 {
            let c = rest.chars().next().unwrap();
            clean.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        let stem = word.split('.').next().unwrap();
        let hexadecimal = stem.len() >= 12 && stem.chars().all(|c| c.is_ascii_hexdigit());
        clean.push_str(if is_seconds(word) {
            "TIME"
        } else if is_run_id(word) {
            "RUN"
        } else if hexadecimal {
            rest = &rest[stem.len()..];
            clean.push_str("DIGEST");
            last_word = stem;
            continue;
        } else if last_word == "process" && word.chars().all(|c| c.is_ascii_digit()) {
            "PID"
        } else {
            word
        });
        (last_word, rest) = (word, after);
    }
    clean
}

fn is_seconds(word: &str) -> bool {
    word.strip_suffix('s')
        .and_then(|number| number.split_once('.'))
        .is_some_and(|(whole, part)| {
            [whole, part]
                .iter()
                .all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        })
}

fn is_run_id(word: &str) -> bool {
    let mut parts = word.split('-');
    let digits = |part: Option<&str>, length: usize| {
        part.is_some_and(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))
    };
    digits(parts.next(), 8) && digits(parts.next(), 6)
}

/// How a run went.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) code: i32,
    pub(crate) stderr: String,
    pub(crate) events: Vec<Json>,
    /// By stage: the outcome, and the digests of its outputs.
    pub(crate) stages: BTreeMap<String, (String, String)>,
}

impl Report {
    /// `a cached, b done`.
    pub(crate) fn outcomes(&self) -> String {
        let stages: Vec<String> = self
            .stages
            .iter()
            .map(|(name, (outcome, _))| format!("{name} {outcome}"))
            .collect();
        stages.join(", ")
    }

    pub(crate) fn digests(&self) -> BTreeMap<&str, &str> {
        self.stages
            .iter()
            .map(|(name, (_, digests))| (name.as_str(), digests.as_str()))
            .collect()
    }
}

/// The decision about one stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) decision: String,
    /// `stage: key old -> new`, digests cut to `#`.
    pub(crate) causes: Vec<String>,
}

impl Planned {
    fn of(stage: &Json) -> Self {
        let side = |value: &Json| match value {
            Json::String(text)
                if text.len() >= 64
                    && text.bytes().rev().take(64).all(|b| b.is_ascii_hexdigit()) =>
            {
                "#".to_owned()
            }
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        let causes = stage["causes"].as_array().unwrap().iter().map(|cause| {
            let (owner, key) = (
                cause["stage"].as_str().unwrap(),
                cause["key"].as_str().unwrap(),
            );
            if cause["old"].is_null() && cause["new"].is_null() {
                format!("{owner}: {key}")
            } else {
                format!(
                    "{owner}: {key} {} -> {}",
                    side(&cause["old"]),
                    side(&cause["new"])
                )
            }
        });
        Self {
            name: stage["name"].as_str().unwrap().to_owned(),
            decision: stage["decision"].as_str().unwrap().to_owned(),
            causes: causes.collect(),
        }
    }

    /// `a: run (a: no earlier result)`.
    pub(crate) fn text(&self) -> String {
        if self.causes.is_empty() {
            format!("{}: {}", self.name, self.decision)
        } else {
            format!(
                "{}: {} ({})",
                self.name,
                self.decision,
                self.causes.join("; ")
            )
        }
    }
}

/// The lines of a plan.
pub(crate) fn lines(plan: &[Planned]) -> Vec<String> {
    plan.iter().map(Planned::text).collect()
}

/// Polls until there is an answer; panics after a time that only a hang can reach.
pub(crate) fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there (a zombie is not).
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        !state.starts_with(['Z', 'X'])
    })
}

/// Ids of the processes whose environment or arguments hold `text`: those that a test started.
pub(crate) fn processes_in(folder: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let here = fs::read_link(entry.path().join("cwd"));
        if here.is_ok_and(|here| here.starts_with(folder)) && is_alive(pid) {
            found.push(pid);
        }
    }
    found
}
