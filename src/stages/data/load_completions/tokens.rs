//! Token ids of prompts and completions, and what they spell.

use super::row::Written;
use crate::artifacts::completions::CompletionRow;
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::engine::context::Input;
use crate::engine::stage::StageError;
use crate::excerpt::excerpt;
use crate::ml::tokenizer::{Tokenizer, TokenizerError};
use crate::stages::data::left_out::Fault;

/// What a message shows of a text.
const SHOWN: usize = 60;

/// Whose tokens ids are, if anybody says it.
pub(super) struct Tokens {
    of: Option<Vocabulary>,
}

struct Vocabulary {
    tokenizer: Tokenizer,
    /// What ends a completion.
    ends: Vec<u32>,
    /// All tokens that texts must not spell.
    special: Vec<String>,
}

/// A completion, before it is numbered.
pub(super) struct Completed {
    pub(super) row: CompletionRow,
    /// Whether it is known if it was cut off.
    pub(super) is_sure: bool,
    /// A special token that its text spells: it would become that token, and not those of its letters.
    pub(super) special: Option<String>,
}

impl Tokens {
    /// Reads the tokenizer of a model, if there is one.
    pub(super) fn of(input: Option<&Input>) -> Result<Self, StageError> {
        let Some(input) = input else {
            return Ok(Self { of: None });
        };
        let (tokenizer, ends) = if input.kind == LANGUAGE_MODEL {
            let model = LanguageModel::load(&input.path)?;
            (model.tokenizer, model.eos)
        } else {
            let tokenizer = Tokenizer::load(&input.path)?;
            let ends = tokenizer.end_ids().to_vec();
            (tokenizer, ends)
        };
        if ends.is_empty() {
            return Err(
                StageError::new("the tokenizer of `model` has no end-of-sequence token")
                    .hint("its `tokenizer_config.json` would name it as `eos_token`"),
            );
        }
        Ok(Self {
            of: Some(Vocabulary {
                special: tokenizer.special_texts(),
                tokenizer,
                ends,
            }),
        })
    }

    pub(super) fn are_known(&self) -> bool {
        self.of.is_some()
    }

    /// Returns a prompt, and its ids where these are not those of its text.
    pub(super) fn prompt(
        &self,
        text: Option<String>,
        ids: Option<Vec<u32>>,
    ) -> Result<Option<(String, Option<Vec<u32>>)>, String> {
        let Some(vocabulary) = &self.of else {
            return Ok(text.map(|text| (text, ids)));
        };
        let Some(ids) = ids else {
            return Ok(text.map(|text| (text, None)));
        };
        vocabulary.check("prompt_ids", &ids)?;
        let tokenizer = &vocabulary.tokenizer;
        let spelt = in_words(tokenizer.decode_prompt(&ids))?;
        let text = spelt_text("prompt_ids", "prompt", text, &[&spelt])?;
        let is_usual = in_words(tokenizer.encode_prompt(&text))? == ids;
        Ok(Some((text, (!is_usual).then_some(ids))))
    }

