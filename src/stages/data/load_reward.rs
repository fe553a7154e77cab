//! `load_reward`: a trained reward model.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load_model::rows_note;
use super::model_files::{Given, ModelFiles};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel, ModelError};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardDescription, RewardModel};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::ml::formats::hugging_face::padding_id;
use crate::ml::placement::Placement;
use crate::sources::{Sha256, Source};

/// Loads a reward model: a LLaMA model with one score, or an adapter with its head; also one that `flowgraph export`
/// wrote, with its calibration.
///
/// Texts are scored with the end token wherever a completion ended of itself; `score_at` says whether a reward is read
/// at it or before it.
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
    /// Which token's score is that of a text.
    #[serde(default)]
    score_at: ScoreAt,
    /// Of a model with several labels: the index of the one whose score is the reward.
    #[serde(default)]
    label: Option<usize>,
    /// Keys of the folder's `config.json` that are not looked at. A key that the model's family is not known to read is an
    /// error otherwise: it may change numbers.
    #[serde(default)]
    ignore_config: Vec<String>,
}

/// Which token's score is that of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ScoreAt {
    /// As in `transformers`: the last token that is not the `pad_token_id` of the model's configuration, so that a model
    /// that pads with its end token is read before it; what `flowgraph export` wrote is read as it was there. With the port
    /// `base`, the last token. (Once called `model`.)
    #[default]
    #[serde(alias = "model")]
    Library,
    /// The last token: the end token where a completion ended of itself, else the last of its text. (Once called `end`.)
    #[serde(alias = "end")]
    LastToken,
    /// An end token, which is put after a text that has none. Rewards of prefixes take a row for each. An export says so in
    /// `reward.json` alone: other programs have to put it there themselves.
    EndToken,
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
    const VERSION: u32 = 4;
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
        let ends = if let Some(base) = ctx.optional_input("base") {
            if !self.ignore_config.is_empty() || self.label.is_some() {
                return Err(StageError::new(
                    "`ignore_config` and `label` are for whole models; an adapter has neither a `config.json` nor labels \
                     of its own",
                ));
            }
            let mut base = LanguageModel::load(&base.path)?;
            base.save_with_peft(&path, &output, true)?;
            if self.score_at == ScoreAt::Library && RewardDescription::find(&path)?.is_none() {
                ctx.note(
                    "rewards are read at the last token, an end token too: the base's own `pad_token_id` is not known here; \
                     where it is the end token, `transformers` reads the token before it",
                );
            }
            base.eos
        } else {
            let (model, score) =
                LanguageModel::load_classifier(&path, &self.ignore_config, &Placement::HOST)?;
            let classes = score.dim(0)?;
            let label = match self.label {
                None if classes == 1 => 0,
                Some(label) if label < classes => label,
                label => {
                    let asked = label
                        .map_or_else(String::new, |label| format!(", none with index {label}"));
                    return Err(StageError::new(format!(
                        "{}: the head has {classes} labels{asked}; a reward is the score of one",
                        path.display()
                    ))
                    .hint(format!(
                        "give `label`, an index from 0 to {}",
                        classes.saturating_sub(1)
                    )));
                }
            };
            let score = score.narrow(0, label, 1)?.contiguous()?;
            if model.added_rows > 0 {
                ctx.note(&rows_note(model.added_rows, model.config.vocab_size));
            }
            model.save_copy(&output, Some(&score))?;
            model.eos
        };
        let calibrated = described(&path, &self.ignore_config, &ends)?;
        let description = RewardDescription {
            scale: self.scale * calibrated.scale,
            offset: self.scale * calibrated.offset + self.offset,
            skipped_end: match self.score_at {
                ScoreAt::Library => calibrated.skipped_end,
                ScoreAt::LastToken | ScoreAt::EndToken => None,
            },
            appended_end: match self.score_at {
                ScoreAt::Library => calibrated.appended_end,
                ScoreAt::LastToken => None,
                ScoreAt::EndToken => ends.first().copied(),
            },
            ..calibrated
        };
        description.save(&output)?;
        RewardModel::load(&output)?;
        match (description.skipped_end, calibrated.skipped_end) {
            (Some(_), _) => ctx.note(
                "rewards are read at the token before the end token, as in `transformers`, because the model's \
                 `pad_token_id` is that token",
            ),
            (None, Some(_)) => ctx.note(
                "rewards are read at the end token (`score_at`); `transformers` reads the token before it, because \
                 the model's `pad_token_id` is that token",
            ),
            (None, None) => {}
        }
        Ok(())
    }
}

/// Reads how the model of a folder gives rewards: its calibration, or that its score is the reward, read where
/// `transformers` does.
pub(in crate::stages) fn described(
    folder: &Path,
    ignored: &[String],
    ends: &[u32],
) -> Result<RewardDescription, ModelError> {
    if let Some(known) = RewardDescription::find(folder)? {
        return Ok(known);
    }
    Ok(RewardDescription {
        scale: 1.0,
        offset: 0.0,
        accuracy: None,
        longer_wins: None,
        skipped_end: padding_id(folder, ignored)?.filter(|pad| ends.contains(pad)),
        appended_end: None,
    })
}
