//! What people see of a run: bars on a terminal, lines elsewhere, JSON for programs.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use owo_colors::Style;

use super::detached::Detached;
use super::output::{Output, counted, duration, indented};
use super::plan;
use super::text::{Text, styled, visible};
use crate::engine::context::{Importance, Progress};
use crate::engine::event::{Observer, RunEvent};
use crate::engine::spec::Pipeline;
use crate::excerpt::{MESSAGE, excerpt};

/// Chooses the observer for where the output goes. It tells everything before it is dropped.
pub(super) fn observer(output: &Output, pipeline: &Pipeline) -> Box<dyn Observer> {
    let (output, stages) = (*output, pipeline.stages.len());
    match Detached::new(move || attached(output, stages)) {
        Ok(detached) => Box::new(detached),
        // Without a thread, the run waits for whoever reads.
        Err(_) => attached(output, stages),
    }
}

fn attached(output: Output, stages: usize) -> Box<dyn Observer> {
    if output.json {
        return Box::new(JsonLines { output });
    }
    let lines = Lines {
        output,
        total: stages,
        settled: 0,
        cached: 0,
        last_progress: BTreeMap::new(),
        last_sending: None,
    };
    if std::io::stderr().is_terminal() && !output.quiet {
        let bars = MultiProgress::new();
        let overall = bars.add(ProgressBar::new(stages as u64));
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:>12} [{bar:30}] {pos}/{len} stages {msg} [{elapsed}]",
        ) {
            overall.set_style(style.progress_chars("=> "));
        }
        overall.set_prefix("Run");
        overall.enable_steady_tick(Duration::from_millis(500));
        Box::new(Bars {
            lines,
            bars,
            overall,
            stages: BTreeMap::new(),
        })
    } else {
        Box::new(lines)
    }
}

struct JsonLines {
    output: Output,
}

impl Observer for JsonLines {
    fn event(&mut self, event: &RunEvent) {
        self.output.json(event);
    }
}

/// One line for each thing that happens; progress every few seconds.
struct Lines {
    output: Output,
    total: usize,
    settled: usize,
    cached: usize,
    last_progress: BTreeMap<String, Instant>,
    last_sending: Option<Instant>,
}

const PROGRESS_EVERY: Duration = Duration::from_secs(10);

impl Lines {
    /// Returns the line for how far something of a stage is, if it is time for one.
    fn progress(&mut self, stage: &str, progress: &Progress) -> Option<Text> {
        let now = Instant::now();
        let due = self
            .last_progress
            .get(stage)
            .is_none_or(|last| now - *last >= PROGRESS_EVERY);
        if !due || self.output.quiet {
            return None;
        }
        // The first report only starts the clock: short stages stay silent.
        let first = self.last_progress.insert(stage.to_owned(), now).is_none();
        (!first).then(|| {
            let progress = progress_text(progress);
            Text::default().and(&format!("{:>12} {stage}  {progress}", ""))
        })
    }

