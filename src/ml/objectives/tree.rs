//! A small token tree whose distributions are known exactly.
//!
//! Each prompt is the root of a complete tree over [`Tree::SYMBOLS`] symbols and EOS, cut at [`Tree::HORIZON`]
//! symbols, where the stop is forced: 15 completions, of lengths 1 (EOS alone) to 3 actions. A tabular policy
//! holds one row of logits for each prompt and inner state, so that every distribution over completions can be
//! written, and `pi(y | x)` of all of them is a sum.
//!
//! Padding is filled with NaN on purpose.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};

use super::terminable::TerminableTrajectories;
use super::{Branching, Trajectories};
use crate::random::{Draws, Stream};

/// One completion: the inner states it visits and the actions it takes there.
#[derive(Debug, Clone)]
struct Path {
    /// Inner states `s_0 .. s_{n-1}`.
    states: Vec<usize>,
    /// Actions, EOS being [`Tree::SYMBOLS`].
    actions: Vec<usize>,
    /// Index of the terminal, after the inner states.
    terminal: usize,
}

/// The tree, its rewards and its reference policy.
pub(crate) struct Tree {
    paths: Vec<Path>,
    inner: usize,
    /// `log R` of every inner state and terminal, for each prompt.
    log_r: Vec<Vec<f64>>,
    /// Reference log-probabilities, `[prompt][inner state][action]`.
    reference: Vec<Vec<Vec<f64>>>,
}

/// Rows of a batch: (prompt, completion).
pub(crate) type Row = (usize, usize);

/// What an objective needs of a batch, besides the policy.
pub(crate) struct Batch {
    pub(crate) rows: Vec<Row>,
    pub(crate) lengths: Vec<usize>,
    pub(crate) prompt_of: Vec<usize>,
    /// Terminal `log R`, `(batch)`.
    pub(crate) log_r: Tensor,
    /// `log R` of all visited states, `(batch, time + 1)`.
    pub(crate) prefix_log_r: Tensor,
    /// Reference log-probabilities, `(batch, time)`.
    pub(crate) reference: Tensor,
    /// Tokens of each row, EOS not counted.
    pub(crate) tokens: Vec<usize>,
    /// Which rows the horizon ended.
    pub(crate) forced: Vec<bool>,
    /// `log R` of the completion that ends in each visited state, `(batch, time + 1)`.
    pub(crate) stop_log_r: Tensor,
    /// The reference's log-probability of EOS in each visited state, `(batch, time + 1)`.
    pub(crate) reference_stop: Tensor,
    /// Indices into the rows of the policy table, `(batch * (time + 1))`.
    choices: Tensor,
    /// Indices into the flattened policy table, `(batch * time)`.
    actions: Tensor,
    /// Indices into a flattened table of states, `(batch * (time + 1))`.
    states: Tensor,
    /// Indices of prompts, `(batch)`.
    prompts: Tensor,
    time: usize,
}

impl Tree {
    pub(crate) const PROMPTS: usize = 3;
    pub(crate) const SYMBOLS: usize = 2;
    pub(crate) const HORIZON: usize = 3;
    const ACTIONS: usize = Self::SYMBOLS + 1;

    /// Grows the tree with random rewards; the prompts differ in `log Z` by several nats.
    pub(crate) fn new(seed: u64) -> Self {
        let mut paths = Vec::new();
        let mut inner = 0;
        let mut open = vec![(Vec::new(), Vec::new())];
        while let Some((states, actions)) = open.pop() {
            if actions.len() == Self::HORIZON {
                paths.push(Path {
                    states,
                    actions,
                    terminal: 0,
                });
                continue;
            }
            let here = inner;
            inner += 1;
            for action in 0..Self::ACTIONS {
                let (mut states, mut actions) = (states.clone(), actions.clone());
                states.push(here);
                actions.push(action);
                if action == Self::SYMBOLS {
                    paths.push(Path {
                        states,
                        actions,
                        terminal: 0,
                    });
                } else {
                    open.push((states, actions));
                }
            }
        }
        for (index, path) in paths.iter_mut().enumerate() {
            path.terminal = inner + index;
        }
        let stream = Stream::new(seed, "tree");
        let log_r = (0..Self::PROMPTS)
            .map(|prompt| {
                let mut draws = stream.child("reward").at(prompt as u64);
                let offset = [0.0, 3.0, -2.0][prompt];
                (0..inner + paths.len())
                    .map(|_| offset + draws.normal())
                    .collect()
            })
            .collect();
        let reference = (0..Self::PROMPTS)
            .map(|prompt| {
                let mut draws = stream.child("reference").at(prompt as u64);
                (0..inner)
                    .map(|_| {
                        let logits: Vec<f64> = (0..Self::ACTIONS).map(|_| draws.normal()).collect();
                        log_softmax(&logits)
                    })
                    .collect()
            })
            .collect();
        Self {
            paths,
            inner,
            log_r,
            reference,
        }
    }

