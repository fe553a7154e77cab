//! Runs with a shared store in memory, whose workers are played.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use super::super::{Capacity, RunOptions, RunReport, run};
use super::*;
use crate::engine::event::{Observer, Outcome, WorkerEvent};
use crate::engine::launch::{Ending, Launcher, Message, Order, Sayings, Worker};
use crate::engine::machine::DeviceChoice;
use crate::engine::overrides::Overrides;
use crate::engine::plan::{PlanOptions, Planner};
use crate::engine::spec::Pipeline;
use crate::engine::stage::StageError;
use crate::engine::store::{Memory, Provenance};
use crate::engine::worker::Task;
use crate::registry::REGISTRY;

const PIPELINE: &str = r#"
name: n
stages:
  a: { kind: command, params: { run: "echo a > o", outputs: { o: o } } }
  b: { kind: command, inputs: { x: a }, params: { run: "echo b > o", outputs: { o: o } } }
  c: { kind: command, inputs: { x: a }, params: { run: "echo c > o", outputs: { o: o } } }
  d: { kind: command, inputs: { x: b, y: c }, params: { run: "echo a > o", outputs: { o: o } } }
"#;

/// A machine with a store of its own.
struct Machine {
    folder: tempfile::TempDir,
    store: Store,
    pipeline: Pipeline,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.yaml");
        fs_err::write(&file, PIPELINE).unwrap();
        Self {
            store: Store::new(folder.path().join("store")),
            pipeline: Pipeline::load(&file, &Overrides::default(), REGISTRY).unwrap(),
            folder,
        }
    }

    fn stage(&self, name: &str) -> usize {
        self.pipeline.find(name).unwrap()
    }

    /// Runs the pipeline; `play` does what the worker of a stage would, and says how it ended.
    fn run(
        &self,
        memory: &Memory,
        play: impl Fn(&Order) -> WorkerEvent + Send + Sync + 'static,
    ) -> (RunReport, Vec<RunEvent>) {
        let options = RunOptions {
            plan: PlanOptions::default(),
            wanted: Vec::new(),
            capacity: Capacity {
                jobs: 4,
                cpus: 4,
                memory: 0,
                device: DeviceChoice::Cpu,
                gpus: Vec::new(),
                tokens: std::collections::BTreeMap::new(),
            },
            fail_fast: false,
            interrupts: Arc::<AtomicUsize>::default(),
            launcher: Box::new(Played(Arc::new(play))),
            remote: Some(Arc::new(memory.remote())),
        };
        let mut seen = Seen(Vec::new());
        let report = run(&self.pipeline, &self.store, options, &mut seen).unwrap();
        (report, seen.0)
    }

    /// What a stage's worker does: the output holds the name of the stage, or `a`.
    fn worker(&self) -> impl Fn(&Order) -> WorkerEvent + Send + Sync + use<> {
        let (store, folder): (Store, PathBuf) = (self.store.clone(), self.folder.path().to_owned());
        let outputs: Vec<_> = self
            .pipeline
            .stages
            .iter()
            .map(|stage| stage.stage.outputs())
            .collect();
        move |order| {
            let Task::Run {
                manifest,
                fingerprint,
                ..
            } = &order.job.task
            else {
                panic!("{:?}", order.job.task);
            };
            let staging = folder.join("try").join(&order.job.stage);
            fs_err::create_dir_all(staging.join("o")).unwrap();
            let text = if order.job.stage == "d" {
                "a"
            } else {
                &order.job.stage
            };
            fs_err::write(staging.join("o/o"), text).unwrap();
            let (outputs, stats) = store.commit_outputs(&staging, &outputs[0], &store).unwrap();
            let record = Record {
                beside: false,
                fingerprint: *fingerprint,
                manifest: manifest.clone(),
                outputs,
                provenance: Provenance {
                    stage: order.job.stage.clone(),
                    numerics: "cpu/2".to_owned(),
                    ..Provenance::default()
                },
                stats,
            };
            store.write_record(&record).unwrap();
            WorkerEvent::Done {
                record: Box::new(record),
                elsewhere: false,
                other: false,
                seconds: 0.0,
                peak_memory_bytes: 0,
            }
        }
    }
}

/// Workers that are threads of the test.
struct Played(Arc<dyn Fn(&Order) -> WorkerEvent + Send + Sync>);

