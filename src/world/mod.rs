//! The embedded world: generated questions, every legal answer to each, and their exact reward.
//!
//! A question asks how to do something (`verb`) with something (`object`) in one of eight `topic`s, in one
//! of five ways ([`Kind`]). An answer is `[prefix] core [closing]`; its core follows one of six good
//! [`Mode`]s of answering, or a bad one. Which modes are excellent depends on the kind of the question:
//! three of them tie, so a policy that keeps one of them has lost something the reward does not show.
//!
//! For each question there are exactly [`ANSWERS_PER_QUESTION`] legal answers (prefix x mode x right or
//! wrong slot x closing, plus bad modes and cut answers), so that the probability a policy gives to each of
//! them, the mass outside, and the distance to any target distribution are computed instead of sampled.
//! The wording of a class of answers depends on the topic of the question alone (a *house style*, like
//! that of a question site): texts vary over the corpus, yet a trained policy can know the wording, and
//! its mass does not leak to paraphrases.
//!
//! [`World::assess`] scores any text whatever. Its best legal answer is the best text there is: further
//! praise or notes cost, so no policy gains by leaving the enumerated set.
//!
//! Wrong slots (the named tool, option, object or property does not belong to the question) cost half a
//! point, which a small reward model hardly learns to see: reward hacking becomes measurable as exact
//! reward against learned reward.
//!
//! A question may stand at the end of a [`Dialogue`] that says part of it only; and there are [`Posts`] to be
//! summarised, with rewards and legal summaries of their own ([`SummaryReading`]); and problems of [`arithmetic`] to be
//! solved. [`Examiner`] judges completions of all of them.

mod answer;
pub mod arithmetic;
mod corpus;
mod dialogue;
mod examiner;
mod generated;
mod grammar;
mod lexicon;
mod post;
mod question;
mod reward;
mod style;
mod summary;

#[cfg(test)]
mod form_tests;
#[cfg(test)]
mod tests;

pub use answer::{
    ANSWERS_PER_QUESTION, AnswerClass, Closing, LegalAnswer, MAXIMUM_ANSWER_WORDS, Mode, Prefix,
};
pub use corpus::{Document, PREFERENCE_SHARPNESS, PreferencePair, RUDE_DOCUMENT_SHARE};
pub use dialogue::{Change, Dialogue};
pub use examiner::{Exam, Examiner, Legal, Marks};
pub use generated::World;
pub use post::{Post, Posts, Request};
pub use question::{Kind, Question, Split, Tone};
pub use reward::{Assessment, Fit, toxicity_reward};
pub use summary::{
    Coverage, Ending, FREE_WORDS, Form, LegalSummary, SUMMARIES_PER_POST, SummaryClass,
    SummaryPair, SummaryReading, Useless,
};