    /// Number of completions of a prompt.
    pub(crate) fn completions(&self) -> usize {
        self.paths.len()
    }

    /// Number of states of a prompt, terminals last.
    pub(crate) fn states(&self) -> usize {
        self.inner + self.paths.len()
    }

    /// A policy table with random logits, `(prompts * inner states, actions)`.
    pub(crate) fn policy(&self, seed: u64, dtype: DType) -> Var {
        let mut draws = Stream::new(seed, "policy").at(0);
        let shape = (Self::PROMPTS * self.inner, Self::ACTIONS);
        let logits: Vec<f64> = (0..shape.0 * shape.1).map(|_| draws.normal()).collect();
        let logits = Tensor::from_vec(logits, shape, &Device::Cpu).unwrap();
        Var::from_tensor(&logits.to_dtype(dtype).unwrap()).unwrap()
    }

    /// A table of one number for every state, terminals included, `(prompts * states)`.
    pub(crate) fn state_table(&self, dtype: DType) -> Var {
        Var::zeros(Self::PROMPTS * self.states(), dtype, &Device::Cpu).unwrap()
    }

    /// Every completion of every prompt.
    pub(crate) fn everything(&self) -> Vec<Row> {
        self.rows(|_| true, self.completions())
    }

    /// `count` completions of every prompt that reach the horizon.
    pub(crate) fn longest(&self, count: usize) -> Vec<Row> {
        self.rows(|path| !path.actions.contains(&Self::SYMBOLS), count)
    }

    fn rows(&self, filter: impl Fn(&Path) -> bool, count: usize) -> Vec<Row> {
        let of_prompt: Vec<usize> = (0..self.completions())
            .filter(|completion| filter(&self.paths[*completion]))
            .take(count)
            .collect();
        (0..Self::PROMPTS)
            .flat_map(|prompt| {
                of_prompt
                    .iter()
                    .map(move |completion| (prompt, *completion))
            })
            .collect()
    }

    /// `count` completions of every prompt, sampled from the policy.
    pub(crate) fn sample(&self, policy: &Tensor, count: usize, draws: &mut Draws) -> Vec<Row> {
        let mut rows = Vec::new();
        for (prompt, probabilities) in self.distribution(policy).iter().enumerate() {
            rows.extend((0..count).map(|_| (prompt, draws.weighted(probabilities))));
        }
        rows
    }

    /// Makes the tensors of a batch, padded to `time` columns.
    pub(crate) fn batch(&self, rows: Vec<Row>, time: usize, dtype: DType) -> Batch {
        let (mut actions, mut states, mut lengths, mut log_r) = (vec![], vec![], vec![], vec![]);
        let (mut prefix_log_r, mut reference) = (vec![], vec![]);
        let (mut stop_log_r, mut reference_stop, mut choices) = (vec![], vec![], vec![]);
        let (mut tokens, mut forced) = (vec![], vec![]);
        for (prompt, completion) in &rows {
            let path = &self.paths[*completion];
            let length = path.actions.len();
            let is_forced = path.actions[length - 1] != Self::SYMBOLS;
            forced.push(is_forced);
            tokens.push(length - usize::from(!is_forced));
            for t in 0..=time {
                let choice = path.states.get(t).copied();
                choices.push((prompt * self.inner + choice.unwrap_or(0)) as u32);
                reference_stop.push(choice.map_or(f64::NAN, |state| {
                    self.reference[*prompt][state][Self::SYMBOLS]
                }));
                let stopped = match choice {
                    Some(state) => Some(self.stopped_in(state)),
                    None => (is_forced && t == length).then_some(path.terminal),
                };
                stop_log_r.push(stopped.map_or(f64::NAN, |state| self.log_r[*prompt][state]));
            }
            for t in 0..time {
                let (state, action) = if t < length {
                    (path.states[t], path.actions[t])
                } else {
                    (0, 0)
                };
                actions.push(((prompt * self.inner + state) * Self::ACTIONS + action) as u32);
                reference.push(if t < length {
                    self.reference[*prompt][state][action]
                } else {
                    f64::NAN
                });
            }
            for t in 0..=time {
                let state = match t.cmp(&length) {
                    std::cmp::Ordering::Less => Some(path.states[t]),
                    std::cmp::Ordering::Equal => Some(path.terminal),
                    std::cmp::Ordering::Greater => None,
                };
                states.push((prompt * self.states() + state.unwrap_or(0)) as u32);
                prefix_log_r.push(state.map_or(f64::NAN, |state| self.log_r[*prompt][state]));
            }
            lengths.push(length);
            log_r.push(self.log_r[*prompt][path.terminal]);
        }
        let count = rows.len();
        let device = Device::Cpu;
        let float = |values: Vec<f64>, shape: &[usize]| {
            Tensor::from_vec(values, shape, &device)
                .unwrap()
                .to_dtype(dtype)
                .unwrap()
        };
        let prompt_of: Vec<usize> = rows.iter().map(|row| row.0).collect();
        let prompts: Vec<u32> = prompt_of.iter().map(|prompt| *prompt as u32).collect();
        Batch {
            lengths,
            log_r: float(log_r, &[count]),
            prefix_log_r: float(prefix_log_r, &[count, time + 1]),
            reference: float(reference, &[count, time]),
            stop_log_r: float(stop_log_r, &[count, time + 1]),
            reference_stop: float(reference_stop, &[count, time + 1]),
            choices: Tensor::new(choices, &device).unwrap(),
            tokens,
            forced,
            actions: Tensor::new(actions, &device).unwrap(),
            states: Tensor::new(states, &device).unwrap(),
            prompts: Tensor::new(prompts, &device).unwrap(),
            prompt_of,
            rows,
            time,
        }
    }

