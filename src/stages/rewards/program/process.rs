//! The process of a reward program: lines out, lines in, and the last of what it says on standard error.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::mask::{Mask, Masked};
use crate::excerpt::{NAME, excerpt};

/// Bytes that a line of an answer may have: rewards of some ten thousand completions.
const LONGEST: u64 = 1 << 20;
/// Lines of standard error that a message has room for.
const LINES: usize = 5;
/// How long a program may take to end once nothing more is asked of it.
pub(super) const FAREWELL: Duration = Duration::from_secs(10);

/// One running copy of a program.
pub(super) struct Process {
    child: Child,
    requests: Option<Sender<String>>,
    /// When it was first seen to have ended.
    ended: Option<Instant>,
    last_words: LastWords,
    errors: Option<JoinHandle<()>>,
}

/// What comes from a copy, which is named by its place.
pub(super) type Heard = (usize, Answer);

/// What a copy said on standard output.
pub(super) enum Answer {
    Line(Vec<u8>),
    /// A line without end within reason.
    TooLong,
    /// Nothing more.
    End,
}

/// The last lines that a program wrote to standard error.
#[derive(Clone, Default)]
struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    fn add(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = excerpt(line.trim_end(), NAME).into_owned();
        if let Ok(mut lines) = self.0.lock()
            && !line.is_empty()
        {
            lines.push_back(line);
            if lines.len() > LINES {
                lines.pop_front();
            }
        }
    }
}

/// Passes whole lines on to the stage's log, and keeps the last; a line without end is passed on in parts.
struct Lines {
    last_words: LastWords,
    /// What has no end yet.
    line: Vec<u8>,
}

impl Lines {
    fn pass_on(&mut self) {
        let _ = std::io::stderr().write_all(&self.line);
        self.last_words.add(&self.line);
        self.line.clear();
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() as u64 >= LONGEST {
                self.pass_on();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Process {
    /// Starts a prepared command, the copy at `place`, whose answers go to `answers`; what it says on standard error loses
    /// the values of `mask`.
    pub(super) fn start(
        command: &mut Command,
        place: usize,
        answers: Sender<Heard>,
        mask: &Mask,
    ) -> std::io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let missing = || std::io::Error::other("a pipe is missing");
        let mut stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let mut stderr = child.stderr.take().ok_or_else(missing)?;
        // Neither side may wait for the other to read.
        let (requests, to_send) = channel::<String>();
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        named("requests").spawn(move || {
            for line in to_send {
                if stdin.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        })?;
        named("answers").spawn(move || {
            let mut lines = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                let read = lines
                    .by_ref()
                    .take(LONGEST + 1)
                    .read_until(b'\n', &mut line);
                let answer = match read {
                    Ok(0) | Err(_) => Answer::End,
                    Ok(_) if line.len() as u64 > LONGEST => Answer::TooLong,
                    Ok(_) => Answer::Line(line),
                };
                let is_last = !matches!(answer, Answer::Line(_));
                if answers.send((place, answer)).is_err() || is_last {
                    return;
                }
            }
        })?;
        let last_words = LastWords::default();
        let lines = Lines {
            last_words: last_words.clone(),
            line: Vec::new(),
        };
        let mask = mask.clone();
        let errors = named("errors").spawn(move || {
            // Before lines are cut and those of several copies mix, so that no part of a value is left.
            let mut masked = Masked::new(&mask, lines);
            let _ = std::io::copy(&mut stderr, &mut masked);
            if let Ok(mut lines) = masked.end() {
                lines.pass_on();
            }
        })?;
        Ok(Self {
            child,
            requests: Some(requests),
            ended: None,
            last_words,
            errors: Some(errors),
        })
    }

    /// Sends a line; whether it arrives shows in the answers.
    pub(super) fn send(&self, line: String) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(line);
        }
    }

    /// Whether it has ended and what it wrote has arrived; what it left running may hold its standard output open.
    pub(super) fn is_over(&mut self) -> bool {
        const GRACE: Duration = Duration::from_millis(500);
        matches!(self.child.try_wait(), Ok(Some(_)))
            && self.ended.get_or_insert_with(Instant::now).elapsed() > GRACE
    }

    /// Lets it end, kills it if it does not in time, and returns how it ended.
    pub(super) fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        // Nothing more will be asked.
        self.requests = None;
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if start.elapsed() < patience => thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break None;
                }
            }
        };
        // Whatever it left running may hold the pipe open: its words are not waited for.
        if let Some(errors) = self.errors.take() {
            let start = Instant::now();
            while !errors.is_finished() && start.elapsed() < Duration::from_millis(200) {
                thread::sleep(Duration::from_millis(2));
            }
        }
        status
    }

    /// Returns what it said last on standard error.
    pub(super) fn last_words(&self) -> Option<String> {
        let lines = self.last_words.0.lock().ok()?;
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.requests.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
