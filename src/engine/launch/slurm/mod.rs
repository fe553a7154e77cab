//! Workers as jobs of a Slurm cluster.
//!
//! Approach: an order waits here until there is room in the queue, and becomes a job, several short ones together. The job's
//! agent writes what its workers say to a file on the shared disk, where it is heard; the queue is asked every few seconds,
//! and only for what it alone can know: where a job waits, and that it is gone. A job's number is never trusted: it is found
//! by its comment, and whoever works on a fingerprint holds its lock, wherever the cluster believes it to be.

mod agent;
mod batch;
mod client;
mod queue;
mod request;
mod settings;
mod submitter;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

pub use agent::run as run_agent;
pub use client::ClusterError;
pub use queue::cores_of_allocation;
pub use request::{Partition, Request, partitions};
pub use settings::ClusterSettings;
pub use submitter::{DETACHED, cancel_jobs, cancel_waiting, detach, interrupt, is_in_queue};

use self::batch::{Ask, BatchFolder, Listener, Said, Told};
use self::client::Queued;
use self::queue::{Allocation, Queue, STEP, Sbatch};
use super::{Ending, Launcher, Local, Message, Order, Sayings, Worker};
use crate::engine::artifact::Digest;
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::engine::worker::Task;
use crate::files::last_bytes;

/// A stage that is expected to take less shares its job with others.
const SHORT: f64 = 60.0;
/// Stages of one job at most, and the seconds that they are expected to take together.
const MOST_STAGES: usize = 100;
const MOST_SECONDS: f64 = 600.0;
/// How often what jobs say is heard.
const HEAR_EVERY: Duration = Duration::from_millis(150);
/// How often the queue is asked: soon after something was submitted, seldom where all goes its way.
const ASK_SOON: Duration = Duration::from_secs(1);
const ASK_SELDOM: Duration = Duration::from_secs(10);
/// How often a job that the cluster lost is submitted once more.
const MOST_LOSSES: u32 = 5;

/// Starts workers as jobs of a Slurm cluster.
pub struct Slurm {
    cluster: Rc<RefCell<Cluster>>,
}

impl Slurm {
    /// Describes the cluster that `sbatch` submits to; at most `jobs` jobs are in its queue at a time.
    ///
    /// # Errors
    /// If there is no such cluster, or it does not answer.
    pub fn new(settings: ClusterSettings, jobs: usize, store: &Store) -> Result<Self, StageError> {
        Self::with(Box::new(Sbatch), settings, jobs, store)
    }

    /// Describes the allocation that this process has; at most `jobs` steps of it are started at a time.
    ///
    /// # Errors
    /// A store that cannot be made.
    pub fn in_allocation(
        settings: ClusterSettings,
        jobs: usize,
        store: &Store,
    ) -> Result<Self, StageError> {
        Self::with(Box::new(Allocation::default()), settings, jobs, store)
    }

    fn with(
        mut queue: Box<dyn Queue>,
        settings: ClusterSettings,
        jobs: usize,
        store: &Store,
    ) -> Result<Self, StageError> {
        let listed = queue.list().map_err(|error| {
            let hint = match &error {
                ClusterError::Missing(..) => {
                    "`--executor slurm` is for a machine where `sbatch` and `squeue` work"
                }
                _ => "does `squeue --me` answer here?",
            };
            StageError::new(error.to_string()).hint(hint)
        })?;
        fs_err::create_dir_all(store.root())?;
        let mut cluster = Cluster {
            queue,
            program: program_of(&settings)?,
            settings,
            jobs,
            store: store.clone(),
            local: Local::new()?,
            waiting: VecDeque::new(),
            batches: Vec::new(),
            possible: Vec::new(),
            found: BTreeMap::new(),
            heard: Instant::now(),
            asked: Instant::now(),
            pace: ASK_SOON,
            is_silent: false,
        };
        cluster.find_living(&listed);
        Ok(Self {
            cluster: Rc::new(RefCell::new(cluster)),
        })
    }
}

