//! Rewards, whoever gives them: a reward model or a reward rule.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::language_model::{LanguageModel, ModelError};
use super::reward_model::{REWARD_MODEL, RewardModel};
use super::reward_rule::{Asked, REWARD_RULE, RewardRule};
use crate::ml::models::causal::{CausalLmError, TokenBatch};
use crate::ml::tokenizer::Tokenizer;
use crate::ml::trainer::ModelSize;

/// The artifact kinds that give rewards.
pub const REWARDS: &[&str] = &[REWARD_MODEL, REWARD_RULE];

/// What gives rewards.
pub enum Reward {
    /// A model.
    Model(Box<RewardModel>),
    /// A rule.
    Rule(Box<RewardRule>),
}

impl Reward {
    /// Reads an artifact of one of the kinds of [`REWARDS`].
    pub fn load(kind: &str, folder: &Path) -> Result<Self, ModelError> {
        if kind == REWARD_RULE {
            return Ok(Self::Rule(Box::new(RewardRule::load(folder)?)));
        }
        Ok(Self::Model(Box::new(RewardModel::load(folder)?)))
    }

    /// The model, if it is one.
    pub fn model(&self) -> Option<&LanguageModel> {
        match self {
            Self::Model(model) => Some(&model.model),
            Self::Rule(_) => None,
        }
    }

    /// The size of the model; a rule costs no operations that are counted.
    pub fn size(&self) -> Option<ModelSize> {
        let model = self.model()?;
        Some(ModelSize::of(&model.config, false))
    }

    /// How many tokens it reads of a prompt with its completion; a rule reads any number.
    pub fn max_positions(&self) -> Option<usize> {
        Some(self.model()?.config.max_position_embeddings)
    }

    /// Says why it does not value completions that are not ended, if it does not.
    pub fn lacks_prefix_values(&self) -> Option<ModelError> {
        match self {
            Self::Rule(rule) if !rule.description.rule.has_prefix_values() => {
                Some(rule.no_prefix_values().into())
            }
            Self::Model(_) | Self::Rule(_) => None,
        }
    }

    /// Lets it reward what `policy` writes, token by token.
    pub fn bind(self, policy: &LanguageModel) -> BoundReward {
        BoundReward {
            tokenizer: policy.tokenizer.clone(),
            eos: policy.eos.clone(),
            reward: self,
        }
    }
}

/// What gives rewards to the completions of one policy.
pub struct BoundReward {
    reward: Reward,
    tokenizer: Tokenizer,
    eos: Vec<u32>,
}

/// A completion as tokens, behind its prompt.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// The prompt's text, whole even where its tokens were cut.
    pub prompt: &'a str,
    /// The prompt's tokens, then the completion's.
    pub tokens: &'a [u32],
    /// How many of them are the prompt's.
    pub prompt_length: usize,
}

impl Written<'_> {
    fn completion(&self) -> &[u32] {
        &self.tokens[self.prompt_length..]
    }
}

impl BoundReward {
    /// What gives them.
    pub fn reward(&self) -> &Reward {
        &self.reward
    }

    /// Checks that a rule can judge completions of every one of these prompts.
    pub fn check(&self, prompts: &[String]) -> Result<(), ModelError> {
        let Reward::Rule(rule) = &self.reward else {
            return Ok(());
        };
        for prompt in prompts {
            rule.judge(asked(prompt), "", true)?;
        }
        Ok(())
    }

