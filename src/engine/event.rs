//! What happens during a run: everything that people, logs and programs see derives from these events.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::artifact::Digest;
use super::context::{Importance, Progress};
use super::plan::Cause;
use super::store::Record;

/// What a worker tells its executor, one JSON line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WorkerEvent {
    /// Another process has the lock of this fingerprint.
    Waiting {
        /// Who, as they described themselves.
        holder: String,
    },
    /// The lock is held and work begins.
    Started,
    /// How far the stage is.
    Progress {
        /// See [`Progress`].
        progress: Progress,
    },
    /// Something people should read.
    Note {
        /// Whether people must not miss it.
        #[serde(default, skip_serializing_if = "Importance::is_usual")]
        importance: Importance,
        /// The text.
        text: String,
    },
    /// A command was started in this process group.
    CommandGroup {
        /// The group's id.
        group: i32,
    },
    /// The stage is done and its record written.
    Done {
        /// The record.
        record: Box<Record>,
        /// Whether another process had done the work.
        elsewhere: bool,
        /// Whether a forced run gave other bytes than the record says, which is kept.
        other: bool,
        /// Wall-clock seconds of this run; an earlier one may have written the record.
        seconds: f64,
        /// Peak memory of this run.
        peak_memory_bytes: u64,
    },
    /// A source was fetched.
    Fetched,
    /// An input is not what it was: its producer must run again.
    Damaged {
        /// The artifact.
        artifact: Digest,
        /// What is wrong.
        message: String,
    },
    /// The stage failed.
    Failed {
        /// What went wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The stage was asked to stop and did.
    Interrupted,
    /// Its job is in the queue of a cluster.
    Queued {
        /// The job's number.
        job: String,
        /// Its state, as the cluster names it.
        state: String,
        /// Why it waits, or where it runs.
        reason: String,
    },
}

impl WorkerEvent {
    /// Whether it says how a stage went, so that none follows.
    pub(super) fn is_last(&self) -> bool {
        matches!(
            self,
            Self::Done { .. }
                | Self::Fetched
                | Self::Damaged { .. }
                | Self::Failed { .. }
                | Self::Interrupted
        )
    }

    /// Returns the event with every text that a stage may have chosen replaced.
    pub(super) fn with_texts(self, replace: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Note { importance, text } => Self::Note {
                importance,
                text: replace(&text),
            },
            Self::Failed { message, hint } => Self::Failed {
                message: replace(&message),
                hint: hint.as_deref().map(&replace),
            },
            Self::Damaged { artifact, message } => Self::Damaged {
                artifact,
                message: replace(&message),
            },
            other => other,
        }
    }
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A stored result was used.
    Cached,
    /// It ran.
    Done,
    /// It failed.
    Failed,
    /// Something it needs failed.
    Skipped,
    /// It was asked to stop.
    Interrupted,
}

/// What happens during a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// The run begins.
    RunStarted {
        /// Id of the run.
        run: String,
        /// Name of the pipeline.
        pipeline: String,
        /// How many stages it has.
        stages: usize,
    },
    /// Somebody keeps the run from beginning.
    RunWaiting {
        /// Who.
        holder: String,
    },
    /// A stored result is used.
    StageCached {
        /// The stage.
        stage: String,
        /// Things people should know.
        notes: Vec<String>,
    },
    /// A stage's worker starts.
    StageStarted {
        /// The stage.
        stage: String,
        /// Its fingerprint.
        fingerprint: Option<Digest>,
        /// Why it runs.
        causes: Vec<Cause>,
        /// The GPUs that it was given.
        gpus: Vec<String>,
        /// Things people should know.
        notes: Vec<String>,
    },
    /// A stage's job is in the queue of a cluster.
    StageQueued {
        /// The stage.
        stage: String,
        /// The job's number.
        job: String,
        /// Its state, as the cluster names it.
        state: String,
        /// Why it waits, or where it runs.
        reason: String,
    },
    /// Another process runs the same stage.
    StageWaiting {
        /// The stage.
        stage: String,
        /// Who has it.
        holder: String,
    },
    /// How far a stage is.
    StageProgress {
        /// The stage.
        stage: String,
        /// See [`Progress`].
        progress: Progress,
    },
    /// Something people should read.
    StageNote {
        /// The stage.
        stage: String,
        /// Whether people must not miss it.
        #[serde(default, skip_serializing_if = "Importance::is_usual")]
        importance: Importance,
        /// The text.
        text: String,
    },
    /// A stage failed and is tried again.
    StageRetried {
        /// The stage.
        stage: String,
        /// Which try comes next, counted from 1.
        next_try: u32,
        /// Why the last one failed.
        message: String,
    },
    /// A stage is done.
    StageDone {
        /// The stage.
        stage: String,
        /// Wall-clock seconds.
        seconds: f64,
        /// Peak memory.
        peak_memory_bytes: u64,
        /// Whether another process had done the work.
        elsewhere: bool,
    },
    /// A stage failed.
    StageFailed {
        /// The stage.
        stage: String,
        /// What went wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
        /// Where its output went.
        log: String,
    },
    /// A stage cannot run because something it needs failed.
    StageSkipped {
        /// The stage.
        stage: String,
        /// What it needs.
        needs: String,
    },
    /// A stage was asked to stop and did.
    StageInterrupted {
        /// The stage.
        stage: String,
    },
    /// A stored result turned out to be damaged; its stage runs again.
    StageDamaged {
        /// The stage that made it.
        stage: String,
        /// What is wrong.
        message: String,
    },
    /// How far the result of a stage is on its way from or to the shared store; nothing once it is over.
    StageTransfer {
        /// The stage.
        stage: String,
        /// See [`Progress`].
        progress: Option<Progress>,
    },
    /// The result of a stage is in the shared store.
    StageSent {
        /// The stage.
        stage: String,
    },
    /// Nothing else is left to do than to send results to the shared store.
    Sending {
        /// How many are on their way.
        results: usize,
        /// The address of the shared store.
        address: String,
    },
    /// The run ends.
    RunFinished {
        /// Wall-clock seconds.
        seconds: f64,
        /// How many stages ended in which way.
        outcomes: Json,
    },
}

/// Sees the events of a run.
pub trait Observer {
    /// Is called for each event, in order.
    fn event(&mut self, event: &RunEvent);
    /// Is called when no event may come for a while.
    fn pause(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_say_how_much_they_matter_so_that_older_logs_are_read() {
        let written = |importance| {
            let event = RunEvent::StageNote {
                stage: "s".to_owned(),
                importance,
                text: "warning: not reproducible".to_owned(),
            };
            serde_json::to_string(&event).unwrap()
        };
        let older = r#"{"event":"stage_note","stage":"s","text":"warning: not reproducible"}"#;
        assert_eq!(written(Importance::Usual), older);
        let importance = |text: &str| match serde_json::from_str(text).unwrap() {
            RunEvent::StageNote { importance, .. } => importance,
            other => panic!("{other:?}"),
        };
        assert_eq!(importance(older), Importance::Usual);
        let warning = written(Importance::Warning);
        assert_eq!(importance(&warning), Importance::Warning);
    }
}
