//! What the columns of a data set are, and how rows of them become examples.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::excerpt::{NAME, excerpt};
use crate::ml::tokenizer::chat::Message;
use crate::sources::rows::Field;
use crate::stages::data::question::{Answer, Question};

/// How the rows of a data set are laid out. Prompts and completions are texts, or lists of messages `{ role, content }`
/// of `system`, `user` and `assistant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `prompt`, `chosen` and `rejected`; without `prompt` it is what both others begin with, to the last whole word or
    /// message. If these are whole conversations, a text `prompt` must be the first or last message of the user in what they
    /// begin with.
    PromptChosenRejected,
    /// `prompt`, `completion` and `label`, true for good completions (KTO), 1, or a word such as `good` or `desirable`: the
    /// first good one of a prompt is paired with its first bad one, and so on.
    PromptCompletionLabel,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `messages`: a conversation; its last message is the completion if it is the assistant's.
    Messages,
    /// `prompt`, `completions` and `scores`, two lists: the best completion is preferred to the worst.
    Ranked,
    /// `openbmb/UltraFeedback`: `instruction` and `completions`, whose `response` with the greatest `overall_score` is
    /// preferred to that with the least.
    Ultrafeedback,
    /// `nvidia/HelpSteer2`: `prompt`, `response` and `helpfulness`; of the rows of a prompt the most helpful response is
    /// preferred to the least.
    Helpsteer,
    /// `stanfordnlp/SHP`: `history`, `human_ref_A` and `human_ref_B`, the first of which is preferred if `labels` is 1.
    Shp,
    /// `PKU-Alignment/PKU-SafeRLHF`: `prompt`, `response_0`, `response_1` and `better_response_id`.
    PkuSafeRlhf,
    /// `openai/summarize_from_feedback` (comparisons): `info` with a `post` or `article`, two `summaries` and `choice`.
    SummarizeFromFeedback,
    /// `text`: documents. A prompt is the first word, so that `learn_prompts: true` learns all of it.
    Text,
    /// `prompt` alone.
    Prompt,
}

/// What a row holds.
pub(super) enum Found {
    /// A question with its preferred and its other answer.
    Answers(Question, Option<Answer>, Option<Answer>),
    /// An answer that is to be compared with others of its question: the greater the score the better.
    Scored(Question, Answer, f64),
    /// An answer that is good or bad.
    Labelled(Question, Answer, bool),
}

/// Why a row cannot be used.
pub(super) type Fault = String;

/// A prompt or completion.
#[derive(Debug, Clone, PartialEq)]
enum Content {
    Text(String),
    Messages(Vec<Message>),
}

impl Content {
    /// Whether it is more than a message.
    fn is_conversation(&self) -> bool {
        matches!(self, Self::Messages(messages) if messages.len() > 1)
    }

    /// Whether the first or the last message of the user is this one.
    fn asks(&self, text: &str) -> bool {
        let Self::Messages(messages) = self else {
            return false;
        };
        let mut asked = messages.iter().filter(|message| message.role == "user");
        let ends = [asked.next(), asked.next_back()];
        let mut said = ends.into_iter().flatten();
        said.any(|message| {
            message
                .content
                .as_deref()
                .is_some_and(|said| said.trim() == text.trim())
        })
    }
}

const ROLES: [&str; 3] = ["system", "user", "assistant"];

impl Layout {
    pub(super) const ALL: [Self; 12] = [
        Self::PromptChosenRejected,
        Self::PromptCompletionLabel,
        Self::PromptCompletion,
        Self::Messages,
        Self::Ranked,
        Self::Ultrafeedback,
        Self::Helpsteer,
        Self::Shp,
        Self::PkuSafeRlhf,
        Self::SummarizeFromFeedback,
        Self::Text,
        Self::Prompt,
    ];

