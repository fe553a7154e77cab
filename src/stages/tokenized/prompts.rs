//! Prompts that a model can complete.

use super::check_vocabulary;
use crate::artifacts::dataset::Example;
use crate::artifacts::language_model::LanguageModel;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::stages::passes;

/// A prompt of a dataset as a model reads it.
pub(crate) struct TokenizedPrompt {
    /// Its place among the examples.
    pub(crate) place: usize,
    /// Its tokens, behind the begin token if there is one.
    pub(crate) tokens: Vec<u32>,
    /// Whether its beginning was cut.
    pub(crate) is_cut: bool,
}

/// Tokenizes the first `wanted` of the prompts (with their rows of the dataset) that have at most `most` tokens.
///
/// Longer ones, which leave no room for a completion, and empty ones are left out; their number is noted. With `cut`
/// only so many of a prompt's last tokens are kept, behind the begin token.
pub(crate) fn tokenize_prompts(
    model: &LanguageModel,
    examples: &[(usize, &Example)],
    wanted: usize,
    cut: Option<usize>,
    most: usize,
    ctx: &mut RunContext,
) -> Result<Vec<TokenizedPrompt>, StageError> {
    let mut prompts = Vec::new();
    let mut left_out = 0;
    let mut place = 0;
    ctx.pass("prompts read", examples, passes::TEXTS, |examples| {
        for (row, example) in examples {
            if prompts.len() == wanted {
                break;
            }
            let whole = model.tokenizer.encode_prompt(&example.prompt)?;
            let length = whole.len();
            let tokens = model.tokenizer.cut_prompt(whole, cut);
            if (1..=most).contains(&tokens.len()) {
                check_vocabulary(model, &tokens, || format!("row {row} of the dataset"))?;
                prompts.push(TokenizedPrompt {
                    place,
                    is_cut: tokens.len() < length,
                    tokens,
                });
            } else {
                left_out += 1;
            }
            place += 1;
        }
        Ok::<[(); 0], StageError>([])
    })?;
    if left_out > 0 {
        let seen = prompts.len() + left_out;
        ctx.note(&format!(
            "{left_out} of {seen} prompts have more than {most} tokens (or none) and were left out"
        ));
    }
    Ok(prompts)
}
