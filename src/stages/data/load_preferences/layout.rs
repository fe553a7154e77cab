//! The public layouts of preference pairs.

use std::ops::ControlFlow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::artifact::Digest;
use crate::sources::dialogue::{Speaker, holds_a_turn, split_pair};
use crate::sources::rows::{Nested, Row, RowFiles, RowsError};
use crate::stages::data::question::{Answer, Question};

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `lvwerra/stack-exchange-paired`: `qid`, `question`, `response_j` (preferred) and `response_k`.
    StackExchangePaired,
    /// `Anthropic/hh-rlhf`: `chosen` and `rejected`, whole dialogues that differ from one answer on. Pairs that part
    /// before their last answer, so that a side holds a further turn, are left out.
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
    pub(super) question: Question,
    pub(super) chosen: Answer,
    pub(super) rejected: Answer,
}

/// Why a row cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unusable {
    /// A cell or an answer is empty.
    Empty,
    /// Both answers are the same.
    Same,
    /// The question is too long.
    TooLong,
    /// The dialogues have no beginning in common.
    NothingShared,
    /// An answer holds a further turn.
    FurtherTurn,
    /// An answer is said to be the user's.
    OfUser,
}

impl Unusable {
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Empty => "with an empty cell or answer",
            Self::Same => "with twice the same answer",
            Self::TooLong => "with a question that is too long",
            Self::NothingShared => {
                "whose dialogues share no beginning that ends in `\\n\\nAssistant:`"
            }
            Self::FurtherTurn => "with a further turn in an answer",
            Self::OfUser => "with an answer of the role `human`",
        }
    }
}

/// What a row holds.
pub(super) enum Found {
    /// A pair, with what tells its question from others.
    Pair(Digest, Box<Pair>),
    Unusable(Unusable),
}

impl Layout {
    /// Reads pairs, which go to `take` with the name of their file until it breaks off. Returns how many rows have an
    /// empty cell.
    pub(super) fn read(
        self,
        files: &RowFiles,
        mut take: impl FnMut(&Arc<str>, Found) -> Result<ControlFlow<()>, RowsError>,
    ) -> Result<usize, RowsError> {
        match self {
            Self::StackExchangePaired => {
                let columns = ["qid", "question", "response_j", "response_k"];
                files.read(&columns, |mut row| {
                    let [qid, question, chosen, rejected] = values(&mut row)?;
                    let number: u64 = qid.parse().map_err(|_| {
                        row.error(format!("`qid` is {qid:.40}, expected a whole number"))
                    })?;
                    // Sites number their questions each for itself.
                    let key = Digest::of(format!("{number} {question}").as_bytes());
                    let pair = Pair {
                        question: Question::Text(question),
                        chosen: Answer::as_it_is(chosen),
                        rejected: Answer::as_it_is(rejected),
                    };
                    take(&row.file, Found::Pair(key, Box::new(pair)))
                })
            }
            Self::AnthropicHh => files.read(&["chosen", "rejected"], |mut row| {
                let [chosen, rejected] = values(&mut row)?;
                let Some(split) = split_pair(&chosen, &rejected) else {
                    return take(&row.file, Found::Unusable(Unusable::NothingShared));
                };
                if holds_a_turn(split.chosen) || holds_a_turn(split.rejected) {
                    return take(&row.file, Found::Unusable(Unusable::FurtherTurn));
                }
                let pair = Pair {
                    question: Question::Dialogue(split.context.to_owned()),
                    chosen: Answer::behind_a_tag(split.chosen),
                    rejected: Answer::behind_a_tag(split.rejected),
                };
                let key = Digest::of(split.context.as_bytes());
                take(&row.file, Found::Pair(key, Box::new(pair)))
            }),
            Self::PkuHh => {
                let columns = ["context", "chosen", "rejected"];
                files.read_nested(&columns, |mut row| {
                    let [context, chosen, rejected] = values(&mut row)?;
                    let turns: Vec<Option<Turn>> = field(&row, "context", &context)?;
                    if turns.is_empty() {
                        return Err(row.error("`context` has no turn"));
                    }
                    let turns = turns.into_iter().map(|turn| {
                        let turn = turn?;
                        Some((turn.role?.into(), turn.text?))
                    });
                    let turns: Option<Vec<(Speaker, String)>> = turns.collect();
                    let chosen: Reply = field(&row, "chosen", &chosen)?;
                    let rejected: Reply = field(&row, "rejected", &rejected)?;
                    let roles = [chosen.role, rejected.role];
                    let (Some(turns), Some(chosen), Some(rejected)) =
                        (turns, chosen.text, rejected.text)
                    else {
                        return take(&row.file, Found::Unusable(Unusable::Empty));
                    };
                    if roles.contains(&Some(Role::Human)) {
                        return take(&row.file, Found::Unusable(Unusable::OfUser));
                    }
                    if holds_a_turn(&chosen) || holds_a_turn(&rejected) {
                        return take(&row.file, Found::Unusable(Unusable::FurtherTurn));
                    }
                    let question = Question::Turns(String::new(), turns);
                    let key = Digest::of(format!("{question:?}").as_bytes());
                    let pair = Pair {
                        question,
                        chosen: Answer::of_text(chosen),
                        rejected: Answer::of_text(rejected),
                    };
                    take(&row.file, Found::Pair(key, Box::new(pair)))
                })
            }
            Self::OpenaiSummarizeComparisons => {
                let columns = ["prompt", "chosen", "rejected"];
                files.read(&columns, |mut row| {
                    let [prompt, chosen, rejected] = values(&mut row)?;
                    let key = Digest::of(prompt.as_bytes());
                    let pair = Pair {
                        question: Question::Text(prompt),
                        chosen: Answer::of_text(summary(&chosen).to_owned()),
                        rejected: Answer::of_text(summary(&rejected).to_owned()),
                    };
                    take(&row.file, Found::Pair(key, Box::new(pair)))
                })
            }
        }
    }
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

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
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

/// Fields must be there, but may be null.
#[derive(Deserialize)]
struct Turn {
    #[serde(deserialize_with = "Option::deserialize")]
    role: Option<Role>,
    #[serde(deserialize_with = "Option::deserialize")]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Reply {
    role: Option<Role>,
    #[serde(deserialize_with = "Option::deserialize")]
    text: Option<String>,
}

fn field<T: DeserializeOwned>(
    row: &Row<Nested>,
    name: &str,
    value: &Nested,
) -> Result<T, RowsError> {
    value
        .parse()
        .map_err(|error| row.error(format!("`{name}`: {error}")))
}