impl Launcher for Slurm {
    fn launch(
        &mut self,
        tag: usize,
        order: Order,
        sayings: &Sayings,
    ) -> Result<Box<dyn Worker>, StageError> {
        // What is fetched comes from outside, which nodes of clusters seldom reach.
        if matches!(order.job.task, Task::Fetch) {
            return self.cluster.borrow_mut().local.launch(tag, order, sayings);
        }
        let stage = Rc::new(RefCell::new(StageOfJob {
            tag,
            sayings: sayings.clone(),
            last: None,
            ending: None,
            asked: None,
            losses: 0,
            is_left: false,
            is_over: false,
        }));
        let mut cluster = self.cluster.borrow_mut();
        if !cluster.adopt(&order, &stage) {
            cluster.waiting.push_back((order, Rc::clone(&stage)));
        }
        Ok(Box::new(Handle {
            cluster: Rc::clone(&self.cluster),
            stage,
        }))
    }

    fn turn(&mut self) {
        self.cluster.borrow_mut().turn();
    }
}

/// A stage of a job, as its executor knows it.
struct StageOfJob {
    tag: usize,
    sayings: Sayings,
    /// What was said last of how it went; told on once it is known to be the last word.
    last: Option<WorkerEvent>,
    ending: Option<Ending>,
    /// What it was asked from here.
    asked: Option<(Ask, Instant)>,
    /// How often the cluster lost its job.
    losses: u32,
    /// Whether its job ended before it came to it.
    is_left: bool,
    is_over: bool,
}

type SharedStage = Rc<RefCell<StageOfJob>>;

impl StageOfJob {
    fn tell(&self, event: WorkerEvent) {
        let _ = self.sayings.send((self.tag, Message::Event(event)));
    }

    fn note(&self, importance: Importance, text: String) {
        self.tell(WorkerEvent::Note { importance, text });
    }

    /// Tells its executor that it is over.
    fn end(&mut self, last: Option<WorkerEvent>, said: &str) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        self.ending.get_or_insert_with(|| Ending {
            said: said.to_owned(),
            signal: None,
        });
        if let Some(last) = last.or_else(|| self.last.take()) {
            self.tell(last);
        }
        let _ = self.sayings.send((self.tag, Message::Ended));
    }

    fn fail(&mut self, message: String, hint: Option<String>) {
        self.end(Some(WorkerEvent::Failed { message, hint }), "failed");
    }
}

struct Handle {
    cluster: Rc<RefCell<Cluster>>,
    stage: SharedStage,
}

impl Handle {
    fn ask(&self, ask: Ask) {
        let known = self.stage.borrow().asked.map(|(ask, _)| ask);
        if known == Some(ask) || known == Some(Ask::End) {
            return;
        }
        self.stage.borrow_mut().asked = Some((ask, Instant::now()));
        self.cluster.borrow_mut().ask(&self.stage, ask);
    }
}

impl Worker for Handle {
    fn ask_to_stop(&mut self) {
        self.ask(Ask::Stop);
    }

    fn end(&mut self) {
        self.ask(Ask::End);
    }

    fn wait(&mut self) -> Ending {
        let ending = self.stage.borrow().ending.clone();
        ending.unwrap_or(Ending {
            said: "its job ended".to_owned(),
            signal: None,
        })
    }
}

/// A job, submitted or about to be.
struct Batch {
    folder: BatchFolder,
    listener: Listener,
    /// Its number, once that is known.
    job: Option<String>,
    /// By their place in it; `None` where nobody here asked for the stage.
    stages: Vec<Option<SharedStage>>,
    orders: Vec<Order>,
    /// State and reason, as they were last told.
    shown: Option<(String, String)>,
    began: bool,
    is_cancelled: bool,
    /// How often in a row the queue did not show it.
    missed: u32,
    /// When submitting is tried, once more or for the first time.
    submit_at: Option<Instant>,
}

impl Batch {
    fn open(&self) -> impl Iterator<Item = (usize, &SharedStage)> {
        let stages = self.stages.iter().enumerate();
        let stages = stages.filter_map(|(at, stage)| Some((at, stage.as_ref()?)));
        stages.filter(|(_, stage)| !stage.borrow().is_over)
    }

    fn is_over(&self) -> bool {
        self.open().next().is_none()
    }
}