    /// The terminal that EOS leads to in an inner state.
    fn stopped_in(&self, state: usize) -> usize {
        let ends_here = |path: &&Path| {
            path.states.last() == Some(&state) && path.actions.last() == Some(&Self::SYMBOLS)
        };
        self.paths.iter().find(ends_here).unwrap().terminal
    }

    /// `pi(y | x)` of every completion, `[prompt][completion]`.
    pub(crate) fn distribution(&self, policy: &Tensor) -> Vec<Vec<f64>> {
        let logits = policy.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
        let tables: Vec<Vec<f64>> = logits
            .iter()
            .map(|row: &Vec<f64>| log_softmax(row))
            .collect();
        (0..Self::PROMPTS)
            .map(|prompt| {
                self.paths
                    .iter()
                    .map(|path| {
                        let steps = path.states.iter().zip(&path.actions);
                        steps
                            .map(|(state, action)| tables[prompt * self.inner + state][*action])
                            .sum::<f64>()
                            .exp()
                    })
                    .collect()
            })
            .collect()
    }

    /// The distribution proportional to `R^reward pi_ref^reference`, `[prompt][completion]`.
    pub(crate) fn target(&self, reward: f64, reference: f64) -> Vec<Vec<f64>> {
        (0..Self::PROMPTS)
            .map(|prompt| {
                let logs = self.target_logs(prompt, reward, reference);
                log_softmax(&logs).iter().map(|log| log.exp()).collect()
            })
            .collect()
    }

    /// `log sum_y R pi_ref^reference`, for each prompt.
    pub(crate) fn log_z(&self, reference: f64) -> Vec<f64> {
        (0..Self::PROMPTS)
            .map(|prompt| {
                let logs = self.target_logs(prompt, 1.0, reference);
                logs.iter().map(|log| log.exp()).sum::<f64>().ln()
            })
            .collect()
    }

    /// Mean over prompts of the expected `log R` under the policy.
    pub(crate) fn expected_log_r(&self, policy: &Tensor) -> f64 {
        let distribution = self.distribution(policy);
        let mut total = 0.0;
        for (prompt, probabilities) in distribution.iter().enumerate() {
            for (path, probability) in self.paths.iter().zip(probabilities) {
                total += probability * self.log_r[prompt][path.terminal];
            }
        }
        total / Self::PROMPTS as f64
    }

    /// Mean over prompts of the greatest `log R`.
    pub(crate) fn best_log_r(&self) -> f64 {
        let best = |log_r: &Vec<f64>| {
            let terminals = log_r[self.inner..].iter().copied();
            terminals.fold(f64::NEG_INFINITY, f64::max)
        };
        self.log_r.iter().map(best).sum::<f64>() / Self::PROMPTS as f64
    }

    fn target_logs(&self, prompt: usize, reward: f64, reference: f64) -> Vec<f64> {
        self.paths
            .iter()
            .map(|path| {
                let steps = path.states.iter().zip(&path.actions);
                let log_ref: f64 = steps.map(|(s, a)| self.reference[prompt][*s][*a]).sum();
                reward * self.log_r[prompt][path.terminal] + reference * log_ref
            })
            .collect()
    }
}

impl Batch {
    /// `log pi` of the batch's actions, `(batch, time)`, NaN in padding.
    pub(crate) fn log_pf(&self, policy: &Tensor) -> Tensor {
        let table = candle_nn::ops::log_softmax(policy, 1).unwrap();
        let values = table
            .flatten_all()
            .and_then(|flat| flat.index_select(&self.actions, 0))
            .and_then(|flat| flat.reshape((self.rows.len(), self.time)))
            .unwrap();
        self.poison(&values, 0)
    }

