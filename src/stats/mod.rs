//! Statistics on slices of numbers.
//!
//! Every function checks its input and returns a [`StatsError`] instead of a number that means nothing:
//! no empty means, no `NaN` that travels, no variance of one value. Results do not depend on the number
//! of threads.

mod bootstrap;
mod categories;
mod correlation;
mod describe;
mod distance;
mod distributions;
mod effect;
mod error;
pub mod figure;
mod histogram;
mod multiple;
mod ngrams;
mod normality;
mod pass_at_k;
mod power;
mod sample_mean;
mod selection;
mod t_test;
mod tfidf;
mod vendi;

pub use bootstrap::Bootstrap;
pub use categories::{entropy, kullback_leibler, softmax, total_variation};
pub use correlation::{pearson, spearman};
pub use describe::{
    interquartile_mean, mean, median, middle_half_mean, population_std, quantile, sample_std,
    sample_variance,
};
pub use distance::{Embeddings, diversity, nearest_distances, novelty, pairwise_distances};
pub use effect::{Interval, clopper_pearson, cohens_d, wilson};
pub use error::StatsError;
pub use histogram::{Histogram, even_edges};
pub use multiple::{holm, holm_levels};
pub use ngrams::{distinct_n, self_bleu};
pub use normality::{NormalityTest, dagostino_pearson, shapiro_wilk};
pub use pass_at_k::{MAJORITY_DRAWS, Votes, majority_at_k, max_at_k, pass_at_k};
pub use power::{interval_power, runs_for_power};
pub use sample_mean::SampleMean;
pub use selection::{pareto_optimal, top_k};
pub use t_test::{
    Alternative, StdKind, Summary, TTest, Variances, one_sample_t_test, paired_t_test,
    two_sample_t_test,
};
pub use tfidf::{TfIdf, words_of};
pub use vendi::vendi_score;