    /// Returns the reward of each row.
    ///
    /// Rows are scored in batches of `batch_size`, which changes no reward.
    pub fn rewards(&self, rows: &[Written<'_>], batch_size: usize) -> Result<Vec<f64>, ModelError> {
        let rule = match &self.reward {
            Reward::Model(model) => {
                let rows: Vec<Vec<u32>> = rows.iter().map(|row| row.tokens.to_vec()).collect();
                return model.rewards(&rows, batch_size);
            }
            Reward::Rule(rule) => rule,
        };
        let judged = |row: &Written<'_>| self.judged(rule, row.prompt, row.completion());
        rows.iter().map(judged).collect()
    }

    /// Returns the reward of every prefix of every row, (rows, time), as [`RewardModel::prefix_rewards`] does: place t
    /// holds that of the row's tokens up to t, a whole row's with an end token its reward.
    ///
    /// Before its first token a completion has come nowhere, and so has any prefix of the prompt. `batch` holds the same
    /// rows.
    pub fn prefix_rewards(
        &self,
        rows: &[Written<'_>],
        batch: &TokenBatch,
    ) -> Result<Tensor, ModelError> {
        let rule = match &self.reward {
            Reward::Model(model) => return model.prefix_rewards(batch),
            Reward::Rule(rule) => rule,
        };
        if let Some(error) = self.reward.lacks_prefix_values() {
            return Err(error);
        }
        let time = batch.time();
        let mut values = vec![0f32; batch.tokens().len()];
        for (place, (span, row)) in batch.spans().iter().zip(rows).enumerate() {
            let (completion, length) = (row.completion(), row.prompt_length);
            let prompt = row.prompt;
            let start = rule.prefix_value(asked(prompt), "")?;
            let first = place * time + span.start;
            values[first..first + length].fill(start as f32);
            // The text grows by a token; where no step was closed the value stays.
            let (mut closed, mut value) = (0, start);
            for end in 1..=completion.len() {
                let written = &completion[..end];
                value = if self.has_ended(written) {
                    self.judged(rule, prompt, written)?
                } else {
                    let text = self.tokenizer.decode(written)?;
                    let now = text.matches(';').count();
                    if now == closed {
                        value
                    } else {
                        closed = now;
                        rule.prefix_value(asked(prompt), &text)?
                    }
                };
                values[first + length + end - 1] = value as f32;
            }
        }
        let shape = (batch.rows(), time);
        let values = Tensor::from_vec(values, shape, &Device::Cpu);
        Ok(values.map_err(CausalLmError::from)?)
    }

    fn has_ended(&self, completion: &[u32]) -> bool {
        completion
            .last()
            .is_some_and(|last| self.eos.contains(last))
    }

    fn judged(
        &self,
        rule: &RewardRule,
        prompt: &str,
        completion: &[u32],
    ) -> Result<f64, ModelError> {
        let text = self.tokenizer.decode(completion)?;
        let verdict = rule.judge(asked(prompt), &text, self.has_ended(completion))?;
        Ok(verdict.reward)
    }
}

fn asked(prompt: &str) -> Asked<'_> {
    Asked {
        prompt,
        question: "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::reward_rule::{
        Arithmetic, Exact, Pattern, Rule, RuleDescription, Unfinished,
    };
    use super::*;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::{LlamaConfig, init};
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};
    use crate::random::Stream;

    const PROMPT: &str = "numbers 2 3 6 target 18";

    /// A policy that has every word as a token.
    fn policy(folder: &Path) -> LanguageModel {
        let words = "numbers target 1 2 3 4 5 6 8 9 12 18 + - * = ;";
        let tokenizer =
            train_tokenizer(TokenizerAlgorithm::WordLevel, [words; 2], 64, &[]).unwrap();
        let config = LlamaConfig {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: 8,
            intermediate_size: 8,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            rope_theta: 1e4,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            max_position_embeddings: 32,
        };
        let weights = init(&config, &Stream::new(1, "policy"), &Device::Cpu).unwrap();
        super::super::language_model::save_new(folder, &config, &weights, &tokenizer).unwrap();
        LanguageModel::load(folder).unwrap()
    }

    fn bound(rule: Rule, unfinished: Unfinished) -> (BoundReward, LanguageModel) {
        let folder = tempfile::tempdir().unwrap();
        let policy = policy(folder.path());
        let description = RuleDescription {
            rule,
            right: 2.0,
            wrong: -1.0,
            malformed: -3.0,
            unfinished,
            answers: Vec::new(),
        };
        let reward = Reward::Rule(Box::new(RewardRule::new(description).unwrap()));
        assert!(reward.model().is_none() && reward.size().is_none());
        assert_eq!(reward.max_positions(), None);
        (reward.bind(&policy), policy)
    }

    fn arithmetic() -> Rule {
        Rule::Arithmetic(Arithmetic { greatest: 24 })
    }

    /// The tokens of completions behind the prompt, and the prompt's number; `|` stands for the end token.
    fn tokens(policy: &LanguageModel, completions: &[&str]) -> (Vec<Vec<u32>>, usize) {
        let prompt = policy.tokenizer.encode_prompt(PROMPT).unwrap();
        let rows = completions.iter().map(|text| {
            let mut row = prompt.clone();
            row.extend(policy.tokenizer.encode(text.trim_end_matches('|')).unwrap());
            row.extend(text.ends_with('|').then_some(policy.eos[0]));
            row
        });
        (rows.collect(), prompt.len())
    }

