//! What the best, or the most frequent, of `k` completions of a question is worth, estimated from `n` of them.
//!
//! Each number is the mean over all ways of drawing `k` of the `n` without putting back: unbiased for what `k` fresh
//! completions give (Chen et al. 2021, section 2.1, for pass@k).

use super::error::{StatsError, check};
use crate::random::{Draws, Stream};

/// Additions and multiplications up to which [`majority_at_k`] is exact.
const EXACT_WORK: f64 = 5e7;

/// Draws of `k` completions where it is not.
pub const MAJORITY_DRAWS: usize = 10_000;

/// The probability that one of `k` of `n` completions is right, of which `right` are.
pub fn pass_at_k(n: usize, right: usize, k: usize) -> Result<f64, StatsError> {
    check_k("pass", n, k)?;
    let wrong = n.saturating_sub(right);
    if wrong < k {
        return Ok(1.0);
    }
    let all_wrong: f64 = (0..k)
        .map(|drawn| (wrong - drawn) as f64 / (n - drawn) as f64)
        .product();
    Ok(1.0 - all_wrong)
}

/// The expected greatest of `k` of some values.
pub fn max_at_k(values: &[f64], k: usize) -> Result<f64, StatsError> {
    check_k("max", values.len(), k)?;
    check("max@k", values, k)?;
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    // The i-th smallest is the greatest of C(i-1, k-1) of the C(n, k) draws; from the greatest down.
    let mut weight = k as f64 / values.len() as f64;
    let mut sum = 0.0;
    for rank in (k..=sorted.len()).rev() {
        sum += weight * sorted[rank - 1];
        weight *= (rank - k) as f64 / (rank.max(2) - 1) as f64;
    }
    Ok(sum)
}

/// The completions of a question that give the same answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Votes {
    /// How many there are.
    pub count: usize,
    /// How many of them are right: they are all or none unless something beside the answer counts.
    pub right: usize,
}

impl Votes {
    fn share(&self) -> f64 {
        self.right as f64 / self.count as f64
    }
}

/// The probability that the most frequent answer among `k` completions is right, and whether it was estimated from
/// [`MAJORITY_DRAWS`] draws: the exact count takes too long where `n` and `k` are some hundreds.
///
/// Equally frequent answers win equally often. Of the `silent` completions, which give no answer, none has a vote; where
/// nobody has one, nothing is right. An answer only some of whose completions are right counts by their share.
pub fn majority_at_k(
    answers: &[Votes],
    silent: usize,
    k: usize,
    stream: &Stream,
) -> Result<(f64, bool), StatsError> {
    let n = silent + answers.iter().map(|votes| votes.count).sum::<usize>();
    check_k("majority", n, k)?;
    let answers: Vec<Votes> = answers
        .iter()
        .copied()
        .filter(|votes| votes.count > 0)
        .collect();
    let all = choose(n, k);
    if !all.is_finite() || work(&answers, k) > EXACT_WORK {
        return Ok((drawn_majority(&answers, silent, k, stream), true));
    }
    let mut value = 0.0;
    for count in distinct_counts(&answers) {
        let alike = answers.iter().filter(|votes| votes.count == count);
        let shares: f64 = alike.map(Votes::share).sum();
        if shares > 0.0 {
            value += shares * ways_to_win(&answers, silent, count, k);
        }
    }
    Ok(((value / all).min(1.0), false))
}

/// Counts the ways of drawing `k` completions in which one answer, with `count` completions, is the most frequent; ways in
/// which it is one of several by their share.
fn ways_to_win(answers: &[Votes], silent: usize, count: usize, k: usize) -> f64 {
    let mut others: Vec<usize> = answers.iter().map(|votes| votes.count).collect();
    if let Some(own) = others.iter().position(|other| *other == count) {
        others.swap_remove(own);
    }
    let mut total = 0.0;
    for votes in 1..=count.min(k) {
        let most = k - votes;
        let ties = most / votes;
        // Ways of drawing so many completions of the others, with so many answers at `votes` as well.
        let width = ties + 1;
        let mut ways = vec![0.0; (most + 1) * width];
        ways[0] = 1.0;
        let mut reach = 0;
        for other in &others {
            let mut next = vec![0.0; ways.len()];
            for taken in 0..=votes.min(*other) {
                let tied = usize::from(taken == votes);
                let choices = choose(*other, taken);
                for drawn in 0..=reach.min(most.saturating_sub(taken)) {
                    if drawn + taken > most {
                        continue;
                    }
                    for at in 0..width - tied {
                        let from = ways[drawn * width + at];
                        next[(drawn + taken) * width + at + tied] += from * choices;
                    }
                }
            }
            reach = (reach + other.min(&votes)).min(most);
            ways = next;
        }
        let mut sum = 0.0;
        for drawn in 0..=most {
            let rest = choose(silent, most - drawn);
            for at in 0..width {
                sum += ways[drawn * width + at] * rest / (at + 1) as f64;
            }
        }
        total += choose(count, votes) * sum;
    }
    total
}