    /// Returns a completion.
    pub(super) fn completion(&self, written: Written) -> Result<Completed, Fault> {
        let Written {
            text,
            ids,
            truncated,
            tokens,
            log_prob,
            ..
        } = written;
        let mut row = CompletionRow {
            completion: text.clone().unwrap_or_default(),
            truncated: truncated.unwrap_or(false),
            tokens: tokens.or(ids.as_ref().map(|ids| ids.len() as u64)),
            token_ids: ids,
            log_prob,
            ..CompletionRow::default()
        };
        let mut is_sure = truncated.is_some();
        let mut special = None;
        if tokens == Some(0) && !row.completion.is_empty() {
            return Err(miscounted(0, "the completion is not empty", MENDED));
        }
        if let Some(vocabulary) = &self.of {
            let tokenizer = &vocabulary.tokenizer;
            if let Some(ids) = &mut row.token_ids {
                vocabulary.check("token_ids", ids)?;
                row.truncated = vocabulary.end(ids, truncated)?;
                is_sure = true;
                row.completion = in_words(tokenizer.decode(ids))?;
                let special = in_words(tokenizer.decode_with_special_tokens(ids))?;
                spelt_text(
                    "token_ids",
                    "completion",
                    text,
                    &[&row.completion, &special],
                )?;
                row.tokens = Some(count(tokens, ids.len(), row.truncated)?);
            } else {
                let found = vocabulary.special.iter();
                let mut found = found.filter(|token| row.completion.contains(*token));
                special = found.next().cloned();
                let ids = in_words(tokenizer.encode(&row.completion))?.len();
                let ids = ids + usize::from(!row.truncated);
                row.tokens = Some(count(tokens, ids, row.truncated)?);
            }
        } else if let (Some(tokens), Some(ids)) = (tokens, &row.token_ids) {
            // The end token may be missing in either.
            let ids = ids.len() as u64;
            if tokens.abs_diff(ids) > 1 {
                let found = format!("`token_ids` are {ids}");
                let hint =
                    "the port `model` would tell tokens of a completion from those that fill a row";
                return Err(miscounted(tokens, &found, hint));
            }
        }
        if row.truncated
            && row.completion.is_empty()
            && row.token_ids.as_ref().is_none_or(Vec::is_empty)
        {
            return Err("the completion was cut off before its first token".into());
        }
        Ok(Completed {
            row,
            is_sure,
            special,
        })
    }
}

const MENDED: &str = "mend the column `tokens`, or leave it out";

fn miscounted(tokens: u64, found: &str, hint: &'static str) -> Fault {
    Fault::File(format!("`tokens` is {tokens}, but {found}"), hint)
}

/// Returns how many tokens a completion has, its end token included; the file may have counted them without that.
fn count(tokens: Option<u64>, ids: usize, truncated: bool) -> Result<u64, Fault> {
    let ids = ids as u64;
    let without_end = ids - u64::from(!truncated);
    match tokens {
        Some(tokens) if tokens != ids && tokens != without_end => {
            let found =
                format!("the completion has {without_end} tokens of `model` before its end");
            let hint = "whose tokens were counted? `token_ids` would say it; without `model` the file is believed";
            Err(miscounted(tokens, &found, hint))
        }
        _ => Ok(ids),
    }
}

impl Vocabulary {
    fn check(&self, name: &str, ids: &[u32]) -> Result<(), String> {
        let unknown = |id: &&u32| self.tokenizer.id_to_token(**id).is_none();
        match ids.iter().find(unknown) {
            None => Ok(()),
            Some(id) => Err(format!("`{name}` has {id}, which is no token of `model`")),
        }
    }

    /// Ends ids where a completion ends; returns whether it was truncated.
    fn end(&self, ids: &mut Vec<u32>, truncated: Option<bool>) -> Result<bool, String> {
        let is_end = |id: &u32| self.ends.contains(id);
        let end = ids.iter().position(is_end);
        if let Some(end) = end {
            let pad = self.tokenizer.pad_id();
            if !ids[end + 1..].iter().all(|id| is_end(id) || *id == pad) {
                return Err("`token_ids` go on behind the end token".to_owned());
            }
            ids.truncate(end + 1);
        }
        match (truncated, end) {
            (Some(true), Some(_)) => {
                Err("it was cut off, but `token_ids` have the end token".to_owned())
            }
            (Some(false), None) => {
                ids.push(self.ends[0]);
                Ok(false)
            }
            (_, end) => Ok(end.is_none()),
        }
    }
}

/// Returns what ids spell, which must be the text beside them.
fn spelt_text(
    ids: &str,
    name: &str,
    text: Option<String>,
    spelt: &[&str],
) -> Result<String, String> {
    let Some(text) = text else {
        return Ok(spelt[0].to_owned());
    };
    if spelt.contains(&text.as_str()) {
        return Ok(text);
    }
    if spelt.iter().any(|spelt| spelt.trim() == text.trim()) {
        return Ok(spelt[0].to_owned());
    }
    let [spelt, text] = [spelt[0], &text].map(|text| excerpt(text, SHOWN).into_owned());
    Err(format!(
        "`{ids}` spell {spelt:?} in the tokens of `model`, `{name}` is {text:?}"
    ))
}

fn in_words<T>(result: Result<T, TokenizerError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}