/// A stage of a job that an earlier run submitted.
struct Found {
    folder: PathBuf,
    job: String,
    /// Its place in the job.
    at: usize,
}

struct Cluster {
    queue: Box<dyn Queue>,
    /// Where this program lies on the nodes.
    program: String,
    settings: ClusterSettings,
    jobs: usize,
    store: Store,
    local: Local,
    waiting: VecDeque<(Order, SharedStage)>,
    batches: Vec<Batch>,
    /// Requests that there are nodes for.
    possible: Vec<Request>,
    /// Jobs of an earlier run that live on, by the fingerprints of their stages.
    found: BTreeMap<Digest, Found>,
    heard: Instant,
    asked: Instant,
    pace: Duration,
    is_silent: bool,
}

fn fingerprint_of(order: &Order) -> Option<Digest> {
    match &order.job.task {
        Task::Run { fingerprint, .. } => Some(*fingerprint),
        Task::Fetch => None,
    }
}

impl Cluster {
    /// Notes the jobs of an earlier run that live on, and removes what the ended ones left.
    fn find_living(&mut self, queue: &[Queued]) {
        /// One that was made just now may be about to be submitted by another run.
        const YOUNG: Duration = Duration::from_secs(3600);
        for folder in BatchFolder::all(&self.store) {
            let comment = folder.comment();
            let job = queue.iter().find(|job| job.comment == comment);
            let age = std::fs::metadata(folder.path()).and_then(|found| found.modified());
            let age = age.ok().and_then(|time| time.elapsed().ok());
            let Some(job) = job else {
                if age.is_some_and(|age| age > YOUNG) {
                    folder.remove();
                }
                continue;
            };
            let Ok(told) = folder.told() else { continue };
            if told.flowgraph != env!("CARGO_PKG_VERSION") {
                continue;
            }
            for (at, order) in told.orders.iter().enumerate() {
                if let Some(fingerprint) = fingerprint_of(order) {
                    let found = Found {
                        folder: folder.path().to_owned(),
                        job: job.job.clone(),
                        at,
                    };
                    self.found.insert(fingerprint, found);
                }
            }
        }
    }

    /// Goes on with a job of an earlier run that is at the same work.
    fn adopt(&mut self, order: &Order, stage: &SharedStage) -> bool {
        let found = fingerprint_of(order).and_then(|it| self.found.remove(&it));
        let Some(Found {
            folder: path,
            job,
            at,
        }) = found
        else {
            return false;
        };
        let known = self
            .batches
            .iter()
            .position(|batch| batch.folder.path() == path);
        let known = known.or_else(|| {
            let folder = BatchFolder::at(&path);
            let orders = folder.told().ok()?.orders;
            self.batches.push(Batch {
                listener: folder.listener(),
                folder,
                job: Some(job),
                stages: vec![None; orders.len()],
                orders,
                shown: None,
                began: false,
                is_cancelled: false,
                missed: 0,
                submit_at: None,
            });
            Some(self.batches.len() - 1)
        });
        let Some(batch) = known.and_then(|known| self.batches.get_mut(known)) else {
            return false;
        };
        let asks_the_same = batch.orders.get(at).is_some_and(|other| {
            // A forced run is no other's.
            format!("{:?}", other.job.task) == format!("{:?}", order.job.task)
        });
        if !asks_the_same || batch.stages[at].is_some() {
            return false;
        }
        // What was said before is heard again, for this stage.
        batch.listener = batch.folder.listener();
        stage.borrow().note(
            Importance::Usual,
            "goes on with the job of an earlier run".to_owned(),
        );
        batch.stages[at] = Some(Rc::clone(stage));
        true
    }

    fn turn(&mut self) {
        self.make_batches();
        self.submit_due();
        if self.heard.elapsed() >= HEAR_EVERY {
            self.heard = Instant::now();
            for batch in &mut self.batches {
                hear(batch);
            }
        }
        self.cancel_deaf();
        if self.asked.elapsed() >= self.pace && !self.batches.is_empty() {
            self.ask_queue();
        }
        self.batches.retain(|batch| {
            let is_over = batch.is_over();
            // Stages that nobody here asked for may still be at work.
            if is_over && batch.stages.iter().all(Option::is_some) {
                batch.folder.remove();
            }
            !is_over
        });
    }