    pub(super) fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(Json::String(name)) => name,
            _ => String::new(),
        }
    }

    /// The columns that a row must have.
    pub(super) fn needs(self) -> &'static [&'static str] {
        match self {
            Self::PromptChosenRejected => &["chosen", "rejected"],
            Self::PromptCompletionLabel => &["prompt", "completion", "label"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Messages => &["messages"],
            Self::Ranked => &["prompt", "completions", "scores"],
            Self::Ultrafeedback => &["instruction", "completions"],
            Self::Helpsteer => &["prompt", "response", "helpfulness"],
            Self::Shp => &["history", "human_ref_A", "human_ref_B", "labels"],
            Self::PkuSafeRlhf => &["prompt", "response_0", "response_1", "better_response_id"],
            Self::SummarizeFromFeedback => &["info", "summaries", "choice"],
            Self::Text => &["text"],
            Self::Prompt => &["prompt"],
        }
    }

    /// The columns that it may have beside these.
    pub(super) fn may_have(self) -> &'static [&'static str] {
        match self {
            Self::PromptChosenRejected => &["prompt"],
            _ => &[],
        }
    }

    /// All columns that it knows.
    pub(super) fn columns(self) -> impl Iterator<Item = &'static str> {
        self.needs().iter().chain(self.may_have()).copied()
    }

    /// Takes a row apart; `row` has the values of [`Self::needs`] and [`Self::may_have`] by these names.
    pub(super) fn found(self, row: &IndexMap<&'static str, &Field>) -> Result<Found, Fault> {
        let field = |name: &str| row.get(name).copied().unwrap_or(&Field::Empty);
        let value = |name: &str| json(name, field(name));
        let content = |name: &str| match field(name) {
            // As the file has them: other JSON has its keys in another order.
            Field::Typed(list) if list.as_json().starts_with('[') => messages(name, list.parse()),
            _ => content(name, value(name)?),
        };
        let text = |name: &str| match value(name)? {
            Json::String(text) => Ok(text),
            other => Err(format!("`{name}` is no text but {}", kind_of(&other))),
        };
        let number = |name: &str| number(name, &value(name)?);
        match self {
            Self::PromptChosenRejected => {
                let (chosen, rejected) = (content("chosen")?, content("rejected")?);
                let (prompt, chosen, rejected) = match value("prompt")? {
                    Json::Null => shared(chosen, rejected)?,
                    Json::String(text)
                        if chosen.is_conversation() && rejected.is_conversation() =>
                    {
                        let (prompt, chosen, rejected) = shared(chosen, rejected)?;
                        if !prompt.asks(&text) {
                            return Err(
                                "`prompt` is no message of the user that `chosen` and `rejected` begin with"
                                    .to_owned(),
                            );
                        }
                        (prompt, chosen, rejected)
                    }
                    _ => (content("prompt")?, chosen, rejected),
                };
                let question = question(prompt)?;
                Ok(Found::Answers(
                    question,
                    Some(answer(chosen)?),
                    Some(answer(rejected)?),
                ))
            }
            Self::PromptCompletionLabel => Ok(Found::Labelled(
                question(content("prompt")?)?,
                answer(content("completion")?)?,
                truth("label", &value("label")?)?,
            )),
            Self::PromptCompletion => {
                let question = question(content("prompt")?)?;
                Ok(Found::Answers(
                    question,
                    Some(answer(content("completion")?)?),
                    None,
                ))
            }
            Self::Messages => {
                let Content::Messages(mut messages) = content("messages")? else {
                    return Err("`messages` is no list of messages".to_owned());
                };
                let last = messages.pop_if(|last| last.role == "assistant");
                let last = last.map(Answer::of_message);
                Ok(Found::Answers(
                    question(Content::Messages(messages))?,
                    last,
                    None,
                ))
            }
            Self::Ranked => {
                let completions = list("completions", value("completions")?)?;
                let scores = list("scores", value("scores")?)?;
                if completions.len() != scores.len() {
                    return Err(format!(
                        "{} completions have {} scores",
                        completions.len(),
                        scores.len()
                    ));
                }
                let scored = completions
                    .into_iter()
                    .zip(&scores)
                    .map(|(completion, score)| {
                        Ok((
                            self::number("scores", score)?,
                            self::content("completions", completion)?,
                        ))
                    });
                best_and_worst(content("prompt")?, scored.collect::<Result<_, Fault>>()?)
            }
            Self::Ultrafeedback => {
                let completions = list("completions", value("completions")?)?;
                let scored = completions.into_iter().map(|completion| {
                    let score = self::number("overall_score", &completion["overall_score"])?;
                    Ok((
                        score,
                        self::content("response", completion["response"].clone())?,
                    ))
                });
                best_and_worst(
                    content("instruction")?,
                    scored.collect::<Result<_, Fault>>()?,
                )
            }
            Self::Helpsteer => Ok(Found::Scored(
                question(content("prompt")?)?,
                apart(content("response")?)?,
                number("helpfulness")?,
            )),
            Self::Shp => pair(
                Content::Text(text("history")?),
                [text("human_ref_A")?, text("human_ref_B")?],
                number("labels")? == 1.0,
            ),
            Self::PkuSafeRlhf => pair(
                content("prompt")?,
                [text("response_0")?, text("response_1")?],
                number("better_response_id")? == 0.0,
            ),
            Self::SummarizeFromFeedback => {
                let info = value("info")?;
                let asked = [&info["post"], &info["article"]]
                    .into_iter()
                    .find_map(|text| text.as_str())
                    .ok_or("`info` has no `post` or `article`")?;
                let summaries = list("summaries", value("summaries")?)?;
                let texts = summaries.iter().map(|summary| summary["text"].as_str());
                let texts: Option<Vec<&str>> = texts.collect();
                let Some([first, second]) = texts.as_deref() else {
                    return Err("`summaries` are not two with a `text`".to_owned());
                };
                let answers = [first, second].map(|text| text.trim().to_owned());
                pair(
                    Content::Text(asked.to_owned()),
                    answers,
                    number("choice")? == 0.0,
                )
            }
            Self::Text => {
                let text = text("text")?;
                let text = text.trim_start();
                let end = text
                    .find(char::is_whitespace)
                    .ok_or("it is one word or none")?;
                let (first, rest) = text.split_at(end);
                let question = Question::Text(first.to_owned());
                Ok(Found::Answers(
                    question,
                    Some(Answer::as_it_is(rest.to_owned())),
                    None,
                ))
            }
            Self::Prompt => Ok(Found::Answers(question(content("prompt")?)?, None, None)),
        }
    }
}

fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "nothing",
        Json::Bool(_) => "a truth",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "a map",
    }
}

fn content(name: &str, value: Json) -> Result<Content, Fault> {
    match value {
        Json::String(text) => Ok(Content::Text(text)),
        Json::Number(number) => Ok(Content::Text(number.to_string())),
        Json::Array(_) => messages(name, serde_json::from_value(value)),
        other => Err(format!(
            "`{name}` is neither text nor a list of messages but {}",
            kind_of(&other)
        )),
    }
}

fn messages(name: &str, read: Result<Vec<Message>, serde_json::Error>) -> Result<Content, Fault> {
    let messages = read.map_err(|error| format!("`{name}` is no list of messages: {error}"))?;
    let known = |message: &&Message| !ROLES.contains(&message.role.as_str());
    match messages.iter().find(known) {
        None => Ok(Content::Messages(messages)),
        Some(message) => Err(format!(
            "`{name}` has a message of the role {:?}, expected {}",
            excerpt(&message.role, NAME),
            ROLES.join(", ")
        )),
    }
}

/// Reads a value; what is empty is null.
fn json(name: &str, field: &Field) -> Result<Json, Fault> {
    match field {
        Field::Empty => Ok(Json::Null),
        Field::Written(text) if text.is_empty() => Ok(Json::Null),
        Field::Written(text) => Ok(Json::from(text.as_str())),
        Field::Typed(value) => value
            .parse()
            .map_err(|error| format!("`{name}` cannot be read: {error}")),
    }
}

fn list(name: &str, value: Json) -> Result<Vec<Json>, Fault> {
    match value {
        Json::Array(values) => Ok(values),
        other => Err(format!("`{name}` is no list but {}", kind_of(&other))),
    }
}

