//! Standard output for data, standard error for everything else.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use owo_colors::Style;
use serde::Serialize;
use terminal_size::terminal_size_of;

use super::text::{Text, styled, visible, visible_json};
use crate::artifacts::table::Table;
use crate::excerpt::{MESSAGE, excerpt};

/// How much to say, and to whom.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Output {
    /// Data as JSON.
    pub(super) json: bool,
    /// No progress.
    pub(super) quiet: bool,
    /// Reasons and notes.
    pub(super) verbose: bool,
    /// All columns of tables, however wide.
    pub(super) wide: bool,
}

impl Output {
    /// Writes data: to a terminal what people can read of it, elsewhere as it is.
    pub(super) fn data(&self, text: &str) {
        if std::io::stdout().is_terminal() {
            write_out(visible(text).as_bytes(), true);
        } else {
            write_out(text.as_bytes(), true);
        }
    }

    /// Writes the content of a file: to a terminal what people can read of it, elsewhere every byte and no other.
    pub(super) fn content(&self, bytes: &[u8]) {
        if std::io::stdout().is_terminal() {
            write_out(visible(&String::from_utf8_lossy(bytes)).as_bytes(), true);
        } else {
            write_out(bytes, false);
        }
    }

    /// Writes text with colours.
    pub(super) fn text(&self, text: &Text) {
        let stdout = std::io::stdout();
        let colours = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
        if colours || stdout.is_terminal() {
            write_out(text.shown(colours).as_bytes(), true);
        } else {
            write_out(text.plain().as_bytes(), true);
        }
    }

    /// Draws a table. On a terminal its cells are made readable first: the width of an escape sequence is nobody's. What
    /// is wider than the terminal is left out there.
    pub(super) fn drawn(&self, table: &Table) -> String {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            let size = terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0));
            // Terminals that do not tell, such as some of editors, set this.
            let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
            let width = size.or_else(columns).filter(|_| !self.wide);
            let table = table.map_texts(|text| visible(text).into_owned());
            table.text_within(width)
        } else {
            table.text()
        }
    }

    /// Writes data as JSON, one value to a line.
    pub(super) fn json(&self, value: &impl Serialize) {
        let Ok(text) = serde_json::to_string(value) else {
            return;
        };
        if std::io::stdout().is_terminal() {
            write_out(visible_json(&text).as_bytes(), true);
        } else {
            write_out(text.as_bytes(), true);
        }
    }

    /// Writes a line for people.
    pub(super) fn line(&self, text: &str) {
        write_err(&visible(text));
    }

    /// Writes a line for people, with colours.
    pub(super) fn text_line(&self, text: &Text) {
        let colours =
            anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        write_err(&text.shown(colours));
    }

    /// Says that a large file is read, which takes its time.
    pub(super) fn reading(&self, path: &Path, count: u64) {
        self.line(&format!("reading {} ({})", path.display(), bytes(count)));
    }

    /// Writes what was made for a terminal, and holds nothing from outside that could act on one.
    pub(super) fn rendered(&self, text: &str) {
        write_err(text);
    }

    /// Writes an error with its hint.
    pub(super) fn error(&self, message: &str, hint: Option<&str>) {
        self.told("error:", Style::new().red().bold(), message);
        if let Some(hint) = hint {
            self.hint(hint);
        }
    }

    /// Writes a warning with its hint.
    pub(super) fn warning(&self, message: &str, hint: &str) {
        self.told("warning:", Style::new().yellow().bold(), message);
        if !hint.is_empty() {
            self.hint(hint);
        }
    }

    /// Writes a hint below what it belongs to.
    pub(super) fn hint(&self, hint: &str) {
        self.told("hint:", Style::new().cyan(), hint);
    }

    fn told(&self, word: &str, style: Style, message: &str) {
        // Further lines stand behind the word: none of them can be taken for a message of its own.
        let message = indented(&excerpt(message, MESSAGE), word.len() + 1);
        self.text_line(&styled(word, style).and(" ").and(&message));
    }
}

/// Indents all lines but the first.
pub(super) fn indented(text: &str, by: usize) -> String {
    text.replace('\n', &format!("\n{:by$}", ""))
}

/// Why standard output did not take everything.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Returns why standard output did not take everything, if so: no command has then done what it was asked.
pub(super) fn lost() -> Option<&'static std::io::Error> {
    LOST.get()
}

/// Whether somebody still reads standard output.
pub(super) fn is_read() -> bool {
    !IS_UNREAD.load(Ordering::Relaxed)
}

/// Set when a reader has gone, or the disk is full.
static IS_UNREAD: AtomicBool = AtomicBool::new(false);

fn write_out(bytes: &[u8], ends_a_line: bool) {
    let mut stdout = std::io::stdout().lock();
    let line_end: &[u8] = if ends_a_line && !bytes.ends_with(b"\n") {
        b"\n"
    } else {
        b""
    };
    let written = stdout
        .write_all(bytes)
        .and_then(|()| stdout.write_all(line_end))
        .and_then(|()| stdout.flush());
    note_lost(written);
}

/// Keeps an error of standard output for the end of the command; a reader that has gone (`| head`) is none.
pub(super) fn note_lost(written: std::io::Result<()>) {
    if let Err(error) = written {
        IS_UNREAD.store(true, Ordering::Relaxed);
        if error.kind() != ErrorKind::BrokenPipe {
            let _ = LOST.set(error);
        }
    }
}

fn write_err(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(format!("{text}\n").as_bytes());
}

/// Writes a count with its noun: `1 stage`, `2 stages`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// Writes a duration for people.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.3}s")
    } else if seconds < 3600.0 {
        format!("{}m {:02}s", seconds as u64 / 60, seconds as u64 % 60)
    } else {
        format!(
            "{}h {:02}m",
            seconds as u64 / 3600,
            seconds as u64 / 60 % 60
        )
    }
}

/// Writes an amount of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}
