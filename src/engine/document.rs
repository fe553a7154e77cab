//! The pipeline file as text: reading it, and finding places in it when something is wrong.
//!
//! serde_yaml gives the values; it knows no positions. Only when there are diagnostics does a second,
//! marker-carrying parser walk the text and map document paths to lines and columns.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use saphyr_parser::{Event, Parser, Span as ParserSpan};

use super::diagnostic::{Diagnostic, Path, Segment, Severity, Target};
use super::value::Value;
use crate::files::read_text;

/// Brackets that may be open at once, and dashes that may begin a line. The parsers refuse more than 128 levels, but only
/// after a time that grows with the square of them.
const MOST_BRACKETS: usize = 1000;
const MOST_DASHES: usize = 64;

/// Levels down to which places are looked for.
const DEEPEST: usize = 200;

/// A pipeline file that was read.
#[derive(Debug, Clone)]
pub struct Document {
    /// Where it was read from.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
}

/// A stretch of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

/// A diagnostic with its place in the text.
#[derive(Debug, Clone)]
pub struct Located {
    /// What is wrong.
    pub diagnostic: Diagnostic,
    /// Where; absent for what no line of the file says (a `--set`, say).
    pub span: Option<Span>,
}

/// Diagnostics of one document, in the order of its lines.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{} is not a valid pipeline: {}", document.file.display(), summary(diagnostics))]
pub struct Invalid {
    /// The document they are about.
    pub document: Document,
    /// What is wrong with it.
    pub diagnostics: Vec<Located>,
}

