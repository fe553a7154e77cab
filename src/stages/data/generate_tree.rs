//! `generate_tree`: a world so small that every completion can be listed.

use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COMPLETIONS, CompletionRow, to_table};
use crate::artifacts::dataset::{DATASET, Dataset, Example, PROMPTS};
use crate::artifacts::language_model::SCORE;
use crate::artifacts::language_model::{CONTEXT, LANGUAGE_MODEL, save_new, save_new_classifier};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardDescription, RewardModel};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::ml::head::{HeadInit, ScalarHead};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::models::causal::init;
use crate::ml::tokenizer::{Tokenizer, TokenizerAlgorithm, train_tokenizer};
use crate::random::Stream;
use crate::stats::{mean, population_std};

/// Completions listed at most, of all prompts together.
const MOST_COMPLETIONS: usize = 100_000;

/// Makes a token tree whose distributions are known exactly: prompts, every completion of each up to the horizon, a
/// policy with random weights and a reward model with random weights.
///
/// The vocabulary is `symbols` words and the four special tokens; with v tokens other than the end there are
/// 1 + v + ... + v^horizon completions of a prompt, those of v^horizon being cut at the horizon, where the stop is
/// forced. Rewards have mean 0 and standard deviation `spread` over all completions of all prompts; the prompts differ
/// in log Z. Objectives can so be held against their targets without sampling anything.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateTree {
    /// Words of the vocabulary.
    symbols: usize,
    /// Tokens of a completion at most.
    horizon: usize,
    /// Prompts.
    prompts: usize,
    /// Standard deviation of the reward.
    spread: f64,
    /// Width of the policy.
    #[serde(default = "hidden_size")]
    hidden_size: usize,
    /// Transformer blocks of the policy.
    #[serde(default = "num_layers")]
    num_layers: usize,
    /// Seed of policy and rewards.
    seed: u64,
}

fn hidden_size() -> usize {
    32
}

fn num_layers() -> usize {
    2
}

impl GenerateTree {
    /// Tokens that may follow one another: all but the end.
    fn choices(&self) -> usize {
        self.symbols + 3
    }

    fn completions(&self) -> Option<usize> {
        let mut total = 0usize;
        for length in 0..=self.horizon {
            let count = self.choices().checked_pow(u32::try_from(length).ok()?)?;
            total = total.checked_add(count)?;
        }
        total.checked_mul(self.prompts)
    }

    /// Words of a prompt: enough to tell all prompts apart.
    fn prompt_length(&self) -> usize {
        let mut length = 1;
        while self.symbols > 1 && self.symbols.pow(length) < self.prompts {
            length += 1;
        }
        length as usize
    }

