//! All ways of making a target.

use std::collections::BTreeSet;

use super::derivation::{Derivation, Operation, Step};
use super::problem::Problem;

impl Problem {
    /// Every right derivation, in a fixed order.
    pub fn right_derivations(&self) -> Vec<Derivation> {
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        let mut found = Vec::new();
        self.collect(&numbers, &mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, numbers: &[u32], made: &mut Vec<Step>, found: &mut Vec<Derivation>) {
        for (step, rest) in self.possible_steps(numbers) {
            made.push(step);
            if step.result == self.target {
                found.push(Derivation(made.clone()));
            }
            self.collect(&rest, made, found);
            made.pop();
        }
    }

    /// The steps that numbers in ascending order allow, each with the numbers after it, in ascending order.
    pub(super) fn possible_steps(&self, numbers: &[u32]) -> Vec<(Step, Vec<u32>)> {
        let mut steps = Vec::new();
        let is_first = |place: usize| place == 0 || numbers[place - 1] != numbers[place];
        for (first, left) in numbers.iter().enumerate().filter(|(at, _)| is_first(*at)) {
            let mut others = numbers.to_vec();
            others.remove(first);
            for (second, right) in others.iter().enumerate() {
                if second > 0 && others[second - 1] == *right {
                    continue;
                }
                for operation in Operation::ALL {
                    let Some(result) = operation.of(*left, *right, self.greatest) else {
                        continue;
                    };
                    let mut rest = others.clone();
                    rest.remove(second);
                    rest.insert(rest.partition_point(|number| *number < result), result);
                    let step = Step {
                        left: *left,
                        operation,
                        right: *right,
                        result,
                    };
                    steps.push((step, rest));
                }
            }
        }
        steps
    }

    /// The least number of steps, one at least, whose last makes the target; `None` if there is no way.
    pub(super) fn fewest_steps(&self, numbers: &[u32]) -> Option<usize> {
        let mut reached = BTreeSet::from([numbers.to_vec()]);
        for count in 1..numbers.len() {
            let mut next = BTreeSet::new();
            for numbers in &reached {
                for (step, rest) in self.possible_steps(numbers) {
                    if step.result == self.target {
                        return Some(count);
                    }
                    // One number alone leads nowhere.
                    if rest.len() > 1 {
                        next.insert(rest);
                    }
                }
            }
            reached = next;
        }
        None
    }
}
