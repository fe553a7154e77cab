//! `load_reward`: a trained reward model.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model_files::{Given, ModelFiles};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardDescription, RewardModel};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::ml::formats::hugging_face::padding_id;
use crate::sources::{Sha256, Source};

/// Loads a reward model: a LLaMA model with one score, or an adapter with its head; also one that `flowgraph export`
/// wrote, with its calibration.
///
/// A reward is read at the last token of prompt and completion, which is the end token wherever a completion ended of
/// itself. `transformers` reads the token before it where a model's `pad_token_id` is that end token, and the last
/// token of the text where the text was encoded without one: scores differ from those.
///
/// The weights of the head must really be in the files: a model that was merged without them scores noise, and
/// nothing else would show it (huggingface/trl#398).
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadReward {
    /// A local folder: `LlamaForSequenceClassification`, with the adapter that lies beside it, if any; or with the port
    /// `base` a PEFT adapter of task `SEQ_CLS`.
    #[serde(default)]
    source: Option<Source>,
    /// Not for folders; see `files`.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// Instead of `source`: the files of the folder by name.
    #[serde(default)]
    files: ModelFiles,
    /// The reward is `scale` x score + `offset`; the score of an exported reward model is its calibrated one.
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
    const VERSION: u32 = 2;
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
        if let Some(base) = ctx.optional_input("base") {
            let mut base = LanguageModel::load(&base.path)?;
            base.save_with_peft(&path, &output, true)?;
        } else {
            let (model, score) = LanguageModel::load_classifier(&path)?;
            let classes = score.dim(0)?;
            if classes != 1 {
                return Err(StageError::new(format!(
                    "{}: the head has {classes} classes, a reward model has one score",
                    path.display()
                )));
            }
            model.save_copy(&output, Some(&score))?;
        }
        let known = RewardDescription::find(&path)?;
        let calibrated = known.unwrap_or(RewardDescription {
            scale: 1.0,
            offset: 0.0,
            accuracy: None,
            longer_wins: None,
        });
        let description = RewardDescription {
            scale: self.scale * calibrated.scale,
            offset: self.scale * calibrated.offset + self.offset,
            ..calibrated
        };
        description.save(&output)?;
        let loaded = RewardModel::load(&output)?;
        let ends = &loaded.model.eos;
        if pads_with_end(&path, ends)? {
            ctx.note(
                "rewards are read at the end token; `transformers` reads the token before it, because this model's \
                 `pad_token_id` is that token",
            );
        }
        Ok(())
    }
}

/// Tells whether the folder's own configuration pads with a token that ends texts.
fn pads_with_end(folder: &Path, ends: &[u32]) -> Result<bool, StageError> {
    let pad = padding_id(folder)?;
    Ok(pad.is_some_and(|pad| ends.contains(&pad)))
}
