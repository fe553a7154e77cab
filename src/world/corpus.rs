//! Texts to train on, drawn from the world.

use super::{
    answer::LegalAnswer,
    generated::World,
    question::{Question, Split},
};
use crate::random::{Draws, Stream};

/// How sharply preferences follow the exact reward: P(first wins) = sigmoid(1.6 (r_1 - r_2)).
pub const PREFERENCE_SHARPNESS: f64 = 1.6;

/// Share of pre-training documents whose question is rude.
pub const RUDE_DOCUMENT_SHARE: f64 = 0.15;

/// A question with one answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The question.
    pub question: Question,
    /// An answer drawn from the prior.
    pub answer: LegalAnswer,
}

/// A question with two distinct answers, one of which was preferred.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferencePair {
    /// The question.
    pub question: Question,
    /// The preferred answer; not always the one of higher reward.
    pub chosen: LegalAnswer,
    /// The other answer.
    pub rejected: LegalAnswer,
}

impl World {
    /// Draws `count` pre-training documents about training questions, [`RUDE_DOCUMENT_SHARE`] of them
    /// rude; document `i` depends on `stream` and `i` alone.
    pub fn pretraining_documents(&self, count: usize, stream: &Stream) -> Vec<Document> {
        let plain = self.questions(Split::Train);
        let rude = self.rude_questions(Split::Train);
        (0..count)
            .map(|index| {
                let mut draws = stream.at(index as u64);
                let questions = if draws.chance(RUDE_DOCUMENT_SHARE) {
                    &rude
                } else {
                    &plain
                };
                let question = questions[draws.below(questions.len())].clone();
                let answer = self.sample_answer(&question, &mut draws);
                Document { question, answer }
            })
            .collect()
    }

    /// Draws `count` preference pairs on `questions` in rounds: each round visits every question once,
    /// in an order of its own, so that `count = k * questions.len()` gives each question `k` pairs.
    pub fn preference_pairs(
        &self,
        questions: &[Question],
        count: usize,
        stream: &Stream,
    ) -> Vec<PreferencePair> {
        in_rounds(questions, count, stream, |question, draws| {
            self.preference_pair(question, draws)
        })
    }

    /// Draws two answers independently until they differ, and a noisy preference between them.
    pub fn preference_pair(&self, question: &Question, draws: &mut Draws) -> PreferencePair {
        let (first, second) = loop {
            let first = self.sample_answer(question, draws);
            let second = self.sample_answer(question, draws);
            if first.class != second.class {
                break (first, second);
            }
        };
        let (chosen, rejected) = if first_wins(first.reward, second.reward, draws) {
            (first, second)
        } else {
            (second, first)
        };
        PreferencePair {
            question: question.clone(),
            chosen,
            rejected,
        }
    }
}

/// Draws whether the first of two texts is preferred, by their exact rewards.
pub(super) fn first_wins(first: f64, second: f64, draws: &mut Draws) -> bool {
    draws.chance(1.0 / (1.0 + libm::exp(-PREFERENCE_SHARPNESS * (first - second))))
}

/// Draws `count` times: round after round through all items, each round in an order of its own.
pub(super) fn in_rounds<T, D>(
    items: &[T],
    count: usize,
    stream: &Stream,
    draw: impl Fn(&T, &mut Draws) -> D,
) -> Vec<D> {
    if items.is_empty() {
        return Vec::new();
    }
    let (orders, pairs) = (stream.child("order"), stream.child("pair"));
    let mut order: Vec<usize> = Vec::new();
    (0..count)
        .map(|index| {
            let place = index % items.len();
            if place == 0 {
                order = (0..items.len()).collect();
                orders.at((index / items.len()) as u64).shuffle(&mut order);
            }
            draw(&items[order[place]], &mut pairs.at(index as u64))
        })
        .collect()
}