    /// Cancels jobs that were asked to end and do not: their nodes may hear nothing.
    fn cancel_deaf(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(15);
        for batch in &mut self.batches {
            let is_deaf = |stage: &SharedStage| {
                let asked = stage.borrow().asked;
                asked.is_some_and(|(ask, at)| ask == Ask::End && at.elapsed() > PATIENCE)
            };
            if !batch.is_cancelled
                && batch.stages.iter().all(Option::is_some)
                && batch.open().all(|(_, stage)| is_deaf(stage))
                && let Some(job) = &batch.job
            {
                batch.is_cancelled = true;
                let _ = self.queue.cancel(job);
            }
        }
    }

    /// Makes jobs of what waits, as many as the queue is to hold.
    fn make_batches(&mut self) {
        while self.batches.len() < self.jobs
            && let Some((first, stage)) = self.waiting.pop_front()
        {
            let mut orders = vec![first];
            let mut stages = vec![Some(stage)];
            if let Some(mut seconds) = short(&orders[0]) {
                let alike = |order: &Order| {
                    order.resources == orders[0].resources && order.gpus == orders[0].gpus
                };
                let (mut taken, mut kept) = (Vec::new(), VecDeque::new());
                for (order, stage) in self.waiting.drain(..) {
                    let more = short(&order).filter(|_| alike(&order));
                    match more {
                        Some(more)
                            if seconds + more <= MOST_SECONDS && taken.len() + 1 < MOST_STAGES =>
                        {
                            seconds += more;
                            taken.push((order, stage));
                        }
                        _ => kept.push_back((order, stage)),
                    }
                }
                self.waiting = kept;
                for (order, stage) in taken {
                    orders.push(order);
                    stages.push(Some(stage));
                }
            }
            match self.make_batch(orders, &stages) {
                Ok(batch) => self.batches.push(batch),
                Err(error) => {
                    for stage in stages.iter().flatten() {
                        stage.borrow_mut().fail(error.to_string(), None);
                    }
                }
            }
        }
    }

    fn make_batch(
        &self,
        orders: Vec<Order>,
        stages: &[Option<SharedStage>],
    ) -> std::io::Result<Batch> {
        let told = Told {
            flowgraph: env!("CARGO_PKG_VERSION").to_owned(),
            orders,
        };
        let folder = BatchFolder::make(&self.store, &told)?;
        let words = ["agent".to_owned(), folder.path().display().to_string()];
        let words = [vec![self.program.clone()], words.to_vec()].concat();
        fs_err::write(folder.script(), job_script(&self.settings, &words))?;
        Ok(Batch {
            listener: folder.listener(),
            folder,
            job: None,
            stages: stages.to_vec(),
            orders: told.orders,
            shown: None,
            began: false,
            is_cancelled: false,
            missed: 0,
            submit_at: Some(Instant::now()),
        })
    }

    fn submit_due(&mut self) {
        for at in 0..self.batches.len() {
            let is_due = self.batches[at]
                .submit_at
                .is_some_and(|time| time <= Instant::now());
            if is_due && !self.batches[at].is_over() {
                self.submit(at);
            }
        }
    }

    fn submit(&mut self, at: usize) {
        /// After a cluster that did not answer.
        const PAUSE: Duration = Duration::from_secs(5);
        let request = Request {
            // What is too long is told by the queue, and the sum of many is always another.
            limit: None,
            ..request_of(&self.batches[at].orders)
        };
        let is_possible = self.is_possible(&request);
        let batch = &mut self.batches[at];
        let asked = request_of(&batch.orders);
        let (folder, name) = (&batch.folder, name_of(&batch.orders));
        let submitted =
            is_possible.and_then(|()| self.queue.submit(folder, &name, &asked, &self.settings));
        match submitted {
            Ok(job) => {
                batch.job = Some(job);
                batch.submit_at = None;
                batch.missed = 0;
                self.pace = ASK_SOON;
            }
            Err(ClusterError::Silent(..)) => {
                // It may be in the queue all the same: the comment tells, once there is an answer.
                batch.submit_at = None;
                batch.missed = 0;
                self.asked = Instant::now() - ASK_SELDOM + PAUSE;
                self.pace = ASK_SELDOM;
            }
            Err(error) => {
                batch.submit_at = None;
                for (_, stage) in batch.open() {
                    stage.borrow_mut().fail(
                        error.to_string(),
                        Some("`resources` and `timeout` of the stage and `cluster:` of the pipeline say what is asked for; `flowgraph check --executor slurm` what there is".to_owned()),
                    );
                }
            }
        }
    }

