//! The jobs of a run, and what waits to become one.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::batch::{Ask, BatchFolder, Told};
use super::client::{ClusterError, Queued};
use super::job::Job;
use super::queue::Queue;
use super::request::{NO_NODE, Request};
use super::settings::ClusterSettings;
use super::stage::SharedStage;
use super::{job_script, program_of};
use crate::engine::artifact::Digest;
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::launch::{Local, Order};
use crate::engine::runs::is_run_under_way;
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::engine::worker::Task;

/// A stage that is expected to take less shares its job with others.
const SHORT: f64 = 60.0;
/// Stages of one job at most, and the seconds that they are expected to take together.
const MOST_STAGES: usize = 100;
const MOST_SECONDS: f64 = 600.0;
/// And those that their timeouts allow them together.
const MOST_LIMIT: f64 = 6.0 * 3600.0;
/// How often what jobs say is heard.
const HEAR_EVERY: Duration = Duration::from_millis(150);
/// How often the queue is asked: soon after something was submitted, seldom where all goes its way.
const ASK_SOON: Duration = Duration::from_secs(1);
const ASK_SELDOM: Duration = Duration::from_secs(10);

/// Reasons for which a job would wait for ever.
const NEVER: [&str; 6] = [
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "PartitionConfig",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
];

/// Reasons for which it waits that are the cluster's own trouble.
const HELD: [&str; 2] = ["launch failed requeued held", "JobHoldMaxRequeue"];

pub(super) struct Cluster {
    queue: Box<dyn Queue>,
    /// Where this program lies on the nodes.
    program: String,
    settings: ClusterSettings,
    /// Jobs at a time.
    most: usize,
    store: Store,
    pub(super) local: Local,
    waiting: VecDeque<(Order, SharedStage)>,
    jobs: Vec<Job>,
    /// Requests that there are nodes for.
    possible: Vec<Request>,
    /// Stages of jobs of an earlier run that live on.
    found: BTreeMap<Digest, Found>,
    /// Numbers of jobs that are to be cancelled.
    to_cancel: Vec<String>,
    heard: Instant,
    asked: Instant,
    pace: Duration,
    is_silent: bool,
    /// Until then the queue takes no more.
    full_until: Option<Instant>,
}

/// A stage of a job that an earlier run submitted.
struct Found {
    folder: PathBuf,
    job: String,
    /// Its place in the job.
    at: usize,
}

fn fingerprint_of(order: &Order) -> Option<Digest> {
    match &order.job.task {
        Task::Run { fingerprint, .. } => Some(*fingerprint),
        Task::Fetch => None,
    }
}

impl Cluster {
    pub(super) fn new(
        queue: Box<dyn Queue>,
        settings: ClusterSettings,
        most: usize,
        store: &Store,
    ) -> Result<Self, StageError> {
        Ok(Self {
            queue,
            program: program_of(&settings)?,
            settings,
            most,
            store: store.clone(),
            local: Local::new()?,
            waiting: VecDeque::new(),
            jobs: Vec::new(),
            possible: Vec::new(),
            found: BTreeMap::new(),
            to_cancel: Vec::new(),
            heard: Instant::now(),
            asked: Instant::now(),
            pace: ASK_SOON,
            is_silent: false,
            full_until: None,
        })
    }