fn number(name: &str, value: &Json) -> Result<f64, Fault> {
    let number = match value {
        Json::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    let number = number.filter(|number| number.is_finite());
    number.ok_or_else(|| format!("`{name}` is no finite number but {}", kind_of(value)))
}

/// Words of labels that say true, and that say false: the names of classes, often.
const WORDS: [[&str; 5]; 2] = [
    ["true", "yes", "good", "desirable", "chosen"],
    ["false", "no", "bad", "undesirable", "rejected"],
];

fn truth(name: &str, value: &Json) -> Result<bool, Fault> {
    let found = match (value, number(name, value)) {
        (Json::Bool(value), _) => Some(*value),
        (_, Ok(1.0)) => Some(true),
        (_, Ok(0.0)) => Some(false),
        (Json::String(text), _) => {
            let word = text.trim().to_lowercase();
            let found = WORDS
                .iter()
                .position(|words| words.contains(&word.as_str()));
            found.map(|place| place == 0)
        }
        _ => None,
    };
    found.ok_or_else(|| {
        let [good, bad] = WORDS.map(|words| words.join(", "));
        let words = format!(": no word of {good} nor of {bad}");
        let words = value.as_str().map_or("", |_| words.as_str());
        let found = value.to_string();
        let found = excerpt(&found, NAME);
        format!("`{name}` is {found}, neither true nor false{words}")
    })
}

/// Makes a question of a prompt.
fn question(prompt: Content) -> Result<Question, Fault> {
    let messages = match prompt {
        Content::Text(text) if text.trim().is_empty() => {
            return Err("the prompt is empty".to_owned());
        }
        Content::Text(text) => return Ok(Question::Text(text)),
        Content::Messages(messages) => messages,
    };
    let mut roles = messages.iter().map(|message| message.role.as_str());
    match (
        roles.clone().skip(1).any(|role| role == "system"),
        roles.next_back(),
    ) {
        (true, _) => Err("a message of the system is not the first".to_owned()),
        (false, Some("user")) => Ok(Question::Turns(messages)),
        (false, Some("assistant")) => {
            Err("the prompt does not end with a message of the user".to_owned())
        }
        (false, _) => Err("the prompt has no message of the user".to_owned()),
    }
}

/// Makes an answer of a completion: text stands behind its prompt as it is.
fn answer(completion: Content) -> Result<Answer, Fault> {
    match completion {
        Content::Text(text) => Ok(Answer::as_it_is(text)),
        Content::Messages(messages) => match <[Message; 1]>::try_from(messages) {
            Ok([message]) if message.role == "assistant" => Ok(Answer::of_message(message)),
            _ => Err("a completion is not one message of the assistant".to_owned()),
        },
    }
}

/// Takes off what two completions begin with.
fn shared(chosen: Content, rejected: Content) -> Result<(Content, Content, Content), Fault> {
    match (chosen, rejected) {
        (Content::Text(chosen), Content::Text(rejected)) => {
            let letters = chosen.char_indices().zip(rejected.chars());
            let common = letters
                .take_while(|((_, first), second)| first == second)
                .last()
                .map_or(0, |((start, letter), _)| start + letter.len_utf8());
            // The space before a word belongs to it.
            let end = chosen[..common].rfind(char::is_whitespace).unwrap_or(0);
            let rest = |text: &str| Content::Text(text[end..].to_owned());
            Ok((
                Content::Text(chosen[..end].to_owned()),
                rest(&chosen),
                rest(&rejected),
            ))
        }
        (Content::Messages(chosen), Content::Messages(rejected)) => {
            let pairs = chosen.iter().zip(&rejected);
            let common = pairs.take_while(|(first, second)| first == second).count();
            // Of equal conversations the last message is the completion.
            let common = common.min(chosen.len().max(1) - 1);
            let rest = |messages: &[Message]| Content::Messages(messages[common..].to_vec());
            Ok((
                Content::Messages(chosen[..common].to_vec()),
                rest(&chosen),
                rest(&rejected),
            ))
        }
        _ => Err("`chosen` and `rejected` are not both text or both messages".to_owned()),
    }
}

/// Makes a pair of two texts, the first of which is preferred or not.
fn pair(prompt: Content, [first, second]: [String; 2], is_first: bool) -> Result<Found, Fault> {
    let (first, second) = (Answer::of_text(first), Answer::of_text(second));
    let (chosen, rejected) = if is_first {
        (first, second)
    } else {
        (second, first)
    };
    Ok(Found::Answers(
        question(prompt)?,
        Some(chosen),
        Some(rejected),
    ))
}

/// Makes a pair of the best and the worst of several completions; the first of equals counts.
fn best_and_worst(prompt: Content, scored: Vec<(f64, Content)>) -> Result<Found, Fault> {
    let best = scored
        .iter()
        .map(|(score, _)| *score)
        .fold(f64::MIN, f64::max);
    let worst = scored
        .iter()
        .map(|(score, _)| *score)
        .fold(f64::MAX, f64::min);
    if best <= worst {
        return Err("its completions do not differ in score".to_owned());
    }
    let of = |wanted: f64| {
        let found = scored.iter().find(|(score, _)| *score == wanted);
        found.map(|(_, completion)| completion.clone())
    };
    let (Some(chosen), Some(rejected)) = (of(best), of(worst)) else {
        return Err("it has no completion".to_owned());
    };
    Ok(Found::Answers(
        question(prompt)?,
        Some(apart(chosen)?),
        Some(apart(rejected)?),
    ))
}

/// Makes an answer whose file does not join it to its question.
fn apart(completion: Content) -> Result<Answer, Fault> {
    match completion {
        Content::Text(text) => Ok(Answer::of_text(text)),
        messages @ Content::Messages(_) => answer(messages),
    }
}