    /// `log pi(EOS)` in the batch's states, `(batch, time + 1)`, NaN where there is no choice.
    pub(crate) fn log_stop(&self, policy: &Tensor) -> Tensor {
        let table = candle_nn::ops::log_softmax(policy, 1).unwrap();
        let stops = table.narrow(1, Tree::SYMBOLS, 1).unwrap();
        let values = stops
            .flatten_all()
            .and_then(|flat| flat.index_select(&self.choices, 0))
            .and_then(|flat| flat.reshape((self.rows.len(), self.time + 1)))
            .unwrap();
        let free: Vec<usize> = (self.tokens.iter().zip(&self.forced))
            .map(|(tokens, forced)| tokens + usize::from(!forced))
            .collect();
        let mask = super::prefix_mask(&free, self.time + 1, values.device()).unwrap();
        let nan = (values.zeros_like().unwrap() + f64::NAN).unwrap();
        mask.where_cond(&values, &nan).unwrap()
    }

    /// Entries of a state table, `(batch, time + 1)`, NaN in padding.
    pub(crate) fn of_states(&self, table: &Tensor) -> Tensor {
        let values = table
            .index_select(&self.states, 0)
            .and_then(|flat| flat.reshape((self.rows.len(), self.time + 1)))
            .unwrap();
        self.poison(&values, 1)
    }

    /// Entries of a table of prompts, `(batch)`.
    pub(crate) fn of_prompts(&self, table: &Tensor) -> Tensor {
        table.index_select(&self.prompts, 0).unwrap()
    }

    pub(crate) fn trajectories<'a>(&'a self, log_pf: &'a Tensor) -> Trajectories<'a> {
        Trajectories {
            log_pf,
            lengths: &self.lengths,
            reference: Some(&self.reference),
        }
    }

    pub(crate) fn terminable<'a>(
        &'a self,
        log_pf: &'a Tensor,
        log_stop: &'a Tensor,
    ) -> TerminableTrajectories<'a> {
        TerminableTrajectories {
            log_pf,
            log_stop,
            tokens: &self.tokens,
            forced: &self.forced,
        }
    }

    pub(crate) fn branching(&self) -> Branching {
        Branching::of_rows(&self.prompt_of)
    }

    fn poison(&self, values: &Tensor, extra: usize) -> Tensor {
        let lengths: Vec<usize> = self.lengths.iter().map(|length| length + extra).collect();
        let mask = super::prefix_mask(&lengths, self.time + extra, values.device()).unwrap();
        let nan = (values.zeros_like().unwrap() + f64::NAN).unwrap();
        mask.where_cond(values, &nan).unwrap()
    }
}

/// Greatest total variation distance over prompts.
pub(crate) fn total_variation(left: &[Vec<f64>], right: &[Vec<f64>]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(left, right)| {
            let distances = left.iter().zip(right).map(|(a, b)| (a - b).abs());
            distances.sum::<f64>() / 2.0
        })
        .fold(0.0, f64::max)
}

/// Minimises `loss` with Adam; the learning rate falls linearly to 1 % of `lr`. Returns the last loss.
pub(crate) fn minimise(
    vars: &[&Var],
    steps: usize,
    lr: f64,
    mut loss: impl FnMut(usize) -> Tensor,
) -> f64 {
    let vars: Vec<Var> = vars.iter().map(|var| (*var).clone()).collect();
    let params = ParamsAdamW {
        lr,
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.0,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(vars.clone(), params).unwrap();
    let mut last = f64::NAN;
    for step in 0..steps {
        optimizer.set_learning_rate(lr * (1.0 - 0.99 * step as f64 / steps as f64));
        let loss = loss(step);
        let gradients = loss.backward().unwrap();
        for (index, var) in vars.iter().enumerate() {
            assert!(gradients.get(var).is_some(), "var {index} has no gradient");
        }
        optimizer.step(&gradients).unwrap();
        last = super::scalar(&loss).unwrap();
    }
    last
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    logits.iter().map(|logit| logit - max - sum.ln()).collect()
}

#[test]
fn the_tree_is_complete() {
    let tree = Tree::new(1);
    assert_eq!(tree.completions(), 15);
    let sums: Vec<f64> = tree
        .distribution(&tree.policy(3, DType::F64))
        .iter()
        .map(|probabilities| probabilities.iter().sum())
        .collect();
    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12), "{sums:?}");
    let lengths = tree
        .batch(tree.everything(), Tree::HORIZON, DType::F64)
        .lengths;
    let of = |n| lengths.iter().filter(|length| **length == n).count();
    // EOS at once; EOS after one symbol; EOS after two, and the eight that the horizon stops.
    assert_eq!([of(1), of(2), of(3)], [3, 6, 36]);
}
