//! Values that must not be written anywhere, and text without them.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;

use serde_json::Value as Json;

use crate::excerpt::cuts;

/// Values that have fewer bytes are not masked: they would be found everywhere.
pub const SHORTEST: usize = 4;
/// Lines of a value of several lines are secret by themselves, if they are long enough to be.
const SHORTEST_LINE: usize = 8;
const MASK: &[u8] = b"***";

/// The values of some environment variables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mask {
    /// Names with what is masked for their sake, the longest first.
    secrets: Vec<(String, Vec<u8>)>,
}

impl Mask {
    /// Takes the values that variables have now.
    pub(crate) fn of(names: &[String]) -> Self {
        Self::with(names.iter().filter_map(|name| {
            let value: OsString = std::env::var_os(name)?;
            Some((name.clone(), value.into_encoded_bytes()))
        }))
    }

    pub(super) fn with(values: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let mut secrets = Vec::new();
        for (name, value) in values {
            let value = value.trim_ascii();
            if value.len() < SHORTEST {
                continue;
            }
            let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            let lines = lines.filter(|line| line.len() >= SHORTEST_LINE);
            for secret in lines.chain([value]) {
                let spelt = spellings(&String::from_utf8_lossy(secret)).map(String::into_bytes);
                let all = spelt.into_iter().chain([secret.to_owned()]);
                secrets.extend(all.map(|secret| (name.clone(), secret)));
            }
        }
        secrets.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup_by(|(_, a), (_, b)| a == b);
        Self { secrets }
    }

    /// Whether there is nothing to mask.
    pub(super) fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Returns `text` with each value replaced, and with what an [`excerpt`](crate::excerpt::excerpt) left of one.
    pub(super) fn text(&self, text: &str) -> String {
        let mut masked = Masked::new(self, Vec::new());
        let _ = masked.write_all(text.as_bytes());
        let masked = masked.end().unwrap_or_default();
        let masked = String::from_utf8_lossy(&masked);
        let bytes = masked.as_bytes();
        let mut shown = Vec::with_capacity(bytes.len());
        let mut at = 0;
        for cut in cuts(&masked) {
            // A value can hold what looks like a cut.
            let Some(before) = bytes.get(at..cut.start) else {
                continue;
            };
            let begun = self.longest(|secret, length| before.ends_with(&secret[..length]));
            let after = &bytes[cut.end..];
            let ended =
                self.longest(|secret, length| after.starts_with(&secret[secret.len() - length..]));
            let mask = |length| if length > 0 { MASK } else { b"" };
            shown.extend_from_slice(&before[..before.len() - begun]);
            shown.extend_from_slice(mask(begun));
            shown.extend_from_slice(&bytes[cut.clone()]);
            shown.extend_from_slice(mask(ended));
            at = cut.end + ended;
        }
        shown.extend_from_slice(&bytes[at..]);
        match String::from_utf8_lossy(&shown) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        }
    }

    /// The greatest length of a part of a secret for which `is_there` holds; 0 if there is none.
    fn longest(&self, is_there: impl Fn(&[u8], usize) -> bool) -> usize {
        let longest = |secret: &[u8]| {
            let mut lengths = (SHORTEST..secret.len()).rev();
            lengths.find(|length| is_there(secret, *length))
        };
        let found = self
            .secrets
            .iter()
            .filter_map(|(_, secret)| longest(secret));
        found.max().unwrap_or(0)
    }

    /// Names the variable whose value the bytes of `from` hold, if they hold one; an error of `go_on` ends the search.
    pub(super) fn find(
        &self,
        from: &mut dyn std::io::Read,
        go_on: impl Fn() -> std::io::Result<()>,
    ) -> std::io::Result<Option<&str>> {
        let mut search = Masked::new(self, std::io::sink());
        let mut piece = vec![0; 1 << 16];
        while search.found.is_none() {
            go_on()?;
            match from.read(&mut piece)? {
                0 => break,
                count => search.write_all(&piece[..count])?,
            }
        }
        let at = search.finish()?;
        Ok(at.map(|at| self.secrets[at].0.as_str()))
    }

    /// The longest secret at the beginning of `bytes`.
    fn at_beginning(&self, bytes: &[u8]) -> Option<usize> {
        let mut secrets = self.secrets.iter();
        secrets.position(|(_, secret)| bytes.starts_with(secret))
    }

    /// Whether `bytes` may be the beginning of a secret that goes on.
    fn may_go_on(&self, bytes: &[u8]) -> bool {
        let mut secrets = self.secrets.iter();
        secrets.any(|(_, secret)| secret.len() > bytes.len() && secret.starts_with(bytes))
    }
}

