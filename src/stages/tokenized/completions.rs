//! Completions as the policy read and wrote them, in the tokens of whoever scores them.

use super::check_vocabulary;
use crate::artifacts::completions::{CompletionRow, from_table};
use crate::artifacts::language_model::LanguageModel;
use crate::artifacts::table::Table;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::tokenizer::{Tokenizer, TokenizerError};
use crate::ml::trainer::TokenizedCompletion;
use crate::stages::passes;

/// Completions that every one of some models can read.
pub(crate) struct Scorable {
    pub(crate) rows: Vec<CompletionRow>,
    /// The rows in the tokens of each model.
    pub(crate) sequences: Vec<Vec<TokenizedCompletion>>,
}

/// Tokenizes the completions of a table for `models`. Rows beyond the context of one of them leave the table; their
/// number is noted.
pub(crate) fn scorable(
    table: &mut Table,
    models: &[&LanguageModel],
    ctx: &mut RunContext,
) -> Result<Scorable, StageError> {
    let mut rows = from_table(table)?;
    let of_models: Vec<Vec<Option<TokenizedCompletion>>> = models
        .iter()
        .map(|model| tokenize_completions(&rows, model, ctx))
        .collect::<Result<_, _>>()?;
    let fits: Vec<bool> = (0..rows.len())
        .map(|row| of_models.iter().all(|found| found[row].is_some()))
        .collect();
    let left_out = fits.iter().filter(|fits| !**fits).count();
    if left_out > 0 {
        let context = models
            .iter()
            .map(|model| model.config.max_position_embeddings);
        let context = context.min().unwrap_or(0);
        let problem = format!(
            "{left_out} of {} completions have more than {context} tokens with their prompt",
            rows.len()
        );
        if left_out == rows.len() {
            return Err(StageError::new(problem).hint(
                "the model that scores has a shorter context: set `max_prompt_tokens` or lower `max_new_tokens` in `sample`",
            ));
        }
        ctx.note(&format!("{problem} and were left out"));
        let mut kept = fits.iter();
        rows.retain(|_| kept.next() == Some(&true));
        table.keep_rows(&fits);
    }
    let sequences = of_models.into_iter().map(|found| {
        let kept = found.into_iter().zip(&fits).filter(|(_, fits)| **fits);
        kept.filter_map(|(row, _)| row).collect()
    });
    Ok(Scorable {
        rows,
        sequences: sequences.collect(),
    })
}

/// Tokenizes completions as they were generated; `None` for one that the model's context cannot hold.
pub(crate) fn tokenize_completions(
    rows: &[CompletionRow],
    model: &LanguageModel,
    ctx: &mut RunContext,
) -> Result<Vec<Option<TokenizedCompletion>>, StageError> {
    let mut index = 0;
    ctx.pass("completions read", rows, passes::TEXTS, |rows| {
        let mut sequences = Vec::with_capacity(rows.len());
        for row in rows {
            let sequence = sequence(row, &model.tokenizer, &model.eos)?;
            let fits = sequence.tokens.len() <= model.config.max_position_embeddings;
            if fits {
                check_vocabulary(model, &sequence.tokens, || {
                    format!("completion {index}, of question {}", row.question_id)
                })?;
            }
            sequences.push(fits.then_some(sequence));
            index += 1;
        }
        Ok::<_, StageError>(sequences)
    })
}

fn sequence(
    row: &CompletionRow,
    tokenizer: &Tokenizer,
    eos: &[u32],
) -> Result<TokenizedCompletion, StageError> {
    let mut tokens = prompt_tokens(row, tokenizer)?;
    let prompt_length = tokens.len();
    if prompt_length == 0 {
        return Err(StageError::new(format!(
            "the prompt of question {} has no tokens: its completion cannot be scored",
            row.question_id
        )));
    }
    tokens.extend(completion_tokens(row, tokenizer, eos)?);
    if tokens.len() == prompt_length {
        return Err(StageError::new(format!(
            "the completion of question {} has no tokens and did not end: it cannot be scored",
            row.question_id
        )));
    }
    Ok(TokenizedCompletion {
        tokens,
        prompt_length,
    })
}

/// The tokens that the policy read if they spell the prompt in this tokenizer; else those of its text.
fn prompt_tokens(row: &CompletionRow, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    match &row.prompt_ids {
        Some(ids) if tokenizer.decode_prompt(ids)? == row.prompt => Ok(ids.clone()),
        _ => tokenizer.encode_prompt(&row.prompt),
    }
}

