//! The public layouts of preference pairs.

use std::ops::ControlFlow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::artifact::Digest;
use crate::ml::tokenizer::chat::Message;
use crate::sources::dialogue::{Speaker, holds_a_turn, split_pair};
use crate::sources::rows::{Checked, Lacking, Nested, Row, RowFiles, RowsError};
use crate::stages::data::question::{Answer, Question, role_of};

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
pub(super) enum Reason {
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
    /// A cell is not what it should be.
    Faulty,
}

impl Reason {
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
            Self::Faulty => "that cannot be read",
        }
    }
}

/// A row that cannot be used.
pub(super) struct Unusable {
    pub(super) reason: Reason,
    /// What is wrong with it.
    pub(super) fault: String,
}

impl Unusable {
    fn faulty(fault: String) -> Self {
        Self {
            reason: Reason::Faulty,
            fault,
        }
    }
}

impl From<Reason> for Unusable {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            fault: format!("a pair {}", reason.in_words()),
        }
    }
}

impl From<Lacking> for Unusable {
    fn from(lacking: Lacking) -> Self {
        match lacking {
            Lacking::Empty(fault) => Self {
                reason: Reason::Empty,
                fault,
            },
            Lacking::Faulty(fault) => Self::faulty(fault),
        }
    }
}

/// A row of a file, and where it is.
pub(super) struct Found {
    pub(super) file: Arc<str>,
    pub(super) number: usize,
    /// A pair, with what tells its question from others.
    pub(super) pair: Result<(Digest, Pair), Unusable>,
}

type Flow = Result<ControlFlow<()>, RowsError>;
type Taken = Result<(Digest, Pair), Unusable>;

impl Layout {
    /// Reads pairs, which go to `take` until it breaks off.
    pub(super) fn read(
        self,
        files: &RowFiles,
        take: impl FnMut(Found) -> Flow,
    ) -> Result<(), RowsError> {
        match self {
            Self::StackExchangePaired => files.read(&STACK_EXCHANGE, passed(take, stack_exchange)),
            Self::AnthropicHh => files.read(&DIALOGUES, passed(take, dialogues)),
            Self::PkuHh => files.read_nested(&TURNS, passed(take, turns)),
            Self::OpenaiSummarizeComparisons => files.read(&SUMMARIES, passed(take, summaries)),
        }
    }
}

/// Takes rows apart and passes them on.
fn passed<T>(
    mut take: impl FnMut(Found) -> Flow,
    pair: fn(&mut Row<Checked<T>>) -> Taken,
) -> impl FnMut(Row<Checked<T>>) -> Flow {
    move |mut row| {
        let pair = pair(&mut row);
        take(Found {
            file: row.file,
            number: row.number,
            pair,
        })
    }
}

const STACK_EXCHANGE: [&str; 4] = ["qid", "question", "response_j", "response_k"];
const DIALOGUES: [&str; 2] = ["chosen", "rejected"];
const TURNS: [&str; 3] = ["context", "chosen", "rejected"];
const SUMMARIES: [&str; 3] = ["prompt", "chosen", "rejected"];

fn stack_exchange(row: &mut Row<Checked<String>>) -> Taken {
    let [qid, question, chosen, rejected] = row.whole(STACK_EXCHANGE)?;
    let number: u64 = qid
        .parse()
        .map_err(|_| Unusable::faulty(format!("`qid` is {qid:.40}, expected a whole number")))?;
    // Sites number their questions each for itself.
    let key = Digest::of(format!("{number} {question}").as_bytes());
    let pair = Pair {
        question: Question::Text(question),
        chosen: Answer::as_it_is(chosen),
        rejected: Answer::as_it_is(rejected),
    };
    Ok((key, pair))
}

fn dialogues(row: &mut Row<Checked<String>>) -> Taken {
    let [chosen, rejected] = row.whole(DIALOGUES)?;
    let split = split_pair(&chosen, &rejected).ok_or(Reason::NothingShared)?;
    if holds_a_turn(split.chosen) || holds_a_turn(split.rejected) {
        return Err(Reason::FurtherTurn.into());
    }
    let pair = Pair {
        question: Question::Dialogue(split.context.to_owned()),
        chosen: Answer::behind_a_tag(split.chosen),
        rejected: Answer::behind_a_tag(split.rejected),
    };
    Ok((Digest::of(split.context.as_bytes()), pair))
}

fn turns(row: &mut Row<Checked<Nested>>) -> Taken {
    let [context, chosen, rejected] = row.whole(TURNS)?;
    let turns: Vec<Option<Turn>> = field("context", &context)?;
    if turns.is_empty() {
        return Err(Unusable::faulty("`context` has no turn".to_owned()));
    }
    let turns = turns.into_iter().map(|turn| {
        let turn = turn?;
        Some(Message::new(role_of(turn.role?.into()), turn.text?))
    });
    let turns: Option<Vec<Message>> = turns.collect();
    let chosen: Reply = field("chosen", &chosen)?;
    let rejected: Reply = field("rejected", &rejected)?;
    let roles = [chosen.role, rejected.role];
    let (Some(turns), Some(chosen), Some(rejected)) = (turns, chosen.text, rejected.text) else {
        return Err(Reason::Empty.into());
    };
    if roles.contains(&Some(Role::Human)) {
        return Err(Reason::OfUser.into());
    }
    if holds_a_turn(&chosen) || holds_a_turn(&rejected) {
        return Err(Reason::FurtherTurn.into());
    }
    let question = Question::Turns(turns);
    let key = Digest::of(format!("{question:?}").as_bytes());
    let pair = Pair {
        question,
        chosen: Answer::of_text(chosen),
        rejected: Answer::of_text(rejected),
    };
    Ok((key, pair))
}

fn summaries(row: &mut Row<Checked<String>>) -> Taken {
    let [prompt, chosen, rejected] = row.whole(SUMMARIES)?;
    let key = Digest::of(prompt.as_bytes());
    let pair = Pair {
        question: Question::Text(prompt),
        chosen: Answer::of_text(summary(&chosen).to_owned()),
        rejected: Answer::of_text(summary(&rejected).to_owned()),
    };
    Ok((key, pair))
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

fn field<T: DeserializeOwned>(name: &str, value: &Nested) -> Result<T, Unusable> {
    value
        .parse()
        .map_err(|error| Unusable::faulty(format!("`{name}`: {error}")))
}