/// How programs write a text between quotes: as a shell, JSON, Rust and Python do, and JSON once more within a text.
fn spellings(text: &str) -> [String; 7] {
    let unquoted = |quoted: String| quoted[1..quoted.len() - 1].to_owned();
    let debug = |text: &str| unquoted(format!("{text:?}"));
    let json = unquoted(Json::from(text).to_string());
    let mut ascii = String::new();
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            let units = character.encode_utf16(&mut [0; 2]).to_vec();
            ascii.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    let python = text.chars().map(|character| match character {
        '\'' if text.contains('"') => r"\'".to_owned(),
        '\'' | '"' => character.to_string(),
        '\n' | '\r' | '\t' | '\\' => character.escape_debug().to_string(),
        control if control.is_control() => format!("\\x{:02x}", u32::from(control)),
        other => other.to_string(),
    });
    [
        text.replace('\'', r"'\''"),
        debug(text),
        debug(&json),
        debug(&ascii),
        python.collect(),
        json,
        ascii,
    ]
}

/// Writes what passes through it without the values of a mask. What may be the beginning of one waits for the rest.
pub(crate) struct Masked<'a, W> {
    mask: &'a Mask,
    first: [bool; 256],
    waiting: Vec<u8>,
    /// The secret that was found first.
    found: Option<usize>,
    to: W,
}

impl<'a, W: Write> Masked<'a, W> {
    pub(crate) fn new(mask: &'a Mask, to: W) -> Self {
        let mut first = [false; 256];
        for (_, secret) in &mask.secrets {
            first[usize::from(secret[0])] = true;
        }
        Self {
            mask,
            first,
            waiting: Vec::new(),
            found: None,
            to,
        }
    }

    /// Writes what waits, and returns the writer.
    pub(crate) fn end(mut self) -> std::io::Result<W> {
        self.pass(true)?;
        Ok(self.to)
    }

    fn finish(mut self) -> std::io::Result<Option<usize>> {
        self.pass(true)?;
        Ok(self.found)
    }

    fn pass(&mut self, is_end: bool) -> std::io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut written = 0;
        let mut at = 0;
        while at < waiting.len() {
            let rest = &waiting[at..];
            if !self.first[usize::from(rest[0])] {
                at += 1;
            } else if !is_end && self.mask.may_go_on(rest) {
                break;
            } else if let Some(secret) = self.mask.at_beginning(rest) {
                self.to.write_all(&waiting[written..at])?;
                self.to.write_all(MASK)?;
                self.found.get_or_insert(secret);
                at += self.mask.secrets[secret].1.len();
                written = at;
            } else {
                at += 1;
            }
        }
        self.to.write_all(&waiting[written..at])?;
        self.waiting = waiting[at..].to_owned();
        Ok(())
    }
}