    fn written(tokens: &[Vec<u32>], prompt_length: usize) -> Vec<Written<'_>> {
        let rows = tokens.iter().map(|tokens| Written {
            prompt: PROMPT,
            tokens,
            prompt_length,
        });
        rows.collect()
    }

    #[test]
    fn a_rule_rewards_what_the_tokens_spell() {
        let completions = [
            "3 * 6 = 18|",
            "3 * 6 = 18",
            "3 * 6 = 12|",
            "2 * 3 = 6 ; 6 + 6 = 12|",
            "3 * 6|",
            "|",
        ];
        for (unfinished, cut) in [(Unfinished::Wrong, -1.0), (Unfinished::AsIs, 2.0)] {
            let (bound, policy) = bound(arithmetic(), unfinished);
            bound.check(&[PROMPT.to_owned()]).unwrap();
            let (tokens, prompt) = tokens(&policy, &completions);
            for batch_size in [1, 4] {
                let found = bound.rewards(&written(&tokens, prompt), batch_size);
                let found = found.unwrap();
                assert_eq!(found, [2.0, cut, -1.0, -1.0, -3.0, -3.0]);
            }
        }
    }

    #[test]
    fn prefixes_are_worth_the_steps_that_are_closed_and_the_whole_its_reward() {
        let (bound, policy) = bound(arithmetic(), Unfinished::Wrong);
        assert!(bound.reward().lacks_prefix_values().is_none());
        let (rows, prompt) = tokens(
            &policy,
            &[
                "3 - 2 = 1 ; 18|",
                "6 - 3 = 3 ; 3 * 2 = 6|",
                "6 + 3 = 9 ; 9 * 2 = 18|",
                "6 * ; 3|",
            ],
        );
        let batch = TokenBatch::right_padded(&rows);
        let answers = written(&rows, prompt);
        let found = bound.prefix_rewards(&answers, &batch).unwrap();
        assert_eq!(found.dims(), [4, batch.time()]);
        let found = found.to_vec2::<f32>().unwrap();
        for ((row, answer), values) in rows.iter().zip(&answers).zip(&found) {
            assert_eq!(values[..prompt], vec![-1.0; prompt]);
            assert!(values[row.len()..].iter().all(|value| *value == 0.0));
            let whole = bound.rewards(std::slice::from_ref(answer), 1);
            assert_eq!(f64::from(values[row.len() - 1]), whole.unwrap()[0]);
        }
        let of = |row: usize| &found[row][prompt..rows[row].len()];
        // 18 cannot be made of 1 and 6; then the text is malformed.
        assert_eq!(of(0), [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -3.0]);
        // Of 2 and 3 neither.
        assert_eq!(of(1), [-1.0; 12]);
        // One step of two; the second counts when the end token says that it is the last.
        let half = [[-1.0; 5].as_slice(), &[0.5; 6], &[2.0]].concat();
        assert_eq!(of(2), half);
        assert_eq!(of(3), [-1.0, -1.0, -3.0, -3.0, -3.0]);
        // The same with rows that end together.
        let batch = TokenBatch::left_padded(&rows);
        let left = bound.prefix_rewards(&answers, &batch).unwrap();
        let left = left.to_vec2::<f32>().unwrap();
        for (row, span) in batch.spans().iter().enumerate() {
            assert_eq!(left[row][span.clone()], found[row][..span.len()]);
        }
    }

    #[test]
    fn rules_without_values_of_prefixes_say_what_to_do() {
        let pattern = Pattern {
            pattern: "18".to_owned(),
            full_match: false,
        };
        for rule in [Rule::Regex(pattern), Rule::Exact(Exact::default())] {
            let name = rule.name();
            let (bound, policy) = bound(rule, Unfinished::AsIs);
            assert!(bound.reward().lacks_prefix_values().is_some());
            let (rows, prompt) = tokens(&policy, &["18|"]);
            let batch = TokenBatch::right_padded(&rows);
            let error = bound.prefix_rewards(&written(&rows, prompt), &batch);
            let (message, hint) = crate::hint::told(&error.unwrap_err());
            assert!(
                message.contains(&format!("`{name}` rules say nothing")),
                "{message}"
            );
            assert!(hint.is_some_and(|hint| hint.contains("`forward_looking`")));
        }
    }

    #[test]
    fn prompts_without_a_right_answer_are_errors() {
        let (exact, _) = bound(Rule::Exact(Exact::default()), Unfinished::Wrong);
        let error = exact.check(&[PROMPT.to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("knows no right answer to the prompt"),
            "{error}"
        );
    }
}
