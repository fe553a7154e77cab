//! Metrics of the completions of one run, in a form that can be resampled.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stats::{StatsError, entropy, top_k};

/// A number that describes the completions of one run.
///
/// Top-K metrics are those of the K completions with the greatest reward (FlowHF, section 5: K = 20 of 200).
/// Distances are `1 - cos` of embeddings; standard deviations are those of a population.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Mean reward.
    Mean,
    /// Standard deviation of the reward.
    Std,
    /// Mean reward of the top K.
    TopKMean,
    /// Standard deviation of the reward of the top K.
    TopKStd,
    /// Mean distance between two of the top K.
    Diversity,
    /// Mean distance between two completions of the run.
    DiversityAll,
    /// Mean distance between two completions of the same question.
    DiversityPerPrompt,
    /// Mean distance of the top K to the nearest reference completion.
    Novelty,
    /// Mean distance to the nearest reference completion.
    NoveltyAll,
    /// `diversity` with TF-IDF vectors.
    TfidfDiversity,
    /// `diversity_all` with TF-IDF vectors.
    TfidfDiversityAll,
    /// `diversity_per_prompt` with TF-IDF vectors.
    TfidfDiversityPerPrompt,
    /// `novelty` with TF-IDF vectors.
    TfidfNovelty,
    /// `novelty_all` with TF-IDF vectors.
    TfidfNoveltyAll,
    /// Share of completions that the horizon ended.
    Truncated,
    /// Entropy, in nats, of the values of a text column.
    Entropy,
    /// Probability that one of so many completions of a question is right.
    PassAt(usize),
    /// Expected greatest reward of so many completions of a question.
    MaxAt(usize),
    /// Probability that the most frequent answer of so many completions of a question is right.
    MajorityAt(usize),
    /// Right answers that differ, of all completions of a question.
    DistinctRight,
}

impl Metric {
    /// Every metric of a reward that needs no asking for, in the order of the columns.
    pub(super) const ALL: [Self; 15] = [
        Self::Mean,
        Self::Std,
        Self::TopKMean,
        Self::TopKStd,
        Self::Diversity,
        Self::DiversityAll,
        Self::DiversityPerPrompt,
        Self::Novelty,
        Self::NoveltyAll,
        Self::TfidfDiversity,
        Self::TfidfDiversityAll,
        Self::TfidfDiversityPerPrompt,
        Self::TfidfNovelty,
        Self::TfidfNoveltyAll,
        Self::Truncated,
    ];

