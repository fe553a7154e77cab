//! What `generate_world` writes about: questions, dialogues, posts or problems, behind one face.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::random::Stream;
use crate::world::arithmetic::{Posed, Problems};
use crate::world::{Post, Posts, Question, Split, World};

/// What a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// A question, to be answered.
    #[default]
    Questions,
    /// A dialogue that ends with a question, in part asked in an earlier turn: `Human: ... Assistant: ... Human: ...
    /// Assistant:`.
    Dialogues,
    /// A post, to be summarised: `post : ... TL;DR:`.
    Posts,
    /// A problem of arithmetic, to be solved step by step: `numbers 2 3 6 target 18`.
    Arithmetic,
}

impl Form {
    /// Whether nothing of it shows in a manifest.
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    pub(super) fn is_questions(&self) -> bool {
        *self == Self::Questions
    }

    /// Whether there are rude prompts of it.
    pub(super) fn has_rude(self) -> bool {
        matches!(self, Self::Questions | Self::Dialogues)
    }
}

/// A prompt, perhaps with completions.
pub(super) struct Item {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) chosen: Option<String>,
    pub(super) rejected: Option<String>,
}

/// Which dialogue leads up to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    /// Each time another.
    Varying,
    /// Always the same.
    Fixed,
}

/// The prompts of a form.
pub(super) enum Material {
    Questions(World),
    Dialogues(World),
    Posts(Posts),
    Arithmetic(Problems),
}

impl Material {
    pub(super) fn new(form: Form, seed: u64) -> Self {
        match form {
            Form::Questions => Self::Questions(World::new(seed)),
            Form::Dialogues => Self::Dialogues(World::new(seed)),
            Form::Posts => Self::Posts(Posts::new(seed)),
            Form::Arithmetic => Self::Arithmetic(Problems::new(seed)),
        }
    }

    /// What the prompts are called in titles.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Questions(_) => "Questions",
            Self::Dialogues(_) => "Dialogues",
            Self::Posts(_) => "Posts",
            Self::Arithmetic(_) => "Problems",
        }
    }

    /// The numbers of the prompts of a split.
    pub(super) fn ids(&self, split: Split) -> Vec<u32> {
        match self {
            Self::Questions(world) | Self::Dialogues(world) => {
                let questions = world.questions(split);
                questions.iter().map(|question| question.id).collect()
            }
            Self::Posts(posts) => posts.of(split).iter().map(|post| post.id).collect(),
            Self::Arithmetic(problems) => {
                let posed = problems.of(split);
                posed.iter().map(|posed| posed.id).collect()
            }
        }
    }

    /// Preference pairs on the prompts of these numbers, in rounds.
    pub(super) fn pairs(
        &self,
        ids: &[u32],
        count: usize,
        context: Context,
        stream: &Stream,
    ) -> Vec<Item> {
        match self {
            Self::Questions(world) | Self::Dialogues(world) => {
                let questions: Vec<Question> = ids
                    .iter()
                    .filter_map(|id| world.question(*id).cloned())
                    .collect();
                let pairs = world.preference_pairs(&questions, count, stream);
                let pairs = pairs.into_iter().enumerate().map(|(index, pair)| {
                    let place = match context {
                        Context::Varying => index as u64,
                        Context::Fixed => u64::from(pair.question.id),
                    };
                    Item {
                        id: pair.question.id,
                        text: self.asked(&pair.question, place, stream),
                        chosen: Some(pair.chosen.text),
                        rejected: Some(pair.rejected.text),
                    }
                });
                pairs.collect()
            }
            Self::Posts(posts) => {
                let some: Vec<Post> = ids
                    .iter()
                    .filter_map(|id| posts.post(*id).cloned())
                    .collect();
                let pairs = posts.preference_pairs(&some, count, stream).into_iter();
                let pairs = pairs.map(|pair| Item {
                    id: pair.post.id,
                    text: pair.post.text,
                    chosen: Some(pair.chosen.text),
                    rejected: Some(pair.rejected.text),
                });
                pairs.collect()
            }
            Self::Arithmetic(problems) => {
                let some: Vec<Posed> = ids
                    .iter()
                    .filter_map(|id| problems.posed(*id).cloned())
                    .collect();
                let pairs = problems.pairs(&some, count, stream).into_iter();
                let pairs = pairs.map(|pair| Item {
                    id: pair.posed.id,
                    text: pair.posed.problem.to_string(),
                    chosen: Some(pair.chosen),
                    rejected: Some(pair.rejected),
                });
                pairs.collect()
            }
        }
    }

    /// Rude questions of a split, if there are any.
    pub(super) fn rude(&self, split: Split, stream: &Stream) -> Vec<Item> {
        let (Self::Questions(world) | Self::Dialogues(world)) = self else {
            return Vec::new();
        };
        let mut rude = world.rude_questions(split);
        stream.at(0).shuffle(&mut rude);
        let items = rude.iter().map(|question| Item {
            id: question.id,
            text: self.asked(question, u64::from(question.id), stream),
            chosen: None,
            rejected: None,
        });
        items.collect()
    }

    /// Documents for pre-training: a prompt of the training split with a completion.
    pub(super) fn documents(&self, count: usize, stream: &Stream) -> Vec<Item> {
        match self {
            Self::Questions(world) | Self::Dialogues(world) => {
                let documents = world.pretraining_documents(count, stream).into_iter();
                let documents = documents.enumerate().map(|(index, document)| Item {
                    id: document.question.id,
                    text: self.asked(&document.question, index as u64, stream),
                    chosen: Some(document.answer.text),
                    rejected: None,
                });
                documents.collect()
            }
            Self::Posts(posts) => {
                let train = posts.of(Split::Train);
                let documents = (0..count).map(|index| {
                    let mut draws = stream.at(index as u64);
                    let post = &train[draws.below(train.len())];
                    Item {
                        id: post.id,
                        text: post.text.clone(),
                        chosen: Some(posts.sample_summary(post, &mut draws).text),
                        rejected: None,
                    }
                });
                documents.collect()
            }
            Self::Arithmetic(problems) => {
                let train = problems.of(Split::Train);
                let documents = (0..count).map(|index| {
                    let mut draws = stream.at(index as u64);
                    let posed = &train[draws.below(train.len())];
                    Item {
                        id: posed.id,
                        text: posed.problem.to_string(),
                        chosen: Some(problems.document(posed, &mut draws)),
                        rejected: None,
                    }
                });
                documents.collect()
            }
        }
    }

    /// How a question is asked: as it is, or at the end of a dialogue.
    fn asked(&self, question: &Question, place: u64, stream: &Stream) -> String {
        match self {
            Self::Dialogues(world) => {
                let mut draws = stream.child("dialogue").at(place);
                world.dialogue(question, &mut draws).text
            }
            Self::Questions(_) | Self::Posts(_) | Self::Arithmetic(_) => question.text.clone(),
        }
    }
}
