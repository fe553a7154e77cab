//! `load_encoder`: a pre-trained text encoder or classifier.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model_files::{Given, ModelFiles};
use crate::artifacts::text_encoder::{
    TEXT_CLASSIFIER, TEXT_ENCODER, TextClassifier, TextEncoder, save,
};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::ml::formats::hugging_face::{EncoderOptions, load_encoder, load_encoder_classifier};
use crate::sources::{Sha256, Source};

/// Loads a text encoder (BERT, RoBERTa, XLM-RoBERTa, MPNet, DistilBERT): a sentence encoder such as MiniLM, or a
/// classifier with its head.
///
/// With `modules.json` of sentence-transformers among the files, prompts, pooling, dense layers, normalisation, greatest
/// length and lower case are as they say. Without it, texts are embedded by their mean at unit length. A module, key or
/// value that is not known is an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadEncoder {
    /// A local Hugging Face folder.
    #[serde(default)]
    source: Option<Source>,
    /// Not for folders; see `files`.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// Instead of `source`: the files of the folder by name (`config.json`, `model.safetensors`, `tokenizer.json`,
    /// `modules.json`, `1_Pooling/config.json`, ...).
    #[serde(default)]
    files: ModelFiles,
    /// Whether the files hold a classification head, which is loaded too.
    #[serde(default)]
    head: bool,
    /// Keys of `config.json` that are not looked at; every other one that is not known is an error, as it may change
    /// what is computed.
    #[serde(default)]
    ignore_config: Vec<String>,
    /// The prompt of `config_sentence_transformers.json` that is put before every text, by its name, instead of the
    /// file's `default_prompt_name`.
    #[serde(default)]
    prompt: Option<String>,
}

impl LoadEncoder {
    fn given(&self) -> Given<'_> {
        Given {
            source: self.source.as_ref(),
            sha256: self.sha256,
            files: &self.files,
        }
    }
}

impl Kind for LoadEncoder {
    const NAME: &'static str = "load_encoder";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{ source: models/all-MiniLM-L6-v2 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![if self.head {
            Output::new("classifier", TEXT_CLASSIFIER)
        } else {
            Output::new("encoder", TEXT_ENCODER)
        }]
    }

    fn sources(&self) -> Vec<SourceParam> {
        self.given().sources()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.given().validate(&mut problems);
        if self.head && self.prompt.is_some() {
            problems.push(Problem::new(
                "prompt",
                "a prompt is for embeddings; an encoder with its head makes none",
            ));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = self.given().path(ctx)?;
        if !path.is_dir() {
            return Err(StageError::new(format!("{}: not a folder", path.display()))
                .hint("single files are given by `files`"));
        }
        if self.head {
            let output = ctx.output("classifier")?;
            save(
                &output,
                &load_encoder_classifier(&path, &self.ignore_config)?,
                None,
            )?;
            TextClassifier::load(&output)?;
        } else {
            let output = ctx.output("encoder")?;
            let options = EncoderOptions {
                ignored: self.ignore_config.clone(),
                prompt: self.prompt.clone(),
            };
            save(&output, &load_encoder(&path, &options)?, None)?;
            TextEncoder::load(&output)?;
        }
        Ok(())
    }
}
