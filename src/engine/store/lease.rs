//! Leases: who is at work where locks of files end at the border of a machine, as on many network file systems.
//!
//! A lease is a file that one process alone can make, whose holder touches it every few seconds. It is taken over when its
//! holder is known to be gone, or was not heard of for long, by the clock of the file system itself. A holder that finds its
//! lease gone stops: it may have been held up for longer than others wait.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::engine::machine::{host_name, unique_name};

/// The variable that asks for leases: `always`, `never`, or `alone`, which is without locks of files.
pub(super) const LEASES: &str = "FLOWGRAPH_LEASES";
/// The variable with the seconds after which a holder that was not heard of is gone.
const PATIENCE: &str = "FLOWGRAPH_LEASE_SECONDS";
const USUAL_PATIENCE: f64 = 90.0;
/// How often a holder is heard of within that time.
const BEATS: f64 = 6.0;

/// What a lease file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    /// Who, as they describe themselves.
    holder: String,
    host: String,
    /// Tells this lease from any other.
    token: String,
    process: Process,
    /// Seconds after which a holder that was not heard of is gone.
    patience: f64,
}

/// A process, as others can look for it who see the same processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Process {
    id: u32,
    /// When it was started, in ticks since the boot.
    started: String,
    boot: String,
    /// The namespace in which its id counts.
    namespace: String,
}

impl Process {
    fn this() -> Self {
        let id = std::process::id();
        Self {
            id,
            started: start_of(id).unwrap_or_default(),
            boot: read("/proc/sys/kernel/random/boot_id"),
            namespace: std::fs::read_link("/proc/self/ns/pid")
                .map(|link| link.display().to_string())
                .unwrap_or_default(),
        }
    }

    /// Whether it is known to be gone: where it cannot be looked for, it is not.
    fn is_gone(&self) -> bool {
        let here = Self::this();
        let can_look = !here.boot.is_empty()
            && !here.namespace.is_empty()
            && (&here.boot, &here.namespace) == (&self.boot, &self.namespace);
        can_look && (!is_there(self.id) || start_of(self.id).is_some_and(|it| it != self.started))
    }
}

/// Whether there is a process of that id, seen or not.
fn is_there(id: u32) -> bool {
    let Some(process) = i32::try_from(id).ok().and_then(Pid::from_raw) else {
        return false;
    };
    // Others' processes may be hidden, and refuse the question.
    !matches!(test_kill_process(process), Err(Errno::SRCH)) && !is_dead(id)
}

