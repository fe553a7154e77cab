//! `generate_world`: the embedded question/answer world as datasets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::sources::embedded::{PreferencePair, Question, Split, World};
use crate::stages::training::at_least_one;

/// Generates questions, answers and preferences of a small world with a known reward.
///
/// Nothing is downloaded. Questions are split into training, validation and test questions; every question has 249
/// legal answers of known reward, three of them equally excellent. Preferences follow the reward with noise.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateWorld {
    /// Which world: its questions, wording and splits.
    #[serde(default)]
    world: u64,
    /// Which draws of answers and preferences from it.
    seed: u64,
    /// Documents for pre-training: a question, then an answer.
    #[serde(default)]
    pretraining_documents: usize,
    /// Preference pairs for supervised fine-tuning (on the preferred answer).
    finetune_pairs: usize,
    /// Preference pairs for the reward model.
    reward_pairs: usize,
    /// Questions for reinforcement learning.
    rl_questions: usize,
    /// Preference pairs of each question for reinforcement learning.
    #[serde(default = "two")]
    rl_pairs_per_question: usize,
    /// Held-out preference pairs.
    #[serde(default = "five_hundred")]
    evaluation_pairs: usize,
    /// What a model is given; `{question}` stands for the question.
    #[serde(default = "template")]
    template: String,
    /// The same for pre-training documents.
    #[serde(default = "pretraining_template")]
    pretraining_template: String,
}

fn two() -> usize {
    2
}

fn five_hundred() -> usize {
    500
}

fn template() -> String {
    "Question: {question} Answer:".to_owned()
}

fn pretraining_template() -> String {
    "{question}".to_owned()
}

const OUTPUTS: [&str; 7] = [
    "finetune",
    "reward",
    "rl",
    "evaluation",
    "validation",
    "rude",
    "pretrain",
];

impl Kind for GenerateWorld {
    const NAME: &'static str = "generate_world";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str =
        "{ seed: 1, finetune_pairs: 2000, reward_pairs: 4000, rl_questions: 800 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        OUTPUTS
            .iter()
            .map(|name| Output::new(*name, DATASET))
            .collect()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("finetune_pairs", self.finetune_pairs as u64, &mut problems);
        at_least_one("reward_pairs", self.reward_pairs as u64, &mut problems);
        at_least_one("rl_questions", self.rl_questions as u64, &mut problems);
        at_least_one(
            "rl_pairs_per_question",
            self.rl_pairs_per_question as u64,
            &mut problems,
        );
        for (key, text) in [
            ("template", &self.template),
            ("pretraining_template", &self.pretraining_template),
        ] {
            if !text.contains("{question}") {
                problems.push(Problem::new(
                    key,
                    format!("`{text}` does not contain `{{question}}`"),
                ));
            }
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let world = World::new(self.world);
        let stream = Stream::new(self.seed, "generate_world");
        let train = world.questions(Split::Train);
        let test = world.questions(Split::Test);
        let write = |ctx: &RunContext,
                     name: &str,
                     title: &str,
                     examples: Vec<Example>|
         -> Result<(), StageError> {
            let dataset = Dataset {
                title: format!("{title} of the generated world {}", self.world),
                examples,
            };
            Ok(dataset.write(&ctx.output(name)?)?)
        };
        let pairs = |name: &str, questions: &[Question], count: usize| -> Vec<Example> {
            world
                .preference_pairs(questions, count, &stream.child(name))
                .into_iter()
                .map(|pair| self.pair(pair))
                .collect()
        };
        let mut questions = train.clone();
        stream.child("rl questions").at(0).shuffle(&mut questions);
        questions.truncate(self.rl_questions);
        write(
            ctx,
            "finetune",
            "Answers for supervised fine-tuning",
            pairs("finetune", &train, self.finetune_pairs),
        )?;
        write(
            ctx,
            "reward",
            "Preferences for the reward model",
            pairs("reward", &train, self.reward_pairs),
        )?;
        let rl_pairs = questions.len() * self.rl_pairs_per_question;
        write(
            ctx,
            "rl",
            "Questions for reinforcement learning",
            pairs("rl", &questions, rl_pairs),
        )?;
        // Test and validation questions do not depend on the seed: every policy answers the same ones.
        let held_out = |split, name: &str| -> Vec<Example> {
            let questions = world.questions(split);
            let count = self.evaluation_pairs.max(questions.len());
            let stream = Stream::new(self.world, "generate_world held out").child(name);
            let mut order = questions;
            stream.child("order").at(0).shuffle(&mut order);
            world
                .preference_pairs(&order, count, &stream)
                .into_iter()
                .map(|pair| self.pair(pair))
                .collect()
        };
        debug_assert!(!test.is_empty());
        write(
            ctx,
            "evaluation",
            "Held-out preferences",
            held_out(Split::Test, "test"),
        )?;
        write(
            ctx,
            "validation",
            "Preferences for choosing settings",
            held_out(Split::Validation, "validation"),
        )?;
        let mut rude = world.rude_questions(Split::Test);
        Stream::new(self.world, "generate_world rude")
            .at(0)
            .shuffle(&mut rude);
        let rude = rude
            .iter()
            .map(|question| self.example(question, &self.template, None, None))
            .collect();
        write(ctx, "rude", "Rude questions", rude)?;
        let documents = world
            .pretraining_documents(self.pretraining_documents.max(1), &stream.child("pretrain"));
        let documents = documents
            .into_iter()
            .map(|document| {
                self.example(
                    &document.question,
                    &self.pretraining_template,
                    Some(document.answer.text),
                    None,
                )
            })
            .collect();
        write(ctx, "pretrain", "Documents for pre-training", documents)
    }
}

impl GenerateWorld {
    fn pair(&self, pair: PreferencePair) -> Example {
        self.example(
            &pair.question,
            &self.template,
            Some(pair.chosen.text),
            Some(pair.rejected.text),
        )
    }

    fn example(
        &self,
        question: &Question,
        template: &str,
        chosen: Option<String>,
        rejected: Option<String>,
    ) -> Example {
        Example {
            question_id: u64::from(question.id),
            question: question.text.clone(),
            prompt: template.replace("{question}", &question.text),
            chosen,
            rejected,
        }
    }
}