/// About how many steps the exact count takes.
fn work(answers: &[Votes], k: usize) -> f64 {
    let mut work = 0.0;
    for count in distinct_counts(answers) {
        for votes in 1..=count.min(k) {
            let taken: usize = answers
                .iter()
                .map(|votes_of| votes_of.count.min(votes) + 1)
                .sum();
            work += taken as f64 * (k + 1 - votes) as f64 * (k / votes) as f64;
        }
    }
    work
}

fn distinct_counts(answers: &[Votes]) -> Vec<usize> {
    let counts = answers.iter().map(|votes| votes.count);
    let counts: std::collections::BTreeSet<usize> = counts.collect();
    counts.into_iter().collect()
}

/// Estimates the majority from draws; draw `r` uses counter `r` of the stream alone.
fn drawn_majority(answers: &[Votes], silent: usize, k: usize, stream: &Stream) -> f64 {
    let mut voters: Vec<Option<usize>> = vec![None; silent];
    for (answer, votes) in answers.iter().enumerate() {
        voters.extend(std::iter::repeat_n(Some(answer), votes.count));
    }
    let draw = |draws: &mut Draws| -> f64 {
        let mut order: Vec<usize> = (0..voters.len()).collect();
        let mut counts = vec![0usize; answers.len()];
        for place in 0..k {
            let other = place + draws.below(order.len() - place);
            order.swap(place, other);
            if let Some(answer) = voters[order[place]] {
                counts[answer] += 1;
            }
        }
        let most = counts.iter().copied().max().unwrap_or(0);
        if most == 0 {
            return 0.0;
        }
        let winners = counts.iter().zip(answers);
        let winners = winners.filter(|(count, _)| **count == most);
        let shares: Vec<f64> = winners.map(|(_, votes)| votes.share()).collect();
        shares.iter().sum::<f64>() / shares.len() as f64
    };
    let sum: f64 = (0..MAJORITY_DRAWS)
        .map(|at| draw(&mut stream.at(at as u64)))
        .sum();
    sum / MAJORITY_DRAWS as f64
}

/// C(n, k); infinite beyond the greatest number.
fn choose(n: usize, k: usize) -> f64 {
    if k > n {
        return 0.0;
    }
    let k = k.min(n - k);
    (0..k).fold(1.0, |ways, at| ways * (n - at) as f64 / (at + 1) as f64)
}