/// The tokens that the policy chose if they spell the completion in this tokenizer; else those of its text, ended by
/// the end-of-sequence token unless the horizon ended it.
fn completion_tokens(
    row: &CompletionRow,
    tokenizer: &Tokenizer,
    eos: &[u32],
) -> Result<Vec<u32>, TokenizerError> {
    if let Some(ids) = &row.token_ids {
        let has_ended = ids.last().is_some_and(|id| eos.contains(id));
        if has_ended != row.truncated && tokenizer.decode(ids)? == row.completion {
            return Ok(ids.clone());
        }
    }
    let mut tokens = tokenizer.encode(&row.completion)?;
    if !row.truncated {
        tokens.push(eos[0]);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

    const EOS: [u32; 1] = [2];

    fn tokenizer(text: &str) -> Tokenizer {
        train_tokenizer(TokenizerAlgorithm::Bpe, [text], 270, &[]).unwrap()
    }

    /// A completion whose every byte was chosen as a token of its own.
    fn by_bytes(tokenizer: &Tokenizer, text: &str, truncated: bool) -> CompletionRow {
        let ids = text.split_inclusive(|_| true);
        let ids = ids.flat_map(|byte| tokenizer.encode(byte).unwrap());
        let ids = ids.chain((!truncated).then_some(EOS[0]));
        CompletionRow {
            prompt: "why".to_owned(),
            completion: text.to_owned(),
            token_ids: Some(ids.collect()),
            truncated,
            ..CompletionRow::default()
        }
    }

    fn completion(row: &CompletionRow, tokenizer: &Tokenizer) -> Vec<u32> {
        let row = sequence(row, tokenizer, &EOS).unwrap();
        row.tokens[row.prompt_length..].to_vec()
    }

    #[test]
    fn tokens_are_those_that_the_policy_chose() {
        let tokenizer = tokenizer("that that that");
        let read_again = tokenizer.encode("that").unwrap();
        for truncated in [true, false] {
            let row = by_bytes(&tokenizer, "that", truncated);
            let chosen = completion(&row, &tokenizer);
            assert_eq!(Some(&chosen), row.token_ids.as_ref());
            assert!(read_again.len() < 4 && chosen.len() == 4 + usize::from(!truncated));
        }
    }

    #[test]
    fn tokens_of_another_tokenizer_are_read_again_from_the_text() {
        let (ours, theirs) = (tokenizer("that that that"), tokenizer("why why why"));
        let row = CompletionRow {
            token_ids: Some(theirs.encode("why").unwrap()),
            ..by_bytes(&ours, "why", true)
        };
        assert_eq!(completion(&row, &ours), ours.encode("why").unwrap());
        let written = CompletionRow {
            token_ids: None,
            truncated: false,
            ..row
        };
        let expected = [ours.encode("why").unwrap(), EOS.to_vec()].concat();
        assert_eq!(completion(&written, &ours), expected);
    }

    #[test]
    fn tokens_without_the_end_that_the_row_claims_are_read_again() {
        let tokenizer = tokenizer("that that that");
        let row = CompletionRow {
            truncated: false,
            ..by_bytes(&tokenizer, "that", true)
        };
        let expected = [tokenizer.encode("that").unwrap(), EOS.to_vec()].concat();
        assert_eq!(completion(&row, &tokenizer), expected);
    }

    #[test]
    fn a_cut_prompt_is_the_one_that_the_policy_read() {
        let (ours, theirs) = (tokenizer("that that that"), tokenizer("why why why"));
        // Cut within a word: read again, its end would be another token.
        let bytes = ["t", "h", "a", "t"].map(|byte| ours.encode(byte).unwrap()[0]);
        let row = CompletionRow {
            prompt: "hat".to_owned(),
            prompt_ids: Some(bytes[1..].to_vec()),
            ..by_bytes(&ours, "that", true)
        };
        assert_eq!(prompt_tokens(&row, &ours).unwrap(), bytes[1..]);
        assert_ne!(ours.encode("hat").unwrap(), bytes[1..]);
        // Their tokens of these numbers spell something else.
        let row = CompletionRow {
            prompt: "that".to_owned(),
            prompt_ids: Some(ours.encode("that").unwrap()),
            ..row
        };
        assert_eq!(row.prompt_ids, Some(prompt_tokens(&row, &ours).unwrap()));
        let read_again = theirs.encode_prompt("that").unwrap();
        assert_eq!(prompt_tokens(&row, &theirs).unwrap(), read_again);
    }
}