    /// Asks once whether there are such nodes at all: where there are none, some clusters let a job wait for ever.
    fn is_possible(&mut self, request: &Request) -> Result<(), ClusterError> {
        const IMPOSSIBLE: &str = "Requested node configuration is not available";
        if self.possible.contains(request) {
            return Ok(());
        }
        match self.queue.check(request, &self.settings) {
            Err(ClusterError::Refused(program, why)) if why.contains(IMPOSSIBLE) => {
                Err(ClusterError::Refused(program, why))
            }
            // The rest is between the job and the queue.
            _ => {
                self.possible.push(request.clone());
                Ok(())
            }
        }
    }

    fn ask(&mut self, stage: &SharedStage, ask: Ask) {
        if let Some(at) = (self.waiting.iter()).position(|(_, other)| Rc::ptr_eq(other, stage)) {
            self.waiting.remove(at);
            stage
                .borrow_mut()
                .end(Some(WorkerEvent::Interrupted), "not submitted");
            return;
        }
        let is_its = |other: &Option<SharedStage>| {
            other.as_ref().is_some_and(|other| Rc::ptr_eq(other, stage))
        };
        let found = self.batches.iter_mut().find_map(|batch| {
            let at = batch.stages.iter().position(is_its)?;
            Some((batch, at))
        });
        let Some((batch, at)) = found else { return };
        let _ = batch.folder.ask(ask, Some(at));
        let all_asked = batch
            .open()
            .all(|(_, stage)| stage.borrow().asked.is_some());
        let nobody_else = batch.stages.iter().all(Option::is_some);
        if !batch.began && all_asked && nobody_else {
            batch.submit_at = None;
            if let Some(job) = &batch.job {
                let _ = self.queue.cancel(job);
            }
            for (_, stage) in batch.open() {
                stage
                    .borrow_mut()
                    .end(Some(WorkerEvent::Interrupted), "cancelled before it began");
            }
        }
    }

    /// Looks where jobs are in the queue, and whether they still are.
    fn ask_queue(&mut self) {
        self.asked = Instant::now();
        self.pace = (self.pace * 2).min(ASK_SELDOM);
        let queue = match self.queue.list() {
            Ok(queue) => queue,
            Err(error) => {
                if !std::mem::replace(&mut self.is_silent, true) {
                    self.tell_one(format!(
                        "{error}; jobs go on meanwhile, and nothing new is submitted"
                    ));
                }
                return;
            }
        };
        if std::mem::replace(&mut self.is_silent, false) {
            self.tell_one("the cluster answers again".to_owned());
        }
        let mut lost = Vec::new();
        for at in 0..self.batches.len() {
            if self.batches[at].submit_at.is_some() {
                continue;
            }
            let comment = self.batches[at].folder.comment();
            match queue.iter().find(|job| job.comment == comment) {
                Some(job) => self.seen(at, job),
                None => lost.extend(self.missed(at)),
            }
        }
        for (order, stage) in lost {
            self.waiting.push_front((order, stage));
        }
    }

    fn tell_one(&self, text: String) {
        let mut open = self.batches.iter().filter_map(|batch| batch.open().next());
        if let Some((_, stage)) = open.next() {
            stage.borrow().note(Importance::Warning, text);
        }
    }

