//! Texts from outside, cut down to what a message can hold.
//!
//! A header of a CSV file, an answer of a server or a name can be as long as the file it comes from. What is said about
//! it is read by people, kept in records and written to logs.

use std::borrow::Cow;
use std::ops::Range;

/// Bytes of a message that says what went wrong.
pub const MESSAGE: usize = 4000;

/// Bytes of a name or a value within a message.
pub const NAME: usize = 200;

/// Names of a list that a message shows.
const LISTED: usize = 30;

/// What stands around the count of the bytes that were left out.
const CUT: [&str; 2] = [" [... ", " bytes ...] "];

/// Shortens a text to about `most` bytes: what is in its middle is left out, and how much that was is said.
pub fn excerpt(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    // The beginning says more than the end.
    let start = text.floor_char_boundary(most * 2 / 3);
    let end = text.ceil_char_boundary(text.len() - most / 3);
    let [before, after] = CUT;
    Cow::Owned(format!(
        "{}{before}{}{after}{}",
        &text[..start],
        end - start,
        &text[end..]
    ))
}

/// Finds the places where texts were shortened.
pub fn cuts(text: &str) -> impl Iterator<Item = Range<usize>> {
    let [before, after] = CUT;
    // Without its space, which may end what looks like another one.
    let sign = before.trim_start();
    text.match_indices(sign).filter_map(move |(at, _)| {
        let count = at + sign.len();
        let start = text[..count].strip_suffix(before)?.len();
        let digits = text[count..].bytes().take_while(u8::is_ascii_digit);
        let end = count + digits.count();
        (end > count && text[end..].starts_with(after)).then_some(start..end + after.len())
    })
}

/// Lists names: the first of many, each shortened, and how many there are beside them.
pub fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter();
    let shown: Vec<String> = names
        .by_ref()
        .take(LISTED)
        .map(|name| excerpt(name.as_ref(), NAME).into_owned())
        .collect();
    let text = excerpt(&shown.join(", "), MESSAGE / 2).into_owned();
    match names.count() {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_lose_their_middle_and_say_how_much() {
        assert_eq!(excerpt("short", 5), "short");
        assert_eq!(excerpt("abcdefghi", 6), "abcd [... 3 bytes ...] hi");
        let twice = excerpt("abcdefghi", 6).repeat(2) + " [... x bytes ...] [... ";
        assert_eq!(cuts(&twice).collect::<Vec<_>>(), [4..23, 29..48]);
        // Cut between characters.
        assert_eq!(excerpt("ééééé", 5), "é [... 8 bytes ...] ");
        let long = "x".repeat(5_000_000);
        let short = excerpt(&long, MESSAGE);
        assert!(short.len() < MESSAGE + 50, "{}", short.len());
        assert!(
            short.contains("4996001 bytes") || short.contains("4996000 bytes"),
            "{short}"
        );
    }

    #[test]
    fn lists_end_and_count_the_rest() {
        assert_eq!(listed(["a", "b"]), "a, b");
        assert_eq!(listed([""; 0]), "");
        let many: Vec<String> = (0..1000).map(|n| format!("c{n}")).collect();
        let text = listed(&many);
        assert!(
            text.starts_with("c0, c1, ") && text.ends_with("c29 and 970 more"),
            "{text}"
        );
        let wide = vec!["x".repeat(1_000_000); 1000];
        assert!(listed(&wide).len() < MESSAGE);
    }
}
