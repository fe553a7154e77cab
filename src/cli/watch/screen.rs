//! What is known of a run, as lines.

use indexmap::IndexMap;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::cli::output::{bytes, counted, duration};
use crate::cli::progress::queued_text;
use crate::engine::context::Progress;
use crate::engine::event::RunEvent;
use crate::engine::runs::RunDescription;

/// Metrics that people look at first; of one without these the first ones.
const METRICS: [&str; 6] = [
    "loss",
    "reward",
    "sampled_reward",
    "kl",
    "accuracy",
    "margin",
];
/// So many of them are drawn.
const DRAWN: usize = 3;
/// Characters of a curve.
const CURVE: usize = 24;

/// A stage that is at work.
#[derive(Debug, Default)]
struct Working {
    progress: Progress,
    /// Its job, and where that is in the queue of a cluster.
    job: Option<String>,
    /// Whether its job waits there.
    waits: bool,
    metrics: IndexMap<String, Vec<f64>>,
}

/// What is known of a run.
#[derive(Debug)]
pub(super) struct Screen {
    title: String,
    started: Option<jiff::Timestamp>,
    stages: usize,
    working: IndexMap<String, Working>,
    /// How many stages ended in which way.
    ended: IndexMap<&'static str, usize>,
    /// What is on its way from or to a shared store, by stage.
    transfers: IndexMap<String, Progress>,
    /// What the run waits for or is at besides its stages.
    besides: Option<String>,
    /// The last thing that went wrong.
    trouble: Option<String>,
    /// What is said at the end.
    end: Option<String>,
}

