//! `judge`: which of two completions of the same question is better.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{self, COMPLETIONS, CompletionRow, SCORES};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::judgements::{self, JUDGEMENTS, Judgement, Order, REPLIES, Verdict};
use crate::artifacts::reward::{REWARDS, Reward};
use crate::artifacts::reward_model::RewardModel;
use crate::artifacts::reward_program::RewardProgram;
use crate::artifacts::reward_rule::{Asked, RewardRule, RuleError};
use crate::engine::context::{Input, Progress, RunContext};
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::placement::Precision;
use crate::random::Stream;
use crate::sources::Settings;
use crate::stages::defaults;
use crate::stages::passes;
use crate::stages::placement::placement;
use crate::stages::ranges::at_least_one;
use crate::stages::rewards::program::{Program, ProgramError, Text};
use crate::stages::tokenized::tokenize_completions;
use http::Server;

mod http;
mod prompts;

/// Judges completions of a policy against others of the same questions: those that people preferred, or another policy's.
///
/// The opponent of a completion is a preferred completion of its question from a dataset (GDPO, DPO: one drawn by the
/// seed if there are several different ones), or the sample of the same number from other completions (beginning again
/// if they are fewer). A reward model, rule or program prefers the greater reward; equal ones tie. A language model behind an
/// OpenAI-compatible server is asked twice, with either completion first, at temperature 0, with prompts of the forms of
/// the DPO paper (Rafailov et al. 2023); it is not asked about equal completions, which tie. Its raw replies are the
/// output `replies`. They are kept as they come: a run that broke off asks nothing twice. `win_rate` makes a table of
/// the judgements.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// Who judges.
    judge: Judging,
    /// Only the first so many questions of `completions`.
    #[serde(default)]
    max_questions: Option<usize>,
    /// Only the first so many completions of each question.
    #[serde(default)]
    max_samples: Option<usize>,
    /// Seed of the choice among several preferred completions.
    #[serde(default)]
    seed: u64,
}

/// Who judges.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Judging {
    /// A reward model or a reward rule, on the port `reward`.
    RewardModel {
        /// Completions in a forward pass; changes no result.
        #[serde(default = "defaults::batch_size", skip_serializing)]
        batch_size: usize,
    },
    /// A language model behind an OpenAI-compatible server.
    Http(Server),
}

/// A completion and its opponent.
#[derive(Debug, Clone)]
struct Pair {
    ours: CompletionRow,
    theirs: CompletionRow,
}

impl Pair {
    /// Whether no judge can tell the two apart.
    fn is_even(&self) -> bool {
        self.ours.completion.trim() == self.theirs.completion.trim()
    }

    fn judgement(&self, order: Order, verdict: Verdict) -> Judgement {
        Judgement {
            question_id: self.ours.question_id,
            sample: self.ours.sample,
            order,
            verdict,
            rewards: None,
            request: None,
        }
    }
}

impl Kind for Judge {
    const NAME: &'static str = "judge";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r"{ judge: { kind: http, url: https://api.openai.com/v1, model: gpt-4o-2024-08-06, api_key_env: OPENAI_API_KEY,
      template: hh, requests_per_minute: 300, concurrency: 8 }, max_questions: 300, max_samples: 1 }";

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![
            Port::one(
                "completions",
                &[COMPLETIONS, SCORES],
                "the completions that win or lose",
            ),
            Port::one(
                "opponent",
                &[DATASET, COMPLETIONS, SCORES],
                "a dataset with preferred completions of the same questions, or completions of another policy",
            ),
        ];
        if matches!(self.judge, Judging::RewardModel { .. }) {
            ports.push(Port::one(
                "reward",
                REWARDS,
                "judges: a reward model, a rule or a program",
            ));
        }
        ports
    }

    fn outputs(&self) -> Vec<Output> {
        let mut outputs = vec![Output::new("judgements", JUDGEMENTS)];
        if matches!(self.judge, Judging::Http(_)) {
            outputs.push(Output::new("replies", REPLIES));
        }
        outputs
    }

    fn secrets(&self) -> Vec<String> {
        match &self.judge {
            Judging::Http(server) => server.key_variable().into_iter().collect(),
            Judging::RewardModel { .. } => Vec::new(),
        }
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one(
            "max_questions",
            self.max_questions.unwrap_or(1) as u64,
            &mut problems,
        );
        at_least_one(
            "max_samples",
            self.max_samples.unwrap_or(1) as u64,
            &mut problems,
        );
        match &self.judge {
            Judging::RewardModel { batch_size } => {
                at_least_one("judge.batch_size", *batch_size as u64, &mut problems);
            }
            Judging::Http(server) => server.validate(&mut problems),
        }
        problems
    }

    fn gpu_use(&self) -> GpuUse {
        match self.judge {
            Judging::RewardModel { .. } => GpuUse::Tensors,
            Judging::Http(_) => GpuUse::None,
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let ours = completions::read(&ctx.input("completions")?.path)?;
        let pairs = self.pairs(ours, &Opponents::read(ctx.input("opponent")?)?)?;
        let (title, judged) = match &self.judge {
            Judging::RewardModel { batch_size } => {
                let placement = placement(ctx, Precision::F32)?;
                match Reward::load(ctx.input("reward")?, &placement)? {
                    Reward::Model(model) => {
                        let judged = by_reward(&pairs, &model, *batch_size, ctx)?;
                        ("Judgements of a reward model".to_owned(), judged)
                    }
                    Reward::Rule(rule) => {
                        let judged = by_rule(&pairs, &rule, ctx)?;
                        ("Judgements of a reward rule".to_owned(), judged)
                    }
                    Reward::Program(program) => {
                        let judged = by_program(&pairs, *program, ctx)?;
                        ("Judgements of a reward program".to_owned(), judged)
                    }
                }
            }
            Judging::Http(server) => {
                let client = server.client(
                    &Settings::from_environment(),
                    &|name| std::env::var(name).ok(),
                    self.seed,
                )?;
                let kept = ctx.checkpoints()?.to_owned();
                let cancelled = ctx.cancel_flag();
                let mut report = |done: usize, total: usize| {
                    ctx.progress(Progress {
                        step: done as u64,
                        total: total as u64,
                        unit: "replies".to_owned(),
                        ..Progress::default()
                    });
                };
                let requests = server.requests(&pairs)?;
                let replies = server.ask_all(&client, &requests, &kept, &cancelled, &mut report)?;
                http::write_replies(&ctx.output("replies")?, &replies)?;
                let judged = server.judgements(&pairs, &replies)?;
                (format!("Judgements of {}", server.model()), judged)
            }
        };
        judgements::write(&ctx.output("judgements")?, &title, &judged)?;
        Ok(())
    }
}