fn read(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// A field of `/proc/ID/stat`, counted from that behind the name.
fn field(id: u32, number: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may hold anything; its last parenthesis ends it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    fields.nth(number).map(str::to_owned)
}

/// Whether a process is dead, and not waited for.
fn is_dead(id: u32) -> bool {
    const STATE: usize = 0;
    field(id, STATE).is_some_and(|state| state == "Z" || state == "X")
}

/// When a process was started.
fn start_of(id: u32) -> Option<String> {
    const STARTED: usize = 19;
    field(id, STARTED)
}

/// A held lease; it ends with the value.
#[derive(Debug)]
pub(in crate::engine) struct Lease {
    path: PathBuf,
    text: Vec<u8>,
    lost: Arc<AtomicBool>,
    /// Ends the thread that beats.
    _end: Sender<()>,
}

/// The answer to asking for a lease.
pub(super) enum LeaseState {
    Held(Lease),
    Busy(String),
}

impl Lease {
    /// Asks for the lease of a file. `stop` is set if it is lost.
    pub(super) fn ask(
        path: &Path,
        holder: &str,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<LeaseState> {
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            if let Some(lease) = Self::make(path, holder, stop)? {
                return Ok(LeaseState::Held(lease));
            }
            match Found::at(path)? {
                Some(found) if !found.is_gone()? => return Ok(LeaseState::Busy(found.holder())),
                Some(found) => found.remove()?,
                None => {}
            }
        }
        Ok(LeaseState::Busy("others who ask for it, too".to_owned()))
    }

    /// Whether somebody holds the lease of a file, which is removed if its holder is gone.
    pub(super) fn is_held(path: &Path) -> std::io::Result<bool> {
        let Some(found) = Found::at(path)? else {
            return Ok(false);
        };
        let is_gone = found.is_gone()?;
        if is_gone {
            found.remove()?;
        }
        Ok(!is_gone)
    }

    fn make(path: &Path, holder: &str, stop: &Arc<AtomicBool>) -> std::io::Result<Option<Self>> {
        let patience = patience();
        let process = Process::this();
        let text = serde_json::to_vec(&Holder {
            holder: holder.to_owned(),
            host: host_name(),
            token: unique_name(),
            process,
            patience,
        })?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = match options.write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => {
                let what = format!("cannot write {}: {error}", path.display());
                return Err(std::io::Error::new(error.kind(), what));
            }
            Ok(file) => file,
        };
        file.write_all(&text)?;
        let lost = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel::<()>();
        let beat = Beat {
            path: path.to_owned(),
            text: text.clone(),
            patience: Duration::from_secs_f64(patience),
            lost: Arc::clone(&lost),
            stop: Arc::clone(stop),
        };
        std::thread::Builder::new().spawn(move || {
            let pause = beat.patience.div_f64(BEATS);
            let mut heard = Instant::now();
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                if !beat.go_on(&mut heard) {
                    return;
                }
            }
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            text,
            lost,
            _end: end,
        }))
    }

    /// Whether it is still ours.
    pub(super) fn is_ours(&self) -> bool {
        let there = std::fs::read(&self.path);
        !self.lost.load(Ordering::SeqCst) && there.is_ok_and(|there| there == self.text)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What keeps a lease alive.
struct Beat {
    path: PathBuf,
    text: Vec<u8>,
    patience: Duration,
    lost: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Beat {
    /// Lets others hear of it; false if the lease is lost.
    fn go_on(&self, heard: &mut Instant) -> bool {
        match self.touch() {
            Ok(true) => *heard = Instant::now(),
            // A file system may be away for a while; others may believe us gone after that.
            Err(_) if heard.elapsed() < self.patience.mul_f64(0.7) => {}
            Ok(false) | Err(_) => return self.lose(),
        }
        true
    }

    fn touch(&self) -> std::io::Result<bool> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = match options.read(true).write(true).open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        if text != self.text {
            return Ok(false);
        }
        // The file system's own clock, whatever this machine's says.
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        futimens(&file, &times)?;
        Ok(true)
    }

    fn lose(&self) -> bool {
        self.lost.store(true, Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
        false
    }
}

/// A lease file that somebody made.
struct Found {
    path: PathBuf,
    text: Vec<u8>,
    touched: SystemTime,
}

impl Found {
    fn at(path: &Path) -> std::io::Result<Option<Self>> {
        let mut file = match std::fs::File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(Some(Self {
            path: path.to_owned(),
            text,
            touched: file.metadata()?.modified()?,
        }))
    }

    fn read(&self) -> Option<Holder> {
        serde_json::from_slice(&self.text).ok()
    }

    fn holder(&self) -> String {
        // It may be about to write who it is.
        let read = self.read();
        read.map_or_else(|| "another process".to_owned(), |read| read.holder)
    }

    fn is_gone(&self) -> std::io::Result<bool> {
        let read = self.read();
        if read.as_ref().is_some_and(|read| read.process.is_gone()) {
            return Ok(true);
        }
        let patience = read.map_or(USUAL_PATIENCE, |read| read.patience);
        let age = now_at(&self.path)?.duration_since(self.touched);
        Ok(age.is_ok_and(|age| age.as_secs_f64() > patience))
    }

    /// Removes it, unless it has changed meanwhile. One at a time does so: else the second might remove what was made anew.
    fn remove(&self) -> std::io::Result<()> {
        let guard = self.path.with_extension("taken");
        let mut options = std::fs::OpenOptions::new();
        match options.write(true).create_new(true).open(&guard) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let made = std::fs::metadata(&guard).and_then(|found| found.modified());
                let age = made.and_then(|made| Ok(now_at(&guard)?.duration_since(made)));
                if age.is_ok_and(|age| age.is_ok_and(|age| age.as_secs_f64() > patience())) {
                    let _ = std::fs::remove_file(&guard);
                }
                return Ok(());
            }
            made => made?,
        };
        let there = Self::at(&self.path);
        let is_same = matches!(&there, Ok(Some(there)) if (&there.text, there.touched) == (&self.text, self.touched));
        if is_same {
            let _ = std::fs::remove_file(&self.path);
        }
        std::fs::remove_file(&guard)
    }
}

