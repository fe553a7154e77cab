//! A reward program at work: requests sent ahead, answers in order, each text asked about once.

mod process;
mod received;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::Error as IoError;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use self::process::{Process, Silence};
use self::received::{Question, Received};
use crate::artifacts::completions::CompletionRow;
use crate::artifacts::reward_program::{ProgramDescription, RewardProgram};
use crate::artifacts::reward_rule::{Asked, RuleError};
use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt};
use crate::hint::Hint;
use crate::ml::trainer::Cancel;

/// Sets the seconds that programs have for a request, whatever their params say; it changes no result.
const TIMEOUT: &str = "FLOWGRAPH_REWARD_TIMEOUT";

const PROTOCOL: Hint = Hint::new(
    "a line `{\"prompts\": [...], \"completions\": [...]}` is answered by one line `{\"rewards\": [...]}`, and nothing else is \
     written to standard output: print to standard error",
);
const FINITE: Hint = Hint::new("a reward is a finite number in the range of 32 bits");
const SLOW: Hint = Hint::new(
    "each answer must be written at once (`print(..., flush=True)`); `timeout` allows more seconds, and so does the \
     environment variable FLOWGRAPH_REWARD_TIMEOUT, which leaves results and checkpoints as they are",
);
const RANDOM: Hint =
    Hint::new("leave `deterministic` out: then the rewards that were received are kept");
const LOG: Hint = Hint::new("the stage's log has all that it wrote to standard error");

/// Why a program gives no rewards.
#[derive(Debug, Error)]
pub(crate) enum ProgramError {
    /// The stage is to stop.
    #[error("the stage was asked to stop")]
    Cancelled,
    /// It cannot be started.
    #[error("cannot start the reward program: {0}")]
    Start(IoError),
    /// What was received cannot be kept.
    #[error("cannot keep the rewards that the program gave: {0}")]
    Keep(IoError),
    /// It ended before it was told to.
    #[error("the reward program ended ({status}), requests unanswered: {open}{last_words}")]
    Ended {
        status: String,
        open: usize,
        last_words: String,
        #[source]
        hint: Hint,
    },
    /// It took too long.
    #[error("the reward program gave no answer in {seconds} s{last_words}")]
    TimedOut {
        seconds: f64,
        last_words: String,
        #[source]
        hint: Hint,
    },
    /// Its answer is none.
    #[error("the reward program answered {line:?}: {reason}{last_words}")]
    Answer {
        line: String,
        reason: String,
        last_words: String,
        #[source]
        hint: Hint,
    },
    /// The same question has two answers.
    #[error(
        "the reward program gives the completion {completion:?} of the prompt {prompt:?} the rewards {first} and {second}, \
         but says that it is deterministic"
    )]
    Random {
        prompt: String,
        completion: String,
        first: f64,
        second: f64,
        #[source]
        hint: Hint,
    },
    /// It was told of no such prompt.
    #[error(transparent)]
    Prompt(#[from] RuleError),
}

/// A text to be rewarded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    /// What was asked for.
    pub(crate) asked: Asked<'a>,
    /// The completion, or the beginning of one.
    pub(crate) completion: &'a str,
    /// Whether its end token came.
    pub(crate) finished: bool,
    /// Whether it is the beginning of a completion that goes on.
    pub(crate) prefix: bool,
}

impl<'a> Text<'a> {
    /// The text of a completion in a table.
    pub(crate) fn of_row(row: &'a CompletionRow) -> Self {
        Self {
            asked: Asked {
                prompt: &row.prompt,
                question: &row.question,
            },
            completion: &row.completion,
            finished: !row.truncated,
            prefix: false,
        }
    }

    fn question(&self) -> Question {
        Question {
            prompt: self.asked.prompt.to_owned(),
            completion: self.completion.to_owned(),
            finished: self.finished,
            prefix: self.prefix,
        }
    }
}

/// A program that gives rewards; it is started when it is first asked.
pub(crate) struct Program {
    program: RewardProgram,
    timeout: Duration,
    /// What starts each copy.
    commands: RefCell<Vec<Command>>,
    work: RefCell<Work>,
    cancel: Cancel,
}

#[derive(Default)]
struct Work {
    copies: Vec<Copy>,
    received: Received,
    /// The request that each text without an answer is in.
    asked: HashMap<Question, u64>,
    /// Requests so far.
    count: u64,
}

