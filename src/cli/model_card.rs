//! The card of an exported model, `README.md` as the Hugging Face hub has it: what it is, by which params it was made, and
//! of what. Nothing in it tells when or how fast: the same model has the same card, and a folder with it the same digest.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

use crate::artifacts::dataset::DATASET;
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::artifacts::reward_model::REWARD_MODEL;
use crate::artifacts::text_encoder::{TEXT_CLASSIFIER, TEXT_ENCODER};
use crate::engine::artifact::Artifact;
use crate::engine::instance::InputItem;
use crate::engine::provenance::Provenance;
use crate::engine::spec::Pipeline;
use crate::engine::store::Record;
use crate::ml::tokenizer::CHAT_TEMPLATE;

/// The card's name in a folder.
pub(super) const CARD: &str = "README.md";

/// Kinds that have a card: what they do on the hub, what they are in words, and the class that opens them.
const MODELS: [(&str, &str, &str, &str); 4] = [
    (
        LANGUAGE_MODEL,
        "text-generation",
        "A language model",
        "AutoModelForCausalLM",
    ),
    (
        REWARD_MODEL,
        "text-classification",
        "A reward model",
        "AutoModelForSequenceClassification",
    ),
    (
        TEXT_ENCODER,
        "feature-extraction",
        "A text encoder",
        "AutoModel",
    ),
    (
        TEXT_CLASSIFIER,
        "text-classification",
        "A text classifier",
        "AutoModelForSequenceClassification",
    ),
];

/// Whether an artifact of this kind has a card.
pub(super) fn has_card(kind: &str) -> bool {
    MODELS.iter().any(|(model, ..)| *model == kind)
}

/// Writes the card of what `stage` made; `provenance` tells of it and all that it is made of.
pub(super) fn card(
    pipeline: &str,
    stage: &str,
    output: &str,
    artifact: &Artifact,
    provenance: &Provenance<'_>,
) -> Option<String> {
    let (_, task, what, class) = MODELS.iter().find(|(kind, ..)| *kind == artifact.kind)?;
    let (_, record) = provenance.records().find(|(name, _)| *name == stage)?;
    let has = |name: &str| artifact.files.iter().any(|file| file.path == name);
    let library = if has("modules.json") {
        "sentence-transformers"
    } else if has("adapter_config.json") {
        "peft"
    } else {
        "transformers"
    };
    let made = &record.provenance;
    let manifest = &record.manifest;
    let mut text = format!(
        "---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- flowgraph\n- {kind}\n---\n\n# {}\n\n\
         {what}: output {} of the stage {} (kind {}, version {}) of the pipeline {}, made by flowgraph {}.\n",
        code(&format!("{pipeline}: {stage}")),
        code(output),
        code(stage),
        code(&manifest.kind),
        manifest.version,
        code(pipeline),
        made.flowgraph,
        kind = artifact.kind,
    );
    text.push_str(&format!(
        "\n| | |\n| --- | --- |\n| digest | {} |\n| fingerprint | {} |\n| device, numerics | {}, {} |\n",
        code(&artifact.digest.to_string()),
        code(&record.fingerprint.to_string()),
        code(&made.device),
        code(&made.numerics)
    ));
    text.push_str("\n## Params\n\nThose at their default are left out.\n\n");
    let params = serde_yaml::to_string(&manifest.params).unwrap_or_default();
    text.push_str(&fenced("yaml", &params));
    text.push_str(
        "\n## Made of\n\n| stage | kind | fingerprint | sources |\n| --- | --- | --- | --- |\n",
    );
    for (name, record) in provenance.records().filter(|(name, _)| *name != stage) {
        text.push_str(&row(name, record));
    }
    text.push_str(&row(stage, record));
    text.push_str("\n## Use\n\n");
    text.push_str(&usage(library, class));
    if artifact.kind == REWARD_MODEL {
        text.push_str("\nThe reward is `scale` x score + `offset`, as `reward.json` has them.\n");
    }
    Some(text)
}

/// Returns the `template` of the data that a model was trained on last, if all of it has the same.
pub(super) fn template_of(pipeline: &Pipeline, stage: usize) -> Option<String> {
    let makers = |kind: &str| -> BTreeSet<usize> {
        let inputs = pipeline.stages[stage].inputs.iter();
        let items = inputs.flat_map(|input| &input.items);
        let is_kind = |item: &&InputItem| {
            let outputs = pipeline.stages[item.producer].stage.outputs();
            let mut made = outputs.iter().filter(|made| made.name == item.output);
            made.any(|made| made.kind == kind)
        };
        items.filter(is_kind).map(|item| item.producer).collect()
    };
    let data = makers(DATASET);
    let templates: BTreeSet<Option<String>> = if data.is_empty() {
        let models = makers(LANGUAGE_MODEL).into_iter();
        models.map(|model| template_of(pipeline, model)).collect()
    } else {
        let params = data
            .iter()
            .map(|data| pipeline.stages[*data].stage.params());
        let template = |params: Json| Some(params.get("template")?.as_str()?.to_owned());
        params.map(template).collect()
    };
    let mut templates = templates.into_iter();
    templates.next()?.filter(|_| templates.next().is_none())
}

/// Says how messages become what a model in `folder` reads that was trained on data with this `template`, in Jinja `chats`.
pub(super) fn of_chats(
    folder: &Path,
    template: Option<&str>,
    chats: Option<&str>,
) -> std::io::Result<String> {
    let config = folder.join("tokenizer_config.json");
    let config = if config.exists() {
        serde_json::from_slice(&fs_err::read(config)?)?
    } else {
        Json::Null
    };
    let has = if config[CHAT_TEMPLATE].is_null() {
        "has no chat template"
    } else if config[CHAT_TEMPLATE].as_str() == chats {
        "has the chat template of the training data"
    } else {
        "has the chat template of the model that this one was made of"
    };
    let data = template.map_or_else(String::new, |template| {
        format!("; that data had {}", code(&format!("template: {template}")))
    });
    Ok(format!(
        "\n## Chats\n\n`tokenizer_config.json` {has}{data}.\n"
    ))
}

/// A stage that the model is made of.
fn row(name: &str, record: &Record) -> String {
    let sources =
        record.manifest.sources.iter().map(|(key, digest)| {
            code(&format!("{key} {}", digest.as_deref().unwrap_or("unknown")))
        });
    format!(
        "| {} | {} | {} | {} |\n",
        code(name),
        code(&record.manifest.kind),
        code(&record.fingerprint.short()),
        sources.collect::<Vec<_>>().join(", ")
    )
}

fn usage(library: &str, class: &str) -> String {
    if library == "sentence-transformers" {
        return fenced(
            "python",
            "from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer(\"FOLDER\")\n",
        );
    }
    fenced(
        "python",
        &format!(
            "from transformers import {class}, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"FOLDER\")\n\
             model = {class}.from_pretrained(\"FOLDER\")\n"
        ),
    )
}

/// A text as code of one line, in a table too.
fn code(text: &str) -> String {
    format!(
        "`{}`",
        text.replace('`', "'")
            .replace('|', "\\|")
            .replace(['\n', '\r'], " ")
    )
}

/// A text as a block of code that nothing in it ends.
fn fenced(language: &str, text: &str) -> String {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_params_hold_ends_no_block_and_no_cell() {
        assert_eq!(code("a|b`c\nd"), "`a\\|b'c d`");
        assert_eq!(fenced("yaml", "a: ```x\n"), "````yaml\na: ```x\n````\n");
    }
}
