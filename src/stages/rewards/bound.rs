//! Rewards of what one policy writes, token by token.

use std::rc::Rc;

use candle_core::{Device, Tensor};

use super::RewardError;
use super::program::{Program, Text};
use crate::artifacts::language_model::{LanguageModel, ModelError};
use crate::artifacts::reward::Reward;
use crate::artifacts::reward_model::RewardModel;
use crate::artifacts::reward_rule::{Asked, RewardRule};
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::models::causal::{CausalLmError, TokenBatch};
use crate::ml::tokenizer::Tokenizer;
use crate::ml::trainer::ModelSize;

/// What gives rewards to the completions of one policy.
pub(crate) struct BoundReward {
    giver: Giver,
    tokenizer: Tokenizer,
    eos: Vec<u32>,
}

enum Giver {
    Model(Box<RewardModel>),
    Rule(Box<RewardRule>),
    Program(Rc<Program>),
}

/// A completion as tokens, behind its prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written<'a> {
    /// The prompt's text, whole even where its tokens were cut.
    pub(crate) prompt: &'a str,
    /// The prompt's tokens, then the completion's.
    pub(crate) tokens: &'a [u32],
    /// How many of them are the prompt's.
    pub(crate) prompt_length: usize,
}

impl Written<'_> {
    fn completion(&self) -> &[u32] {
        &self.tokens[self.prompt_length..]
    }
}

/// A completion, or the beginning of one, as text.
struct Spelled<'a> {
    prompt: &'a str,
    completion: String,
    finished: bool,
    prefix: bool,
}

impl Spelled<'_> {
    fn text(&self) -> Text<'_> {
        Text {
            asked: asked(self.prompt),
            completion: &self.completion,
            finished: self.finished,
            prefix: self.prefix,
        }
    }
}

impl BoundReward {
    /// Lets a reward judge what `policy` writes; what a program gives is kept with `output`, if it must be kept.
    pub(crate) fn new(
        reward: Reward,
        policy: &LanguageModel,
        output: &str,
        ctx: &mut RunContext,
    ) -> Result<Self, StageError> {
        Ok(Self {
            giver: match reward {
                Reward::Model(model) => Giver::Model(model),
                Reward::Rule(rule) => Giver::Rule(rule),
                Reward::Program(program) => {
                    Giver::Program(Rc::new(Program::open(*program, output, ctx)?))
                }
            },
            tokenizer: policy.tokenizer.clone(),
            eos: policy.eos.clone(),
        })
    }

    /// Returns the program, if it is one.
    pub(crate) fn program(&self) -> Option<Rc<Program>> {
        match &self.giver {
            Giver::Program(program) => Some(Rc::clone(program)),
            Giver::Model(_) | Giver::Rule(_) => None,
        }
    }

    /// Returns the size of the model, if it is one.
    pub(crate) fn size(&self) -> Option<ModelSize> {
        match &self.giver {
            Giver::Model(model) => Some(ModelSize::of(&model.model.config, false)),
            Giver::Rule(_) | Giver::Program(_) => None,
        }
    }

    /// Checks that a rule or a program knows every one of these prompts.
    pub(crate) fn check(&self, prompts: &[String]) -> Result<(), RewardError> {
        for prompt in prompts {
            match &self.giver {
                Giver::Model(_) => {}
                Giver::Rule(rule) => {
                    rule.judge(asked(prompt), "", true)?;
                }
                Giver::Program(program) => program.check(asked(prompt))?,
            }
        }
        Ok(())
    }