struct Copy {
    process: Process,
    /// Requests without an answer, oldest first.
    open: VecDeque<Request>,
    /// When it last answered, or was asked while it had nothing to do.
    since: Instant,
}

struct Request {
    id: u64,
    questions: Vec<Question>,
}

#[derive(Serialize)]
struct RequestLine<'a> {
    prompts: Vec<&'a str>,
    completions: Vec<&'a str>,
    finished: Vec<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    prefixes: bool,
    #[serde(skip_serializing_if = "indexmap::IndexMap::is_empty")]
    columns: indexmap::IndexMap<&'a str, Vec<Option<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerLine {
    rewards: Vec<Box<RawValue>>,
}

impl Program {
    /// Prepares a program for a stage whose rewards are kept with `output`, if they must be kept.
    pub(crate) fn open(
        program: RewardProgram,
        output: &str,
        ctx: &mut RunContext,
    ) -> Result<Self, StageError> {
        let description = &program.description;
        let received = if description.deterministic {
            Received::default()
        } else {
            let log = ctx.checkpoints()?.join("received.log");
            Received::logged(&log, ctx.received(output))?
        };
        let seconds = match std::env::var(TIMEOUT) {
            Ok(text) => text
                .parse::<f64>()
                .ok()
                .filter(|seconds| *seconds > 0.0)
                .ok_or_else(|| {
                    StageError::new(format!("`{TIMEOUT}` is {text:?}, expected seconds above 0"))
                })?,
            Err(_) => description.timeout,
        };
        let copies = if description.parallel {
            ctx.threads().max(1)
        } else {
            1
        };
        let mut commands = Vec::with_capacity(copies);
        for copy in 0..copies {
            commands.push(command(&program, copy, ctx)?);
        }
        Ok(Self {
            timeout: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
            commands: RefCell::new(commands),
            work: RefCell::new(Work {
                received,
                ..Work::default()
            }),
            cancel: Cancel::new(ctx.cancel_flag()),
            program,
        })
    }

    fn description(&self) -> &ProgramDescription {
        &self.program.description
    }

    /// Returns how many completions a request has at most.
    pub(crate) fn batch_size(&self) -> usize {
        self.description().batch_size
    }

    /// Checks that it has the columns of a prompt.
    pub(crate) fn check(&self, asked: Asked<'_>) -> Result<(), ProgramError> {
        self.program.columns(asked)?;
        Ok(())
    }

