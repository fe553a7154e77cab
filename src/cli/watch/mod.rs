//! `flowgraph watch`: a run of another process, live.

mod keys;
mod screen;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use terminal_size::terminal_size_of;

use self::keys::Keys;
use self::screen::Screen;
use super::interrupts::{count_interrupts, is_interrupted};
use super::output::{self, Output};
use super::progress::queued_text;
use super::text::visible;
use super::{Failure, exit_code};
use crate::engine::event::RunEvent;
use crate::engine::launch::slurm;
use crate::engine::runs::Run;
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The run: `last`, `last-1`, an id or its beginning
    #[arg(default_value = "last")]
    run: String,
}

impl WatchArgs {
    pub(super) fn of(run: &str) -> Self {
        Self {
            run: run.to_owned(),
        }
    }
}

/// How often the screen is drawn.
const EVERY: Duration = Duration::from_millis(500);
/// The width where the terminal does not tell.
const WIDTH: usize = 80;

/// Draws the run until it ends or somebody presses q; where there is no terminal, once.
pub(super) fn run(args: &WatchArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    show(args, std::io::stdout().is_terminal(), store, output)
}

/// Says once how a run is.
pub(super) fn status(args: &WatchArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    if tell_of_waiting(store, output) && Run::find(store, &args.run).is_err() {
        return Ok(exit_code::OK);
    }
    show(args, false, store, output)
}

/// Says which runs wait in the queue of a cluster, if any do.
pub(super) fn tell_of_waiting(store: &Store, output: &Output) -> bool {
    let mut are_some = false;
    for (job, state, reason) in slurm::waiting_runs(store) {
        if state != "RUNNING" {
            let place = queued_text(&state, &reason);
            output.line(&format!("a run waits in the queue: job {job} is {place}"));
            are_some = true;
        }
    }
    are_some
}

fn show(args: &WatchArgs, follows: bool, store: &Store, output: &Output) -> Result<u8, Failure> {
    let run = Run::find(store, &args.run).map_err(Failure::usage)?;
    let mut log = Log {
        lines: BufReader::new(run.events()?),
        unfinished: String::new(),
    };
    if output.json {
        return print_events(&run, &mut log, output);
    }
    let mut screen = Screen::new(&run.description);
    let mut read_on = |screen: &mut Screen| -> std::io::Result<()> {
        // What was written before it was seen to be gone is all that there will be.
        let is_gone = run.is_under_way() == Some(false);
        log.read_on(screen)?;
        if is_gone && !screen.has_ended() {
            screen.mark_killed();
        }
        Ok(())
    };
    let mut stdout = std::io::stdout();
    if !follows {
        read_on(&mut screen)?;
        output.data(&screen.lines(usize::MAX, usize::MAX, "").join("\n"));
        return Ok(exit_code::OK);
    }
    // A signal that ended the program at once would leave the terminal without echo.
    count_interrupts()?;
    let keys = Keys::of_terminal();
    let (mut drawn, mut last_size) = (0, None);
    loop {
        read_on(&mut screen)?;
        let size = terminal_size_of(&stdout);
        let (width, height) = size.map_or((WIDTH, 24), |(width, height)| {
            (usize::from(width.0), usize::from(height.0))
        });
        let lines = screen.lines(width, height.saturating_sub(1), "; q leaves");
        let mut text = if drawn == 0 {
            String::new()
        } else if size == last_size {
            // Up to the first line, and nothing from there on.
            format!("\x1b[{drawn}A\x1b[J")
        } else {
            // Nobody knows where the terminal put the lines that were there.
            "\x1b[H\x1b[J".to_owned()
        };
        for line in &lines {
            text.push_str(&visible(line));
            text.push('\n');
        }
        (drawn, last_size) = (lines.len(), size);
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        if screen.has_ended() || keys.is_quit(EVERY) {
            return Ok(exit_code::OK);
        }
        if is_interrupted() {
            return Ok(exit_code::INTERRUPTED);
        }
    }
}

/// Prints what happens as it is recorded, a line each, until nothing more will.
fn print_events<R: BufRead>(run: &Run, log: &mut Log<R>, output: &Output) -> Result<u8, Failure> {
    loop {
        let is_gone = run.is_under_way() == Some(false);
        let mut has_ended = false;
        while let Some(line) = log.line()? {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            has_ended = event["event"] == "run_finished";
            output.json(&event);
        }
        // Where nobody can tell whether a run goes on, its last event does.
        if is_gone || has_ended || !output::is_read() {
            return Ok(exit_code::OK);
        }
        std::thread::sleep(EVERY);
    }
}

/// What happens in a run, as it is written.
struct Log<R> {
    lines: R,
    /// What is there of a line in whose middle the writer is.
    unfinished: String,
}

impl<R: BufRead> Log<R> {
    /// Tells the screen what was written since the last time.
    fn read_on(&mut self, screen: &mut Screen) -> std::io::Result<()> {
        while let Some(line) = self.line()? {
            // A line of another version of the program may say what this one does not know.
            if let Ok(event) = serde_json::from_str::<RunEvent>(&line) {
                screen.event(&event);
            }
        }
        Ok(())
    }

    /// Returns the next line that is there whole.
    fn line(&mut self) -> std::io::Result<Option<String>> {
        self.lines.read_line(&mut self.unfinished)?;
        let is_whole = self.unfinished.ends_with('\n');
        Ok(is_whole.then(|| std::mem::take(&mut self.unfinished)))
    }
}

#[cfg(test)]
mod tests {
    use super::screen::tests::screen;
    use super::*;

    #[test]
    fn half_a_line_waits_for_its_other_half() {
        let mut screen = screen(&[]);
        let line = r#"{"event":"stage_interrupted","stage":"a","time":"2026-01-01T00:00:01Z"}"#;
        let (first, second) = line.split_at(30);
        let mut log = Log {
            lines: first.as_bytes(),
            unfinished: String::new(),
        };
        log.read_on(&mut screen).unwrap();
        assert_eq!(log.unfinished, first);
        let rest = format!("{second}\n{{\"event\": \"of tomorrow\"}}\n");
        let mut log = Log {
            lines: rest.as_bytes(),
            unfinished: log.unfinished,
        };
        log.read_on(&mut screen).unwrap();
        assert_eq!(log.unfinished, "");
        assert!(screen.lines(80, 9, "").join("\n").contains("1 interrupted"));
    }
}
