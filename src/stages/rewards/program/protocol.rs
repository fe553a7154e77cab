//! What is said to a program and what it answers: lines of JSON.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::received::Question;
use crate::excerpt::{NAME, excerpt};
use crate::hint::Hint;

pub(super) const PROTOCOL: Hint = Hint::new(
    "a line `{\"prompts\": [...], \"completions\": [...]}` is answered by one line `{\"rewards\": [...]}`, and nothing else is \
     written to standard output: print to standard error",
);

const FINITE: Hint = Hint::new("a reward is a finite number in the range of 32 bits");
#[derive(Serialize)]
struct RequestLine<'a> {
    prompts: Vec<&'a str>,
    completions: Vec<&'a str>,
    finished: Vec<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    prefixes: bool,
    #[serde(skip_serializing_if = "indexmap::IndexMap::is_empty")]
    columns: indexmap::IndexMap<&'a str, Vec<Option<&'a str>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerLine {
    rewards: Vec<Box<RawValue>>,
}

/// Writes a request about some texts; `columns` names what the program is told with each prompt.
pub(super) fn request(questions: &[Question], columns: &[String]) -> serde_json::Result<String> {
    let columns = columns.iter().enumerate().map(|(place, name)| {
        let values = questions
            .iter()
            .map(|question| question.columns[place].as_deref());
        (name.as_str(), values.collect())
    });
    let texts = |text: fn(&Question) -> &String| {
        let texts = questions.iter().map(|question| text(question).as_str());
        texts.collect()
    };
    let mut line = serde_json::to_string(&RequestLine {
        prompts: texts(|question| &question.prompt),
        completions: texts(|question| &question.completion),
        finished: questions.iter().map(|question| question.finished).collect(),
        prefixes: questions.iter().any(|question| question.prefix),
        columns: columns.collect(),
    })?;
    line.push('\n');
    Ok(line)
}

/// Reads an answer of so many rewards; says what is wrong with it.
pub(super) fn rewards_in(line: &[u8], count: usize) -> Result<Vec<f64>, (String, Hint)> {
    let text = std::str::from_utf8(line).map_err(|_| ("it is no UTF-8".to_owned(), PROTOCOL))?;
    if !text.trim_start().starts_with('{') {
        return Err(("it is no answer: it is no object".to_owned(), PROTOCOL));
    }
    let parsed = serde_json::from_str::<AnswerLine>(text);
    let answer = parsed.map_err(|error| {
        // Python writes these, JSON has none of them.
        if error.is_syntax() && ["NaN", "Infinity"].iter().any(|word| text.contains(word)) {
            ("a reward is no finite number".to_owned(), FINITE)
        } else {
            (format!("it is no answer: {error}"), PROTOCOL)
        }
    })?;
    if answer.rewards.len() != count {
        let found = answer.rewards.len();
        return Err((
            format!("it has {found} rewards for {count} completions"),
            PROTOCOL,
        ));
    }
    let rewards = answer.rewards.iter().enumerate().map(|(at, reward)| {
        let number = serde_json::from_str::<f64>(reward.get()).ok();
        let usable = number.filter(|number| (*number as f32).is_finite());
        usable.ok_or_else(|| {
            let found = excerpt(reward.get(), NAME);
            (
                format!("reward {at} is {found}, expected a finite number"),
                FINITE,
            )
        })
    });
    rewards.collect()
}