impl<W: Write> Write for Masked<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        self.pass(false)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::excerpt::excerpt;

    fn mask(values: &[&str]) -> Mask {
        Mask::with(values.iter().enumerate().map(|(at, value)| {
            let name = format!("V{at}");
            (name, value.as_bytes().to_owned())
        }))
    }

    #[test]
    fn values_are_masked_wherever_the_pieces_end() {
        let mask = mask(&[
            "abcabd",
            "abcabdef",
            "ababx",
            "xyz",
            "two lines\nof a secret\n",
        ]);
        for (text, expected) in [
            ("abcabd", "***"),
            ("abcabdef", "***"),
            ("abcabde", "***e"),
            ("abcabcabd", "abc***"),
            ("ababababx", "abab***"),
            ("xyz is too short", "xyz is too short"),
            ("..two lines\nof a secret..", "..***.."),
            ("of a secret, and two lines", "***, and ***"),
            ("abcab", "abcab"),
            ("", ""),
        ] {
            assert_eq!(mask.text(text), expected);
            for piece in 1..=text.len().max(1) {
                let mut masked = Masked::new(&mask, Vec::new());
                for bytes in text.as_bytes().chunks(piece) {
                    masked.write_all(bytes).unwrap();
                }
                let found = String::from_utf8(masked.end().unwrap()).unwrap();
                assert_eq!(found, expected, "{text} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn values_are_masked_however_they_are_spelt() {
        let secret = "p\"ä\\\x1b'\ts\u{1f511}";
        let mask = mask(&[secret]);
        let json = serde_json::json!({ "token": secret }).to_string();
        for text in [
            secret.to_owned(),
            json.clone(),
            format!("{secret:?}"),
            format!("{json:?}"),
            r#"{"token": "p\"\u00e4\\\u001b'\ts\ud83d\udd11"}"#.to_owned(),
            r#"'p"ä\\\x1b\'\ts🔑'"#.to_owned(),
            "+ echo 'p\"ä\\\x1b'\\''\ts🔑'".to_owned(),
        ] {
            let masked = mask.text(&text);
            assert!(masked.contains("***"), "{text}: {masked}");
            let left = masked.contains(['p', 's', 'ä', '\u{1f511}']);
            assert!(!left, "{text}: {masked}");
        }
        // One that is no text, as it is and as a text that was made of it.
        let mask = Mask::with([("V".to_owned(), b"\xff\xfesecret".to_vec())]);
        assert_eq!(mask.text("a \u{fffd}\u{fffd}secret"), "a ***");
        let mut masked = Masked::new(&mask, Vec::new());
        masked.write_all(b"a \xff\xfesecret").unwrap();
        assert_eq!(masked.end().unwrap(), b"a ***");
    }

    #[test]
    fn what_an_excerpt_left_of_a_value_is_masked() {
        let secret = "0123\"456789 [... 3 bytes ...] ABCDEF";
        let mask = mask(&[secret]);
        for most in 3..90 {
            for before in 0..60 {
                let text = format!("{}{secret}{}", ".".repeat(before), ".".repeat(90));
                let cut = excerpt(&text, most);
                for shown in [mask.text(&cut), mask.text(&format!("{cut:?}"))] {
                    assert!(!shown.contains("0123"), "{most} {before}: {shown}");
                    assert!(!shown.contains("CDEF"), "{most} {before}: {shown}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_a_value_does_not_wait() {
        let mask = mask(&["secret"]);
        let mut masked = Masked::new(&mask, Vec::new());
        masked.write_all(b"a line\nsecre").unwrap();
        assert_eq!(masked.to, b"a line\n");
        masked.write_all(b"d").unwrap();
        assert_eq!(masked.to, b"a line\nsecred");
    }

    #[test]
    fn the_variable_of_a_value_is_named() {
        let mask = mask(&["secret", "another"]);
        let find = |text: &str| {
            mask.find(&mut text.as_bytes(), || Ok(()))
                .unwrap()
                .map(str::to_owned)
        };
        assert_eq!(find("an other secre"), None);
        assert_eq!(find("x another secret").as_deref(), Some("V1"));
        assert_eq!(find("a secret").as_deref(), Some("V0"));
        assert!(Mask::with([]).is_empty());
    }
}