    /// Lets a program begin with these rows, whose rewards will be asked for.
    pub(crate) fn ahead(&self, rows: &[Written<'_>]) -> Result<(), RewardError> {
        if let Giver::Program(program) = &self.giver {
            let spelled = self.spelled(rows)?;
            program.ahead(&spelled.iter().map(Spelled::text).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Returns the reward of each row.
    ///
    /// Rows are scored in batches of `batch_size`, which changes no reward of a model or a rule.
    pub(crate) fn rewards(
        &self,
        rows: &[Written<'_>],
        batch_size: usize,
    ) -> Result<Vec<f64>, RewardError> {
        match &self.giver {
            Giver::Model(model) => {
                let rows: Vec<Vec<u32>> = rows.iter().map(|row| row.tokens.to_vec()).collect();
                Ok(model.rewards(&rows, batch_size)?)
            }
            Giver::Rule(rule) => {
                let judged = |row: &Written<'_>| self.judged(rule, row.prompt, row.completion());
                rows.iter().map(judged).collect()
            }
            Giver::Program(program) => {
                let spelled = self.spelled(rows)?;
                let texts: Vec<Text<'_>> = spelled.iter().map(Spelled::text).collect();
                Ok(program.rewards(&texts)?)
            }
        }
    }

    /// Returns the reward of every prefix of every row, (rows, time), as [`RewardModel::prefix_rewards`] does: place t
    /// holds that of the row's tokens up to t, a whole row's with an end token its reward.
    ///
    /// Before its first token a completion has come nowhere, and so has any prefix of the prompt. `batch` holds the same
    /// rows.
    pub(crate) fn prefix_rewards(
        &self,
        rows: &[Written<'_>],
        batch: &TokenBatch,
    ) -> Result<Tensor, RewardError> {
        let values = match &self.giver {
            Giver::Model(model) => return Ok(model.prefix_rewards(batch)?),
            Giver::Rule(rule) => {
                let of_row = |row: &Written<'_>| self.prefixes_by_rule(rule, row);
                rows.iter().map(of_row).collect::<Result<_, _>>()?
            }
            Giver::Program(program) => self.prefixes_by_program(program, rows)?,
        };
        let time = batch.time();
        let mut places = vec![0f32; batch.tokens().len()];
        for (place, (span, (row, values))) in batch
            .spans()
            .iter()
            .zip(rows.iter().zip(&values))
            .enumerate()
        {
            let first = place * time + span.start;
            // Those of the prompt, then those of the completion.
            places[first..first + row.prompt_length].fill(values[0] as f32);
            let behind = &mut places[first + row.prompt_length..];
            for (place, value) in behind.iter_mut().zip(&values[1..]) {
                *place = *value as f32;
            }
        }
        let places = Tensor::from_vec(places, (batch.rows(), time), &Device::Cpu);
        Ok(places
            .map_err(CausalLmError::from)
            .map_err(ModelError::from)?)
    }

    /// Values the completion with none of its tokens, with one, and so on.
    fn prefixes_by_rule(
        &self,
        rule: &RewardRule,
        row: &Written<'_>,
    ) -> Result<Vec<f64>, RewardError> {
        let completion = row.completion();
        // The text grows by a token; where no step was closed the value stays.
        let (mut closed, mut value) = (0, rule.prefix_value(asked(row.prompt), "")?);
        let mut values = vec![value];
        for end in 1..=completion.len() {
            let written = &completion[..end];
            value = if self.has_ended(written) {
                self.judged(rule, row.prompt, written)?
            } else {
                let text = self.decode(written)?;
                let now = text.matches(';').count();
                if now == closed {
                    value
                } else {
                    closed = now;
                    rule.prefix_value(asked(row.prompt), &text)?
                }
            };
            values.push(value);
        }
        Ok(values)
    }

    /// The same for all rows, by a program.
    fn prefixes_by_program(
        &self,
        program: &Program,
        rows: &[Written<'_>],
    ) -> Result<Vec<Vec<f64>>, RewardError> {
        let mut spelled = Vec::new();
        for row in rows {
            for end in 0..=row.completion().len() {
                let written = &row.completion()[..end];
                let finished = self.has_ended(written);
                spelled.push(Spelled {
                    prompt: row.prompt,
                    completion: self.decode(written)?,
                    finished,
                    prefix: !finished,
                });
            }
        }
        let texts: Vec<Text<'_>> = spelled.iter().map(Spelled::text).collect();
        let mut values = program.rewards(&texts)?.into_iter();
        let of_row = |row: &Written<'_>| values.by_ref().take(row.completion().len() + 1).collect();
        Ok(rows.iter().map(of_row).collect())
    }

    fn spelled<'a>(&self, rows: &[Written<'a>]) -> Result<Vec<Spelled<'a>>, RewardError> {
        let spelled = rows.iter().map(|row| {
            Ok(Spelled {
                prompt: row.prompt,
                completion: self.decode(row.completion())?,
                finished: self.has_ended(row.completion()),
                prefix: false,
            })
        });
        spelled.collect()
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, RewardError> {
        Ok(self.tokenizer.decode(tokens).map_err(ModelError::from)?)
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
    ) -> Result<f64, RewardError> {
        let text = self.decode(completion)?;
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
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::artifacts::language_model;
    use crate::artifacts::reward_rule::{
        Arithmetic, Exact, Pattern, Rule, RuleDescription, Unfinished,
    };
    use crate::engine::context::tests::context;
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
        language_model::save_new(folder, &config, &weights, &tokenizer).unwrap();
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
        let (mut ctx, _) = context(folder.path(), BTreeMap::new(), None);
        let bound = BoundReward::new(reward, &policy, "curve", &mut ctx).unwrap();
        (bound, policy)
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
