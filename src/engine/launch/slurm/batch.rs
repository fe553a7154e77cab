//! What a job of a cluster is told and tells, in a folder that its node shares with whoever submitted it.
//!
//! ```text
//! cluster/<batch>/
//!   batch.json      the stages, in order
//!   job.sh          what the cluster runs
//!   said.jsonl      what the agent says, and the workers through it
//!   asked           a line for each thing that is asked: `stop` and `end` mean all stages, `stop 3` the fourth
//!   submitter       the folder of the run that waits for it
//!   output          what the cluster itself prints
//! ```
//!
//! The name of the folder is the job's comment: by it the job is found, whatever its number is. What was told under a number
//! that the cluster lost and gave away again is mistaken for nothing. All files are there before the job is submitted: some
//! network file systems go on for half a minute to say that a file is missing which was looked for too early.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::engine::event::WorkerEvent;
use crate::engine::launch::{Ending, Order};
use crate::engine::machine::unique_name;
use crate::engine::store::{Store, publish};

/// Begins the comment of a job of ours.
const COMMENT: &str = "flowgraph:";
const SAID: &str = "said.jsonl";
const ASKED: &str = "asked";
const SUBMITTER: &str = "submitter";
const OUTPUT: &str = "output";

/// What the agent of a job is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Told {
    /// Version of the flowgraph that submitted it.
    pub(super) flowgraph: String,
    /// The stages, in order.
    pub(super) orders: Vec<Order>,
}

/// What the agent of a job says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub(super) enum Said {
    /// It began, for the first time or once more.
    Began {
        /// The machine.
        host: String,
        /// Version of the flowgraph there.
        flowgraph: String,
    },
    /// The worker of a stage says something.
    Event {
        /// Which stage.
        at: usize,
        /// What.
        event: WorkerEvent,
    },
    /// The worker of a stage has ended.
    Ended {
        /// Which stage.
        at: usize,
        /// How.
        ending: Ending,
    },
    /// A stage was not begun, for the job was asked to stop.
    Left {
        /// Which stage.
        at: usize,
    },
}

/// What a job is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// To checkpoint and stop.
    Stop,
    /// To end at once.
    End,
}

impl Ask {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::End => "end",
        }
    }
}

/// The folder of a job.
#[derive(Debug, Clone)]
pub(super) struct BatchFolder(PathBuf);

impl BatchFolder {
    /// Makes the folder of a new job.
    pub(super) fn make(store: &Store, told: &Told) -> std::io::Result<Self> {
        let folder = Self::make_empty(store)?;
        let text = serde_json::to_string(told)?;
        publish(&folder.0.join("batch.json"), text.as_bytes())?;
        for file in [SAID, ASKED] {
            fs_err::write(folder.0.join(file), "")?;
        }
        if let Some(order) = told.orders.first() {
            folder.name_submitter(&order.run)?;
        }
        Ok(folder)
    }

    /// Makes the folder of a job that runs no stages.
    pub(super) fn make_empty(store: &Store) -> std::io::Result<Self> {
        fs_err::create_dir_all(store.root())?;
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
        let name = format!("{time}-{}", unique_name());
        let parent = fs_err::canonicalize(store.root())?.join("cluster");
        fs_err::create_dir_all(&parent)?;
        let folder = Self(parent.join(name));
        // What programs are given and print may be for their user alone.
        std::fs::DirBuilder::new().mode(0o700).create(&folder.0)?;
        Ok(folder)
    }

