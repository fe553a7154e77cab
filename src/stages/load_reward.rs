//! `load_reward`: a trained reward model.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model_files::{Given, ModelFiles};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel, save_new};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardDescription, RewardModel};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::ml::formats::hugging_face::{load_peft_adapter, load_sequence_classifier};
use crate::ml::parameters::Weights;
use crate::sources::{Sha256, Source};

/// Loads a reward model: a LLaMA model with one score, or an adapter with its head.
///
/// The weights of the head must really be in the files: a model that was merged without them scores noise, and
/// nothing else would show it (huggingface/trl#398).
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadReward {
    /// A local folder: `LlamaForSequenceClassification`, or with the port `base` a PEFT adapter of task `SEQ_CLS`.
    #[serde(default)]
    source: Option<Source>,
    /// Not for folders; see `files`.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// Instead of `source`: the files of the folder by name.
    #[serde(default)]
    files: ModelFiles,
    /// The reward is `scale` x score + `offset`.
    #[serde(default = "one")]
    scale: f64,
    /// See `scale`.
    #[serde(default)]
    offset: f64,
}

fn one() -> f64 {
    1.0
}

impl LoadReward {
    fn given(&self) -> Given<'_> {
        Given {
            source: self.source.as_ref(),
            sha256: self.sha256,
            files: &self.files,
        }
    }
}

impl Kind for LoadReward {
    const NAME: &'static str = "load_reward";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ source: models/reward }";

    fn ports(&self) -> Vec<Port> {
        vec![Port::optional(
            "base",
            &[LANGUAGE_MODEL],
            "the model that an adapter belongs to",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("model", REWARD_MODEL)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        self.given().sources()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.given().validate(&mut problems);
        if !self.scale.is_finite() || self.scale == 0.0 {
            problems.push(Problem::new(
                "scale",
                "`scale` must be a number other than 0",
            ));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = self.given().path(ctx)?;
        let output = ctx.output("model")?;
        if !path.is_dir() {
            return Err(StageError::new(format!("{}: not a folder", path.display()))
                .hint("single files are given by `files`"));
        }
        let score = match ctx.optional_input("base") {
            Some(base) => {
                let mut base = LanguageModel::load(&base.path)?;
                let score = load_peft_adapter(&path, &base.config)?.score.ok_or_else(|| {
                    StageError::new(format!("{}: the adapter has no head", path.display()))
                        .hint("`adapter_model.safetensors` must hold `base_model.model.score.weight`")
                })?;
                base.save_with_peft(&path, &output)?;
                score
            }
            None => load_full(&path, &output)?,
        };
        let classes = score.dim(0)?;
        if classes != 1 {
            return Err(StageError::new(format!(
                "{}: the head has {classes} classes, a reward model has one score",
                path.display()
            )));
        }
        let head = Weights::from([("score.weight".to_owned(), score)]);
        let description = RewardDescription {
            scale: self.scale,
            offset: self.offset,
            accuracy: None,
            longer_wins: None,
        };
        RewardModel::save_head(&output, &head, &description)?;
        RewardModel::load(&output)?;
        Ok(())
    }
}

/// Writes the trunk of a classifier as a language model and returns its head.
fn load_full(path: &Path, output: &Path) -> Result<candle_core::Tensor, StageError> {
    let classifier = load_sequence_classifier(path)?;
    let tokenizer = classifier.trunk.tokenizer.as_ref().ok_or_else(|| {
        StageError::new(format!("{}: it has no tokenizer", path.display()))
            .hint("the folder needs `tokenizer.json`")
    })?;
    let mut config = classifier.trunk.config.clone();
    // A classifier has no output head; nothing asks a reward model for logits.
    config.tie_word_embeddings = true;
    save_new(output, &config, &classifier.trunk.weights, tokenizer)?;
    Ok(classifier.score)
}