impl Launcher for Played {
    fn launch(
        &mut self,
        tag: usize,
        order: Order,
        sayings: &Sayings,
    ) -> Result<Box<dyn Worker>, StageError> {
        let (play, sayings) = (Arc::clone(&self.0), sayings.clone());
        std::thread::spawn(move || {
            let last = play(&order);
            let _ = sayings.send((tag, Message::Event(last)));
            let _ = sayings.send((tag, Message::Ended));
        });
        Ok(Box::new(NoProcess))
    }
}

struct NoProcess;

impl Worker for NoProcess {
    fn ask_to_stop(&mut self) {}

    fn end(&mut self) {}

    fn wait(&mut self) -> Ending {
        Ending {
            said: "played".to_owned(),
            signal: None,
        }
    }
}

struct Seen(Vec<RunEvent>);

impl Observer for Seen {
    fn event(&mut self, event: &RunEvent) {
        self.0.push(event.clone());
    }
}

fn none(order: &Order) -> WorkerEvent {
    panic!("`{}` was started", order.job.stage)
}

#[test]
fn what_is_there_takes_a_request_for_each_record_and_object_and_what_is_here_none() {
    let memory = Memory::default();
    let here = Machine::new();
    let (made, events) = here.run(&memory, here.worker());
    assert_eq!(made.outcomes, [Some(Outcome::Done); 4]);
    assert_eq!(made.unsent, 0);
    let sent = events
        .iter()
        .filter(|event| matches!(event, RunEvent::StageSent { .. }));
    assert_eq!(sent.count(), 4);
    memory.requests();
    let there = Machine::new();
    let (found, _) = there.run(&memory, none);
    assert_eq!(found.outcomes, [Some(Outcome::Cached); 4]);
    assert_eq!(found.known, made.known);
    let mut requests = memory.requests();
    // Four records and, since that of `d` is that of `a`, three objects; none of them twice.
    assert_eq!(requests.len(), 7, "{requests:?}");
    requests.sort();
    requests.dedup();
    assert_eq!(requests.len(), 7);
    for machine in [&here, &there] {
        let (again, _) = machine.run(&memory, none);
        assert_eq!(again.outcomes, [Some(Outcome::Cached); 4]);
    }
    assert_eq!(memory.requests(), [""; 0]);
}

/// While one stage is being asked for, a worker of another finds that the input of both is damaged.
#[test]
fn a_stage_that_is_asked_for_waits_for_an_input_that_is_made_again() {
    let memory = Memory::default();
    let here = Machine::new();
    let (made, _) = here.run(&Memory::default(), here.worker());
    let a = made.known[here.stage("a")].as_ref().unwrap()["o"].digest;
    // Of the others nothing is left.
    let planner = Planner::new(&here.pipeline, &here.store, PlanOptions::default());
    let plans = planner.plan().unwrap();
    let fingerprint = |name: &str| plans[here.stage(name)].fingerprint.unwrap();
    for name in ["b", "c", "d"] {
        fs_err::remove_file(here.store.record_path(&fingerprint(name))).unwrap();
    }
    memory.hold(Some(&fingerprint("c")));
    let (worker, log) = (here.worker(), Arc::new(Mutex::new(Vec::new())));
    let (bucket, told) = (memory.clone(), Arc::clone(&log));
    let (report, _) = here.run(&memory, move |order| {
        let stage = order.job.stage.as_str();
        let is_first = {
            let mut log = told.lock().unwrap();
            let is_first = !log.contains(&format!("{stage} begins"));
            log.push(format!("{stage} begins"));
            is_first
        };
        if stage == "b" && is_first {
            return WorkerEvent::Damaged {
                artifact: a,
                message: "its bytes have another digest".to_owned(),
            };
        }
        if stage == "a" {
            // Now the answer to the question for `c` comes, before `a` is there again.
            bucket.hold(None);
            std::thread::sleep(Duration::from_millis(300));
        }
        let inputs = if stage == "d" {
            2
        } else {
            usize::from(stage != "a")
        };
        assert_eq!(order.job.inputs.len(), inputs, "{stage}");
        let done = worker(order);
        told.lock().unwrap().push(format!("{stage} ends"));
        done
    });
    assert_eq!(report.outcomes, [Some(Outcome::Done); 4]);
    let log = log.lock().unwrap();
    let at = |what: &str| log.iter().position(|line| line == what).unwrap();
    assert!(at("a ends") < at("c begins"), "{log:?}");
}

/// Without an answer a run ends as it would without a shared store, and says how many results are not there.
#[test]
fn a_question_whose_answer_is_a_bug_is_answered() {
    let answer: Result<(), Trouble> = unless_panicked(|| panic!("a bug"));
    assert!(matches!(answer, Err(Trouble::This(_))));
}
