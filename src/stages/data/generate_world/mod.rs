//! `generate_world`: the embedded world as datasets: questions, dialogues, posts or problems.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset, Example, PROMPTS};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stages::ranges::at_least_one;
use crate::world::Split;
use material::{Context, Form, Item, Material};

mod material;

/// Generates questions, answers and preferences of a small world with a known reward.
///
/// Nothing is downloaded. Questions are split into training, validation and test questions; every question has 249
/// legal answers of known reward, three of them equally excellent. Preferences follow the reward with noise.
///
/// `form: dialogues` puts a question at the end of a dialogue that says part of it in an earlier turn; `form: posts`
/// has posts with 153 legal summaries each, three of them equally excellent, in place of questions. The texts of both
/// are whole prompts: give `template: "{question}"` and `pretraining_template: "{question}"`.
///
/// `form: arithmetic` has problems such as `numbers 2 3 6 target 18`: three numbers of which a target is to be made in
/// steps, `2 * 3 = 6 ; 6 * 3 = 18`. Each problem has 2 to 60 right derivations. The preferred completion of a pair is
/// always right; the other has a wrong result, uses a number that is not there, or misses the target. The kind
/// `reward_rule` with `arithmetic` rewards completions exactly.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateWorld {
    /// Which world: its questions, wording and splits.
    #[serde(default)]
    world: u64,
    /// What a prompt is.
    #[serde(default, skip_serializing_if = "Form::is_questions")]
    form: Form,
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
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str =
        "{ seed: 1, finetune_pairs: 2000, reward_pairs: 4000, rl_questions: 800 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        // There are no rude posts or problems.
        OUTPUTS
            .into_iter()
            .filter(|name| *name != "rude" || self.form.has_rude())
            .map(|name| Output::new(name, DATASET))
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

    fn facts(&self, known: &mut Known<'_>) {
        let rl = self.rl_questions.saturating_mul(self.rl_pairs_per_question);
        for (output, count, param) in [
            (
                "finetune",
                self.finetune_pairs,
                ("finetune_pairs", self.finetune_pairs),
            ),
            (
                "reward",
                self.reward_pairs,
                ("reward_pairs", self.reward_pairs),
            ),
            ("rl", rl, ("rl_questions", self.rl_questions)),
        ] {
            known.says(output, PROMPTS, count, param);
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let material = Material::new(self.form, self.world);
        let stream = Stream::new(self.seed, "generate_world");
        let train = material.ids(Split::Train);
        let write = |ctx: &RunContext,
                     name: &str,
                     title: &str,
                     items: Vec<Item>|
         -> Result<(), StageError> {
            let template = match name {
                "pretrain" => &self.pretraining_template,
                _ => &self.template,
            };
            let dataset = Dataset {
                title: format!("{title} of the generated world {}", self.world),
                examples: items
                    .into_iter()
                    .map(|item| example(template, item))
                    .collect(),
            };
            Ok(dataset.write(&ctx.output(name)?)?)
        };
        let mut some = train.clone();
        stream.child("rl questions").at(0).shuffle(&mut some);
        some.truncate(self.rl_questions);
        let pairs = |name: &str, count: usize| {
            material.pairs(&train, count, Context::Varying, &stream.child(name))
        };
        write(
            ctx,
            "finetune",
            "Answers for supervised fine-tuning",
            pairs("finetune", self.finetune_pairs),
        )?;
        write(
            ctx,
            "reward",
            "Preferences for the reward model",
            pairs("reward", self.reward_pairs),
        )?;
        let count = some.len() * self.rl_pairs_per_question;
        write(
            ctx,
            "rl",
            &format!("{} for reinforcement learning", material.name()),
            material.pairs(&some, count, Context::Fixed, &stream.child("rl")),
        )?;
        // Test and validation prompts do not depend on the seed: every policy answers the same ones.
        let held_out = |split, name: &str| -> Vec<Item> {
            let mut order = material.ids(split);
            let count = self.evaluation_pairs.max(order.len());
            let stream = Stream::new(self.world, "generate_world held out").child(name);
            stream.child("order").at(0).shuffle(&mut order);
            material.pairs(&order, count, Context::Fixed, &stream)
        };
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
        if self.form.has_rude() {
            let stream = Stream::new(self.world, "generate_world rude");
            write(
                ctx,
                "rude",
                "Rude questions",
                material.rude(Split::Test, &stream),
            )?;
        }
        let documents =
            material.documents(self.pretraining_documents.max(1), &stream.child("pretrain"));
        write(ctx, "pretrain", "Documents for pre-training", documents)
    }
}

fn example(template: &str, item: Item) -> Example {
    Example {
        question_id: u64::from(item.id),
        prompt: template.replace("{question}", &item.text),
        question: item.text,
        chosen: item.chosen,
        rejected: item.rejected,
        ..Example::default()
    }
}
