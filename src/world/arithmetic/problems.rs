//! The generated problems, and what is written about them.

use std::collections::BTreeSet;

use super::derivation::{Derivation, Operation, Step};
use super::problem::{GREATEST, Problem};
use crate::random::{Draws, Stream};
use crate::world::corpus::in_rounds;
use crate::world::question::Split;

/// Numbers of a generated problem, and the greatest of them.
const NUMBERS: usize = 3;
const GREATEST_GIVEN: u32 = 12;

/// How many right derivations a generated problem has at least, turned round sums and products left out, and at most.
pub const FEWEST_ANSWERS: usize = 2;
/// See [`FEWEST_ANSWERS`].
pub const MOST_ANSWERS: usize = 60;

/// One problem in how many is held back for test and for validation.
const TEST_SHARE: usize = 4;
const VALIDATION_SHARE: usize = 12;

/// Share of pre-training documents with a wrong derivation.
pub const FLAWED_SHARE: f64 = 0.2;

/// A generated problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posed {
    /// Its number; the same in every world, whatever its seed.
    pub id: u32,
    /// The problem.
    pub problem: Problem,
    /// The part of the problems that it belongs to.
    pub split: Split,
}

/// A problem with a right derivation and another text that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivationPair {
    /// The problem.
    pub posed: Posed,
    /// A right derivation.
    pub chosen: String,
    /// One with a fault, or that misses the target.
    pub rejected: String,
}

/// All problems of the generated world; which of them are held back follows from its seed.
#[derive(Debug, Clone)]
pub struct Problems(Vec<Posed>);

impl Problems {
    /// Makes the problems of the world of `seed`.
    pub fn new(seed: u64) -> Self {
        let problems = all_problems();
        let mut order: Vec<usize> = (0..problems.len()).collect();
        let stream = Stream::new(seed, "embedded arithmetic");
        stream.child("split").at(0).shuffle(&mut order);
        let (test, validation) = (order.len() / TEST_SHARE, order.len() / VALIDATION_SHARE);
        let mut splits = vec![Split::Train; problems.len()];
        for (place, problem) in order.into_iter().enumerate() {
            if place < test {
                splits[problem] = Split::Test;
            } else if place < test + validation {
                splits[problem] = Split::Validation;
            }
        }
        let posed = problems.into_iter().zip(splits).zip(0..);
        Self(
            posed
                .map(|((problem, split), id)| Posed { id, problem, split })
                .collect(),
        )
    }

    /// The problems of a split, by number.
    pub fn of(&self, split: Split) -> Vec<Posed> {
        let posed = self.0.iter().filter(|posed| posed.split == split);
        posed.cloned().collect()
    }

    /// Finds a problem by its number.
    pub fn posed(&self, id: u32) -> Option<&Posed> {
        self.0.get(id as usize)
    }

    /// Draws `count` pairs, round after round through some problems.
    pub fn pairs(&self, some: &[Posed], count: usize, stream: &Stream) -> Vec<DerivationPair> {
        in_rounds(some, count, stream, |posed, draws| {
            let right = posed.problem.right_derivations();
            DerivationPair {
                posed: posed.clone(),
                chosen: draw_right(&right, draws).to_string(),
                rejected: posed.problem.draw_wrong(&right, draws),
            }
        })
    }

    /// Draws what a document says of a problem: a right derivation, or one with a fault ([`FLAWED_SHARE`]).
    pub fn document(&self, posed: &Posed, draws: &mut Draws) -> String {
        let right = posed.problem.right_derivations();
        if draws.chance(FLAWED_SHARE) {
            posed.problem.draw_wrong(&right, draws)
        } else {
            draw_right(&right, draws).to_string()
        }
    }
}

/// Every problem that has several right answers, but not too many, and does not give the target away.
fn all_problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for numbers in multisets(NUMBERS, GREATEST_GIVEN) {
        for target in (1..=GREATEST).filter(|target| !numbers.contains(target)) {
            let problem = Problem {
                numbers: numbers.clone(),
                target,
                greatest: GREATEST,
            };
            let right = problem.right_derivations();
            let distinct: BTreeSet<Derivation> = right.iter().map(Derivation::canonical).collect();
            if distinct.len() >= FEWEST_ANSWERS && right.len() <= MOST_ANSWERS {
                problems.push(problem);
            }
        }
    }
    problems
}

/// All ascending lists of `count` numbers from 1 to `greatest`.
fn multisets(count: usize, greatest: u32) -> Vec<Vec<u32>> {
    let mut lists = vec![Vec::new()];
    for _ in 0..count {
        let longer = lists.iter().flat_map(|list: &Vec<u32>| {
            let least = list.last().copied().unwrap_or(1);
            (least..=greatest).map(move |next| [list.as_slice(), &[next]].concat())
        });
        lists = longer.collect();
    }
    lists
}

/// How readily a derivation is written: products before sums before differences, greater numbers first, few steps.
fn weight(derivation: &Derivation) -> f64 {
    let steps = derivation.0.iter().map(|step| {
        let operation = match step.operation {
            Operation::Multiply => 3.0,
            Operation::Add => 2.0,
            Operation::Subtract => 1.0,
        };
        operation * if step.left >= step.right { 0.9 } else { 0.3 }
    });
    steps.product()
}

/// The natural logarithms of the probabilities with which the world gives right derivations.
pub(crate) fn log_priors(right: &[Derivation]) -> Vec<f64> {
    let weights: Vec<f64> = right.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    let logs = weights.iter().map(|weight| libm::log(weight / total));
    logs.collect()
}

fn draw_right<'a>(right: &'a [Derivation], draws: &mut Draws) -> &'a Derivation {
    let weights: Vec<f64> = right.iter().map(weight).collect();
    &right[draws.weighted(&weights)]
}

impl Problem {
    /// Draws a text that is no right derivation: one with a wrong result, with a number that is not there, or whose steps
    /// hold and miss the target.
    fn draw_wrong(&self, right: &[Derivation], draws: &mut Draws) -> String {
        loop {
            let mut derivation = draw_right(right, draws).clone();
            let place = draws.below(derivation.0.len());
            match draws.below(3) {
                0 => {
                    let step = &mut derivation.0[place];
                    let off = 1 + draws.below(3) as u32;
                    step.result = if draws.chance(0.5) {
                        step.result + off
                    } else {
                        step.result.saturating_sub(off).max(1)
                    };
                }
                1 => {
                    let step = &mut derivation.0[place];
                    let strange = 1 + draws.below(GREATEST_GIVEN as usize) as u32;
                    let (left, right) = if draws.chance(0.5) {
                        (strange, step.right)
                    } else {
                        (step.left, strange)
                    };
                    let Some(result) = step.operation.of(left, right, self.greatest) else {
                        continue;
                    };
                    *step = Step {
                        left,
                        right,
                        result,
                        ..*step
                    };
                }
                _ => derivation = self.draw_steps(1 + draws.below(NUMBERS - 1), draws),
            }
            let text = derivation.to_string();
            if !self.is_right(&self.read(&text, true)) {
                return text;
            }
        }
    }

    /// Draws some steps that hold, fewer if nothing can be done.
    fn draw_steps(&self, count: usize, draws: &mut Draws) -> Derivation {
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        let mut derivation = Derivation::default();
        for _ in 0..count {
            let mut steps = self.possible_steps(&numbers);
            if steps.is_empty() {
                break;
            }
            let (step, rest) = steps.swap_remove(draws.below(steps.len()));
            derivation.0.push(step);
            numbers = rest;
        }
        derivation
    }
}