    /// The name in a pipeline.
    pub(super) fn key(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::PassAt(k) => return Cow::Owned(format!("pass_at_{k}")),
            Self::MaxAt(k) => return Cow::Owned(format!("max_at_{k}")),
            Self::MajorityAt(k) => return Cow::Owned(format!("majority_at_{k}")),
            Self::DistinctRight => "distinct_right",
            Self::Mean => "mean",
            Self::Std => "std",
            Self::TopKMean => "top_k_mean",
            Self::TopKStd => "top_k_std",
            Self::Diversity => "diversity",
            Self::DiversityAll => "diversity_all",
            Self::DiversityPerPrompt => "diversity_per_prompt",
            Self::Novelty => "novelty",
            Self::NoveltyAll => "novelty_all",
            Self::TfidfDiversity => "tfidf_diversity",
            Self::TfidfDiversityAll => "tfidf_diversity_all",
            Self::TfidfDiversityPerPrompt => "tfidf_diversity_per_prompt",
            Self::TfidfNovelty => "tfidf_novelty",
            Self::TfidfNoveltyAll => "tfidf_novelty_all",
            Self::Truncated => "truncated",
            Self::Entropy => "entropy",
        })
    }

    /// The heading of its column.
    pub(super) fn heading(self, k: usize) -> String {
        match self {
            Self::Mean => "Mean".to_owned(),
            Self::Std => "Std".to_owned(),
            Self::TopKMean => format!("Top-{k} Mean"),
            Self::TopKStd => format!("Top-{k} Std"),
            Self::Diversity => "Diversity".to_owned(),
            Self::DiversityAll => "Diversity, all".to_owned(),
            Self::DiversityPerPrompt => "Diversity, per prompt".to_owned(),
            Self::Novelty => "Novelty".to_owned(),
            Self::NoveltyAll => "Novelty, all".to_owned(),
            Self::TfidfDiversity => "TF-IDF Diversity".to_owned(),
            Self::TfidfDiversityAll => "TF-IDF Diversity, all".to_owned(),
            Self::TfidfDiversityPerPrompt => "TF-IDF Diversity, per prompt".to_owned(),
            Self::TfidfNovelty => "TF-IDF Novelty".to_owned(),
            Self::TfidfNoveltyAll => "TF-IDF Novelty, all".to_owned(),
            Self::Truncated => "Truncated".to_owned(),
            Self::Entropy => "Entropy".to_owned(),
            Self::PassAt(k) => format!("pass@{k}"),
            Self::MaxAt(k) => format!("max@{k}"),
            Self::MajorityAt(k) => format!("majority@{k}"),
            Self::DistinctRight => "Distinct right".to_owned(),
        }
    }

    /// Whether it is a number of right answers among the completions of a question.
    pub(super) fn is_of_attempts(self) -> bool {
        matches!(
            self,
            Self::PassAt(_) | Self::MaxAt(_) | Self::MajorityAt(_) | Self::DistinctRight
        )
    }

    /// How many completions of a question it draws.
    pub(super) fn drawn(self) -> Option<usize> {
        match self {
            Self::PassAt(k) | Self::MaxAt(k) | Self::MajorityAt(k) => Some(k),
            _ => None,
        }
    }

    /// Whether it is a number of the top K only.
    pub(super) fn is_of_top_k(self) -> bool {
        matches!(
            self,
            Self::TopKMean
                | Self::TopKStd
                | Self::Diversity
                | Self::TfidfDiversity
                | Self::Novelty
                | Self::TfidfNovelty
        )
    }

    /// Whether it is computed from the column that is the reward, or ranks by it.
    pub(super) fn needs_column(self) -> bool {
        self.is_of_top_k()
            || self.is_of_attempts()
            || matches!(self, Self::Mean | Self::Std | Self::Entropy)
    }

    /// Whether it needs TF-IDF vectors.
    pub(super) fn is_tfidf(self) -> bool {
        matches!(
            self,
            Self::TfidfDiversity
                | Self::TfidfDiversityAll
                | Self::TfidfDiversityPerPrompt
                | Self::TfidfNovelty
                | Self::TfidfNoveltyAll
        )
    }
}

/// Which completions are right, and what their answers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rightness<'a> {
    /// The least reward of a right completion.
    pub(super) least: f64,
    /// The text column with the answers; `None` for `answer` if there is such a column, else the completions.
    pub(super) answer: Option<&'a str>,
}

/// The least reward of a right completion, unless a param says otherwise.
pub(super) fn right() -> f64 {
    1.0
}

/// A metric prepared for one run: what it is follows from how often each completion counts.
#[derive(Debug, Clone)]
pub(super) enum Measurement {
    /// The mean of values, each of them at a completion.
    Mean(Vec<(usize, f64)>),
    /// The standard deviation of one value per completion.
    Std(Vec<f64>),
    /// The mean of the values of the first `k` of a ranking.
    TopMean(Top),
    /// The standard deviation of the values of the first `k` of a ranking.
    TopStd(Top),
    /// The mean of the distances of all pairs of completions.
    Pairs(Distances),
    /// The mean of the distances of the pairs among the first `k` of a ranking.
    TopPairs(Top, Distances),
    /// The entropy, in nats, of the category of a completion.
    Entropy {
        /// The category of each completion.
        categories: Vec<usize>,
        /// How many categories there are.
        count: usize,
    },
}

/// The first `k` of a ranking.
#[derive(Debug, Clone)]
pub(super) struct Top {
    ranking: Vec<usize>,
    k: usize,
    values: Vec<f64>,
}

