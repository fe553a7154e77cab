//! Ranges of numeric params: what a number may be so that `f32` arithmetic with it means something.

use std::ops::RangeInclusive;

use crate::engine::stage::Problem;
use crate::ml::generate::DIVISORS;

/// Checks that a whole number is at least 1.
pub(crate) fn at_least_one(key: &str, value: u64, problems: &mut Vec<Problem>) {
    if value == 0 {
        problems.push(Problem::new(key, format!("`{key}` must be at least 1")));
    }
}

/// Checks how many completions of a prompt there are: more than a million have no room.
pub(crate) fn rows(key: &str, value: usize, problems: &mut Vec<Problem>) {
    if !(1..=1_000_000).contains(&value) {
        let name = key.rsplit('.').next().unwrap_or(key);
        let text = format!("`{name}` must be from 1 to 1000000, found {value}");
        problems.push(Problem::new(key, text));
    }
}

/// Learning rates: below, no weight would change in `f32`.
pub(crate) const LEARNING_RATES: RangeInclusive<f64> = 1e-12..=1e3;

/// Checks a number that others are multiplied with or divided by.
pub(crate) fn factor(key: &str, value: f64, problems: &mut Vec<Problem>) {
    within(key, value, &DIVISORS, problems);
}

/// Checks a number that logits are divided by before a token is drawn.
pub(crate) fn temperature(key: &str, value: f64, problems: &mut Vec<Problem>) {
    let before = problems.len();
    factor(key, value, problems);
    for problem in problems.iter_mut().skip(before) {
        problem.hint =
            Some("`sample` with `strategy: greedy` takes the most probable token".to_owned());
    }
}

/// Checks a learning rate.
pub(crate) fn learning_rate(key: &str, value: f64, problems: &mut Vec<Problem>) {
    within(key, value, &LEARNING_RATES, problems);
}

fn within(key: &str, value: f64, range: &RangeInclusive<f64>, problems: &mut Vec<Problem>) {
    if !range.contains(&value) {
        let name = key.rsplit('.').next().unwrap_or(key);
        problems.push(Problem::new(
            key,
            format!(
                "`{name}` must be from {:?} to {}, found {value:?}",
                range.start(),
                range.end()
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_vanish_or_overflow_are_named_with_what_is_allowed() {
        let mut problems = Vec::new();
        for value in [1e-6, 0.7, 1e6] {
            factor("scale", value, &mut problems);
        }
        learning_rate("optimizer.lr", 1e-12, &mut problems);
        assert_eq!(problems, []);
        for value in [0.0, -1.0, 1e-45, 1e7, f64::INFINITY, f64::NAN] {
            temperature("temperature.start", value, &mut problems);
        }
        learning_rate("optimizer.lr", 1e-45, &mut problems);
        let texts: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(texts.len(), 7);
        assert_eq!(
            texts[2],
            "`start` must be from 1e-6 to 1000000, found 1e-45"
        );
        assert_eq!(texts[6], "`lr` must be from 1e-12 to 1000, found 1e-45");
        assert!(problems[2].hint.as_ref().unwrap().contains("greedy"));
        assert_eq!(problems[6].hint, None);
    }
}
