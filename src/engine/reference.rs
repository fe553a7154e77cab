//! References to outputs of stages: `stage[axis=value,...].output`, and the names in them.

use std::fmt;

use indexmap::IndexMap;

use super::value::Value;

/// What stands between a namespace and a name.
pub(super) const SEPARATOR: char = '/';

/// How one axis of a referenced stage is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// `axis=value`.
    Value(String),
    /// `axis=*`: all its values, even where the consumer has the same axis.
    All,
}

/// A reference as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The stage's name.
    pub stage: String,
    /// `[*]`: all values of every axis that the consumer lacks.
    pub all: bool,
    /// Chosen axes.
    pub axes: IndexMap<String, Selection>,
    /// The output's name; the stage's default output if absent.
    pub output: Option<String>,
}

impl Reference {
    /// Parses a reference; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = "a reference looks like `stage`, `stage.output` or `stage[axis=value].output`";
        let fail = |what: String| Err(format!("{what}; {shape}"));
        let text = text.trim();
        let (head, output) = match text.rfind(']') {
            Some(end) => {
                let (head, rest) = text.split_at(end + 1);
                match rest.strip_prefix('.') {
                    Some(output) => (head, Some(output)),
                    None if rest.is_empty() => (head, None),
                    None => return fail(format!("unexpected `{rest}` after `]`")),
                }
            }
            None => match text.split_once('.') {
                Some((head, output)) => (head, Some(output)),
                None => (text, None),
            },
        };
        let (stage, selection) = match head.split_once('[') {
            Some((stage, rest)) => match rest.strip_suffix(']') {
                Some(selection) => (stage, Some(selection)),
                None => return fail("missing `]`".to_owned()),
            },
            None => (head, None),
        };
        let wrong = (!is_qualified_name(stage)).then_some(stage);
        if let Some(name) = wrong.or(output.filter(|output| !is_name(output))) {
            return fail(format!("`{name}` is not a name"));
        }
        let mut all = false;
        let mut axes = IndexMap::new();
        for part in selection.into_iter().flat_map(|s| s.split(',')) {
            let part = part.trim();
            if part == "*" {
                all = true;
                continue;
            }
            let Some((axis, value)) = part.split_once('=') else {
                return fail(format!(
                    "expected `axis=value` or `*` in brackets, found `{part}`"
                ));
            };
            let (axis, value) = (axis.trim(), value.trim());
            if !is_name(axis) || value.is_empty() {
                return fail(format!("expected `axis=value`, found `{part}`"));
            }
            let selection = match value {
                "*" => Selection::All,
                value => Selection::Value(value.to_owned()),
            };
            if axes.insert(axis.to_owned(), selection).is_some() {
                return fail(format!("axis `{axis}` is given twice"));
            }
        }
        Ok(Self {
            stage: stage.to_owned(),
            all,
            axes,
            output: output.map(str::to_owned),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stage)?;
        let mut parts: Vec<String> = self
            .axes
            .iter()
            .map(|(axis, selection)| match selection {
                Selection::Value(value) => format!("{axis}={value}"),
                Selection::All => format!("{axis}=*"),
            })
            .collect();
        if self.all {
            parts.insert(0, "*".to_owned());
        }
        if !parts.is_empty() {
            write!(f, "[{}]", parts.join(","))?;
        }
        if let Some(output) = &self.output {
            write!(f, ".{output}")?;
        }
        Ok(())
    }
}

/// Whether two texts are the same value of an axis: the same text, or the same number however it is spelt.
pub fn is_same_value(a: &str, b: &str) -> bool {
    // Whole numbers beyond 53 bits differ where their floats do not.
    let number = |text: &str| match serde_yaml::from_str(text).ok()? {
        Value::Integer(whole) => Some((i128::from(whole), whole as f64)),
        Value::Unsigned(whole) => Some((i128::from(whole), whole as f64)),
        Value::Float(number) => Some((number as i128, number)),
        _ => None,
    };
    a == b || number(a).is_some_and(|a| number(b) == Some(a))
}

/// Returns the namespace of a name with its separator; empty for the file's own.
pub(super) fn namespace(name: &str) -> &str {
    name.rfind(SEPARATOR).map_or("", |at| &name[..=at])
}

/// Whether `text` can name a stage, the namespaces before it included.
pub(super) fn is_qualified_name(text: &str) -> bool {
    text.split(SEPARATOR).all(is_name)
}

/// Whether `text` can name a stage, an axis, an output or a port: `[a-z][a-z0-9_]*`.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_round_trip() {
        for text in [
            "sft",
            "corpus.finetune",
            "samples[*]",
            "samples[policy=flowhf.early,seed=1].scores",
            "samples[*,seed=2]",
            "samples[seed=*]",
            "base/samples[seed=1].scores",
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_references_say_what_is_wrong() {
        for (text, expected) in [
            ("", "`` is not a name"),
            ("SFT", "`SFT` is not a name"),
            ("a[b=1", "missing `]`"),
            (
                "a[b]",
                "expected `axis=value` or `*` in brackets, found `b`",
            ),
            ("a[b=1,b=2]", "axis `b` is given twice"),
            ("a[*]x", "unexpected `x` after `]`"),
            ("../a", "`` is not a name"),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn equal_numbers_are_the_same_value_however_they_are_spelt() {
        for (a, b, same) in [
            ("ppo", "ppo", true),
            ("0.01", "1e-2", true),
            ("1", "1.0", true),
            ("-0.5", "-.5", true),
            ("9007199254740992", "9007199254740993", false),
            ("1e300", "1e301", false),
            ("true", "yes", false),
            ("a: 1", "a:  1", false),
            ("", "~", false),
        ] {
            assert_eq!(is_same_value(a, b), same, "{a} {b}");
            assert_eq!(is_same_value(b, a), same, "{b} {a}");
        }
    }

    #[test]
    fn a_namespace_is_all_before_the_last_separator() {
        assert_eq!(namespace("sft"), "");
        assert_eq!(namespace("a/b/sft"), "a/b/");
        assert!(
            is_qualified_name("a/sft")
                && !is_qualified_name("a//sft")
                && !is_qualified_name("/sft")
        );
    }
}