    /// Returns the line for an event, if it has one.
    fn text(&mut self, event: &RunEvent) -> Option<Text> {
        let verbose = self.output.verbose;
        let counter = |settled: usize, total: usize| format!("({settled}/{total})");
        match event {
            RunEvent::RunStarted { stages, .. } => {
                self.total = *stages;
                None
            }
            RunEvent::RunWaiting { holder } => {
                Some(word("WAITING", YELLOW).and(&format!(" for {holder}")))
            }
            RunEvent::StageCached { stage, notes } => {
                self.settled += 1;
                self.cached += 1;
                let notes = if notes.is_empty() {
                    String::new()
                } else {
                    format!("  {}", notes.join("; "))
                };
                let is_told = verbose || !(notes.is_empty() || self.output.quiet);
                is_told.then(|| {
                    let counter = counter(self.settled, self.total);
                    word("CACHED", GREEN).and(&format!(" {counter} {stage}{notes}"))
                })
            }
            RunEvent::StageStarted {
                stage,
                causes,
                gpus,
                notes,
                ..
            } => {
                if self.output.quiet {
                    return None;
                }
                let causes = plan::causes(causes, stage);
                let line = format!(" {stage}  {causes}");
                // An audit computes what it is asked to, for no cause of the stage's own.
                let mut line = word("RUN", CYAN).and(line.trim_end());
                if !gpus.is_empty() {
                    line.push_str(&format!("  with GPU {}", gpus.join(", ")));
                }
                for note in notes {
                    line.push_str(&format!("\n{:>12} {note}", ""));
                }
                Some(line)
            }
            RunEvent::StageQueued {
                stage,
                job,
                state,
                reason,
            } => (!self.output.quiet).then(|| {
                let text = format!(" {stage}  job {job}: {}", queued_text(state, reason));
                word("QUEUE", CYAN).and(&text)
            }),
            RunEvent::StageWaiting { stage, holder } => {
                Some(word("WAITING", YELLOW).and(&format!(" {stage}  waits for {holder}")))
            }
            RunEvent::StageProgress { stage, progress } => self.progress(stage, progress),
            RunEvent::StageNote {
                stage,
                importance,
                text,
            } => {
                let is_warning = *importance == Importance::Warning;
                (verbose || is_warning || !self.output.quiet).then(|| {
                    let text = message_text(text);
                    Text::default().and(&format!("{:>12} {stage}: {text}", "note"))
                })
            }
            RunEvent::StageRetried {
                stage,
                next_try,
                message,
            } => {
                let message = message_text(message);
                let text = format!(" {stage}  try {next_try} follows: {message}");
                Some(word("RETRY", YELLOW).and(&text))
            }
            RunEvent::StageDone {
                stage,
                seconds,
                elsewhere,
                peak_memory_bytes,
            } => {
                self.settled += 1;
                if self.output.quiet {
                    return None;
                }
                let suffix = if *elsewhere {
                    "  (by another process)"
                } else {
                    ""
                };
                let memory = if verbose {
                    format!("  {}", super::output::bytes(*peak_memory_bytes))
                } else {
                    String::new()
                };
                let counter = counter(self.settled, self.total);
                let seconds = duration(*seconds);
                let text = format!(" {counter} {stage}  {seconds}{memory}{suffix}");
                Some(word("DONE", GREEN).and(&text))
            }
            RunEvent::StageFailed { stage, message, .. } => {
                self.settled += 1;
                let counter = counter(self.settled, self.total);
                let text = format!(" {counter} {stage}  {}", message_text(message));
                Some(word("FAILED", RED).and(&text))
            }
            RunEvent::StageSkipped { stage, needs } => {
                self.settled += 1;
                Some(word("SKIPPED", YELLOW).and(&format!(" {stage}  needs `{needs}`")))
            }
            RunEvent::StageInterrupted { stage } => {
                self.settled += 1;
                Some(word("INTERRUPTED", YELLOW).and(&format!(" {stage}")))
            }
            RunEvent::StageDamaged { stage, message } => {
                self.settled = self.settled.saturating_sub(1);
                let text = format!(" {stage}  {}; it runs again", message_text(message));
                Some(word("DAMAGED", RED).and(&text))
            }
            RunEvent::StageTransfer { stage, progress } => self.progress(stage, progress.as_ref()?),
            RunEvent::StageSent { stage } => {
                verbose.then(|| word("SENT", GREEN).and(&format!(" {stage}")))
            }
            RunEvent::Sending { results, address } => {
                let now = Instant::now();
                let due = self
                    .last_sending
                    .is_none_or(|last| now - last >= PROGRESS_EVERY);
                if !due || self.output.quiet {
                    return None;
                }
                self.last_sending = Some(now);
                let text = format!(" {} to {address}", counted(*results, "result"));
                Some(word("SENDING", CYAN).and(&text))
            }
            RunEvent::RunFinished { seconds, outcomes } => {
                let count = |key: &str| outcomes[key].as_u64().unwrap_or(0) as usize;
                let parts: Vec<String> = ["done", "failed", "skipped", "interrupted"]
                    .into_iter()
                    .filter(|key| count(key) > 0)
                    .map(|key| format!(", {} {key}", count(key)))
                    .collect();
                let text = format!(
                    " [{}] {}: {} cached{}",
                    duration(*seconds),
                    counted(self.total, "stage"),
                    count("cached"),
                    parts.concat()
                );
                Some(word("Summary", BOLD).and(&text))
            }
        }
    }
}