impl Top {
    /// Ranks completions by reward; `values` holds one number per completion, possibly the rewards.
    pub(super) fn new(rewards: &[f64], k: usize, values: Vec<f64>) -> Result<Self, StatsError> {
        // Asking for k first: an error names k, not n.
        top_k(rewards, k)?;
        Ok(Self {
            ranking: top_k(rewards, rewards.len())?,
            k,
            values,
        })
    }

    /// Returns the first `k` with how often each counts.
    fn taken(&self, counts: &[u32]) -> Vec<(usize, f64)> {
        let mut left = self.k;
        let mut taken = Vec::with_capacity(self.k);
        for index in &self.ranking {
            let count = (counts[*index] as usize).min(left);
            if count > 0 {
                taken.push((*index, count as f64));
                left -= count;
            }
            if left == 0 {
                break;
            }
        }
        taken
    }

    fn weighted(&self, counts: &[u32]) -> Vec<(f64, f64)> {
        self.taken(counts)
            .into_iter()
            .map(|(index, weight)| (self.values[index], weight))
            .collect()
    }
}

/// Distances of all unordered pairs of completions, as `pairwise_distances` lists them.
#[derive(Debug, Clone)]
pub(super) struct Distances(pub(super) Vec<f64>);

impl Distances {
    fn between(&self, a: usize, b: usize) -> f64 {
        let (low, high) = (a.min(b), a.max(b));
        self.0[high * (high - 1) / 2 + low]
    }

    /// The mean over pairs of different completions. A completion drawn twice is no pair: its distance of
    /// zero would pull every resampled diversity below the measured one.
    pub(super) fn mean(&self, taken: &[(usize, f64)]) -> f64 {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (place, (a, weight_a)) in taken.iter().enumerate() {
            for (b, weight_b) in &taken[..place] {
                sum += weight_a * weight_b * self.between(*a, *b);
                pairs += weight_a * weight_b;
            }
        }
        // Only a resample of one completion alone has no pair.
        if pairs > 0.0 { sum / pairs } else { 0.0 }
    }
}

impl Measurement {
    /// Computes the metric where completion `i` counts `counts[i]` times.
    pub(super) fn of(&self, counts: &[u32]) -> f64 {
        let each = |values: &[f64]| -> Vec<(f64, f64)> {
            values
                .iter()
                .zip(counts)
                .map(|(value, count)| (*value, f64::from(*count)))
                .collect()
        };
        match self {
            Self::Mean(values) => {
                let weighted: Vec<(f64, f64)> = values
                    .iter()
                    .map(|(index, value)| (*value, f64::from(counts[*index])))
                    .collect();
                mean_and_std(&weighted).0
            }
            Self::Std(values) => mean_and_std(&each(values)).1,
            Self::TopMean(top) => mean_and_std(&top.weighted(counts)).0,
            Self::TopStd(top) => mean_and_std(&top.weighted(counts)).1,
            Self::Pairs(distances) => {
                let taken: Vec<(usize, f64)> = counts
                    .iter()
                    .enumerate()
                    .filter(|(_, count)| **count > 0)
                    .map(|(index, count)| (index, f64::from(*count)))
                    .collect();
                distances.mean(&taken)
            }
            Self::TopPairs(top, distances) => distances.mean(&top.taken(counts)),
            Self::Entropy { categories, count } => {
                let mut weights = vec![0.0; *count];
                for (category, count) in categories.iter().zip(counts) {
                    weights[*category] += f64::from(*count);
                }
                entropy(&weights).unwrap_or(0.0)
            }
        }
    }
}

