//! How questions and answers become prompts and completions: by a template of ours, or by that of a model.

use super::{LoadDataset, Taken};
use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::tokenizer::Tokenizer;
use crate::ml::tokenizer::chat::{ChatTemplate, Message};
use crate::stages::data::question::{Answer, Question, Template, role_of};

/// The value of `template` that asks for a model's own.
pub(super) const OF_MODEL: &str = "model";

pub(super) enum Rendering {
    Ours(Template),
    OfModel(Box<OfModel>),
}

pub(super) struct OfModel {
    template: ChatTemplate,
    /// Of the template's text.
    digest: Digest,
    bos: Option<String>,
    eos: Option<String>,
    /// All tokens that texts must not spell.
    special: Vec<String>,
    /// Whether the tokenizer puts the begin token before a text anyway.
    adds_bos: bool,
}

/// What a model is given, and what it is to answer.
#[derive(PartialEq)]
pub(super) struct Rendered {
    pub(super) prompt: String,
    pub(super) chosen: Option<String>,
    pub(super) rejected: Option<String>,
    /// Whether a begin token was left out, which the tokenizer puts there anyway.
    pub(super) cut_bos: bool,
}

impl Rendering {
    /// Prepares the template that `kind` asks for.
    pub(super) fn of(kind: &LoadDataset, ctx: &RunContext) -> Result<Self, StageError> {
        if kind.template != OF_MODEL {
            let template = Template::parse(&kind.template).map_err(StageError::new)?;
            return Ok(Self::Ours(template));
        }
        let tokenizer = Tokenizer::load(&ctx.input(OF_MODEL)?.path)?;
        let template = tokenizer.chat_template().ok_or_else(|| {
            StageError::new("the model has no chat template").hint(
                "`tokenizer_config.json` or `chat_template.jinja` of its folder would have it; `template: chatml` and others \
                 need none",
            )
        })?;
        let tokens = tokenizer.special_tokens();
        Ok(Self::OfModel(Box::new(OfModel {
            template: ChatTemplate::new(template, tokenizer.named_tokens())?,
            digest: Digest::of(template.as_bytes()),
            special: tokenizer.special_texts(),
            bos: tokens.bos.clone(),
            eos: tokens.eos.clone(),
            adds_bos: tokenizer.encode_prompt("a")?.first().copied() == tokenizer.bos_id(),
        })))
    }

    /// Renders what was taken of a row, or says why it cannot be.
    pub(super) fn render(&self, taken: &Taken) -> Result<Rendered, String> {
        let model = match self {
            Self::OfModel(model) => model,
            Self::Ours(template) => {
                if taken.messages().any(|message| message.content.is_none()) {
                    return Err(
                        "a message has no `content`, which only `template: model` may take"
                            .to_owned(),
                    );
                }
                let prompt = template.prompt(&taken.question);
                let behind = |answer: &Option<Answer>| {
                    let answer = answer.clone();
                    answer.map(|answer| answer.behind(&prompt, template))
                };
                return Ok(Rendered {
                    chosen: behind(&taken.chosen),
                    rejected: behind(&taken.rejected),
                    cut_bos: false,
                    prompt,
                });
            }
        };
        let messages = messages(&taken.question);
        let prompt = model.rendered(&messages, true)?;
        let behind = |answer: &Option<Answer>| {
            let answer = answer.as_ref();
            answer
                .map(|answer| model.completion(&messages, &prompt, answer))
                .transpose()
        };
        let (chosen, rejected) = (behind(&taken.chosen)?, behind(&taken.rejected)?);
        let cut = model.bos.as_deref().filter(|_| model.adds_bos);
        let without = cut.and_then(|bos| prompt.strip_prefix(bos));
        Ok(Rendered {
            chosen,
            rejected,
            cut_bos: without.is_some(),
            prompt: without.unwrap_or(&prompt).to_owned(),
        })
    }

    /// Returns what messages hold beside `role` and `content` that is not in what was rendered of them.
    pub(super) fn not_written(&self, taken: &Taken, rendered: &Rendered) -> Vec<String> {
        let mut names = taken.further_names();
        if let Self::OfModel(_) = self {
            names.retain(|name| {
                let without = self.render(&taken.without(name));
                without.is_ok_and(|without| without == *rendered)
            });
        }
        names.into_iter().collect()
    }

    /// Returns a token that means something to the model and is spelt in a text.
    pub(super) fn special_in(&self, text: &str) -> Option<&str> {
        match self {
            Self::OfModel(model) => {
                let mut special = model.special.iter().map(String::as_str);
                special.find(|token| text.contains(token))
            }
            Self::Ours(template) => {
                let mut special = template.special_tokens().iter().copied();
                special.find(|token| text.contains(token))
            }
        }
    }

    /// Says which template of a model it is.
    pub(super) fn note(&self) -> Option<String> {
        match self {
            Self::OfModel(model) => Some(format!(
                "rendered by the chat template with BLAKE3 digest {}",
                model.digest
            )),
            Self::Ours(_) => None,
        }
    }
}

impl OfModel {
    fn rendered(&self, messages: &[Message], is_prompt: bool) -> Result<String, String> {
        let rendered = self.template.render(messages, is_prompt);
        rendered.map_err(|error| error.to_string())
    }

    /// Returns what stands behind the prompt where the answer is part of the conversation, without the end token, which
    /// trainings put there.
    fn completion(
        &self,
        messages: &[Message],
        prompt: &str,
        answer: &Answer,
    ) -> Result<String, String> {
        let last = answer.message.clone();
        let last = last.unwrap_or_else(|| Message::new("assistant", &*answer.text));
        let whole = self.rendered(&[messages, &[last]].concat(), false)?;
        let completion = whole.strip_prefix(prompt).ok_or(
            "the chat template does not put an answer right behind what it makes of the prompt",
        )?;
        let trimmed = completion.trim_end();
        let eos = self.eos.as_deref().filter(|eos| !eos.is_empty());
        Ok(match eos.and_then(|eos| trimmed.strip_suffix(eos)) {
            Some(completion) => completion.to_owned(),
            None => completion.to_owned(),
        })
    }
}

fn messages(question: &Question) -> Vec<Message> {
    if let Question::Turns(messages) = question {
        return messages.clone();
    }
    let (before, turns) = question.turns();
    let system = (!before.is_empty()).then(|| Message::new("system", before));
    let turns = turns.into_iter();
    let turns = turns.map(|(speaker, said)| Message::new(role_of(speaker), said));
    system.into_iter().chain(turns).collect()
}
