//! Where the tokens of a prompt end and those of its completion begin.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::tokenizer::{Tokenizer, TokenizerError};

/// Rows that are looked at before a training for what its boundary means.
const EXAMINED: usize = 1000;

/// How a prompt and its completion become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Boundary {
    /// Each by itself: the prompt's tokens are those that a policy is given when it is sampled, and its completions
    /// begin behind them.
    #[default]
    Apart,
    /// As one text, as TRL and others have it: the completion begins with the first token that is not the prompt's own.
    /// A token across the end of the prompt (a space and the word behind it) belongs to the completion; sampling, which
    /// reads the prompt alone, does not begin there.
    Joint,
}

/// The tokens of a prompt and of a completion.
pub(crate) type Split = (Vec<u32>, Vec<u32>);

impl Boundary {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    pub(crate) fn is_apart(&self) -> bool {
        *self == Self::Apart
    }

    /// Returns the tokens of a prompt, behind the begin token if the tokenizer adds one, and of its completion.
    pub(crate) fn split(
        self,
        tokenizer: &Tokenizer,
        prompt: &str,
        completion: &str,
    ) -> Result<Split, TokenizerError> {
        let [split] = self.split_all(tokenizer, prompt, [completion])?;
        Ok(split)
    }

    /// Returns the tokens of a prompt and of each of its completions. All of them begin behind the same tokens, where
    /// the first of them must: so has TRL the two sides of a pair.
    pub(crate) fn split_all<const N: usize>(
        self,
        tokenizer: &Tokenizer,
        prompt: &str,
        completions: [&str; N],
    ) -> Result<[Split; N], TokenizerError> {
        let alone = tokenizer.encode_prompt(prompt)?;
        let mut splits = [const { (Vec::new(), Vec::new()) }; N];
        if self == Self::Apart {
            for (split, completion) in splits.iter_mut().zip(completions) {
                *split = (alone.clone(), tokenizer.encode(completion)?);
            }
            return Ok(splits);
        }
        let mut shared = alone.len();
        for ((whole, _), completion) in splits.iter_mut().zip(completions) {
            *whole = tokenizer.encode_prompt(&format!("{prompt}{completion}"))?;
            let both = whole.iter().zip(&alone);
            shared = shared.min(both.take_while(|(a, b)| a == b).count());
        }
        for (whole, completion) in &mut splits {
            *completion = whole.split_off(shared);
        }
        Ok(splits)
    }
}

/// Says in how many rows, of the first ones, the choice of the boundary makes a difference.
pub(crate) fn note_boundary<'a>(
    tokenizer: &Tokenizer,
    rows: impl Iterator<Item = (&'a str, &'a str)>,
    boundary: Boundary,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let (differing, examined) = differing(tokenizer, rows.take(EXAMINED))?;
    if differing > 0 {
        let what = match boundary {
            Boundary::Apart => {
                "have other tokens when they are read together with their prompt; `boundary: joint` trains on those"
            }
            Boundary::Joint => {
                "have other tokens here than behind their prompt read by itself, as sampling does; `boundary: apart` \
                 trains on those"
            }
        };
        ctx.note(&format!(
            "{differing} of the first {examined} completions {what}"
        ));
    }
    Ok(())
}

/// Counts rows whose tokens depend on the boundary, and all rows.
fn differing<'a>(
    tokenizer: &Tokenizer,
    rows: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(usize, usize), TokenizerError> {
    let (mut differing, mut examined) = (0, 0);
    for (prompt, completion) in rows {
        let apart = Boundary::Apart.split(tokenizer, prompt, completion)?;
        let joint = Boundary::Joint.split(tokenizer, prompt, completion)?;
        differing += usize::from(apart != joint);
        examined += 1;
    }
    Ok((differing, examined))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

    /// Byte-level tokens in which a space belongs to the word behind it.
    fn tokenizer() -> Tokenizer {
        let text = ["Answer: yes Answer: yes Answer: no yes yes no no"; 4];
        train_tokenizer(TokenizerAlgorithm::Bpe, text, 300, &[]).unwrap()
    }

    fn spelt(boundary: Boundary, prompt: &str, completion: &str) -> [Vec<String>; 2] {
        let tokenizer = tokenizer();
        let (prompt, completion) = boundary.split(&tokenizer, prompt, completion).unwrap();
        [prompt, completion].map(|ids| {
            let words = ids.iter().map(|id| tokenizer.decode(&[*id]).unwrap());
            words.filter(|word| !word.is_empty()).collect()
        })
    }

    #[test]
    fn a_space_before_the_answer_joins_it_where_both_are_read_together() {
        let [prompt, completion] = spelt(Boundary::Apart, "Answer: ", "yes");
        assert_eq!(prompt.last().unwrap(), " ");
        assert_ne!(completion, [" yes"]);
        assert_eq!(completion.concat(), "yes");
        let [prompt, completion] = spelt(Boundary::Joint, "Answer: ", "yes");
        assert_eq!(prompt.concat(), "Answer:");
        assert_eq!(completion, [" yes"]);
    }

    #[test]
    fn both_sides_of_a_pair_begin_behind_the_same_tokens() {
        let tokenizer = tokenizer();
        let split = |sides: [&str; 2]| {
            Boundary::Joint
                .split_all(&tokenizer, "Answer: ", sides)
                .unwrap()
        };
        // Read by itself, the second side leaves the space to the prompt.
        let alone = Boundary::Joint.split(&tokenizer, "Answer: ", "5 dogs");
        assert_eq!(tokenizer.decode(&alone.unwrap().0).unwrap(), "Answer: ");
        for sides in [["yes", "5 dogs"], ["5 dogs", "yes"]] {
            for ((prompt, completion), side) in split(sides).into_iter().zip(sides) {
                assert_eq!(tokenizer.decode(&prompt).unwrap(), "Answer:");
                let expected = format!(" {side}");
                assert_eq!(tokenizer.decode(&completion).unwrap(), expected);
            }
        }
    }

    #[test]
    fn rows_are_counted_whose_tokens_depend_on_the_boundary() {
        let rows = [("Answer: ", "yes"), ("Answer:", " yes"), ("Answer: ", "no")];
        assert_eq!(differing(&tokenizer(), rows.into_iter()).unwrap(), (2, 3));
    }
}