    fn seen(&mut self, at: usize, job: &Queued) {
        let batch = &mut self.batches[at];
        batch.missed = 0;
        batch.job = Some(job.job.clone());
        let shown = (job.state.clone(), job.reason.clone());
        if batch.shown.as_ref() != Some(&shown) {
            let waits = !["RUNNING", "COMPLETING", STEP].contains(&&*job.state);
            // Once more, if it began before.
            batch.began &= !waits;
            for (_, stage) in batch.open().filter(|_| waits) {
                stage.borrow().tell(WorkerEvent::Queued {
                    job: job.job.clone(),
                    state: job.state.clone(),
                    reason: job.reason.clone(),
                });
            }
            batch.shown = Some(shown);
            self.pace = ASK_SOON;
        }
    }

    /// A job is not in the queue any more: what it did not finish is over. Returns what begins again, for the cluster lost it.
    fn missed(&mut self, at: usize) -> Vec<(Order, SharedStage)> {
        /// It may have said its last words just now, and those may take a moment to come here.
        const TWICE: u32 = 2;
        self.pace = ASK_SOON;
        let batch = &mut self.batches[at];
        batch.missed += 1;
        hear(batch);
        if batch.missed < TWICE || batch.is_over() {
            return Vec::new();
        }
        let comment = batch.folder.comment();
        let job = batch.job.as_ref();
        let end = job.and_then(|job| self.queue.end_of(job, &comment));
        let (state, code) = end.unwrap_or_default();
        let number = job.map_or(String::new(), |job| format!(" {job}"));
        let output = last_bytes(&batch.folder.output(), 2000)
            .unwrap_or_default()
            .0;
        let lost_as = lost_as(&state);
        let mut again = Vec::new();
        for (place, shared) in batch.open() {
            let mut stage = shared.borrow_mut();
            let is_interrupted = matches!(stage.last, Some(WorkerEvent::Interrupted));
            let said = format!("its job{number} ended as {state}");
            if stage.asked.is_some() {
                let last = stage.last.take().unwrap_or(WorkerEvent::Interrupted);
                stage.end(Some(last), &said);
            } else if stage.last.is_some() && !is_interrupted {
                stage.end(None, &said);
            } else if stage.is_left {
                // Others of its job took all the time.
                stage.is_left = false;
                again.push((batch.orders[place].clone(), Rc::clone(shared)));
            } else if let Some(how) = lost_as.filter(|_| stage.losses < MOST_LOSSES)
                && !(is_interrupted && state.is_empty())
            {
                stage.losses += 1;
                stage.last = None;
                let text = format!("its job{number} was lost ({how}) and is submitted again");
                stage.note(Importance::Warning, text);
                again.push((batch.orders[place].clone(), Rc::clone(shared)));
            } else if is_interrupted {
                stage.fail(
                    format!("its job{number} was asked to stop by the cluster ({state})"),
                    Some("a higher `timeout` of the stage gives it more time; with `retries: N` it goes on from its checkpoint by itself".to_owned()),
                );
            } else {
                let output = String::from_utf8_lossy(&output);
                let order = &batch.orders[place];
                let (message, hint) = words_for(&number, &state, &code, &output, order);
                stage.fail(message, hint);
            }
        }
        if !again.is_empty() {
            // What may still be at work there writes into its folder, which stays.
            for stage in &mut batch.stages {
                *stage = None;
            }
        }
        again
    }
}

/// Says how the cluster lost a job that ended in a state, if it did.
fn lost_as(state: &str) -> Option<&str> {
    match state {
        "" => Some("the cluster does not know it any more"),
        "NODE_FAIL" | "BOOT_FAIL" | "PREEMPTED" | "REQUEUED" | "PENDING" | "REVOKED" => Some(state),
        _ => None,
    }
}