fn check_k(what: &'static str, n: usize, k: usize) -> Result<(), StatsError> {
    if k == 0 {
        return Err(StatsError::OutOfRange {
            what: "k",
            value: 0.0,
            expected: "at least 1",
        });
    }
    if k > n {
        return Err(StatsError::more_than_sampled(what, k, n));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDING: f64 = 1e-14;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < ROUNDING,
            "{found}, not {expected}"
        );
    }

    // The expected numbers are exact fractions of an enumeration of all draws in Python:
    //
    // ```python
    // from fractions import Fraction as F
    // from itertools import combinations
    // from collections import Counter
    //
    // def mean(values): values = list(values); return sum(values, F(0)) / len(values)
    // def pass_at(right, k): return mean(F(any(c)) for c in combinations(right, k))
    // def max_at(values, k): return mean(max(c) for c in combinations(values, k))
    // def majority_at(answers, right, k):
    //     share = lambda a: mean(F(r) for b, r in zip(answers, right) if b == a)
    //     def value(drawn):
    //         votes = Counter(answers[i] for i in drawn if answers[i] is not None)
    //         winners = [a for a in votes if votes[a] == max(votes.values())]
    //         return mean(share(a) for a in winners) if winners else F(0)
    //     return mean(value(c) for c in combinations(range(len(answers)), k))
    // ```

    #[test]
    fn pass_at_k_is_the_mean_over_all_draws() {
        for (n, right, k, expected) in [
            (10, 3, 1, 3.0 / 10.0),
            (10, 3, 4, 5.0 / 6.0),
            (10, 3, 8, 1.0),
            (10, 6, 4, 209.0 / 210.0),
            (16, 1, 4, 1.0 / 4.0),
            (7, 0, 3, 0.0),
            (7, 7, 3, 1.0),
            (12, 5, 12, 1.0),
            // 1 - C(197, 100) / C(200, 100), beyond what can be enumerated.
            (200, 3, 100, 349.0 / 398.0),
        ] {
            close(pass_at_k(n, right, k).unwrap(), expected);
        }
    }

    #[test]
    fn max_at_k_is_the_mean_over_all_draws() {
        let values = [0.5, 2.0, -1.0, 1.5, 0.0, 2.0, 0.25];
        for (k, expected) in [
            (1, 3.0 / 4.0),
            (2, 10.0 / 7.0),
            (3, 243.0 / 140.0),
            (5, 83.0 / 42.0),
            (7, 2.0),
        ] {
            close(max_at_k(&values, k).unwrap(), expected);
        }
        close(max_at_k(&[0.3], 1).unwrap(), 0.3);
        // Of rewards that are 0 and 1 it is pass@k.
        let right = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        close(max_at_k(&right, 4).unwrap(), pass_at_k(10, 3, 4).unwrap());
    }

    /// Votes as (count, right), and completions without an answer.
    fn majority(votes: &[(usize, usize)], silent: usize, k: usize) -> f64 {
        let votes = votes.iter().map(|(count, right)| Votes {
            count: *count,
            right: *right,
        });
        let votes: Vec<Votes> = votes.collect();
        let stream = Stream::new(1, "majority");
        let (value, is_drawn) = majority_at_k(&votes, silent, k, &stream).unwrap();
        assert!(!is_drawn);
        value
    }

    #[test]
    fn majority_at_k_is_the_mean_over_all_draws() {
        // aaabbcdd; a and c are right.
        let expected = [
            1.0 / 2.0,
            1.0 / 2.0,
            11.0 / 21.0,
            19.0 / 35.0,
            31.0 / 56.0,
            17.0 / 28.0,
            3.0 / 4.0,
            1.0,
        ];
        for (k, expected) in (1..).zip(expected) {
            close(majority(&[(3, 3), (2, 0), (1, 1), (2, 0)], 0, k), expected);
        }
        // aaabb--ccc; c is right, and two of the three a are.
        for (k, expected) in [
            (1, 1.0 / 2.0),
            (2, 11.0 / 18.0),
            (3, 23.0 / 36.0),
            (4, 167.0 / 252.0),
            (5, 115.0 / 168.0),
            (7, 35.0 / 48.0),
            (10, 5.0 / 6.0),
        ] {
            close(majority(&[(3, 2), (2, 0), (3, 3)], 2, k), expected);
        }
        // aaaaabbbbccc; b is right, and loses the more the more are drawn.
        for (k, expected) in [
            (1, 1.0 / 3.0),
            (3, 18.0 / 55.0),
            (4, 18.0 / 55.0),
            (6, 145.0 / 462.0),
            (9, 73.0 / 264.0),
            (12, 0.0),
        ] {
            close(majority(&[(5, 0), (4, 4), (3, 0)], 0, k), expected);
        }
        // Nobody has a vote.
        close(majority(&[], 4, 2), 0.0);
    }

    #[test]
    fn where_counting_takes_too_long_the_majority_is_drawn() {
        // Ten answers of 60 completions each, three of them right: three tenths whatever k is.
        let alike = |right: usize| Votes { count: 60, right };
        let votes: Vec<Votes> = (0..10)
            .map(|at| alike(if at < 3 { 60 } else { 0 }))
            .collect();
        let stream = Stream::new(1, "majority");
        let (value, is_drawn) = majority_at_k(&votes, 0, 300, &stream).unwrap();
        assert!(is_drawn && (value - 0.3).abs() < 0.02, "{value}");
        assert_eq!(majority_at_k(&votes, 0, 300, &stream).unwrap().0, value);
        // The same draws as the exact count where both can be had.
        let votes = [(3, 2), (2, 0), (3, 3)].map(|(count, right)| Votes { count, right });
        let drawn = drawn_majority(&votes, 2, 5, &stream);
        assert!((drawn - 115.0 / 168.0).abs() < 0.02, "{drawn}");
        // A binomial beyond all numbers.
        let many = [Votes {
            count: 3000,
            right: 3000,
        }];
        let (value, is_drawn) = majority_at_k(&many, 0, 1500, &stream).unwrap();
        assert!(is_drawn && value == 1.0);
    }

    #[test]
    fn sixty_four_completions_are_counted_exactly() {
        let mut votes = vec![Votes { count: 1, right: 0 }; 40];
        votes.extend([(14, 14), (10, 0)].map(|(count, right)| Votes { count, right }));
        let (value, is_drawn) = majority_at_k(&votes, 0, 48, &Stream::new(1, "m")).unwrap();
        assert!(!is_drawn && value > 0.9 && value < 1.0, "{value}");
        let drawn = drawn_majority(&votes, 0, 48, &Stream::new(1, "m"));
        assert!((value - drawn).abs() < 0.01, "{value} {drawn}");
    }

    #[test]
    fn more_than_were_sampled_is_an_error_that_names_them() {
        let stream = Stream::new(1, "majority");
        let errors = [
            pass_at_k(4, 1, 5).unwrap_err(),
            max_at_k(&[0.0; 4], 5).unwrap_err(),
            majority_at_k(&[Votes { count: 4, right: 0 }], 0, 5, &stream).unwrap_err(),
        ];
        for (error, what) in errors.iter().zip(["pass", "max", "majority"]) {
            let start = format!("{what}@5 needs 5 completions of each question, there are 4");
            assert!(error.to_string().starts_with(&start), "{error}");
        }
        for error in [
            pass_at_k(4, 1, 0).unwrap_err(),
            max_at_k(&[], 0).unwrap_err(),
            majority_at_k(&[], 0, 0, &stream).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "k is 0, expected at least 1");
        }
        assert!(max_at_k(&[f64::NAN, 0.0], 1).is_err());
    }
}
