//! Standard output for data, standard error for everything else.

use std::borrow::Cow;
use std::io::Write;

use anstream::adapter::strip_str;
use owo_colors::OwoColorize;
use serde::Serialize;

/// How much to say, and to whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// Data as JSON.
    pub(super) json: bool,
    /// No progress.
    pub(super) quiet: bool,
    /// Reasons and notes.
    pub(super) verbose: bool,
}

impl Output {
    /// Writes data. A reader that has gone (`| head`) is no error.
    pub(super) fn data(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        // Stripped here and not by the stream, which would write each piece between two colours by itself.
        let text = match anstream::AutoStream::choice(&stdout) {
            anstream::ColorChoice::Never => Cow::from(strip_str(text).to_string()),
            _ => Cow::from(text),
        };
        let _ = stdout.write_all(text.as_bytes());
        if !text.ends_with('\n') {
            let _ = stdout.write_all(b"\n");
        }
    }

    /// Writes data as JSON, one value to a line.
    pub(super) fn json(&self, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            self.data(&text);
        }
    }

    /// Writes a line for people.
    pub(super) fn line(&self, text: &str) {
        let mut stderr = anstream::stderr().lock();
        let _ = writeln!(stderr, "{text}");
    }

    /// Writes an error with its hint.
    pub(super) fn error(&self, message: &str, hint: Option<&str>) {
        self.line(&format!("{} {message}", "error:".red().bold()));
        if let Some(hint) = hint {
            self.hint(hint);
        }
    }

    /// Writes a warning with its hint.
    pub(super) fn warning(&self, message: &str, hint: &str) {
        self.line(&format!("{} {message}", "warning:".yellow().bold()));
        self.hint(hint);
    }

    fn hint(&self, hint: &str) {
        self.line(&format!("{} {hint}", "hint:".cyan()));
    }
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