fn summary(diagnostics: &[Located]) -> String {
    diagnostics
        .iter()
        .map(|located| located.diagnostic.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

/// Whether the text seems to be nested far beyond what the parsers take; brackets in quotes count as well.
fn is_too_deep(text: &str) -> bool {
    let mut open = 0usize;
    let brackets = text.bytes().any(|byte| {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > MOST_BRACKETS
    });
    // `- - - x` is a list in a list in a list; so are maps with `?` and `:`.
    brackets
        || text.lines().any(|line| {
            let words = line.split_ascii_whitespace();
            let dashes = words.take_while(|word| matches!(*word, "-" | "?" | ":"));
            dashes.count() > MOST_DASHES
        })
}

/// No pipeline file is longer.
const MOST_BYTES: u64 = 16 << 20;

impl Document {
    /// Reads a pipeline file.
    pub fn read(file: &FilePath) -> std::io::Result<Self> {
        let text = read_text(file, MOST_BYTES)?;
        Ok(Self {
            file: file.to_owned(),
            // Some editors put a byte order mark first, which is no part of the YAML.
            text: text
                .strip_prefix('\u{feff}')
                .map(str::to_owned)
                .unwrap_or(text),
        })
    }

    /// Parses the text.
    pub fn parse(&self) -> Result<Value, Invalid> {
        if is_too_deep(&self.text) {
            return Err(self.invalid(vec![Diagnostic::error(
                Path::default(),
                "lists or maps lie too deep in each other",
            )]));
        }
        let error = match serde_yaml::from_str::<Value>(&self.text) {
            Ok(value @ Value::Map(_)) => return Ok(value),
            Ok(other) => {
                return Err(self.invalid(vec![Diagnostic::error(
                    Path::default(),
                    format!(
                        "expected a map with `name` and `stages`, found {}",
                        other.type_name()
                    ),
                )]));
            }
            Err(error) => error,
        };
        let duplicates = self
            .places()
            .map(|places| places.duplicates)
            .unwrap_or_default();
        let diagnostics = if duplicates.is_empty() {
            if let Some(diagnostic) = self.control_character(&error) {
                return Err(Invalid {
                    document: self.clone(),
                    diagnostics: vec![diagnostic],
                });
            }
            let span = error.location().map(|at| {
                let start = self.text.floor_char_boundary(at.index());
                let length = self.text[start..].chars().next().map_or(0, char::len_utf8);
                Span {
                    start,
                    end: start + length,
                    line: at.line(),
                    column: at.column(),
                }
            });
            vec![Located {
                diagnostic: Diagnostic::error(Path::default(), without_positions(&error))
                    .maybe_hint(self.syntax_hint(&error)),
                span,
            }]
        } else {
            duplicates
                .into_iter()
                .map(|(path, span)| Located {
                    diagnostic: Diagnostic::error(path.clone(), format!("duplicate key `{path}`"))
                        .hint("a key may be given once; remove or rename one of them"),
                    span: Some(span),
                })
                .collect()
        };
        Err(Invalid {
            document: self.clone(),
            diagnostics,
        })
    }

    /// Finds the control character that the parser refuses; it says where only in bytes.
    fn control_character(&self, error: &serde_yaml::Error) -> Option<Located> {
        if !error
            .to_string()
            .starts_with("control characters are not allowed")
        {
            return None;
        }
        let refused = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
        let start = self.text.find(refused)?;
        let character = self.text[start..].chars().next()?;
        let before = &self.text[..start];
        let line = before.rsplit('\n').next().unwrap_or_default();
        let message = format!("control character {}", character.escape_unicode());
        let hint = "in quotes it can be written as `\"\\x1b\"`, with its own number";
        Some(Located {
            diagnostic: Diagnostic::error(Path::default(), message).hint(hint),
            span: Some(Span {
                start,
                end: start + character.len_utf8(),
                line: 1 + before.matches('\n').count(),
                column: 1 + line.chars().count(),
            }),
        })
    }

    /// Says what is probably wrong with text that is not YAML.
    fn syntax_hint(&self, error: &serde_yaml::Error) -> Option<String> {
        let said = error.to_string();
        let line = self
            .text
            .lines()
            .nth(error.location()?.line().checked_sub(1)?);
        let indent = line.unwrap_or_default();
        let indent = &indent[..indent.len() - indent.trim_start().len()];
        let hint = if indent.contains('\t') {
            "the line begins with a tab: indent with spaces"
        } else if said.contains("while scanning a quoted scalar") {
            "a quote is not closed"
        } else if said.contains("while parsing a flow") && line.is_some_and(has_unquoted_reference)
        {
            "within brackets a reference needs quotes: `{ n: \"${n}\" }`"
        } else if said.contains("while parsing a flow") {
            "a bracket is not closed, or a text with `: `, `, ` or brackets is not quoted"
        } else if said.contains("did not find expected key") {
            "the line is indented more or less than the keys that it stands with"
        } else if said.contains("mapping values are not allowed") {
            "a text with `: ` needs quotes, and a key stands on a line of its own"
        } else if said.contains("more than one document") {
            "a line of `---` begins another document: one file holds one pipeline"
        } else {
            return None;
        };
        Some(hint.to_owned())
    }

    /// Attaches places to diagnostics and sorts them by place.
    pub fn locate(&self, diagnostics: Vec<Diagnostic>) -> Vec<Located> {
        if diagnostics.is_empty() {
            return Vec::new();
        }
        let places = self.places().unwrap_or_default();
        let mut located: Vec<Located> = diagnostics
            .into_iter()
            .map(|diagnostic| Located {
                span: places.find(&diagnostic.path, diagnostic.target),
                diagnostic,
            })
            .collect();
        located.sort_by_key(|located| {
            let warning = located.diagnostic.severity == Severity::Warning;
            (warning, located.span.map_or(usize::MAX, |span| span.start))
        });
        located.dedup_by(|a, b| a.span == b.span && a.diagnostic.message == b.diagnostic.message);
        located
    }

    /// Makes the error that carries `diagnostics`.
    pub fn invalid(&self, diagnostics: Vec<Diagnostic>) -> Invalid {
        Invalid {
            document: self.clone(),
            diagnostics: self.locate(diagnostics),
        }
    }

    fn places(&self) -> Option<Places> {
        let mut walk = Walk {
            parser: Parser::new_from_str(&self.text),
            line_starts: std::iter::once(0)
                .chain(self.text.match_indices('\n').map(|(at, _)| at + 1))
                .collect(),
            text: &self.text,
            reached: (0, 0, 0),
            places: Places::default(),
        };
        // Stream start, document start, the root node.
        walk.next()?;
        walk.next()?;
        let (event, span) = walk.next()?;
        walk.node(&Path::default(), &event, span)?;
        Some(walk.places)
    }
}

/// Whether a `${` stands in a line outside of quotes.
fn has_unquoted_reference(line: &str) -> bool {
    line.match_indices("${").any(|(at, _)| {
        let before = &line[..at];
        ['"', '\'']
            .iter()
            .all(|quote| before.matches(*quote).count() % 2 == 0)
    })
}

#[derive(Debug, Default)]
struct Places {
    keys: BTreeMap<Path, Span>,
    values: BTreeMap<Path, Span>,
    duplicates: Vec<(Path, Span)>,
}

impl Places {
    /// Finds the place of `path`, or of its nearest ancestor in the file.
    fn find(&self, path: &Path, target: Target) -> Option<Span> {
        let mut path = path.clone();
        let first = match target {
            Target::Key => self.keys.get(&path),
            Target::Value => self.values.get(&path),
        };
        let mut found = first.or_else(|| self.values.get(&path));
        while found.is_none() && !path.0.is_empty() {
            path.0.pop();
            found = self.keys.get(&path).or_else(|| self.values.get(&path));
        }
        found.copied().filter(|_| !path.0.is_empty())
    }
}

struct Walk<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    line_starts: Vec<usize>,
    text: &'a str,
    /// Line, column and byte of the last place: the next one is mostly not far behind it.
    reached: (usize, usize, usize),
    places: Places,
}

impl<'a> Walk<'a> {
    fn next(&mut self) -> Option<(Event<'a>, ParserSpan)> {
        self.parser.next()?.ok()
    }

    /// Returns the byte at a line, counted from 1, and a column in characters, counted from 0.
    fn byte(&self, line: usize, column: usize) -> usize {
        let (reached_line, reached_column, reached) = self.reached;
        let (start, left) = if line == reached_line && column >= reached_column {
            (reached, column - reached_column)
        } else {
            let start = self.line_starts.get(line.saturating_sub(1));
            (start.copied().unwrap_or(0), column)
        };
        let rest = &self.text[start..];
        let found = rest.char_indices().nth(left);
        start + found.map_or(rest.len(), |(at, _)| at)
    }

    fn span(&mut self, span: ParserSpan) -> Span {
        let start = self.byte(span.start.line(), span.start.col());
        self.reached = (span.start.line(), span.start.col(), start);
        let end = self
            .byte(span.end.line(), span.end.col())
            .max(start + 1)
            .min(self.text.len());
        // A block's span reaches to the next token: its first line says enough.
        let next_line = self.line_starts.get(span.start.line());
        let line_end = next_line.map_or(self.text.len(), |next| next - 1);
        Span {
            start,
            end: end.min(line_end).max(start),
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }

    fn node(&mut self, path: &Path, event: &Event<'a>, span: ParserSpan) -> Option<()> {
        if path.0.len() > DEEPEST {
            return None;
        }
        let place = self.span(span);
        self.places.values.insert(path.clone(), place);
        match event {
            Event::SequenceStart(..) => {
                for index in 0.. {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    self.node(&path.index(index), &event, span)?;
                }
            }
            Event::MappingStart(..) => loop {
                let (event, span) = self.next()?;
                let key = match &event {
                    Event::MappingEnd => break,
                    Event::Scalar(text, ..) => text.to_string(),
                    _ => return None,
                };
                let path = path.key(&key);
                let place = self.span(span);
                let in_duplicate = self.places.duplicates.last().is_some_and(|(duplicate, _)| {
                    path.0.len() > duplicate.0.len() && path.0.starts_with(&duplicate.0)
                });
                if self.places.keys.insert(path.clone(), place).is_some() && !in_duplicate {
                    self.places.duplicates.push((path.clone(), place));
                }
                let (event, span) = self.next()?;
                self.node(&path, &event, span)?;
            },
            _ => {}
        }
        Some(())
    }
}

/// Returns the message of an error without the positions that serde_yaml writes into it.
pub(super) fn without_positions(error: &serde_yaml::Error) -> String {
    let message = error.to_string();
    let mut parts = message.split(" at line ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for (number, part) in parts.enumerate() {
        // The first is where the error is shown; where it began is another place.
        if number == 1 {
            let line: String = part.chars().take_while(char::is_ascii_digit).collect();
            text.push_str(&format!(" that begins in line {line}"));
        }
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = rest.strip_prefix(" column ").unwrap_or(rest);
        text.push_str(rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text
}

/// Returns the path without its last segment, if that is a list index.
pub fn without_index(path: &Path) -> Path {
    let mut path = path.clone();
    if matches!(path.0.last(), Some(Segment::Index(_))) {
        path.0.pop();
    }
    path
}

/// Returns the folder that relative paths of a file start from.
pub(super) fn folder_of(file: &FilePath) -> PathBuf {
    let folder = file.parent().unwrap_or(FilePath::new(""));
    if folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folder.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document {
            file: "p.yaml".into(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn what_lies_too_deep_is_refused_before_it_is_parsed() {
        for (nested, levels) in [
            ("[", 50_000),
            ("{a: ", 50_000),
            ("- ", 50_000),
            (": ", 20_000),
        ] {
            let text = format!("name: x\nparams:\n  {}\n", nested.repeat(levels));
            let error = document(&text).parse().unwrap_err();
            assert_eq!(
                error.to_string(),
                "p.yaml is not a valid pipeline: lists or maps lie too deep in each other"
            );
        }
    }

    #[test]
    fn a_fault_at_a_wide_character_is_shown_whole() {
        let text = "name: \u{65e5}\nstages: {a: \"x\" \u{672c}}\n";
        let error = document(text).parse().unwrap_err();
        let place = error.diagnostics[0].span.unwrap();
        assert_eq!(&text[place.start..place.end], "\u{672c}");
        assert_eq!((place.line, place.column), (2, 17));
    }

    #[test]
    fn places_on_one_long_line_are_those_of_short_lines() {
        let text = "name: \u{65e5}\u{672c}\nstages: {a: {x: \u{ef}, y: [1, {z: 2}]}, b: 3}\n";
        let places = document(text).places().unwrap();
        for (path, place) in &places.keys {
            let Some(Segment::Key(key)) = path.0.last() else {
                panic!("{path} is no key");
            };
            assert_eq!(&text[place.start..place.end], &**key, "{path}");
        }
        assert_eq!(places.keys.len(), 7);
    }

    #[test]
    fn paths_are_found_by_line_and_column() {
        let document = document("name: x\nstages:\n  sft:\n    params: { lr: 1, steps: [1, 2] }\n");
        let places = document.places().unwrap();
        let lr = places
            .find(&Path::of(["stages", "sft", "params", "lr"]), Target::Value)
            .unwrap();
        assert_eq!((lr.line, lr.column), (4, 19));
        let key = places
            .find(&Path::of(["stages", "sft", "params", "lr"]), Target::Key)
            .unwrap();
        assert_eq!((key.line, key.column), (4, 15));
        let item = Path::of(["stages", "sft", "params", "steps"]).index(1);
        assert_eq!(places.find(&item, Target::Value).unwrap().column, 33);
        // A missing key is shown at its parent.
        let missing = places
            .find(&Path::of(["stages", "sft", "kind"]), Target::Value)
            .unwrap();
        assert_eq!((missing.line, missing.column), (3, 3));
    }

    #[test]
    fn every_duplicate_key_is_named_with_its_place() {
        let invalid = document("a: 1\nb: {c: 1, c: 2}\na: 3\n")
            .parse()
            .unwrap_err();
        let found: Vec<_> = invalid
            .diagnostics
            .iter()
            .map(|d| (d.diagnostic.message.as_str(), d.span.unwrap().line))
            .collect();
        assert_eq!(
            found,
            [("duplicate key `b.c`", 2), ("duplicate key `a`", 3)]
        );
    }

    #[test]
    fn columns_count_characters_not_bytes() {
        let document = document("a: {\"ü\": 1, b: 2}\n");
        let span = document
            .places()
            .unwrap()
            .find(&Path::of(["a", "b"]), Target::Key)
            .unwrap();
        assert_eq!(span.column, 13);
        assert_eq!(&document.text[span.start..span.end], "b");
    }
}
