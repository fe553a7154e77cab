//! Text for people: some of it coloured, none of it able to act on a terminal.
//!
//! Names, cells, logs and answers of servers come from outside and can hold escape sequences that set the clipboard,
//! move the cursor or turn the direction of reading. Our own colours are kept apart from the text until it is written,
//! so that every control character in it is one from outside.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use owo_colors::{OwoColorize, Style};

/// Text, and where it is coloured.
#[derive(Debug, Clone, Default)]
pub(super) struct Text {
    plain: String,
    /// In order, without overlap.
    styled: Vec<(Range<usize>, Style)>,
}

impl Text {
    /// Adds text.
    pub(super) fn push_str(&mut self, text: &str) {
        self.plain.push_str(text);
    }

    /// Adds coloured text.
    pub(super) fn push_styled(&mut self, text: &str, style: Style) {
        let start = self.plain.len();
        self.plain.push_str(text);
        self.styled.push((start..self.plain.len(), style));
    }

    /// Returns this text followed by `text`.
    #[must_use]
    pub(super) fn and(mut self, text: &str) -> Self {
        self.push_str(text);
        self
    }

    /// Returns the text as it is, without colours.
    pub(super) fn plain(&self) -> &str {
        &self.plain
    }

    /// Returns the text for a terminal: with control characters made visible, and coloured if `colours`.
    pub(super) fn shown(&self, colours: bool) -> String {
        let mut shown = String::with_capacity(self.plain.len());
        let mut at = 0;
        for (range, style) in &self.styled {
            shown.push_str(&visible(&self.plain[at..range.start]));
            let piece = visible(&self.plain[range.clone()]);
            if colours {
                shown.push_str(&piece.style(*style).to_string());
            } else {
                shown.push_str(&piece);
            }
            at = range.end;
        }
        shown.push_str(&visible(&self.plain[at..]));
        shown
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

/// Makes a coloured text.
pub(super) fn styled(text: &str, style: Style) -> Text {
    let mut styled = Text::default();
    styled.push_styled(text, style);
    styled
}

/// Whether a character acts on a terminal instead of being shown: a control character, or one that turns the direction
/// of what stands around it. Line ends and tabs are meant.
fn acts(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{61c}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}' => true,
        other => other.is_control(),
    }
}

/// Writes every character that would act on a terminal as `\u{1b}`.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |character, shown| {
        shown.extend(character.escape_unicode());
    })
}

/// Writes every character of JSON that would act on a terminal as `\u001b`, which means the same.
pub(super) fn visible_json(text: &str) -> Cow<'_, str> {
    escaped(text, |character, shown| {
        // All of them are in the basic plane.
        shown.push_str(&format!("\\u{:04x}", character as u32));
    })
}

fn escaped(text: &str, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        // The line ends of Windows do nothing more than others.
        let is_line_end = character == '\r' && characters.peek() == Some(&'\n');
        if acts(character) && !is_line_end {
            escape(character, &mut shown);
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_made_visible() {
        for (given, shown) in [
            ("plain é 日本\n\tx\r\n", "plain é 日本\n\tx\r\n"),
            ("a\x1b]52;c;cm0=\x07b", "a\\u{1b}]52;c;cm0=\\u{7}b"),
            ("\u{9b}31m\x7f\x00\x08", "\\u{9b}31m\\u{7f}\\u{0}\\u{8}"),
            ("done\rFAILED", "done\\u{d}FAILED"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
            ("\u{feff}prompt", "\\u{feff}prompt"),
        ] {
            assert_eq!(visible(given), shown, "{given:?}");
        }
        let json = "{\"a\":\"\x7f\u{9b}\u{202e}\"}";
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(visible_json(json), "{\"a\":\"\\u007f\\u009b\\u202e\"}");
        assert_eq!(value(&visible_json(json)), value(json));
    }

    #[test]
    fn only_our_own_colours_act() {
        let mut text = styled("RUN\x1b[8m", Style::new().red()).and(" \x1b[31mstage ");
        text.push_styled("end", Style::new().bold());
        assert_eq!(text.plain(), "RUN\x1b[8m \x1b[31mstage end");
        assert_eq!(text.shown(false), "RUN\\u{1b}[8m \\u{1b}[31mstage end");
        assert_eq!(
            text.shown(true),
            "\x1b[31mRUN\\u{1b}[8m\x1b[0m \\u{1b}[31mstage \x1b[1mend\x1b[0m"
        );
    }
}
