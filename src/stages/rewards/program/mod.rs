//! A reward program at work: requests sent ahead, answers in order, each text asked about once.

mod process;
mod protocol;
mod received;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io::Error as IoError;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use thiserror::Error;

use self::process::{Answer, FAREWELL, Heard, Process};
use self::protocol::{PROTOCOL, rewards_in};
use self::received::{Question, Received};
use crate::artifacts::completions::CompletionRow;
use crate::artifacts::reward_program::{ProgramDescription, RewardProgram, RewardProgramError};
use crate::artifacts::reward_rule::Asked;
use crate::engine::context::RunContext;
use crate::engine::mask::Mask;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt};
use crate::hint::Hint;
use crate::ml::trainer::Cancel;
use crate::stages::command::variables;

/// Sets the seconds that programs have for a request, whatever their params say; it changes no result.
const TIMEOUT: &str = "FLOWGRAPH_REWARD_TIMEOUT";

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
    Prompt(#[from] RewardProgramError),
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

struct Work {
    copies: Vec<Copy>,
    received: Received,
    /// Texts that were asked about and have no answer.
    asked: HashSet<Question>,
    /// Requests that no copy has yet.
    waiting: VecDeque<Request>,
    /// Whether anything was asked so far.
    has_asked: bool,
    /// Requests without an answer that ask again what was asked.
    again: usize,
    answers: Receiver<Heard>,
    /// Kept so that new copies can be given one.
    to_answers: Sender<Heard>,
}

struct Copy {
    process: Process,
    /// Requests without an answer, oldest first.
    open: VecDeque<Request>,
    /// When it last answered, or was asked while it had nothing to do.
    since: Instant,
}

struct Request {
    questions: Vec<Question>,
    /// Whether it asks again what was asked.
    is_again: bool,
}

/// Requests that a copy may have at once: it finds the next one when it is done with one.
const AHEAD: usize = 2;

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
            Err(_) => program.running.timeout,
        };
        let copies = if program.running.parallel {
            ctx.threads().max(1)
        } else {
            1
        };
        let (to_answers, answers) = channel();
        let mut commands = Vec::with_capacity(copies);
        for copy in 0..copies {
            commands.push(command(&program, copy, ctx)?);
        }
        Ok(Self {
            timeout: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
            commands: RefCell::new(commands),
            work: RefCell::new(Work {
                copies: Vec::new(),
                received,
                asked: HashSet::new(),
                waiting: VecDeque::new(),
                has_asked: false,
                again: 0,
                answers,
                to_answers,
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
        self.ask_new(&mut self.work.borrow_mut(), &self.questions(texts)?)
    }

    fn ask_new(&self, work: &mut Work, questions: &[Question]) -> Result<(), ProgramError> {
        // A request is of whole completions or of prefixes.
        for prefix in [false, true] {
            let mut new = Vec::new();
            for question in questions.iter().filter(|asked| asked.prefix == prefix) {
                if work.received.get(question).is_none() && work.asked.insert(question.clone()) {
                    new.push(question.clone());
                }
            }
            for questions in new.chunks(self.batch_size().max(1)) {
                self.ask(work, questions);
            }
        }
        self.hand_out(work)
    }

    /// Returns the reward of each text.
    pub(crate) fn rewards(&self, texts: &[Text<'_>]) -> Result<Vec<f64>, ProgramError> {
        let questions = self.questions(texts)?;
        let mut work = self.work.borrow_mut();
        self.ask_new(&mut work, &questions)?;
        let mut rewards = Vec::with_capacity(questions.len());
        for question in &questions {
            let reward = loop {
                if let Some(reward) = work.received.get(question) {
                    break reward;
                }
                self.receive(&mut work)?;
            };
            rewards.push(reward);
        }
        // No reward is used before the promise is checked.
        while work.again > 0 {
            self.receive(&mut work)?;
        }
        Ok(rewards)
    }

    /// Ends the program; keeps what it gave with the output, if it need not give the same again.
    pub(crate) fn finish(&self, output: &str, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut work = self.work.borrow_mut();
        // What was asked ahead and not used has its answer in the log as well.
        while !work.waiting.is_empty() || work.copies.iter().any(|copy| !copy.open.is_empty()) {
            self.receive(&mut work)?;
        }
        let was_started = !work.copies.is_empty();
        let mut copies = std::mem::take(&mut work.copies);
        for copy in &mut copies {
            match copy.process.end(FAREWELL) {
                Some(status) if status.success() => {}
                Some(status) => ctx.warn(&format!(
                    "the reward program ended ({status}) after its last answer{}",
                    copy.last_words()
                )),
                None => ctx.note("the reward program did not end with its input, and was ended"),
            }
        }
        // An answer more than there were requests: who knows which of them was to which.
        while let Ok((place, answer)) = work.answers.try_recv() {
            if let Answer::Line(line) = answer {
                let more =
                    "it is more than was asked for: rewards may have gone to other completions";
                return Err(copies[place]
                    .misunderstood(&line, more.to_owned(), PROTOCOL)
                    .into());
            }
        }
        work.received.write(&ctx.output(output)?)?;
        if was_started {
            let left = ctx.command_ended();
            if !left.is_empty() {
                // The kernel cuts names off, so that a secret among them could not be told.
                let names = if self.description().secrets.is_empty() {
                    left.join(", ")
                } else {
                    left.len().to_string()
                };
                ctx.note(&format!(
                    "the reward program left processes running, which were ended: {names}"
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

    fn questions(&self, texts: &[Text<'_>]) -> Result<Vec<Question>, ProgramError> {
        let questions = texts.iter().map(|text| {
            let columns = self.program.columns(text.asked)?.into_iter();
            Ok(Question {
                prompt: text.asked.prompt.to_owned(),
                completion: text.completion.to_owned(),
                finished: text.finished,
                prefix: text.prefix,
                columns: columns.map(|value| value.map(str::to_owned)).collect(),
            })
        });
        questions.collect()
    }

    /// Makes a request; the first of a program that promises to answer the same is made once more, in two parts and in
    /// another order.
    fn ask(&self, work: &mut Work, questions: &[Question]) {
        let request = |questions: &[Question], is_again| Request {
            questions: questions.to_vec(),
            is_again,
        };
        work.waiting.push_back(request(questions, false));
        if !work.has_asked && self.description().deterministic {
            let mut again = questions.to_vec();
            again.reverse();
            for part in again.chunks(again.len().div_ceil(2)) {
                work.waiting.push_back(request(part, true));
                work.again += 1;
            }
        }
        work.has_asked = true;
    }

    /// Gives requests to the copies that have few.
    fn hand_out(&self, work: &mut Work) -> Result<(), ProgramError> {
        if !work.waiting.is_empty() && work.copies.is_empty() {
            self.start(work)?;
        }
        while !work.waiting.is_empty() {
            let free = work.copies.iter_mut().min_by_key(|copy| copy.open.len());
            let Some(copy) = free.filter(|copy| copy.open.len() < AHEAD) else {
                break;
            };
            if copy.open.is_empty() {
                copy.since = Instant::now();
            }
            if let Some(request) = work.waiting.pop_front() {
                let line = protocol::request(&request.questions, &self.description().columns);
                let line = line.map_err(|error| ProgramError::Start(error.into()))?;
                copy.process.send(line);
                copy.open.push_back(request);
            }
        }
        Ok(())
    }

    fn start(&self, work: &mut Work) -> Result<(), ProgramError> {
        let mask = Mask::of(&self.description().secrets);
        for (place, command) in self.commands.borrow_mut().iter_mut().enumerate() {
            let process = Process::start(command, place, work.to_answers.clone(), &mask);
            work.copies.push(Copy {
                process: process.map_err(ProgramError::Start)?,
                open: VecDeque::new(),
                since: Instant::now(),
            });
        }
        Ok(())
    }

    /// Takes the next answer of any copy, and keeps it.
    fn receive(&self, work: &mut Work) -> Result<(), ProgramError> {
        const PAUSE: Duration = Duration::from_millis(20);
        loop {
            match work.answers.recv_timeout(PAUSE) {
                Ok((place, answer)) => return self.keep(work, place, answer),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ProgramError::Start(IoError::other("BUG: nobody answers")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.cancel.check().is_err() {
                // What has been answered need not be asked again.
                while let Ok((place, answer)) = work.answers.try_recv() {
                    self.keep(work, place, answer)?;
                }
                return Err(ProgramError::Cancelled);
            }
            for copy in work.copies.iter_mut().filter(|copy| !copy.open.is_empty()) {
                if copy.process.is_over() {
                    return Err(copy.ended());
                }
                if copy.since.elapsed() > self.timeout {
                    return Err(copy.late(self.timeout));
                }
            }
        }
    }

    fn keep(&self, work: &mut Work, place: usize, answer: Answer) -> Result<(), ProgramError> {
        let copy = &mut work.copies[place];
        let line = match answer {
            Answer::Line(line) => line,
            Answer::TooLong => {
                let reason = "a line of more than 1 MiB".to_owned();
                return Err(copy.misunderstood(b"...", reason, PROTOCOL));
            }
            Answer::End => return Err(copy.ended()),
        };
        copy.since = Instant::now();
        let Some(request) = copy.open.pop_front() else {
            return Err(copy.misunderstood(&line, "nothing was asked".to_owned(), PROTOCOL));
        };
        let rewards = match rewards_in(&line, request.questions.len()) {
            Ok(rewards) => rewards,
            Err((reason, hint)) => return Err(copy.misunderstood(&line, reason, hint)),
        };
        let answered: Vec<(Question, f64)> = request.questions.into_iter().zip(rewards).collect();
        for (question, reward) in &answered {
            work.asked.remove(question);
            if let Some(first) = work.received.get(question)
                && self.description().deterministic
                && first != *reward
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
        work.again -= usize::from(request.is_again);
        work.received.add(answered).map_err(ProgramError::Keep)?;
        self.hand_out(work)
    }
}

impl Copy {
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

    fn ended(&mut self) -> ProgramError {
        ProgramError::Ended {
            status: self.process.end(Duration::from_millis(300)).map_or_else(
                || "its standard output was closed".to_owned(),
                |status| status.to_string(),
            ),
            open: self.open.len(),
            last_words: self.last_words(),
            hint: LOG,
        }
    }

    fn late(&self, timeout: Duration) -> ProgramError {
        ProgramError::TimedOut {
            seconds: timeout.as_secs_f64(),
            last_words: self.last_words(),
            hint: SLOW,
        }
    }
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
        // What asks for rewards computes on the processor.
        .env("CUDA_VISIBLE_DEVICES", "")
        // Python's standard output is a pipe here, which would wait for more.
        .env("PYTHONUNBUFFERED", "1");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    for (name, digest) in &program.description.environment {
        if variables::digest(name) != *digest {
            return Err(StageError::new(format!(
                "the environment variable `{name}` has changed since the reward program was made"
            ))
            .hint("give the same command again"));
        }
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    for name in &program.description.secrets {
        command.env(name, variables::secret(name, ctx)?);
    }
    ctx.before_command(&mut command);
    Ok(command)
}

#[cfg(test)]
mod tests;