/// What completions are compared with, by question.
#[derive(Debug)]
enum Opponents {
    /// The different preferred completions of each question.
    Preferred(BTreeMap<u64, Vec<String>>),
    /// The completions of each question, in order.
    Completions(BTreeMap<u64, Vec<CompletionRow>>),
}

impl Opponents {
    fn read(input: &Input) -> Result<Self, StageError> {
        if input.kind != DATASET {
            return Ok(Self::of_completions(completions::read(&input.path)?));
        }
        let mut preferred: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for example in Dataset::read(&input.path)?.examples {
            let Some(chosen) = example.chosen else {
                continue;
            };
            let known = preferred.entry(example.question_id).or_default();
            if !known.contains(&chosen) {
                known.push(chosen);
            }
        }
        Ok(Self::Preferred(preferred))
    }

    fn of_completions(rows: Vec<CompletionRow>) -> Self {
        let mut completions: BTreeMap<u64, Vec<CompletionRow>> = BTreeMap::new();
        for row in rows {
            completions.entry(row.question_id).or_default().push(row);
        }
        Self::Completions(completions)
    }

    /// Returns the opponent of a completion, which answers the same prompt.
    fn of(&self, ours: &CompletionRow, stream: &Stream) -> Option<CompletionRow> {
        let theirs = match self {
            Self::Preferred(known) => {
                let known = known.get(&ours.question_id)?;
                let stream = stream.child(&ours.question_id.to_string());
                let chosen = stream.at(ours.sample).below(known.len());
                CompletionRow {
                    question_id: ours.question_id,
                    completion: known[chosen].clone(),
                    ..CompletionRow::default()
                }
            }
            Self::Completions(known) => {
                let known = known.get(&ours.question_id)?;
                known[ours.sample as usize % known.len()].clone()
            }
        };
        // A judge compares answers to one prompt, even where the opponent was asked in another template.
        Some(CompletionRow {
            prompt: ours.prompt.clone(),
            prompt_ids: ours.prompt_ids.clone(),
            question: ours.question.clone(),
            ..theirs
        })
    }
}

impl Judge {
    fn pairs(
        &self,
        ours: Vec<CompletionRow>,
        opponents: &Opponents,
    ) -> Result<Vec<Pair>, StageError> {
        let stream = Stream::new(self.seed, "opponent");
        let mut questions: BTreeMap<u64, usize> = BTreeMap::new();
        let mut without = BTreeSet::new();
        let mut pairs = Vec::new();
        for row in ours {
            let is_new = !questions.contains_key(&row.question_id);
            if is_new && self.max_questions == Some(questions.len()) {
                continue;
            }
            let taken = questions.entry(row.question_id).or_default();
            if self.max_samples == Some(*taken) {
                continue;
            }
            *taken += 1;
            match opponents.of(&row, &stream) {
                Some(theirs) => pairs.push(Pair { ours: row, theirs }),
                None => {
                    without.insert(row.question_id);
                }
            }
        }
        if let Some(first) = without.first() {
            return Err(StageError::new(format!(
                "`opponent` has no completion of {} of {} questions, question_id {first} among them",
                without.len(),
                questions.len()
            ))
            .hint(
                "`opponent` must be the dataset that the prompts come from, or completions of the same prompts",
            ));
        }
        if pairs.is_empty() {
            return Err(StageError::new("`completions` has nothing to judge"));
        }
        Ok(pairs)
    }
}