    /// Prompts have one length, so that none begins another: a state would belong to two trees.
    fn prompt(&self, question: usize) -> String {
        let mut rest = question;
        let words = (0..self.prompt_length()).map(|_| {
            let word = symbol(rest % self.symbols);
            rest /= self.symbols;
            word
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn tokenizer(&self) -> Result<Tokenizer, StageError> {
        let words: Vec<String> = (0..self.symbols).map(symbol).collect();
        let words = words.iter().map(String::as_str);
        let algorithm = TokenizerAlgorithm::WordLevel;
        Ok(train_tokenizer(algorithm, words, self.symbols + 4, &[])?)
    }

    fn config(&self, hidden_size: usize, num_layers: usize) -> LlamaConfig {
        LlamaConfig {
            vocab_size: self.symbols + 4,
            hidden_size,
            intermediate_size: 2 * hidden_size,
            num_layers,
            num_heads: 2,
            num_kv_heads: 2,
            rope_theta: 10_000.0,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            max_position_embeddings: self.horizon + self.prompt_length() + 2,
        }
    }

    /// Every completion of every prompt, shorter ones first.
    fn rows(&self, tokenizer: &Tokenizer, eos: u32) -> Result<Vec<CompletionRow>, StageError> {
        let choices: Vec<u32> = (0..tokenizer.vocab_size() as u32)
            .filter(|token| *token != eos)
            .collect();
        let mut texts: Vec<(Vec<u32>, bool)> = Vec::new();
        let mut open: Vec<Vec<u32>> = vec![Vec::new()];
        for length in 0..=self.horizon {
            let truncated = length == self.horizon;
            for tokens in &open {
                let mut tokens = tokens.clone();
                tokens.extend((!truncated).then_some(eos));
                texts.push((tokens, truncated));
            }
            if !truncated {
                open = open
                    .iter()
                    .flat_map(|tokens| {
                        let next = choices.iter();
                        next.map(|token| [tokens.as_slice(), &[*token]].concat())
                    })
                    .collect();
            }
        }
        let mut rows = Vec::with_capacity(texts.len() * self.prompts);
        for question in 0..self.prompts {
            let prompt = self.prompt(question);
            for (sample, (tokens, truncated)) in (0..).zip(&texts) {
                rows.push(CompletionRow {
                    question_id: question as u64,
                    sample,
                    question: prompt.clone(),
                    prompt: prompt.clone(),
                    completion: tokenizer.decode(tokens)?,
                    tokens: Some(tokens.len() as u64),
                    token_ids: Some(tokens.clone()),
                    truncated: *truncated,
                    ..CompletionRow::default()
                });
            }
        }
        Ok(rows)
    }
}

fn symbol(index: usize) -> String {
    format!("w{index}")
}

impl Kind for GenerateTree {
    const NAME: &'static str = "generate_tree";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = "{ symbols: 2, horizon: 3, prompts: 3, spread: 1.5, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![
            Output::new("policy", LANGUAGE_MODEL),
            Output::new("reward", REWARD_MODEL),
            Output::new("data", DATASET),
            Output::new("completions", COMPLETIONS),
        ]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, value) in [
            ("symbols", self.symbols),
            ("horizon", self.horizon),
            ("prompts", self.prompts),
        ] {
            crate::stages::ranges::at_least_one(key, value as u64, &mut problems);
        }
        if self.symbols == 1 && self.prompts > 1 {
            problems.push(Problem::new(
                "prompts",
                "`prompts` must be 1 with one symbol: no two could be told apart",
            ));
        }
        crate::stages::ranges::factor("spread", self.spread, &mut problems);
        if let Err(error) = self.config(self.hidden_size, self.num_layers).check() {
            problems.push(Problem::new("hidden_size", error));
        }
        if self
            .completions()
            .is_none_or(|count| count > MOST_COMPLETIONS)
        {
            problems.push(
                Problem::new(
                    "horizon",
                    format!("the tree has more than {MOST_COMPLETIONS} completions"),
                )
                .hint("lower `horizon`, `symbols` or `prompts`"),
            );
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let context = self
            .config(self.hidden_size, self.num_layers)
            .max_position_embeddings;
        for model in ["policy", "reward"] {
            known.says(model, CONTEXT, context, ("horizon", self.horizon));
        }
        known.says("data", PROMPTS, self.prompts, ("prompts", self.prompts));
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let stream = Stream::new(self.seed, "generate_tree");
        let tokenizer = self.tokenizer()?;
        let config = self.config(self.hidden_size, self.num_layers);
        let weights = init(&config, &stream.child("policy"), &Device::Cpu)?;
        save_new(&ctx.output("policy")?, &config, &weights, &tokenizer)?;

        // Wider than the policy, and of large weights, so that rewards differ from token to token.
        let config = self.config(64, 2);
        let mut weights = init(&config, &stream.child("reward"), &Device::Cpu)?;
        for tensor in weights.values_mut() {
            if tensor.rank() == 2 {
                *tensor = (&*tensor * 8.0)?;
            }
        }
        let folder = ctx.output("reward")?;
        let normal = HeadInit::Normal(1.0);
        let head = ScalarHead::init(64, false, normal, &stream.child("head"), &Device::Cpu)?;
        let head = head.parameters().weights()?;
        save_new_classifier(&folder, &config, &weights, &tokenizer, &head[SCORE])?;
        let mut description = RewardDescription {
            scale: 1.0,
            offset: 0.0,
            accuracy: None,
            longer_wins: None,
            skipped_end: None,
            appended_end: None,
        };
        description.save(&folder)?;
        let raw = RewardModel::load(&folder)?;
        let rows = self.rows(&tokenizer, raw.model.eos[0])?;
        let tokens: Vec<Vec<u32>> = rows
            .iter()
            .map(|row| {
                let mut tokens = tokenizer.encode_prompt(&row.prompt)?;
                tokens.extend(row.token_ids.iter().flatten());
                Ok(tokens)
            })
            .collect::<Result<_, StageError>>()?;
        let scores = crate::stages::passes::rewards(ctx, &raw, &tokens, 256)?;
        let spread = population_std(&scores)?;
        if spread <= 0.0 {
            return Err(StageError::new(
                "every completion of the tree has the same reward: none can be spread",
            )
            .hint("raise `symbols` or `horizon`, or take another `seed`"));
        }
        description.scale = self.spread / spread;
        description.offset = -description.scale * mean(&scores)?;
        description.save(&folder)?;

        let examples = rows.iter().map(|row| {
            let tokens = row.token_ids.as_deref().unwrap_or_default();
            let spelt = tokens.len() - usize::from(!row.truncated);
            Ok(Example {
                question_id: row.question_id,
                question: row.question.clone(),
                prompt: row.prompt.clone(),
                // Special tokens are tokens like any other here.
                chosen: Some(tokenizer.decode_with_special_tokens(&tokens[..spelt])?),
                ..Example::default()
            })
        });
        let dataset = Dataset {
            title: "Every completion of the tree".to_owned(),
            examples: examples.collect::<Result<_, StageError>>()?,
        };
        dataset.write(&ctx.output("data")?)?;
        ctx.note(&format!(
            "{} completions of {} prompts",
            rows.len(),
            self.prompts
        ));
        Ok(to_table("Every completion of the tree", &rows)
            .write_data(&ctx.output("completions")?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn tree() -> GenerateTree {
        serde_yaml::from_str(GenerateTree::EXAMPLE).unwrap()
    }

    #[test]
    fn every_completion_is_listed_once_and_its_text_spells_its_tokens() {
        let tree = tree();
        let tokenizer = tree.tokenizer().unwrap();
        let eos = 2;
        let rows = tree.rows(&tokenizer, eos).unwrap();
        assert_eq!(Some(rows.len()), tree.completions());
        assert_eq!(rows.len(), 3 * (1 + 5 + 25 + 125));
        let distinct: BTreeSet<_> = rows
            .iter()
            .map(|row| (row.question_id, row.token_ids.clone()))
            .collect();
        assert_eq!(distinct.len(), rows.len());
        // No prompt begins another, even with a completion behind it.
        let starts: BTreeSet<_> = rows.iter().map(|row| &row.prompt).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|prompt| prompt.split(' ').count() == 2));
        for row in &rows {
            let tokens = row.token_ids.as_deref().unwrap();
            assert_eq!(row.truncated, !tokens.contains(&eos));
            assert_eq!(
                tokens.len(),
                if row.truncated {
                    3
                } else {
                    row.tokens.unwrap() as usize
                }
            );
            let spelt = &tokens[..tokens.len() - usize::from(!row.truncated)];
            let text = tokenizer.decode_with_special_tokens(spelt).unwrap();
            assert_eq!(tokenizer.encode(&text).unwrap(), spelt);
        }
    }

    #[test]
    fn trees_that_cannot_be_listed_are_refused() {
        let problems = GenerateTree {
            horizon: 30,
            ..tree()
        }
        .validate();
        assert!(problems[0].message.contains("100000 completions"));
        assert!(tree().validate().is_empty());
    }
}