    /// Sends requests for the texts that were not asked about, and does not wait for answers.
    pub(crate) fn ahead(&self, texts: &[Text<'_>]) -> Result<(), ProgramError> {
        let mut work = self.work.borrow_mut();
        let most = self.description().batch_size.max(1);
        // A request is of whole completions or of prefixes.
        for prefix in [false, true] {
            let mut new: Vec<&Text<'_>> = Vec::new();
            for text in texts.iter().filter(|text| text.prefix == prefix) {
                let question = text.question();
                if work.received.get(&question).is_some() || work.asked.contains_key(&question) {
                    continue;
                }
                let request = work.count + (new.len() / most) as u64;
                work.asked.insert(question, request);
                new.push(text);
            }
            for request in new.chunks(most) {
                self.send(&mut work, request)?;
            }
        }
        Ok(())
    }

    /// Returns the reward of each text.
    pub(crate) fn rewards(&self, texts: &[Text<'_>]) -> Result<Vec<f64>, ProgramError> {
        self.ahead(texts)?;
        let mut work = self.work.borrow_mut();
        let mut rewards = Vec::with_capacity(texts.len());
        for text in texts {
            let question = text.question();
            while work.received.get(&question).is_none() {
                let Some(id) = work.asked.get(&question).copied() else {
                    return Err(ProgramError::Start(IoError::other("BUG: nobody was asked")));
                };
                self.receive(&mut work, id)?;
            }
            rewards.extend(work.received.get(&question));
        }
        Ok(rewards)
    }

    /// Ends the program; keeps what it gave with the output, if it need not give the same again.
    pub(crate) fn finish(&self, output: &str, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut work = self.work.borrow_mut();
        // What was asked ahead and never used is asked for all the same: it is in the log or it is not.
        for id in 0..work.count {
            self.receive(&mut work, id)?;
        }
        let folder = ctx.output(output)?;
        work.received.write(&folder)?;
        let was_started = !work.copies.is_empty();
        for copy in &mut work.copies {
            copy.process.end();
        }
        work.copies.clear();
        if was_started {
            let left = ctx.command_ended();
            if !left.is_empty() {
                ctx.note(&format!(
                    "the reward program left processes running, which were ended: {}",
                    left.join(", ")
                ));
            }
        }
        if !self.description().deterministic {
            ctx.note(
                "the reward program need not answer the same again: its rewards are kept with the result, and an audit \
                 takes them from there",
            );
        }
        Ok(())
    }

    /// Sends one request to the copy that has the fewest.
    fn send(&self, work: &mut Work, texts: &[&Text<'_>]) -> Result<(), ProgramError> {
        let line = self.request(texts)?;
        if work.copies.is_empty() {
            self.start(work)?;
        }
        let is_first = work.count == 0;
        let questions: Vec<Question> = texts.iter().map(|text| text.question()).collect();
        let id = work.count;
        work.count += 1;
        let places = (0..work.copies.len()).collect::<Vec<_>>();
        let Some(place) = places
            .into_iter()
            .min_by_key(|at| work.copies[*at].open.len())
        else {
            return Err(ProgramError::Start(IoError::other("BUG: no copy")));
        };
        work.copies[place].ask(id, questions.clone(), line.clone());
        if is_first && self.description().deterministic {
            // The same once more, of another copy if there is one.
            let other = (place + 1) % work.copies.len();
            work.copies[other].ask(id, questions, line);
        }
        Ok(())
    }

    fn request(&self, texts: &[&Text<'_>]) -> Result<String, ProgramError> {
        let names = &self.description().columns;
        let mut columns: indexmap::IndexMap<&str, Vec<Option<String>>> = names
            .iter()
            .map(|name| (name.as_str(), Vec::with_capacity(texts.len())))
            .collect();
        for text in texts {
            let values = self.program.columns(text.asked)?;
            for (column, value) in columns.values_mut().zip(values) {
                column.push(value.map(str::to_owned));
            }
        }
        let line = RequestLine {
            prompts: texts.iter().map(|text| text.asked.prompt).collect(),
            completions: texts.iter().map(|text| text.completion).collect(),
            finished: texts.iter().map(|text| text.finished).collect(),
            prefixes: texts.iter().any(|text| text.prefix),
            columns,
        };
        let mut line = serde_json::to_string(&line)
            .map_err(|error| ProgramError::Start(IoError::from(error)))?;
        line.push('\n');
        Ok(line)
    }

    fn start(&self, work: &mut Work) -> Result<(), ProgramError> {
        for command in self.commands.borrow_mut().iter_mut() {
            let process = Process::start(command).map_err(ProgramError::Start)?;
            work.copies.push(Copy {
                process,
                open: VecDeque::new(),
                since: Instant::now(),
            });
        }
        Ok(())
    }

    /// Takes answers until the request has its own.
    fn receive(&self, work: &mut Work, id: u64) -> Result<(), ProgramError> {
        for place in 0..work.copies.len() {
            while work.copies[place]
                .open
                .iter()
                .any(|request| request.id == id)
            {
                let answered = work.copies[place].answer(self.timeout, &self.cancel)?;
                for (question, reward) in &answered {
                    work.asked.remove(question);
                    if let Some(first) = work.received.get(question)
                        && self.description().deterministic
                        && first.to_bits() != reward.to_bits()
                    {
                        return Err(ProgramError::Random {
                            prompt: excerpt(&question.prompt, NAME).into_owned(),
                            completion: excerpt(&question.completion, NAME).into_owned(),
                            first,
                            second: *reward,
                            hint: RANDOM,
                        });
                    }
                }
                work.received.add(answered).map_err(ProgramError::Keep)?;
            }
        }
        Ok(())
    }
}

impl Copy {
    fn ask(&mut self, id: u64, questions: Vec<Question>, line: String) {
        if self.open.is_empty() {
            self.since = Instant::now();
        }
        self.open.push_back(Request { id, questions });
        self.process.send(line);
    }

    /// Takes the next answer, to the oldest request.
    fn answer(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<Vec<(Question, f64)>, ProgramError> {
        let deadline = self.since.checked_add(timeout);
        let deadline = deadline.unwrap_or_else(|| self.since + Duration::from_secs(1 << 32));
        let line = match self.process.next(deadline, cancel) {
            Ok(line) => line,
            Err(silence) => return Err(self.silent(&silence, timeout)),
        };
        self.since = Instant::now();
        let Some(request) = self.open.pop_front() else {
            return Err(self.misunderstood(&line, "nothing was asked".to_owned(), PROTOCOL));
        };
        let rewards = match rewards_in(&line, request.questions.len()) {
            Ok(rewards) => rewards,
            Err((reason, hint)) => return Err(self.misunderstood(&line, reason, hint)),
        };
        Ok(request.questions.into_iter().zip(rewards).collect())
    }

    fn last_words(&self) -> String {
        let words = self.process.last_words();
        words.map_or_else(String::new, |words| {
            format!("; on standard error:\n{words}")
        })
    }

    fn misunderstood(&self, line: &[u8], reason: String, hint: Hint) -> ProgramError {
        let line = String::from_utf8_lossy(line);
        ProgramError::Answer {
            line: excerpt(line.trim_end(), NAME).into_owned(),
            reason,
            last_words: self.last_words(),
            hint,
        }
    }

    fn silent(&mut self, silence: &Silence, timeout: Duration) -> ProgramError {
        match silence {
            Silence::Cancelled => ProgramError::Cancelled,
            Silence::Ended(status) => ProgramError::Ended {
                status: status.map_or_else(
                    || "its standard output was closed".to_owned(),
                    |status| status.to_string(),
                ),
                open: self.open.len(),
                last_words: self.last_words(),
                hint: LOG,
            },
            Silence::TimedOut => ProgramError::TimedOut {
                seconds: timeout.as_secs_f64(),
                last_words: self.last_words(),
                hint: SLOW,
            },
            Silence::TooLong => ProgramError::Answer {
                line: "...".to_owned(),
                reason: "a line of more than 1 MiB".to_owned(),
                last_words: self.last_words(),
                hint: PROTOCOL,
            },
        }
    }
}

/// Reads an answer of so many rewards; says what is wrong with it.
fn rewards_in(line: &[u8], count: usize) -> Result<Vec<f64>, (String, Hint)> {
    let text = std::str::from_utf8(line).map_err(|_| ("it is no UTF-8".to_owned(), PROTOCOL))?;
    let parsed = serde_json::from_str::<AnswerLine>(text);
    let answer = parsed.map_err(|error| {
        // Python writes these, JSON has none of them.
        if ["NaN", "Infinity"].iter().any(|word| text.contains(word)) {
            ("a reward is no finite number".to_owned(), FINITE)
        } else {
            (format!("it is no answer: {error}"), PROTOCOL)
        }
    })?;
    if answer.rewards.len() != count {
        let found = answer.rewards.len();
        return Err((
            format!("it has {found} rewards for {count} completions"),
            PROTOCOL,
        ));
    }
    let rewards = answer.rewards.iter().enumerate().map(|(at, reward)| {
        let number = serde_json::from_str::<f64>(reward.get()).ok();
        let usable = number.filter(|number| (*number as f32).is_finite());
        usable.ok_or_else(|| {
            let found = excerpt(reward.get(), NAME);
            (
                format!("reward {at} is {found}, expected a finite number"),
                FINITE,
            )
        })
    });
    rewards.collect()
}

/// Prepares the command of one copy: a working directory with the code, and an environment that holds what the program
/// declares alone.
fn command(
    program: &RewardProgram,
    copy: usize,
    ctx: &mut RunContext,
) -> Result<Command, StageError> {
    let scratch = fs_err::canonicalize(ctx.scratch(&format!("reward-{copy}"))?)?;
    let (work, home) = (scratch.join("work"), scratch.join("home"));
    fs_err::create_dir_all(&home)?;
    let code = program.code();
    if code.exists() {
        crate::engine::code::copy(&code, &work)?;
    } else {
        fs_err::create_dir_all(&work)?;
    }
    let mut command = Command::new("/bin/sh");
    command
        .arg("-ec")
        .arg(&program.description.run)
        .current_dir(&work)
        .env_clear()
        .env("HOME", &home)
        .env("LANG", "C.UTF-8")
        // Python's standard output is a pipe here, which would wait for more.
        .env("PYTHONUNBUFFERED", "1");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    for (name, digest) in &program.description.environment {
        let value = std::env::var_os(name);
        let found = value
            .as_ref()
            .map(|value| Digest::of(value.as_encoded_bytes()));
        if found != *digest {
            return Err(StageError::new(format!(
                "the environment variable `{name}` has changed since the reward program was made"
            ))
            .hint("give the same command again"));
        }
        command.envs(value.map(|value| (name, value)));
    }
    ctx.before_command(&mut command);
    Ok(command)
}

#[cfg(test)]
mod tests;