fn patience() -> f64 {
    let asked = std::env::var(PATIENCE).ok();
    let asked = asked.and_then(|text| text.parse().ok());
    asked
        .filter(|seconds: &f64| *seconds > 0.0)
        .unwrap_or(USUAL_PATIENCE)
}

/// What the clock of the file system says that a path lies on.
fn now_at(path: &Path) -> std::io::Result<SystemTime> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".now-")
        .tempfile_in(folder)?;
    file.as_file().metadata()?.modified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &Path) -> LeaseState {
        Lease::ask(path, "a test", &Arc::default()).unwrap()
    }

    #[track_caller]
    fn held(path: &Path) -> Lease {
        match ask(path) {
            LeaseState::Held(lease) => lease,
            LeaseState::Busy(holder) => panic!("{holder} has it"),
        }
    }

    /// Leaves a lease as one whose holder was killed.
    fn leave(path: &Path, change: impl FnOnce(&mut Holder)) -> Vec<u8> {
        let lease = held(path);
        let mut holder: Holder = serde_json::from_slice(&lease.text).unwrap();
        change(&mut holder);
        drop(lease);
        let text = serde_json::to_vec(&holder).unwrap();
        std::fs::write(path, &text).unwrap();
        text
    }

    fn age(path: &Path, seconds: u64) {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(then).unwrap();
    }

    #[test]
    fn one_holds_it_and_then_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lease");
        let lease = held(&path);
        assert!(matches!(ask(&path), LeaseState::Busy(holder) if holder == "a test"));
        assert!(lease.is_ours() && Lease::is_held(&path).unwrap());
        drop(lease);
        assert!(!path.exists() && !Lease::is_held(&path).unwrap());
        drop(held(&path));
    }

    #[test]
    fn a_holder_that_is_gone_is_told_from_one_that_cannot_be_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lease");
        // A process of this number is there, but it is another.
        leave(&path, |holder| holder.process.started = "1".to_owned());
        drop(held(&path));
        // On another machine, or in another namespace, its number says nothing.
        for elsewhere in [true, false] {
            leave(&path, |holder| {
                holder.process.started = "1".to_owned();
                let place = if elsewhere {
                    &mut holder.process.boot
                } else {
                    &mut holder.process.namespace
                };
                "another".clone_into(place);
            });
            assert!(matches!(ask(&path), LeaseState::Busy(_)));
            age(&path, 80);
            assert!(matches!(ask(&path), LeaseState::Busy(_)));
            age(&path, 100);
            drop(held(&path));
        }
        // Killed before it could write who it is.
        std::fs::write(&path, "").unwrap();
        assert!(matches!(ask(&path), LeaseState::Busy(_)));
        age(&path, 100);
        drop(held(&path));
    }

    #[test]
    fn whoever_lost_it_stops_and_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lease");
        let stop = Arc::new(AtomicBool::new(false));
        let LeaseState::Held(lease) = Lease::ask(&path, "a test", &stop).unwrap() else {
            panic!("nobody has it");
        };
        let beat = Beat {
            path: path.clone(),
            text: lease.text.clone(),
            patience: Duration::from_secs(90),
            lost: Arc::clone(&lease.lost),
            stop: Arc::clone(&stop),
        };
        age(&path, 80);
        assert!(beat.go_on(&mut Instant::now()));
        let touched = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert!(touched.elapsed().unwrap() < Duration::from_secs(40));
        std::fs::write(&path, "another's").unwrap();
        assert!(!beat.go_on(&mut Instant::now()));
        assert!(stop.load(Ordering::SeqCst) && !lease.is_ours());
        drop(lease);
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
    }

    #[test]
    fn of_many_that_take_one_over_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lease");
        for _ in 0..20 {
            leave(&path, |holder| holder.process.started = "1".to_owned());
            let got: Vec<Lease> = std::thread::scope(|scope| {
                let asked: Vec<_> = (0..16).map(|_| scope.spawn(|| ask(&path))).collect();
                let answers = asked.into_iter().map(|asked| asked.join().unwrap());
                answers
                    .filter_map(|answer| match answer {
                        LeaseState::Held(lease) => Some(lease),
                        LeaseState::Busy(_) => None,
                    })
                    .collect()
            });
            assert!(got.len() <= 1, "{} got it", got.len());
            drop(got);
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_file(path.with_extension("taken"));
        }
    }
}
