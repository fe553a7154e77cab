//! The world's judgement of completions, whatever the prompt: a question, a dialogue, a post or a problem.

use super::{
    arithmetic::{self, Fault, GREATEST, Problem},
    generated::World,
    post::{Post, Posts},
    question::Question,
};

/// Judges the completions of prompts of the world of a seed.
#[derive(Debug, Clone)]
pub struct Examiner {
    world: World,
    posts: Posts,
}

/// What a prompt asks for.
#[derive(Debug, Clone)]
pub enum Exam<'a> {
    /// An answer to a question.
    Answer(&'a World, &'a Question),
    /// A summary of a post.
    Summary(&'a Posts, &'a Post),
    /// A derivation.
    Derivation(Problem),
}

/// What the world says of a completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marks {
    /// The exact reward.
    pub reward: f64,
    /// The mode of an answer, the form of a summary or the last operation of a derivation; `None` if the text is
    /// incoherent.
    pub mode: Option<&'static str>,
    /// Words that name the wrong thing; steps of a derivation that do not hold, of which the first counts alone.
    pub slot_errors: usize,
    /// Rude words.
    pub rude_words: usize,
    /// Words that were not understood.
    pub leftover_words: usize,
}

/// A legal completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Legal {
    /// Its text.
    pub text: String,
    /// Its mode or form, as in [`Marks`].
    pub mode: Option<&'static str>,
    /// The exact reward, ended by the end token.
    pub reward: f64,
    /// Natural logarithm of the probability with which the world gives it.
    pub log_prior: f64,
}

impl Examiner {
    /// Makes the examiner of the world of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            world: World::new(seed),
            posts: Posts::new(seed),
        }
    }

    /// Recognises the text of a question, a dialogue, a post or a problem.
    pub fn exam(&self, text: &str) -> Option<Exam<'_>> {
        let answer = || Some(Exam::Answer(&self.world, self.world.resolve(text)?));
        let summary = || Some(Exam::Summary(&self.posts, self.posts.find(text)?));
        let problem = || Some(Exam::Derivation(Problem::find(text, GREATEST)?));
        answer().or_else(summary).or_else(problem)
    }
}

impl Exam<'_> {
    /// Judges any completion; `ended` says whether the end token came.
    pub fn marks(&self, completion: &str, ended: bool) -> Marks {
        match self {
            Self::Answer(world, question) => {
                let read = world.assess(question, completion, ended);
                Marks {
                    reward: read.reward,
                    mode: read.mode.map(super::Mode::name),
                    slot_errors: read.slot_errors,
                    rude_words: read.rude_words,
                    leftover_words: read.leftover_words,
                }
            }
            Self::Summary(posts, post) => {
                let read = posts.read(post, completion, ended);
                Marks {
                    reward: read.reward(post.request),
                    mode: read.mode(),
                    slot_errors: read.wrong,
                    rude_words: read.rude_words,
                    leftover_words: read.leftover_words,
                }
            }
            Self::Derivation(problem) => {
                let read = problem.read(completion, true);
                let is_right = ended && problem.is_right(&read);
                let last = read.derivation.0.last();
                let is_untrue = matches!(read.fault, Some(Fault::Unavailable | Fault::Inexact));
                Marks {
                    reward: f64::from(u8::from(is_right)),
                    mode: last.map(|step| step.operation.name()),
                    slot_errors: usize::from(is_untrue),
                    rude_words: 0,
                    leftover_words: read.leftover_words,
                }
            }
        }
    }

    /// Every legal completion; their priors sum to 1. Of a problem these are the right derivations, as there are.
    pub fn legal(&self) -> Vec<Legal> {
        match self {
            Self::Answer(world, question) => world
                .legal_answers(question)
                .into_iter()
                .map(|answer| Legal {
                    text: answer.text,
                    mode: answer.mode.map(super::Mode::name),
                    reward: answer.reward,
                    log_prior: answer.log_prior,
                })
                .collect(),
            Self::Summary(posts, post) => posts
                .legal_summaries(post)
                .into_iter()
                .map(|summary| Legal {
                    mode: posts.read(post, &summary.text, true).mode(),
                    reward: summary.reward,
                    log_prior: libm::log(summary.class.prior()),
                    text: summary.text,
                })
                .collect(),
            Self::Derivation(problem) => {
                let right = problem.right_derivations();
                let log_priors = arithmetic::log_priors(&right);
                let legal = right.iter().zip(log_priors);
                let legal = legal.map(|(derivation, log_prior)| Legal {
                    text: derivation.to_string(),
                    mode: derivation.0.last().map(|step| step.operation.name()),
                    reward: 1.0,
                    log_prior,
                });
                legal.collect()
            }
        }
    }
}
