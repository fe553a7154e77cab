//! Problems, as prompts state them.

use std::fmt;

/// The greatest number that a derivation of the generated world may make.
pub const GREATEST: u32 = 24;

/// Numbers that a problem may have: every way of using them is looked through.
pub const MOST_NUMBERS: usize = 5;

/// Numbers of which a target is to be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// What is given, in the order of the text.
    pub numbers: Vec<u32>,
    /// What is to be made.
    pub target: u32,
    /// No step may make a greater number.
    pub greatest: u32,
}

impl Problem {
    /// Finds the last problem in a prompt: `numbers`, then two to [`MOST_NUMBERS`] numbers, then `target` and a number,
    /// all from 1 to `greatest`. Marks before and after words do not count.
    pub fn find(prompt: &str, greatest: u32) -> Option<Self> {
        let words: Vec<&str> = prompt
            .split_whitespace()
            .map(|word| word.trim_matches(|letter: char| !letter.is_alphanumeric()))
            .collect();
        let starts = words.iter().enumerate().rev();
        let mut starts = starts.filter(|(_, word)| **word == "numbers");
        starts.find_map(|(start, _)| {
            let given = words[start + 1..].iter();
            let numbers: Vec<u32> = given.map_while(|word| number(word)).collect();
            let behind = &words[start + 1 + numbers.len()..];
            let target = match behind {
                ["target", target, ..] => number(target)?,
                _ => return None,
            };
            let possible = numbers.iter().all(|number| *number <= greatest) && target <= greatest;
            let count = (2..=MOST_NUMBERS).contains(&numbers.len());
            (possible && count).then_some(Self {
                numbers,
                target,
                greatest,
            })
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "numbers")?;
        for number in &self.numbers {
            write!(f, " {number}")?;
        }
        write!(f, " target {}", self.target)
    }
}

/// Reads a number as it is written: digits, no zero before them.
pub(super) fn number(word: &str) -> Option<u32> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !word.starts_with('0')).then(|| word.parse().ok())?
}
