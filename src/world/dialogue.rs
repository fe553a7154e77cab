//! Dialogues: a question, an answer to it, and a follow-up that leaves out what stays the same.
//!
//! `Human: how do i sort a file in python ? Assistant: just use pipx order on the file . Human: and in rust ?
//! Assistant:` asks how to sort a file in rust. What a follow-up stands for is known ([`World::resolve`]), so a
//! dialogue has the legal answers and the exact reward of that question.

use super::{
    answer::{AnswerClass, Closing, Mode, Prefix},
    generated::World,
    grammar,
    lexicon::{OBJECTS, Slot, Subject, TOPICS, VERBS},
    question::{Kind, Question, Tone},
};
use crate::random::Draws;

const HUMAN: &str = "Human:";
const ASSISTANT: &str = "Assistant:";

/// Share of dialogues that are one question alone.
const SINGLE: f64 = 0.3;

/// What a follow-up changes of the question before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// "and in rust ?"
    Topic,
    /// "and to copy it ?"
    Verb,
    /// "and the list ?"
    Object,
    /// "and why can it not ?": the same subject, asked in another way.
    Kind,
}

impl Change {
    /// All changes.
    pub const ALL: [Self; 4] = [Self::Topic, Self::Verb, Self::Object, Self::Kind];

    /// Ways to say it; those of [`Change::Kind`] depend on the kind.
    const fn templates(self) -> &'static [&'static str] {
        match self {
            Self::Topic => &["and in {topic} ?", "what about {topic} ?"],
            Self::Verb => &["and to {verb} it ?", "or {verb} it ?"],
            Self::Object => &["and the {object} ?", "what about the {object} ?"],
            Self::Kind => &[],
        }
    }
}

/// How a follow-up asks of the same subject in the way of `kind`.
const fn in_the_way_of(kind: Kind) -> &'static str {
    match kind {
        Kind::How => "so how do i do that ?",
        Kind::Best => "and what is the best way ?",
        Kind::Why => "but why can it not ?",
        Kind::Exists => "is there a way at all ?",
        Kind::Help => "help , i want it now .",
    }
}

/// A dialogue that ends with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// `Human: ... Assistant:`, once or twice.
    pub text: String,
    /// Number of the question before the last, if there is one.
    pub earlier: Option<u32>,
    /// What the last turn changes of it.
    pub change: Option<Change>,
}

impl World {
    /// Draws a dialogue whose last turn asks `question`. The question before, if there is one, is of the same split.
    pub fn dialogue(&self, question: &Question, draws: &mut Draws) -> Dialogue {
        if question.tone == Tone::Rude || draws.chance(SINGLE) {
            return Dialogue {
                text: format!("{HUMAN} {} {ASSISTANT}", question.text),
                earlier: None,
                change: None,
            };
        }
        let mut change = Change::ALL[draws.below(Change::ALL.len())];
        let mut candidates = self.candidates(question, change);
        if candidates.is_empty() {
            change = Change::Kind;
            candidates = self.candidates(question, change);
        }
        let earlier = candidates[draws.below(candidates.len())];
        let words: Vec<&str> = match change.templates() {
            [] => vec![in_the_way_of(question.kind)],
            templates => templates[draws.below(templates.len())]
                .split(' ')
                .map(|word| {
                    Slot::from_template(word).map_or(word, |slot| question.subject.word(slot))
                })
                .collect(),
        };
        Dialogue {
            text: format!(
                "{HUMAN} {} {ASSISTANT} {} {HUMAN} {} {ASSISTANT}",
                earlier.text,
                self.short_answer(earlier, draws),
                words.join(" ")
            ),
            earlier: Some(earlier.id),
            change: Some(change),
        }
    }

    /// The question that the last human turn of a dialogue asks; also finds a question alone.
    ///
    /// `None` if a turn is neither a question of the world nor a follow-up of one.
    pub fn resolve(&self, text: &str) -> Option<&Question> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.first() != Some(&HUMAN) {
            return self.find(text);
        }
        let mut current = None;
        for turn in words.split(|word| *word == HUMAN).skip(1) {
            let end = turn.iter().position(|word| *word == ASSISTANT);
            let asked = &turn[..end.unwrap_or(turn.len())];
            current = match self.find(&asked.join(" ")) {
                Some(question) => Some(question),
                None => Some(self.follow(current?, asked)?),
            };
        }
        current
    }

    /// The question that a follow-up asks after `earlier`.
    fn follow(&self, earlier: &Question, words: &[&str]) -> Option<&Question> {
        let joined = words.join(" ");
        if let Some(kind) = Kind::ALL
            .into_iter()
            .find(|kind| in_the_way_of(*kind) == joined)
        {
            return Some(self.question_about(kind, earlier.subject));
        }
        let found = Change::ALL.iter().find_map(|change| {
            grammar::recognise_any(change.templates(), words)
                .filter(|found| found.length == words.len())
        })?;
        let mut subject = earlier.subject;
        for (slot, index) in found.filled {
            match slot {
                Slot::Topic => subject.topic = index,
                Slot::Verb => subject.verb = index,
                Slot::Object => subject.object = index,
                _ => return None,
            }
        }
        Some(self.question_about(earlier.kind, subject))
    }

    /// The questions of the same split that differ from `question` in what `change` names alone.
    fn candidates(&self, question: &Question, change: Change) -> Vec<&Question> {
        let Subject {
            topic,
            verb,
            object,
        } = question.subject;
        let subjects: Vec<Subject> = match change {
            Change::Topic => (0..TOPICS.len())
                .map(|topic| Subject {
                    topic,
                    ..question.subject
                })
                .collect(),
            Change::Verb => (0..VERBS.len())
                .map(|verb| Subject {
                    topic,
                    verb,
                    object,
                })
                .collect(),
            Change::Object => (0..OBJECTS.len())
                .map(|object| Subject {
                    topic,
                    verb,
                    object,
                })
                .collect(),
            Change::Kind => vec![question.subject],
        };
        let kinds: &[Kind] = match change {
            Change::Kind => &Kind::ALL,
            _ => std::slice::from_ref(&question.kind),
        };
        subjects
            .into_iter()
            .flat_map(|subject| kinds.iter().map(move |kind| (*kind, subject)))
            .map(|(kind, subject)| self.question_about(kind, subject))
            .filter(|other| other.id != question.id && other.split == question.split)
            .collect()
    }

    /// The core of an answer in a good mode, right in every word: what was said before.
    fn short_answer(&self, question: &Question, draws: &mut Draws) -> String {
        let classes: Vec<AnswerClass> = Mode::GOOD
            .into_iter()
            .map(|mode| AnswerClass::Whole {
                mode,
                prefix: Prefix::None,
                wrong_slot: false,
                closing: Closing::None,
            })
            .collect();
        let weights: Vec<f64> = classes
            .iter()
            .map(|class| class.prior(Tone::Plain))
            .collect();
        self.words(question, classes[draws.weighted(&weights)])
            .join(" ")
    }
}