impl Screen {
    pub(super) fn new(run: &RunDescription) -> Self {
        Self {
            title: format!("{} of {} on {}", run.run, run.pipeline, run.host),
            started: run.started.parse().ok(),
            stages: 0,
            working: IndexMap::new(),
            ended: IndexMap::new(),
            transfers: IndexMap::new(),
            besides: None,
            trouble: None,
            end: None,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Says that nothing more will come.
    pub(super) fn mark_killed(&mut self) {
        self.end = Some("killed: `flowgraph run` goes on from here".to_owned());
        self.working.clear();
        self.transfers.clear();
        self.besides = None;
    }

    pub(super) fn event(&mut self, event: &RunEvent) {
        self.besides = match event {
            RunEvent::RunWaiting { holder } => Some(format!("waits for {holder}")),
            RunEvent::Sending { results, address } => Some(format!(
                "sends {} to {address}",
                counted(*results, "result")
            )),
            RunEvent::StageTransfer { .. } | RunEvent::StageSent { .. } => self.besides.take(),
            _ => None,
        };
        match event {
            RunEvent::StageTransfer { stage, progress } => {
                match progress {
                    Some(progress) => self.transfers.insert(stage.clone(), progress.clone()),
                    None => self.transfers.shift_remove(stage),
                };
            }
            RunEvent::RunStarted { stages, .. } => self.stages = *stages,
            RunEvent::StageStarted { stage, .. } => {
                self.working.insert(stage.clone(), Working::default());
            }
            RunEvent::StageProgress { stage, progress } => {
                self.working
                    .entry(stage.clone())
                    .or_default()
                    .take(progress);
            }
            RunEvent::StageQueued {
                stage,
                job,
                state,
                reason,
            } => {
                let working = self.working.entry(stage.clone()).or_default();
                working.waits = state != "RUNNING";
                working.job = Some(format!("job {job} {}  ", queued_text(state, reason)));
            }
            RunEvent::StageDone { stage, .. } => self.ends(stage, "done"),
            RunEvent::StageFailed { stage, message, .. } => {
                self.ends(stage, "failed");
                self.trouble = Some(format!("{stage}: {message}"));
            }
            RunEvent::StageSkipped { stage, .. } => self.ends(stage, "skipped"),
            RunEvent::StageInterrupted { stage } => self.ends(stage, "interrupted"),
            RunEvent::StageRetried { stage, message, .. } => {
                self.working.insert(stage.clone(), Working::default());
                self.trouble = Some(format!("{stage}, tried again: {message}"));
            }
            RunEvent::RunFinished { seconds, outcomes } => {
                let counts = ["cached", "done", "failed", "skipped", "interrupted"];
                let counts = counts.into_iter().filter_map(|key| {
                    let count = outcomes[key].as_u64().filter(|count| *count > 0)?;
                    Some(format!("{count} {key}"))
                });
                let counts = counts.collect::<Vec<_>>().join(", ");
                self.end = Some(format!("ended after {}: {counts}", duration(*seconds)));
            }
            _ => {}
        }
    }

    fn ends(&mut self, stage: &str, how: &'static str) {
        self.working.shift_remove(stage);
        *self.ended.entry(how).or_default() += 1;
    }

    /// Returns at most `height` lines of at most `width` characters; while the run goes on they say how to leave.
    pub(super) fn lines(&self, width: usize, height: usize, leave: &str) -> Vec<String> {
        let mut lines = vec![self.title.clone()];
        if let Some(end) = &self.end {
            lines.push(end.clone());
        } else {
            let now = jiff::Timestamp::now();
            let elapsed = self
                .started
                .map(|started| (now - started).total(jiff::Unit::Second));
            let elapsed = elapsed.and_then(Result::ok).unwrap_or(0.0);
            let waiting = self
                .working
                .values()
                .filter(|working| working.waits)
                .count();
            let mut counts = vec![format!("{} at work", self.working.len() - waiting)];
            if waiting > 0 {
                counts.push(format!("{waiting} in the queue"));
            }
            counts.extend(
                self.ended
                    .iter()
                    .map(|(how, count)| format!("{count} {how}")),
            );
            lines.push(format!(
                "{}: {} of {} stages (those that were there before are not counted){leave}",
                duration(elapsed),
                counts.join(", "),
                self.stages
            ));
        }
        for (stage, working) in &self.working {
            let job = working.job.as_deref().unwrap_or_default();
            let line = format!("  {stage}  {job}{}", working.step());
            lines.push(line.trim_end().to_owned());
            lines.extend(working.curves());
        }
        for (stage, progress) in &self.transfers {
            let (done, total) = (bytes(progress.step), bytes(progress.total));
            lines.push(format!("  {stage}  shared store: {done} of {total}"));
        }
        lines.extend(self.besides.iter().map(|what| format!("  {what}")));
        if let Some(trouble) = &self.trouble {
            let first = trouble.lines().next().unwrap_or_default();
            lines.push(format!("  {first}"));
        }
        if lines.len() > height {
            let hidden = lines.len() - height + 1;
            lines.truncate(height.saturating_sub(1));
            lines.push(format!("  ... {hidden} more lines"));
        }
        lines.iter().map(|line| cut(line, width)).collect()
    }
}

impl Working {
    fn take(&mut self, progress: &Progress) {
        let earlier = progress.earlier.iter().map(|(_, metrics)| metrics);
        for metrics in earlier.chain([&progress.metrics]) {
            for (name, value) in metrics {
                self.metrics.entry(name.clone()).or_default().push(*value);
            }
        }
        self.progress = Progress {
            metrics: IndexMap::new(),
            earlier: Vec::new(),
            ..progress.clone()
        };
    }

    fn step(&self) -> String {
        let Progress {
            step, total, unit, ..
        } = &self.progress;
        match (*total, unit.as_str()) {
            (_, "") => String::new(),
            (0, unit) => format!("{step} {unit}"),
            (total, unit) => format!("{step}/{total} {unit}"),
        }
    }

    /// A line for each metric that is drawn: its curve so far, and where it is.
    fn curves(&self) -> Vec<String> {
        let known = METRICS
            .iter()
            .filter(|name| self.metrics.contains_key(**name));
        let mut names: Vec<&str> = known.copied().collect();
        if names.is_empty() {
            names = self.metrics.keys().map(String::as_str).collect();
        }
        names.truncate(DRAWN);
        let widest = names.iter().map(|name| name.width()).max().unwrap_or(0);
        let line = |name: &&str| {
            let values = self.metrics.get(*name)?;
            let last = values.last()?;
            let gap = " ".repeat(widest - name.width());
            Some(format!("    {name}{gap} {} {last:.4}", curve(values)))
        };
        names.iter().filter_map(line).collect()
    }
}

/// Draws values as bars of eight heights: means of neighbours where there are more than fit.
fn curve(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let count = values.len().min(CURVE);
    let means = (0..count).map(|at| {
        let part = &values[at * values.len() / count..(at + 1) * values.len() / count];
        part.iter().sum::<f64>() / part.len() as f64
    });
    let means: Vec<f64> = means.collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |value: &f64| {
        let share = (value - least) / (greatest - least);
        // All alike, and so in the middle.
        let share = if share.is_finite() { share } else { 0.5 };
        BARS[((share * 7.0).round() as usize).min(7)]
    };
    let drawn: String = means.iter().map(bar).collect();
    format!("{drawn}{}", " ".repeat(CURVE - count))
}

/// Cuts a line to a width.
fn cut(line: &str, width: usize) -> String {
    if line.width() <= width {
        return line.to_owned();
    }
    let mut kept = String::new();
    let mut taken = 1;
    for character in line.chars() {
        taken += character.width().unwrap_or(0);
        if taken > width {
            break;
        }
        kept.push(character);
    }
    kept.push('\u{2026}');
    kept
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::cli::watch) fn screen(events: &[serde_json::Value]) -> Screen {
        let description = json!({
            "run": "20260101-000000", "pipeline": "p", "file": "p.yaml", "profiles": [], "set": [],
            "params": {}, "flowgraph": "0", "host": "h", "started": "2026-01-01T00:00:00Z"
        });
        let mut screen = Screen::new(&serde_json::from_value(description).unwrap());
        for event in events {
            screen.event(&serde_json::from_value(event.clone()).unwrap());
        }
        screen
    }

    fn progress(step: u64, loss: f64, earlier: &[(u64, f64)]) -> serde_json::Value {
        let earlier: Vec<_> = earlier
            .iter()
            .map(|(step, loss)| json!([step, { "loss": loss }]))
            .collect();
        json!({ "event": "stage_progress", "stage": "ppo", "progress": {
            "step": step, "total": 8, "unit": "steps", "metrics": { "tokens/s": 3.0, "loss": loss }, "earlier": earlier
        } })
    }

    #[test]
    fn a_training_shows_its_step_and_its_curves() {
        let started = json!({ "event": "run_started", "run": "r", "pipeline": "p", "stages": 3 });
        let work = json!({ "event": "stage_started", "stage": "ppo", "fingerprint": null, "causes": [], "gpus": [], "notes": [] });
        let screen = screen(&[
            started,
            work,
            progress(1, 8.0, &[]),
            progress(4, 1.0, &[(2, 4.0), (3, 4.0)]),
        ]);
        let lines = screen.lines(100, 20, "; q leaves");
        assert!(lines[1].contains("1 at work of 3 stages"), "{lines:?}");
        assert_eq!(lines[2], "  ppo  4/8 steps");
        assert_eq!(lines[3], format!("    loss █▄▄▁{} 1.0000", " ".repeat(20)));
        assert!(
            screen
                .lines(20, 20, "; q leaves")
                .iter()
                .all(|line| line.width() <= 20)
        );
        assert_eq!(screen.lines(100, 3, "")[2], "  ... 2 more lines");
    }

    #[test]
    fn the_end_and_what_went_wrong_are_told() {
        let failed = json!({ "event": "stage_failed", "stage": "tb", "message": "no memory\nat all", "hint": null, "log": "l" });
        let end = json!({ "event": "run_finished", "seconds": 61.0, "outcomes": { "cached": 2, "failed": 1, "done": 0 } });
        let screen = screen(&[failed, end]);
        assert!(screen.has_ended());
        let lines = screen.lines(100, 20, "; q leaves");
        assert!(lines[1].ends_with(": 2 cached, 1 failed"), "{lines:?}");
        assert_eq!(lines[2], "  tb: no memory");
    }

    #[test]
    fn curves_are_as_wide_as_there_is_room_for() {
        let many: Vec<f64> = (0..1000).map(f64::from).collect();
        let drawn = curve(&many);
        assert_eq!(drawn.chars().count(), CURVE);
        assert!(drawn.starts_with('▁') && drawn.ends_with('█'));
        assert_eq!(curve(&[2.0, 2.0]).trim_end(), "▅▅");
        assert_eq!(curve(&[f64::NAN, 1.0]).trim_end().chars().count(), 2);
    }
}