const GREEN: Style = Style::new().green();
const CYAN: Style = Style::new().cyan();
const YELLOW: Style = Style::new().yellow();
const RED: Style = Style::new().red();
const BOLD: Style = Style::new().bold();

fn word(text: &str, style: Style) -> Text {
    styled(&format!("{text:>12}"), style)
}

/// Shortens a message and puts its further lines behind the column of words, where none looks like an event.
fn message_text(message: &str) -> String {
    indented(&excerpt(message, MESSAGE), 13)
}

/// Says where a job is in the queue of a cluster.
pub(super) fn queued_text(state: &str, reason: &str) -> String {
    match (state, reason) {
        ("RUNNING", host) => format!("runs on {host}"),
        (state, "" | "None") => state.to_lowercase(),
        (state, reason) => format!("{} ({reason})", state.to_lowercase()),
    }
}

fn progress_text(progress: &Progress) -> String {
    let mut parts = Vec::new();
    if progress.unit == "bytes" {
        parts.push(format!(
            "{} of {}",
            super::output::bytes(progress.step),
            super::output::bytes(progress.total)
        ));
    } else if progress.total > 0 {
        parts.push(format!(
            "{}/{} {}",
            progress.step, progress.total, progress.unit
        ));
    } else {
        parts.push(format!("{} {}", progress.step, progress.unit));
    }
    parts.extend(
        progress
            .metrics
            .iter()
            .map(|(name, value)| format!("{name} {value:.4}")),
    );
    parts.join("  ")
}

impl Observer for Lines {
    fn event(&mut self, event: &RunEvent) {
        if let Some(line) = self.text(event) {
            self.output.text_line(&line);
        }
    }
}

/// A bar for the run and one for each stage that reports progress.
struct Bars {
    lines: Lines,
    bars: MultiProgress,
    overall: ProgressBar,
    stages: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn finish(&mut self, stage: &str) {
        if let Some(bar) = self.stages.remove(stage) {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Bars {
    fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::StageProgress { stage, progress }
            | RunEvent::StageTransfer {
                stage,
                progress: Some(progress),
            } => {
                let bar = self.stages.entry(stage.clone()).or_insert_with(|| {
                    let bar = self
                        .bars
                        .insert_before(&self.overall, ProgressBar::new(progress.total));
                    let template = "{prefix:>12} [{bar:30}] {percent:>3}% {msg} eta {eta}";
                    if let Ok(style) = ProgressStyle::with_template(template) {
                        bar.set_style(style.progress_chars("=> "));
                    }
                    bar.set_prefix(visible(stage).into_owned());
                    bar
                });
                bar.set_length(progress.total);
                bar.set_position(progress.step);
                bar.set_message(visible(&progress_text(progress)).into_owned());
                return;
            }
            RunEvent::StageTransfer { stage, .. }
            | RunEvent::StageDone { stage, .. }
            | RunEvent::StageFailed { stage, .. }
            | RunEvent::StageInterrupted { stage }
            | RunEvent::StageRetried { stage, .. } => self.finish(stage),
            _ => {}
        }
        let text = self.lines.text(event);
        self.overall.set_length(self.lines.total as u64);
        self.overall.set_position(self.lines.settled as u64);
        if let RunEvent::Sending { results, .. } = event {
            self.overall
                .set_message(format!("sending {}", counted(*results, "result")));
        }
        if matches!(event, RunEvent::RunFinished { .. }) {
            self.overall.finish_and_clear();
        }
        if let Some(line) = text {
            let output = self.lines.output;
            self.bars.suspend(|| output.text_line(&line));
        }
    }
}
