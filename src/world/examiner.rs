//! The world's judgement of completions, whatever the prompt: a question, a dialogue or a post.

use super::{
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
#[derive(Debug, Clone, Copy)]
pub enum Exam<'a> {
    /// An answer to a question.
    Answer(&'a World, &'a Question),
    /// A summary of a post.
    Summary(&'a Posts, &'a Post),
}

/// What the world says of a completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marks {
    /// The exact reward.
    pub reward: f64,
    /// The mode of an answer or the form of a summary; `None` if the text is incoherent.
    pub mode: Option<&'static str>,
    /// Words that name the wrong thing.
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

    /// Recognises the text of a question, a dialogue or a post.
    pub fn exam(&self, text: &str) -> Option<Exam<'_>> {
        let answer = || Some(Exam::Answer(&self.world, self.world.resolve(text)?));
        let summary = || Some(Exam::Summary(&self.posts, self.posts.find(text)?));
        answer().or_else(summary)
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
        }
    }

    /// Every legal completion; their priors sum to 1.
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
        }
    }
}
