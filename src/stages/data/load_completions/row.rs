//! What a row says of completions, by its columns.

use std::collections::{BTreeMap, BTreeSet};

use crate::excerpt::excerpt;
use crate::sources::rows::{Field, GREATEST_WHOLE};
use crate::stages::data::left_out::Fault;

/// The columns that completions may have, with other names that they are known by.
pub(super) const NAMES: [(&str, &[&str]); 11] = [
    ("prompt", &[]),
    ("prompt_ids", &["prompt_token_ids"]),
    ("completion", &["completions"]),
    ("token_ids", &["completion_token_ids", "completion_ids"]),
    ("question_id", &[]),
    ("question", &[]),
    ("sample", &[]),
    ("truncated", &[]),
    ("finish_reason", &[]),
    ("tokens", &[]),
    ("log_prob", &[]),
];
/// What a message shows of a value.
const SHOWN: usize = 60;

/// What public servers and libraries call the end of a completion that the model ended.
const ENDED: [&str; 15] = [
    "stop",
    "eos",
    "eos_token",
    "end",
    "end_turn",
    "end_of_turn",
    "stop_sequence",
    "stop_token",
    "stop_word",
    "complete",
    "finish",
    "finished",
    "tool_calls",
    "tool_use",
    "function_call",
];
/// And of one that was cut off.
const CUT_OFF: [&str; 8] = [
    "length",
    "max_tokens",
    "max_length",
    "max_new_tokens",
    "max_output_tokens",
    "model_length",
    "model_context_window_exceeded",
    "error_limit",
];
/// And of one that neither ended nor was as long as it could be.
const BROKEN_OFF: [&str; 11] = [
    "abort",
    "aborted",
    "cancelled",
    "content_filter",
    "content_filtered",
    "error",
    "error_toxic",
    "guardrail_intervened",
    "recitation",
    "refusal",
    "safety",
];
/// What the logarithm of 1 may be where it was added up in single precision.
const ROUNDING: f64 = 1e-3;

/// Which columns of a file are which.
pub(super) struct Columns {
    /// The column's name here, and in the file.
    named: Vec<(&'static str, String)>,
}

/// What a row says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Record {
    pub(super) question_id: Option<u64>,
    pub(super) question: Option<String>,
    pub(super) prompt: Option<String>,
    pub(super) prompt_ids: Option<Vec<u32>>,
    pub(super) written: Vec<Written>,
}

/// What it says of one completion.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Written {
    pub(super) text: Option<String>,
    pub(super) ids: Option<Vec<u32>>,
    pub(super) sample: Option<u64>,
    pub(super) truncated: Option<bool>,
    pub(super) tokens: Option<u64>,
    pub(super) log_prob: Option<f64>,
}

impl Columns {
    /// Tells columns by the names that they are given, and else by their own.
    pub(super) fn of(renamed: &BTreeMap<String, String>, found: &BTreeSet<String>) -> Self {
        let named = NAMES.into_iter().filter_map(|(name, others)| {
            let known = || [&[name], others].concat().into_iter();
            let in_file = match renamed.get(name) {
                Some(renamed) => Some(renamed.clone()),
                None => known()
                    .find(|name| found.contains(*name))
                    .map(str::to_owned),
            };
            Some((name, in_file?))
        });
        Self {
            named: named.collect(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.named.iter().any(|(known, _)| *known == name)
    }

    /// The columns as the file names them.
    pub(super) fn in_file(&self) -> Vec<&str> {
        self.named.iter().map(|(_, name)| name.as_str()).collect()
    }

    /// Takes a row, of which `values` are those of [`Self::in_file`]; or says what is wrong with it.
    pub(super) fn record(&self, values: &[Field]) -> Result<Record, Fault> {
        let names = self.named.iter().map(|(name, _)| *name);
        let cells = Cells(names.zip(values).collect());
        let has_texts = self.has("completion");
        // One completion, or a list of several.
        let several = if has_texts {
            cells.list("completion").map(|texts| texts.len())
        } else {
            let lists = cells.list("token_ids");
            let lists = lists.filter(|lists| !lists.is_empty() && lists.iter().all(is_list));
            lists.map(|lists| lists.len())
        };
        let count = several.unwrap_or(1);
        if count == 0 {
            return Err("`completion` is an empty list".into());
        }
        let of_each = |name: &'static str| -> Result<Vec<Field>, String> {
            let cell = cells.get(name);
            match cells.list(name) {
                _ if several.is_none() || is_empty(cell) => Ok(vec![cell.clone(); count]),
                Some(list) if list.len() == count => Ok(list),
                _ => Err(format!(
                    "{}, expected a list of {count}, one for each completion",
                    shown(name, cell)
                )),
            }
        };
        let (texts, ids) = (of_each("completion")?, of_each("token_ids")?);
        let (truncated, reasons) = (of_each("truncated")?, of_each("finish_reason")?);
        let (tokens, log_probs) = (of_each("tokens")?, of_each("log_prob")?);
        let samples = of_each("sample")?;
        let mut written = Vec::with_capacity(count);
        for at in 0..count {
            let text = match &texts[at] {
                // An empty text is one, in CSV as well.
                Field::Written(text) => Some(text.clone()),
                text => value("completion", text, Field::text, "a text")?,
            };
            let ids = value("token_ids", &ids[at], Field::ids, "a list of token ids")?;
            if text.is_none() && (has_texts || ids.is_none()) {
                let name = if has_texts { "completion" } else { "token_ids" };
                return Err(format!("`{name}` is empty").into());
            }
            let reason = value("finish_reason", &reasons[at], Field::text, "a word")?;
            let truncated = value("truncated", &truncated[at], Field::truth, "true or false")?;
            let log_prob = value("log_prob", &log_probs[at], Field::number, "a finite number")?;
            if log_prob.is_some_and(|log_prob| log_prob > ROUNDING) {
                return Err(Fault::File(
                    format!("{}, expected at most 0", shown("log_prob", &log_probs[at])),
                    "it is the natural logarithm of a probability: the sum of those of the tokens",
                ));
            }
            written.push(Written {
                text,
                ids,
                sample: whole("sample", &samples[at])?,
                truncated: is_truncated(truncated, reason.as_deref())?,
                tokens: whole("tokens", &tokens[at])?,
                log_prob,
            });
        }
        Ok(Record {
            question_id: whole("question_id", cells.get("question_id"))?,
            question: value("question", cells.get("question"), Field::text, "a text")?,
            prompt: value("prompt", cells.get("prompt"), Field::text, "a text")?,
            prompt_ids: value(
                "prompt_ids",
                cells.get("prompt_ids"),
                Field::ids,
                "a list of token ids",
            )?,
            written,
        })
    }
}

/// The values of a row by the names of their columns.
struct Cells<'a>(BTreeMap<&'static str, &'a Field>);

impl Cells<'_> {
    fn get(&self, name: &str) -> &Field {
        self.0.get(name).copied().unwrap_or(&Field::Empty)
    }

