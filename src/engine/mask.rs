//! Values that must not be written anywhere, and text without them.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;

/// Values that have fewer bytes are not masked: they would be found everywhere.
pub const SHORTEST: usize = 4;
/// Lines of a value of several lines are secret by themselves, if they are long enough to be.
const SHORTEST_LINE: usize = 8;
const MASK: &[u8] = b"***";

/// The values of some environment variables.
#[derive(Debug, Clone, Default)]
pub(super) struct Mask {
    /// Names with what is masked for their sake, the longest first.
    secrets: Vec<(String, Vec<u8>)>,
}

impl Mask {
    /// Takes the values that variables have now.
    pub(super) fn of(names: &[String]) -> Self {
        Self::with(names.iter().filter_map(|name| {
            let value: OsString = std::env::var_os(name)?;
            Some((name.clone(), value.into_encoded_bytes()))
        }))
    }

    fn with(values: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let mut secrets = Vec::new();
        for (name, value) in values {
            let lines = value.split(|byte| *byte == b'\n');
            let lines = lines
                .map(<[u8]>::trim_ascii)
                .filter(|line| line.len() >= SHORTEST_LINE);
            secrets.extend(lines.map(|line| (name.clone(), line.to_owned())));
            secrets.push((name, value.trim_ascii().to_owned()));
        }
        secrets.retain(|(_, secret)| secret.len() >= SHORTEST);
        secrets.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup_by(|(_, a), (_, b)| a == b);
        Self { secrets }
    }

    /// Whether there is nothing to mask.
    pub(super) fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Returns `text` with each value replaced.
    pub(super) fn text(&self, text: &str) -> String {
        let mut masked = Masked::new(self, Vec::new());
        let _ = masked.write_all(text.as_bytes());
        let masked = masked.end().unwrap_or_default();
        match String::from_utf8_lossy(&masked) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        }
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

/// Writes what passes through it without the values of a mask. What may be the beginning of one waits for the rest.
pub(super) struct Masked<'a, W> {
    mask: &'a Mask,
    first: [bool; 256],
    waiting: Vec<u8>,
    /// The secret that was found first.
    found: Option<usize>,
    to: W,
}

impl<'a, W: Write> Masked<'a, W> {
    pub(super) fn new(mask: &'a Mask, to: W) -> Self {
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
    pub(super) fn end(mut self) -> std::io::Result<W> {
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