/// Lets a reward model judge: the greater reward wins, equal ones tie. Pairs with a side beyond its context are left
/// out; their number is noted.
fn by_reward(
    pairs: &[Pair],
    reward: &RewardModel,
    batch_size: usize,
    ctx: &mut RunContext,
) -> Result<Vec<Judgement>, StageError> {
    let mut sides = |side: fn(&Pair) -> &CompletionRow| {
        let rows: Vec<CompletionRow> = pairs.iter().map(|pair| side(pair).clone()).collect();
        tokenize_completions(&rows, &reward.model, ctx)
    };
    let (ours, theirs) = (sides(|pair| &pair.ours)?, sides(|pair| &pair.theirs)?);
    let (mut judged, mut rows) = (Vec::new(), Vec::new());
    for (pair, sides) in pairs.iter().zip(ours.into_iter().zip(theirs)) {
        if let (Some(ours), Some(theirs)) = sides {
            judged.push(pair);
            rows.extend([ours.tokens, theirs.tokens]);
        }
    }
    if judged.len() < pairs.len() {
        let problem = format!(
            "{} of {} pairs have a side of more than {} tokens with its prompt",
            pairs.len() - judged.len(),
            pairs.len(),
            reward.model.config.max_position_embeddings
        );
        if judged.is_empty() {
            return Err(StageError::new(problem).hint(
                "the reward model has a shorter context: set `max_prompt_tokens` or lower `max_new_tokens` in `sample`",
            ));
        }
        ctx.note(&format!("{problem} and were left out"));
    }
    let rewards = passes::rewards(ctx, reward, &rows, batch_size)?;
    let judged = judged.into_iter().zip(rewards.chunks_exact(2));
    Ok(judged
        .map(|(pair, rewards)| {
            let rewards = (rewards[0], rewards[1]);
            Judgement {
                rewards: Some(rewards),
                ..pair.judgement(Order::Either, preferred(rewards))
            }
        })
        .collect())
}

/// Lets a reward rule judge, as [`by_reward`] does.
fn by_rule(
    pairs: &[Pair],
    rule: &RewardRule,
    ctx: &mut RunContext,
) -> Result<Vec<Judgement>, StageError> {
    let reward = |row: &CompletionRow| {
        let asked = Asked {
            prompt: &row.prompt,
            question: &row.question,
        };
        let verdict = rule.judge(asked, &row.completion, !row.truncated)?;
        Ok::<f64, RuleError>(verdict.reward)
    };
    ctx.pass("pairs judged", pairs, passes::TEXTS, |pairs| {
        let judged = pairs.iter().map(|pair| {
            let rewards = (reward(&pair.ours)?, reward(&pair.theirs)?);
            Ok(Judgement {
                rewards: Some(rewards),
                ..pair.judgement(Order::Either, preferred(rewards))
            })
        });
        judged.collect::<Result<Vec<_>, RuleError>>()
    })
}

/// Lets a reward program judge, as [`by_reward`] does.
fn by_program(
    pairs: &[Pair],
    program: RewardProgram,
    ctx: &mut RunContext,
) -> Result<Vec<Judgement>, StageError> {
    const OUTPUT: &str = "judgements";
    let program = Program::open(program, OUTPUT, ctx)?;
    let texts: Vec<[Text<'_>; 2]> = pairs
        .iter()
        .map(|pair| [&pair.ours, &pair.theirs].map(Text::of_row))
        .collect();
    program.ahead(texts.as_flattened())?;
    let rewards = ctx.pass("pairs judged", &texts, program.batch_size(), |texts| {
        let rewards = program.rewards(texts.as_flattened())?;
        let pairs: Vec<(f64, f64)> = rewards.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        Ok::<_, ProgramError>(pairs)
    })?;
    program.finish(OUTPUT, ctx)?;
    let judged = pairs.iter().zip(rewards).map(|(pair, rewards)| Judgement {
        rewards: Some(rewards),
        ..pair.judgement(Order::Either, preferred(rewards))
    });
    Ok(judged.collect())
}

fn preferred((ours, theirs): (f64, f64)) -> Verdict {
    match ours.partial_cmp(&theirs) {
        Some(std::cmp::Ordering::Greater) => Verdict::Win,
        Some(std::cmp::Ordering::Equal) => Verdict::Tie,
        Some(std::cmp::Ordering::Less) => Verdict::Loss,
        // Not a number: a judge without an opinion.
        None => Verdict::Unparsable,
    }
}

#[cfg(test)]
mod tests;
