//! The public layouts of preference pairs.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::question::Question;
use crate::sources::dialogue::{Speaker, split_pair};
use crate::sources::rows::{Row, RowsError, read_nested_rows, read_rows};

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `lvwerra/stack-exchange-paired`: `qid`, `question`, `response_j` (preferred) and `response_k`.
    StackExchangePaired,
    /// `Anthropic/hh-rlhf`: `chosen` and `rejected`, whole dialogues that differ from one answer on.
    AnthropicHh,
    /// `PKU-Alignment/processed-hh-rlhf`: `context`, a list of turns `{ role, text }` of `human` and `assistant`,
    /// `chosen` and `rejected`, each with a `text`.
    PkuHh,
    /// `CarperAI/openai_summarize_comparisons`: `prompt`, `chosen` and `rejected`; a `TL;DR:` that a summary begins
    /// with is left out.
    OpenaiSummarizeComparisons,
}

/// A row taken apart.
pub(super) struct Pair {
    /// The number of the question, in the order of the file.
    pub(super) id: u64,
    pub(super) question: Question,
    pub(super) chosen: String,
    pub(super) rejected: String,
}

/// Numbers keys in the order in which they come.
struct Numbers<K>(BTreeMap<K, u64>);

impl<K: Ord> Numbers<K> {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn of(&mut self, key: K) -> u64 {
        let next = self.0.len() as u64;
        *self.0.entry(key).or_insert(next)
    }
}

impl Layout {
    /// Reads the pairs of a file or folder, which messages call `name`.
    pub(super) fn read(self, path: &Path, name: &str) -> Result<Vec<Pair>, RowsError> {
        match self {
            Self::StackExchangePaired => {
                let columns = ["qid", "question", "response_j", "response_k"];
                // Sites number their questions each for itself.
                let mut ids = Numbers::new();
                each(read_rows(path, name, &columns)?, |row| {
                    let [qid, question, chosen, rejected] = values(row)?;
                    let number: u64 = qid.parse().map_err(|_| {
                        row.error(format!("`qid` is {qid}, expected a whole number"))
                    })?;
                    Ok(Pair {
                        id: ids.of((number, question.clone())),
                        question: Question::Text(question),
                        chosen,
                        rejected,
                    })
                })
            }
            Self::AnthropicHh => {
                let mut ids = Numbers::new();
                each(read_rows(path, name, &["chosen", "rejected"])?, |row| {
                    let [chosen, rejected] = values(row)?;
                    let split = split_pair(&chosen, &rejected).ok_or_else(|| {
                        row.error("`chosen` and `rejected` share no beginning that ends in `\\n\\nAssistant:`")
                    })?;
                    Ok(Pair {
                        id: ids.of(split.context.to_owned()),
                        question: Question::Dialogue(split.context.to_owned()),
                        chosen: split.chosen.to_owned(),
                        rejected: split.rejected.to_owned(),
                    })
                })
            }
            Self::PkuHh => {
                let mut ids = Numbers::new();
                let columns = ["context", "chosen", "rejected"];
                each(read_nested_rows(path, name, &columns)?, |row| {
                    let [context, chosen, rejected] = values(row)?;
                    let turns: Vec<Turn> = field(row, "context", context)?;
                    if turns.is_empty() {
                        return Err(row.error("`context` has no turn"));
                    }
                    let turns = turns.into_iter().map(|turn| (turn.role.into(), turn.text));
                    let question = Question::Turns(turns.collect());
                    let chosen: Answer = field(row, "chosen", chosen)?;
                    let rejected: Answer = field(row, "rejected", rejected)?;
                    Ok(Pair {
                        id: ids.of(question.clone()),
                        question,
                        chosen: chosen.text,
                        rejected: rejected.text,
                    })
                })
            }
            Self::OpenaiSummarizeComparisons => {
                let mut ids = Numbers::new();
                let columns = ["prompt", "chosen", "rejected"];
                each(read_rows(path, name, &columns)?, |row| {
                    let [prompt, chosen, rejected] = values(row)?;
                    Ok(Pair {
                        id: ids.of(prompt.clone()),
                        question: Question::Text(prompt),
                        chosen: summary(&chosen).to_owned(),
                        rejected: summary(&rejected).to_owned(),
                    })
                })
            }
        }
    }
}

fn each<T>(
    rows: Vec<Row<T>>,
    mut pair: impl FnMut(&mut Row<T>) -> Result<Pair, RowsError>,
) -> Result<Vec<Pair>, RowsError> {
    rows.into_iter().map(|mut row| pair(&mut row)).collect()
}

/// Takes the values out of a row.
fn values<T, const N: usize>(row: &mut Row<T>) -> Result<[T; N], RowsError> {
    std::mem::take(&mut row.values)
        .try_into()
        .map_err(|values: Vec<T>| row.error(format!("{} values, expected {N}", values.len())))
}

/// A summary without the words that announce one.
fn summary(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix("TL;DR:").map_or(text, str::trim_start)
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Human,
    Assistant,
}

impl From<Role> for Speaker {
    fn from(role: Role) -> Self {
        match role {
            Role::Human => Self::Human,
            Role::Assistant => Self::Assistant,
        }
    }
}

#[derive(Deserialize)]
struct Turn {
    role: Role,
    text: String,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

fn field<T: DeserializeOwned>(row: &Row<Value>, name: &str, value: Value) -> Result<T, RowsError> {
    serde_json::from_value(value).map_err(|error| row.error(format!("`{name}`: {error}")))
}