/// Takes in what a job says.
fn hear(batch: &mut Batch) {
    let Ok(all) = batch.listener.hear() else {
        return;
    };
    for said in all {
        let stage_at = |at: usize| {
            let stage = batch.stages.get(at).and_then(Option::as_ref);
            stage.filter(|stage| !stage.borrow().is_over)
        };
        match said {
            Said::Began { host, .. } => {
                batch.began = true;
                for (_, stage) in batch.open() {
                    // Begun once more: what it said of its end before was not the last word.
                    let mut stage = stage.borrow_mut();
                    stage.last = None;
                    stage.is_left = false;
                    let number = batch.job.clone().unwrap_or_default();
                    stage.tell(WorkerEvent::Queued {
                        job: number,
                        state: "RUNNING".to_owned(),
                        reason: host.clone(),
                    });
                }
            }
            Said::Event { at, event } => {
                let Some(stage) = stage_at(at) else { continue };
                let mut stage = stage.borrow_mut();
                if event.is_last() {
                    stage.last = Some(event);
                } else {
                    stage.tell(event);
                }
            }
            Said::Ended { at, ending } => {
                let Some(stage) = stage_at(at) else { continue };
                let mut stage = stage.borrow_mut();
                stage.ending = Some(ending);
                let is_interrupted = matches!(stage.last, Some(WorkerEvent::Interrupted));
                // A job that the cluster stops may be begun once more.
                if !is_interrupted || stage.asked.is_some() {
                    stage.end(None, "");
                }
            }
            Said::Left { at } => {
                let Some(stage) = stage_at(at) else { continue };
                let mut stage = stage.borrow_mut();
                if stage.asked.is_some() {
                    stage.end(Some(WorkerEvent::Interrupted), "not begun");
                } else {
                    stage.is_left = true;
                }
            }
        }
    }
}

/// Names a job for people.
fn name_of(orders: &[Order]) -> String {
    let first = &orders[0].job.stage;
    match orders.len() {
        1 => format!("flowgraph:{first}"),
        several => format!("flowgraph:{first} and {} more", several - 1),
    }
}

fn request_of(orders: &[Order]) -> Request {
    let timeouts = orders.iter().map(|order| order.timeout);
    Request {
        resources: orders[0].resources.clone(),
        gpus: orders[0].gpus,
        limit: timeouts.sum(),
    }
}

/// Returns the seconds that a stage is expected to take, if it is a short one.
fn short(order: &Order) -> Option<f64> {
    let expected = match (order.estimate, order.timeout) {
        (Some(estimate), _) => estimate,
        (None, timeout) => timeout?,
    };
    (expected <= SHORT).then_some(expected)
}

/// Where this program lies on the nodes.
fn program_of(settings: &ClusterSettings) -> std::io::Result<String> {
    match &settings.program {
        Some(program) => Ok(program.clone()),
        None => Ok(std::env::current_exe()?.display().to_string()),
    }
}

/// Writes the script of a job that runs a command.
fn job_script(settings: &ClusterSettings, words: &[String]) -> String {
    let mut script = String::from("#!/bin/bash\n");
    for line in &settings.before {
        script.push_str(line);
        script.push('\n');
    }
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let through = settings.through.as_deref().unwrap_or_default();
    // In the place of the shell, to which the cluster sends its notice.
    script.push_str(&format!("exec {through} {}\n", words.join(" ")));
    script
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Says why a job ended without a word of its own.
fn words_for(
    number: &str,
    state: &str,
    code: &str,
    output: &str,
    order: &Order,
) -> (String, Option<String>) {
    let output = output.trim();
    let said = if output.is_empty() {
        String::new()
    } else {
        format!(": {output}")
    };
    match state {
        "TIMEOUT" | "DEADLINE" => (
            format!("its job{number} ran into its time limit"),
            Some("give the stage a `timeout`, or `cluster: { time: ... }`".to_owned()),
        ),
        "OUT_OF_MEMORY" => (
            format!("its job{number} ran out of memory"),
            Some(match order.resources.memory {
                0 => "`resources: { memory: ... }` says how much it needs".to_owned(),
                memory => format!("it asks for {} MB by `resources.memory`", memory / 1_000_000),
            }),
        ),
        "CANCELLED" => (
            format!("its job{number} was cancelled"),
            Some("somebody gave `scancel`, or the cluster's rules did".to_owned()),
        ),
        "" => (format!("its job{number} was lost again and again"), None),
        state => (
            format!("its job{number} ended as {state}, exit code {code}{said}"),
            Some("can the nodes start this program? `program`, `before` and `through` of `cluster:` say how".to_owned()),
        ),
    }
}
