//! What a language model is asked as a judge, and how its answer is read.
//!
//! The forms are those that the DPO paper (Rafailov et al. 2023, appendix C) describes, in words of our own: the query,
//! both completions under letters, first a comparison in one sentence, then the verdict on a line of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::artifacts::judgements::{Order, Verdict};

/// What the judge is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Template {
    /// Which reply to a user's query is more helpful.
    Hh,
    /// Which summary of a forum post is better at its most important points.
    TldrSimple,
    /// The same, and without what is unimportant: judges of the simple form favour long summaries.
    TldrConcise,
}

impl Template {
    /// Writes the question for the judge.
    pub(super) fn prompt(self, query: &str, first: &str, second: &str) -> String {
        let (query, first, second) = (query.trim(), first.trim(), second.trim());
        let (task, source, item) = match self {
            Self::Hh => (
                "A user sent the query below to a chatbot. Which of the two responses is more helpful?",
                "Query",
                "Response",
            ),
            Self::TldrSimple => (
                "Which of the two summaries below does a better job of giving the most important points of the forum \
                 post?",
                "Post",
                "Summary",
            ),
            Self::TldrConcise => (
                "Which of the two summaries below does a better job of giving the most important points of the forum \
                 post, without unimportant or irrelevant details? A good summary is both precise and concise.",
                "Post",
                "Summary",
            ),
        };
        let criterion = match self {
            Self::Hh => "saying which one you find more helpful, and why",
            Self::TldrSimple | Self::TldrConcise => "saying which one you prefer, and why",
        };
        let label = self.label();
        let items = item.to_lowercase();
        let items = match items.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{items}s"),
        };
        format!(
            "{task}\n\n{source}:\n{query}\n\n{item} A:\n{first}\n\n{item} B:\n{second}\n\nFIRST compare the two {items} in \
             one sentence, {criterion}. SECOND, on a new line, write only \"A\" or \"B\" as your choice. Use this \
             form:\nComparison: <one sentence>\n{label}: <\"A\" or \"B\">"
        )
    }

    /// What stands before the verdict.
    fn label(self) -> &'static str {
        match self {
            Self::Hh => "More helpful",
            Self::TldrSimple | Self::TldrConcise => "Preferred",
        }
    }

    /// Reads the verdict on the last line that has one; the judge saw the pair in this order.
    pub(super) fn verdict(self, answer: &str, order: Order) -> Verdict {
        let label = self.label().to_lowercase();
        let letter = answer.lines().rev().find_map(|line| {
            let line = line.to_lowercase();
            let line = line.trim_start_matches(is_decoration);
            let rest = line.strip_prefix(&label)?.trim_start_matches(is_decoration);
            Some(
                rest.strip_prefix(':')?
                    .trim_matches(is_decoration)
                    .to_owned(),
            )
        });
        let letter = letter.as_deref().map(|text| {
            let bare = text
                .strip_prefix("response ")
                .or(text.strip_prefix("summary "));
            bare.unwrap_or(text)
        });
        match (letter, order) {
            (Some("a"), Order::OpponentFirst) | (Some("b"), Order::CompletionFirst) => {
                Verdict::Loss
            }
            (Some("a" | "b"), _) => Verdict::Win,
            _ => Verdict::Unparsable,
        }
    }
}

/// Signs that models put around words.
fn is_decoration(sign: char) -> bool {
    sign.is_whitespace() || "\"'`*_#>-[](){}<.,".contains(sign) || "\u{201c}\u{201d}".contains(sign)
}

/// Returns what the model says in the reply of a server, empty if it says nothing (it refused); or why this is no such
/// reply.
pub(super) fn answer_of(reply: &str) -> Result<String, String> {
    let json: Json =
        serde_json::from_str(reply).map_err(|error| format!("the reply is no JSON: {error}"))?;
    let message = json
        .pointer("/choices/0/message")
        .and_then(Json::as_object)
        .ok_or_else(|| "the reply has no `choices[0].message`".to_owned())?;
    match message.get("content") {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(_) => Err("the reply's `content` is no text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_and_both_completions_are_in_the_prompt_in_their_order() {
        for template in [Template::Hh, Template::TldrSimple, Template::TldrConcise] {
            let prompt = template.prompt(" the query ", "first one", "second one\n");
            let places: Vec<usize> = [
                "the query\n",
                "A:\nfirst one\n",
                "B:\nsecond one\n",
                "FIRST",
                "SECOND",
            ]
            .iter()
            .map(|part| {
                prompt
                    .find(part)
                    .unwrap_or_else(|| panic!("no {part} in {prompt}"))
            })
            .collect();
            assert!(places.is_sorted(), "{prompt}");
            assert!(prompt.ends_with(&format!("{}: <\"A\" or \"B\">", template.label())));
        }
        let summaries = Template::TldrConcise.prompt("q", "a", "b");
        assert!(summaries.contains("compare the two summaries") && summaries.contains("concise"));
        assert!(
            !Template::TldrSimple
                .prompt("q", "a", "b")
                .contains("concise")
        );
    }

    #[test]
    fn verdicts_are_read_from_the_side_of_the_completion() {
        let read = |text: &str, order| Template::Hh.verdict(text, order);
        let (ours, theirs) = (Order::CompletionFirst, Order::OpponentFirst);
        for text in [
            "Comparison: A is short.\nMore helpful: A",
            "**More helpful:** \"A\"",
            "more helpful: Response A.\n\n",
            "More helpful: B\nOn reflection:\nMore helpful: [A]",
        ] {
            assert_eq!(read(text, ours), Verdict::Win, "{text}");
            assert_eq!(read(text, theirs), Verdict::Loss, "{text}");
        }
        assert_eq!(read("More helpful: B", ours), Verdict::Loss);
        assert_eq!(read("More helpful: B", theirs), Verdict::Win);
        for text in [
            "",
            "A",
            "More helpful:",
            "More helpful: both",
            "More helpful: A or B",
            "More helpful: Absolutely neither",
            "Preferred: A",
            "Comparison: more helpful: A",
        ] {
            assert_eq!(read(text, ours), Verdict::Unparsable, "{text}");
        }
        assert_eq!(
            Template::TldrSimple.verdict("Preferred: Summary B", theirs),
            Verdict::Win
        );
    }

    #[test]
    fn replies_hold_an_answer_or_say_why_not() {
        let reply = r#"{"choices":[{"message":{"role":"assistant","content":"hi"}}]}"#;
        assert_eq!(answer_of(reply).unwrap(), "hi");
        let refusal = r#"{"choices":[{"message":{"content":null,"refusal":"no"}}]}"#;
        assert_eq!(answer_of(refusal).unwrap(), "");
        for wrong in ["", "<html>", "{}", r#"{"choices":[]}"#, &reply[..40]] {
            assert!(answer_of(wrong).is_err(), "{wrong}");
        }
    }
}