/// Weighted mean and population standard deviation, with a second pass against rounding.
fn mean_and_std(weighted: &[(f64, f64)]) -> (f64, f64) {
    let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
    if total == 0.0 {
        return (0.0, 0.0);
    }
    let first = weighted
        .iter()
        .map(|(value, weight)| value * weight)
        .sum::<f64>()
        / total;
    let mean = first
        + weighted
            .iter()
            .map(|(value, weight)| (value - first) * weight)
            .sum::<f64>()
            / total;
    let squares: f64 = weighted
        .iter()
        .map(|(value, weight)| weight * (value - mean).powi(2))
        .sum();
    (mean, (squares / total).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Embeddings, diversity, mean, pairwise_distances, population_std};

    const REWARDS: [f64; 5] = [0.5, 2.0, -1.0, 1.5, 0.0];
    const VECTORS: [f32; 10] = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0, 0.5, 2.0, 0.1];

    fn distances(vectors: &[f32]) -> Distances {
        Distances(pairwise_distances(&Embeddings::new(vectors, 2).unwrap()))
    }

    fn top(k: usize) -> Top {
        Top::new(&REWARDS, k, REWARDS.to_vec()).unwrap()
    }

    fn indexed() -> Vec<(usize, f64)> {
        REWARDS.into_iter().enumerate().collect()
    }

    #[test]
    fn counting_each_completion_once_gives_the_statistics() {
        let once = [1; 5];
        let close = |measurement: Measurement, expected: f64| {
            let found = measurement.of(&once);
            assert!(
                (found - expected).abs() < 1e-14,
                "{measurement:?}: {found}, not {expected}"
            );
        };
        close(Measurement::Mean(indexed()), mean(&REWARDS).unwrap());
        close(
            Measurement::Std(REWARDS.to_vec()),
            population_std(&REWARDS).unwrap(),
        );
        close(
            Measurement::TopMean(top(3)),
            mean(&[2.0, 1.5, 0.5]).unwrap(),
        );
        close(
            Measurement::TopStd(top(3)),
            population_std(&[2.0, 1.5, 0.5]).unwrap(),
        );
        let all = diversity(&Embeddings::new(&VECTORS, 2).unwrap()).unwrap();
        close(Measurement::Pairs(distances(&VECTORS)), all);
        let best = [&VECTORS[2..4], &VECTORS[6..8], &VECTORS[..2]].concat();
        let best = diversity(&Embeddings::new(&best, 2).unwrap()).unwrap();
        close(Measurement::TopPairs(top(3), distances(&VECTORS)), best);
        let modes = Measurement::Entropy {
            categories: vec![0, 1, 0, 1, 2],
            count: 3,
        };
        close(modes, 0.8 * 2.5f64.ln() + 0.2 * 5f64.ln());
    }

    #[test]
    fn a_resample_is_what_its_counts_say() {
        let counts = [0, 2, 1, 0, 2];
        let repeated = [2.0, 2.0, -1.0, 0.0, 0.0];
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        };
        close(
            Measurement::Mean(indexed()).of(&counts),
            mean(&repeated).unwrap(),
        );
        close(
            Measurement::Std(REWARDS.to_vec()).of(&counts),
            population_std(&repeated).unwrap(),
        );
        // Rewards 2, 2 and one of the two zeros.
        close(Measurement::TopMean(top(3)).of(&counts), 4.0 / 3.0);
        let d = distances(&VECTORS);
        // Pairs of different completions only: four of (1, 4), two of (1, 2), two of (2, 4).
        let expected =
            (4.0 * d.between(1, 4) + 2.0 * d.between(1, 2) + 2.0 * d.between(2, 4)) / 8.0;
        close(Measurement::Pairs(d.clone()).of(&counts), expected);
        close(
            Measurement::TopPairs(top(3), d.clone()).of(&counts),
            d.between(1, 4),
        );
        close(Measurement::TopPairs(top(2), d).of(&counts), 0.0);
    }

    #[test]
    fn no_more_are_taken_than_there_are() {
        assert_eq!(
            Top::new(&REWARDS, 6, REWARDS.to_vec()).unwrap_err(),
            StatsError::too_many_asked_for(6, 5)
        );
    }

    #[test]
    fn keys_are_the_names_in_pipelines() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), *metric.key());
        }
    }
}