    /// Notes the jobs that live on of runs that do not, and removes what ended ones left long ago.
    pub(super) fn find_living(&mut self, queue: &[Queued]) {
        const LONG: Duration = Duration::from_hours(7 * 24);
        for folder in BatchFolder::all(&self.store) {
            let comment = folder.comment();
            let Some(job) = queue.iter().find(|job| job.comment == comment) else {
                if folder.age().is_some_and(|age| age > LONG) {
                    folder.remove();
                }
                continue;
            };
            let Ok(told) = folder.told() else { continue };
            let is_alone = folder
                .submitter()
                .is_some_and(|run| !is_run_under_way(&run));
            let is_dying = job.state == "COMPLETING";
            if told.flowgraph != env!("CARGO_PKG_VERSION") || !is_alone || is_dying {
                continue;
            }
            let ended = folder.ended_stages();
            // Nobody would ever cancel one that the cluster holds, or begins once more for what is done.
            if is_held(&job.reason) || ended.len() == told.orders.len() {
                self.to_cancel.push(job.job.clone());
                continue;
            }
            for (at, order) in told.orders.iter().enumerate() {
                let is_open = !ended.contains(&at)
                    && !folder.is_asked(Ask::Stop, at)
                    && !folder.is_asked(Ask::End, at);
                if let Some(fingerprint) = fingerprint_of(order).filter(|_| is_open) {
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

    /// Takes a stage: goes on with the job of an earlier run that is at it, or lets it wait for one.
    pub(super) fn take(&mut self, order: Order, stage: &SharedStage) {
        if !self.adopt(&order, stage) {
            self.waiting.push_back((order, Rc::clone(stage)));
        }
    }

    fn adopt(&mut self, order: &Order, stage: &SharedStage) -> bool {
        let found = fingerprint_of(order).and_then(|it| self.found.remove(&it));
        let Some(Found { folder, job, at }) = found else {
            return false;
        };
        let known = self.jobs.iter().position(|job| job.folder.path() == folder);
        let known = known.or_else(|| {
            let folder = BatchFolder::at(&folder);
            let orders = folder.told().ok()?.orders;
            // Another run may find it, too.
            let run = std::path::absolute(&order.run).ok()?;
            if !folder.change_submitter(&run) {
                return None;
            }
            let stages = vec![None; orders.len()];
            let mut adopted = Job::new(folder, orders, stages);
            adopted.is_submitted(job);
            self.jobs.push(adopted);
            Some(self.jobs.len() - 1)
        });
        let Some(job) = known.and_then(|known| self.jobs.get_mut(known)) else {
            return false;
        };
        let asks_the_same = job.orders.get(at).is_some_and(|other| {
            // A forced run is no other's.
            format!("{:?}", other.job.task) == format!("{:?}", order.job.task)
        });
        if !asks_the_same || job.stages[at].is_some() {
            return false;
        }
        if let Some(folder) = order.log.parent() {
            let _ = std::fs::create_dir_all(folder);
            let _ = std::os::unix::fs::symlink(&job.orders[at].log, &order.log);
        }
        stage.borrow().note(
            Importance::Usual,
            "goes on with the job of an earlier run".to_owned(),
        );
        job.stages[at] = Some(Rc::clone(stage));
        job.hear_all();
        true
    }

    pub(super) fn turn(&mut self) {
        self.make_jobs();
        self.submit_due();
        if self.heard.elapsed() >= HEAR_EVERY {
            self.heard = Instant::now();
            self.jobs.iter_mut().for_each(Job::hear);
            self.heed_versions();
        }
        self.cancel_deaf();
        self.cancel_jobs();
        if self.asked.elapsed() >= self.pace && !self.jobs.is_empty() {
            self.ask_queue();
        }
        self.jobs.retain(|job| {
            // Stages that nobody here asked for may still be at work.
            if job.is_over() && job.is_all_ours() {
                job.folder.remove();
            }
            !job.is_over()
        });
    }

    /// Makes jobs of what waits, as many as there are to be at a time.
    fn make_jobs(&mut self) {
        while self.jobs.len() < self.most
            && let Some((first, stage)) = self.waiting.pop_front()
        {
            let mut orders = vec![first];
            let mut stages = vec![Some(stage)];
            let is_alone = |stage: &SharedStage| stage.borrow().is_alone;
            let may_share = !stages[0].as_ref().is_some_and(is_alone);
            if let Some(mut seconds) = short(&orders[0]).filter(|_| may_share) {
                // What they may take together, not what they are known to take, is what the cluster is told.
                let mut limit = orders[0].timeout.unwrap_or(0.0);
                let alike = |order: &Order| {
                    order.resources == orders[0].resources && order.gpus == orders[0].gpus
                };
                let (mut taken, mut kept) = (Vec::new(), VecDeque::new());
                for (order, stage) in self.waiting.drain(..) {
                    match short(&order).filter(|_| alike(&order) && !is_alone(&stage)) {
                        Some(more)
                            if seconds + more <= MOST_SECONDS
                                && limit + order.timeout.unwrap_or(0.0) <= MOST_LIMIT
                                && taken.len() + 1 < MOST_STAGES =>
                        {
                            seconds += more;
                            limit += order.timeout.unwrap_or(0.0);
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
            match self.make_job(orders, &stages) {
                Ok(job) => self.jobs.push(job),
                Err(error) => {
                    for stage in stages.iter().flatten() {
                        stage.borrow_mut().fail(error.to_string(), None);
                    }
                }
            }
        }
    }

    fn make_job(&self, orders: Vec<Order>, stages: &[Option<SharedStage>]) -> std::io::Result<Job> {
        let orders: std::io::Result<Vec<Order>> = orders.into_iter().map(placed).collect();
        let told = Told {
            flowgraph: env!("CARGO_PKG_VERSION").to_owned(),
            orders: orders?,
        };
        let folder = BatchFolder::make(&self.store, &told)?;
        let words = [
            self.program.clone(),
            "agent".to_owned(),
            folder.path().display().to_string(),
        ];
        fs_err::write(
            folder.script(),
            job_script(&self.settings, &folder.output(), &words),
        )?;
        let mut job = Job::new(folder, told.orders, stages.to_vec());
        job.submit_at = Some(Instant::now());
        Ok(job)
    }

    fn submit_due(&mut self) {
        let now = Instant::now();
        if self.is_silent || self.full_until.is_some_and(|time| time > now) {
            return;
        }
        for at in 0..self.jobs.len() {
            let is_due = self.jobs[at].submit_at.is_some_and(|time| time <= now);
            if is_due && !self.jobs[at].is_over() && !self.submit(at) {
                return;
            }
        }
    }

    /// Submits a job; false if others need not be tried now.
    fn submit(&mut self, at: usize) -> bool {
        /// After a queue that was full.
        const PAUSE: Duration = Duration::from_secs(30);
        let request = self.jobs[at].request();
        let submitted = self.is_possible(&request).and_then(|()| {
            let job = &self.jobs[at];
            let name = job.name();
            (self.queue).submit(&job.folder, &name, &request, &self.settings)
        });
        let job = &mut self.jobs[at];
        match submitted {
            Ok(number) => {
                job.is_submitted(number);
                self.pace = ASK_SOON;
                true
            }
            Err(error @ ClusterError::Silent(..)) => {
                job.may_be_submitted();
                self.pace = ASK_SOON;
                self.silent(&error);
                false
            }
            Err(error @ ClusterError::Full(..)) => {
                if self.full_until.is_none() {
                    self.tell_one(format!("{error}; what waits is submitted later"));
                }
                self.full_until = Some(Instant::now() + PAUSE);
                false
            }
            Err(error) => {
                self.waiting.extend(job.cannot_begin(&error.to_string()));
                true
            }
        }
    }

    /// Asks once whether there are such nodes at all: where there are none, some clusters let a job wait for ever.
    fn is_possible(&mut self, request: &Request) -> Result<(), ClusterError> {
        // What is too long is told by the queue, and the sum of many is always another.
        let request = Request {
            limit: None,
            ..request.clone()
        };
        if self.possible.contains(&request) {
            return Ok(());
        }
        match self.queue.check(&request, &self.settings) {
            Err(ClusterError::Refused(program, why)) if why.contains(NO_NODE) => {
                return Err(ClusterError::Refused(program, why));
            }
            Err(error @ ClusterError::Silent(..)) => return Err(error),
            // The rest is between the job and the queue.
            _ => self.possible.push(request),
        }
        Ok(())
    }

    pub(super) fn ask(&mut self, stage: &SharedStage, ask: Ask) {
        let is_it = |other: &SharedStage| Rc::ptr_eq(other, stage);
        if let Some(at) = (self.waiting.iter()).position(|(_, other)| is_it(other)) {
            self.waiting.remove(at);
            let interrupted = Some(WorkerEvent::Interrupted);
            stage.borrow_mut().end(interrupted, "not submitted");
            return;
        }
        let found = self.jobs.iter_mut().find_map(|job| {
            let mut places = job.stages.iter();
            let at = places.position(|other| other.as_ref().is_some_and(is_it))?;
            Some((job, at))
        });
        let Some((job, at)) = found else { return };
        let _ = job.folder.ask(ask, Some(at));
        if job.began {
            return;
        }
        if job.is_unwanted() {
            job.submit_at = None;
            self.to_cancel.extend(job.number.clone());
            job.end_unbegun("cancelled before it began");
        } else if !job.is_all_ours() {
            // It stays for others, and leaves this stage out.
            let interrupted = Some(WorkerEvent::Interrupted);
            stage
                .borrow_mut()
                .end(interrupted, "asked to stop before it began");
        }
    }

    /// Cancels jobs that were asked to end and do not: their nodes may hear nothing.
    fn cancel_deaf(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(15);
        for job in &mut self.jobs {
            let is_deaf = |stage: &SharedStage| {
                let asked = stage.borrow().asked;
                asked.is_some_and(|(ask, at)| ask == Ask::End && at.elapsed() > PATIENCE)
            };
            let is_deaf = !job.is_over() && job.open().all(|(_, stage)| is_deaf(stage));
            if is_deaf && job.is_all_ours() && !job.is_cancelled {
                job.is_cancelled = true;
                self.to_cancel.extend(job.number.clone());
            }
        }
    }

    fn cancel_jobs(&mut self) {
        if self.to_cancel.is_empty() || self.is_silent {
            return;
        }
        let numbers = std::mem::take(&mut self.to_cancel);
        if let Err(error @ ClusterError::Silent(..)) = self.queue.cancel(&numbers) {
            self.to_cancel.extend(numbers);
            self.silent(&error);
        }
    }

    /// A node has another version of this program: then all have, and nothing more is tried.
    fn heed_versions(&mut self) {
        let mut jobs = self.jobs.iter();
        let Some(version) = jobs.find_map(|job| job.other_version.clone()) else {
            return;
        };
        let own = env!("CARGO_PKG_VERSION");
        let message = format!("the nodes have flowgraph {version}, and this is {own}");
        let hint = "`program` of `cluster:` says where it lies on the nodes";
        let waiting = self.waiting.drain(..).map(|(_, stage)| stage);
        let mut stages: Vec<SharedStage> = waiting.collect();
        for job in self.jobs.iter_mut().filter(|job| !job.began) {
            job.submit_at = None;
            self.to_cancel.extend(job.number.clone());
            stages.extend(job.open().map(|(_, stage)| Rc::clone(stage)));
        }
        for stage in stages {
            let hint = Some(hint.to_owned());
            stage.borrow_mut().fail(message.clone(), hint);
        }
    }

    /// Looks where jobs are in the queue, and whether they still are.
    fn ask_queue(&mut self) {
        self.asked = Instant::now();
        self.pace = (self.pace * 2).min(ASK_SELDOM);
        let listed = match self.queue.list() {
            Ok(listed) => listed,
            Err(error) => return self.silent(&error),
        };
        if std::mem::replace(&mut self.is_silent, false) {
            self.tell_one("the cluster answers again".to_owned());
        }
        if self.full_until.is_some_and(|time| time <= Instant::now()) {
            self.full_until = None;
        }
        for job in self.jobs.iter_mut().filter(|job| job.submit_at.is_none()) {
            let comment = job.folder.comment();
            let Some(found) = listed.iter().find(|found| found.comment == comment) else {
                self.pace = ASK_SOON;
                self.waiting.extend(job.missed(&mut *self.queue));
                continue;
            };
            if job.seen(&found.job, &found.state, &found.reason) {
                self.pace = ASK_SOON;
            }
            if found.state != "PENDING" {
                continue;
            }
            if job.is_unwanted() {
                self.to_cancel.push(found.job.clone());
                job.end_unbegun("cancelled before it began once more");
            } else if NEVER.contains(&&*found.reason) || found.reason.contains("PerJob") {
                self.to_cancel.push(found.job.clone());
                let (number, reason) = (&found.job, &found.reason);
                let why = format!("its job {number} would wait for ever: {reason}");
                self.waiting.extend(job.cannot_begin(&why));
            } else if is_held(&found.reason) {
                self.to_cancel.push(found.job.clone());
                self.waiting.extend(job.is_held(&found.reason));
            }
        }
    }

    fn silent(&mut self, error: &ClusterError) {
        if !std::mem::replace(&mut self.is_silent, true) {
            self.tell_one(format!(
                "{error}; jobs go on meanwhile, and nothing new is submitted"
            ));
        }
    }

    fn tell_one(&self, text: String) {
        let mut open = self.jobs.iter().filter_map(|job| job.open().next());
        if let Some((_, stage)) = open.next() {
            stage.borrow().note(Importance::Warning, text);
        }
    }
}

/// Whether the cluster holds a job for trouble of its own.
fn is_held(reason: &str) -> bool {
    let reason = reason.replace('_', " ");
    HELD.iter().any(|words| reason.contains(words))
}

/// Returns the seconds that a stage is expected to take, if it is a short one.
fn short(order: &Order) -> Option<f64> {
    let expected = match (order.estimate, order.timeout) {
        (Some(estimate), _) => estimate,
        (None, timeout) => timeout?,
    };
    (expected <= SHORT).then_some(expected)
}

/// Names all paths of an order such that they mean the same in whatever folder a job begins.
fn placed(mut order: Order) -> std::io::Result<Order> {
    for path in [
        &mut order.log,
        &mut order.run,
        &mut order.job.store,
        &mut order.job.base_folder,
    ] {
        *path = std::path::absolute(&*path)?;
    }
    Ok(order)
}