    /// Lists the folders of a store.
    pub(super) fn all(store: &Store) -> Vec<Self> {
        let entries = std::fs::read_dir(store.root().join("cluster"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| Self(entry.path())).collect()
    }

    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The comment of its job.
    pub(super) fn comment(&self) -> String {
        let name = self.0.file_name().unwrap_or_default();
        format!("{COMMENT}{}", name.to_string_lossy())
    }

    pub(super) fn told(&self) -> std::io::Result<Told> {
        let text = fs_err::read(self.0.join("batch.json"))?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(super) fn script(&self) -> PathBuf {
        self.0.join("job.sh")
    }

    pub(super) fn output(&self) -> PathBuf {
        self.0.join(OUTPUT)
    }

    /// The folder of the run that waits for it.
    pub(super) fn submitter(&self) -> Option<PathBuf> {
        let path = fs_err::read(self.0.join(SUBMITTER)).ok()?;
        Some(PathBuf::from(OsString::from_vec(path)))
    }

    fn name_submitter(&self, run: &Path) -> std::io::Result<()> {
        publish(&self.0.join(SUBMITTER), run.as_os_str().as_bytes())
    }

    /// Has another run wait for it than that which is gone; false if one does already.
    pub(super) fn change_submitter(&self, run: &Path) -> bool {
        let Some(gone) = self.submitter() else {
            return false;
        };
        let name = gone.file_name().unwrap_or_default().to_string_lossy();
        let mut options = std::fs::OpenOptions::new();
        let taken = options
            .write(true)
            .create_new(true)
            .open(self.0.join(format!("taken-from.{name}")));
        taken.is_ok() && self.name_submitter(run).is_ok()
    }

    /// How long ago anything was written here.
    pub(super) fn age(&self) -> Option<Duration> {
        let files = std::fs::read_dir(&self.0).ok()?.flatten();
        let times = files.filter_map(|file| file.metadata().ok()?.modified().ok());
        times.max()?.elapsed().ok()
    }

    /// The stages that ended for good, as far as it was said.
    pub(super) fn ended_stages(&self) -> BTreeSet<usize> {
        let said = self.listener().hear().unwrap_or_default();
        let ended = said.into_iter().filter_map(|said| match said {
            Said::Event { at, event } if event.is_last() => {
                Some(at).filter(|_| !matches!(event, WorkerEvent::Interrupted))
            }
            _ => None,
        });
        ended.collect()
    }

    /// Asks something of one stage, or of all.
    pub(super) fn ask(&self, ask: Ask, at: Option<usize>) -> std::io::Result<()> {
        let line = match at {
            None => format!("{}\n", ask.name()),
            Some(at) => format!("{} {at}\n", ask.name()),
        };
        let mut options = fs_err::OpenOptions::new();
        let mut file = options.append(true).create(true).open(self.0.join(ASKED))?;
        file.write_all(line.as_bytes())
    }

    /// Whether something was asked of a stage, or of all.
    pub(super) fn is_asked(&self, ask: Ask, at: usize) -> bool {
        let asked = std::fs::read_to_string(self.0.join(ASKED)).unwrap_or_default();
        let (name, one) = (ask.name(), format!("{} {at}", ask.name()));
        asked.lines().any(|line| line == name || line == one)
    }

    /// Opens what is said, to say more.
    pub(super) fn speaker(&self) -> std::io::Result<Speaker> {
        let mut file = fs_err::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.0.join(SAID))?;
        // A predecessor may have been killed within a line.
        file.write_all(b"\n")?;
        Ok(Speaker {
            file,
            synced: Instant::now(),
        })
    }

    /// Opens what is said, to hear it from the beginning.
    pub(super) fn listener(&self) -> Listener {
        Listener {
            path: self.0.join(SAID),
            heard: 0,
        }
    }

    pub(super) fn remove(&self) {
        // What is left goes with the store's next sweep.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says what a job has to say.
pub(super) struct Speaker {
    file: fs_err::File,
    synced: Instant,
}

impl Speaker {
    /// Says something. Where it cannot be written, as on a full disk, progress and notes are let go; what counts is tried
    /// for a while.
    pub(super) fn say(&mut self, said: &Said) -> std::io::Result<()> {
        const PATIENCE: Duration = Duration::from_mins(2);
        const PAUSE: Duration = Duration::from_secs(2);
        /// Readers on other machines see what was synced.
        const SYNC_EVERY: Duration = Duration::from_secs(1);
        let is_needed = match said {
            Said::Event { event, .. } => event.is_last(),
            Said::Began { .. } | Said::Ended { .. } | Said::Left { .. } => true,
        };
        // What was written in part before is no line.
        let line = format!("{}\n", serde_json::to_string(said)?);
        let begun = Instant::now();
        while let Err(error) = self.file.write_all(line.as_bytes()) {
            if !is_needed {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(error);
            }
            std::thread::sleep(PAUSE);
            let _ = self.file.write_all(b"\n");
        }
        if is_needed || self.synced.elapsed() > SYNC_EVERY {
            let _ = self.file.sync_data();
            self.synced = Instant::now();
        }
        Ok(())
    }
}

/// Hears what a job says.
pub(super) struct Listener {
    path: PathBuf,
    heard: u64,
}

impl Listener {
    /// Returns what was said since the last time; half a line waits for its rest.
    pub(super) fn hear(&mut self) -> std::io::Result<Vec<Said>> {
        // Opened anew each time: so network file systems look at the server's file.
        let mut file = match std::fs::File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.heard))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |end| end + 1);
        self.heard += whole as u64;
        let lines = text[..whole].split(|byte| *byte == b'\n');
        Ok(lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_once_and_in_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let told = Told {
            flowgraph: "1".to_owned(),
            orders: Vec::new(),
        };
        let batch = BatchFolder::make(&store, &told).unwrap();
        let mut listener = batch.listener();
        assert!(listener.hear().unwrap().is_empty());
        let mut speaker = batch.speaker().unwrap();
        speaker.say(&Said::Left { at: 3 }).unwrap();
        assert!(matches!(
            listener.hear().unwrap()[..],
            [Said::Left { at: 3 }]
        ));
        // Killed within a line, and begun once more.
        speaker.file.write_all(b"{\"said\":\"left\",").unwrap();
        assert!(listener.hear().unwrap().is_empty());
        let mut speaker = batch.speaker().unwrap();
        speaker.say(&Said::Left { at: 4 }).unwrap();
        assert!(matches!(
            listener.hear().unwrap()[..],
            [Said::Left { at: 4 }]
        ));
        assert_ne!(
            BatchFolder::make(&store, &told).unwrap().comment(),
            batch.comment()
        );
        assert_eq!(BatchFolder::all(&store).len(), 2);
    }

    #[test]
    fn one_stage_is_asked_or_all() {
        let folder = tempfile::tempdir().unwrap();
        let batch = BatchFolder::at(folder.path());
        batch.ask(Ask::End, Some(3)).unwrap();
        assert!(batch.is_asked(Ask::End, 3));
        assert!(!batch.is_asked(Ask::End, 2) && !batch.is_asked(Ask::Stop, 3));
        batch.ask(Ask::Stop, None).unwrap();
        assert!(batch.is_asked(Ask::Stop, 2));
    }
}
