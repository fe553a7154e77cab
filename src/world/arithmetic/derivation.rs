//! Derivations: what any text says about a problem, step by step.

use std::fmt;

use super::problem::{Problem, number};

/// What a step does with two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Multiplies them.
    Multiply,
    /// Adds them.
    Add,
    /// Subtracts the second from the first.
    Subtract,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 3] = [Self::Multiply, Self::Add, Self::Subtract];

    /// The sign.
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Multiply => "*",
            Self::Add => "+",
            Self::Subtract => "-",
        }
    }

    /// What its result is called in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multiply => "product",
            Self::Add => "sum",
            Self::Subtract => "difference",
        }
    }

    /// The result, a whole number from 1 to `greatest`.
    pub(super) fn of(self, left: u32, right: u32, greatest: u32) -> Option<u32> {
        let result = match self {
            Self::Multiply => left.checked_mul(right),
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
        };
        result.filter(|result| (1..=greatest).contains(result))
    }
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// The first number.
    pub left: u32,
    /// What is done.
    pub operation: Operation,
    /// The second number.
    pub right: u32,
    /// What it makes.
    pub result: u32,
}

impl Step {
    /// Reads `a + b = c`, whether it is so or not.
    fn parse(words: &[&str]) -> Option<Self> {
        let [left, sign, right, "=", result] = words else {
            return None;
        };
        let mut operations = Operation::ALL.into_iter();
        Some(Self {
            left: number(left)?,
            operation: operations.find(|operation| operation.sign() == *sign)?,
            right: number(right)?,
            result: number(result)?,
        })
    }

    /// The same step with the greater number of a sum or product first.
    fn canonical(self) -> Self {
        if self.operation == Operation::Subtract || self.left >= self.right {
            return self;
        }
        Self {
            left: self.right,
            right: self.left,
            ..self
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = self.operation.sign();
        write!(f, "{} {sign} {} = {}", self.left, self.right, self.result)
    }
}

/// Steps, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Derivation(pub Vec<Step>);

impl Derivation {
    /// Reads steps as they are written, whether they hold or not; `None` if the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let steps = words.split(|word| *word == ";").map(Step::parse);
        steps.collect::<Option<_>>().map(Self)
    }

    /// The derivation that stands for all that are the same.
    #[must_use]
    pub fn canonical(&self) -> Self {
        Self(self.0.iter().map(|step| step.canonical()).collect())
    }
}

impl fmt::Display for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            let before = if place == 0 { "" } else { " ; " };
            write!(f, "{before}{step}")?;
        }
        Ok(())
    }
}

/// Why a step does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is no step: not of the form `a + b = c`.
    Malformed,
    /// It uses a number that is not there.
    Unavailable,
    /// Its result is wrong, or not a whole number from 1 to the greatest.
    Inexact,
}

/// What a text says about a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The steps that hold, up to the first that does not.
    pub derivation: Derivation,
    /// What is wrong with the first step that does not hold.
    pub fault: Option<Fault>,
    /// Words from that step on.
    pub leftover_words: usize,
    /// The numbers that are there after the steps that hold, in ascending order.
    pub numbers: Vec<u32>,
}

impl Problem {
    /// Reads any text as a derivation. The last step counts if the text is `whole`: else it may not have been written to
    /// its end, and only steps with a `;` behind them count.
    pub fn read(&self, text: &str, whole: bool) -> Reading {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        let mut reading = Reading {
            derivation: Derivation::default(),
            fault: None,
            leftover_words: 0,
            numbers,
        };
        let mut left = words.len();
        let mut parts = words.split(|word| *word == ";").peekable();
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            if is_last && !whole {
                break;
            }
            match self.step(part, &mut reading.numbers) {
                Ok(step) => reading.derivation.0.push(step),
                Err(fault) => {
                    reading.fault = Some(fault);
                    reading.leftover_words = left;
                    break;
                }
            }
            left -= part.len() + usize::from(!is_last);
        }
        reading
    }

    /// Takes a step: the numbers that it uses are gone, and its result is there.
    fn step(&self, words: &[&str], numbers: &mut Vec<u32>) -> Result<Step, Fault> {
        let step = Step::parse(words).ok_or(Fault::Malformed)?;
        let mut rest = numbers.clone();
        for used in [step.left, step.right] {
            let place = rest.iter().position(|number| *number == used);
            rest.remove(place.ok_or(Fault::Unavailable)?);
        }
        let result = step.operation.of(step.left, step.right, self.greatest);
        if result != Some(step.result) {
            return Err(Fault::Inexact);
        }
        let place = rest.partition_point(|number| *number < step.result);
        rest.insert(place, step.result);
        *numbers = rest;
        Ok(step)
    }

    /// Whether a whole text that was read so is a right answer.
    pub fn is_right(&self, reading: &Reading) -> bool {
        let last = reading.derivation.0.last();
        reading.fault.is_none() && last.is_some_and(|step| step.result == self.target)
    }

    /// How far a text that goes on has come: of the steps of the shortest way to the target from where its steps lead,
    /// those steps among them, the share that is made. 0 if a step does not hold or no way is left.
    pub fn progress(&self, reading: &Reading) -> f64 {
        let made = reading.derivation.0.len();
        if made == 0 || reading.fault.is_some() {
            return 0.0;
        }
        match self.fewest_steps(&reading.numbers) {
            Some(further) => made as f64 / (made + further) as f64,
            None => 0.0,
        }
    }
}