    /// The values of a list.
    fn list(&self, name: &str) -> Option<Vec<Field>> {
        let Field::Typed(value) = self.get(name) else {
            return None;
        };
        let elements = value.elements()?.into_iter();
        Some(elements.map(Field::from).collect())
    }
}

fn shown(name: &str, field: &Field) -> String {
    let found = match field {
        Field::Typed(value) => value.as_json(),
        Field::Written(text) => text,
        Field::Empty => "null",
    };
    format!("`{name}` is {}", excerpt(found, SHOWN))
}

fn is_list(field: &Field) -> bool {
    matches!(field, Field::Typed(value) if value.as_json().starts_with('['))
}

fn is_empty(field: &Field) -> bool {
    matches!(field, Field::Empty) || *field == Field::Written(String::new())
}

/// Reads a value, if there is one.
fn value<T>(
    name: &str,
    field: &Field,
    read: impl Fn(&Field) -> Option<T>,
    expected: &str,
) -> Result<Option<T>, String> {
    if is_empty(field) {
        return Ok(None);
    }
    let read = read(field);
    read.map(Some)
        .ok_or_else(|| format!("{}, expected {expected}", shown(name, field)))
}

fn whole(name: &str, field: &Field) -> Result<Option<u64>, Fault> {
    let read = |field: &Field| field.whole().map(|number| number as u64);
    let found = value(name, field, read, "a whole number");
    found.map_err(|fault| match field.number() {
        Some(number) if number >= GREATEST_WHOLE as f64 => Fault::File(
            format!("{fault} of at most {GREATEST_WHOLE}"),
            "greater ones are not told apart: count anew, or leave the column out",
        ),
        _ => Fault::Row(fault),
    })
}

/// Says whether a completion was cut off, if the row says it.
fn is_truncated(truncated: Option<bool>, reason: Option<&str>) -> Result<Option<bool>, Fault> {
    let Some(reason) = reason.map(str::trim).filter(|reason| !reason.is_empty()) else {
        return Ok(truncated);
    };
    let word = reason.to_lowercase().replace(['-', ' '], "_");
    let is = |words: &[&str]| words.contains(&word.as_str());
    let cut_off = match () {
        () if is(&ENDED) => false,
        () if is(&CUT_OFF) => true,
        () if is(&BROKEN_OFF) => {
            return Err(format!("`finish_reason` is {reason}: it was broken off").into());
        }
        () => {
            return Err(Fault::File(
                format!(
                    "`finish_reason` is {:?}, of which nobody knows whether it was cut off",
                    excerpt(reason, SHOWN)
                ),
                "write `stop` for one that ended and `length` for one that was cut off",
            ));
        }
    };
    if truncated.is_some_and(|truncated| truncated != cut_off) {
        return Err(Fault::File(
            format!(
                "`truncated` is {}, but `finish_reason` is {reason}",
                !cut_off
            ),
            "mend the row, or leave one of the columns out",
        ));
    }
    Ok(Some(cut_off))
}
