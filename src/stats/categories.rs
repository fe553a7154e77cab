//! Distributions over categories.

use super::error::{StatsError, check, check_lengths};

fn check_weights(what: &'static str, weights: &[f64]) -> Result<(), StatsError> {
    check(what, weights, 1)?;
    match weights.iter().find(|weight| **weight < 0.0) {
        Some(value) => Err(StatsError::OutOfRange {
            what: "a weight",
            value: *value,
            expected: "a number that is not negative",
        }),
        None => Ok(()),
    }
}

/// The entropy in nats of the distribution proportional to `weights` (counts or probabilities).
pub fn entropy(weights: &[f64]) -> Result<f64, StatsError> {
    check_weights("the entropy", weights)?;
    let total: f64 = weights.iter().sum();
    if total == 0.0 {
        return Err(StatsError::OutOfRange {
            what: "the sum of the weights",
            value: total,
            expected: "a positive number",
        });
    }
    let sum: f64 = weights
        .iter()
        .filter(|weight| **weight > 0.0)
        .map(|weight| weight / total * libm::log(weight / total))
        .sum();
    // `0 - x`, for one category alone gives 0 and not -0.
    Ok(0.0 - sum)
}

/// The distribution proportional to `exp(log_weights)`, computed without overflow: `R(y) / Z` of the legal
/// answers, for one. A weight may be zero (`-inf`), but not all of them.
pub fn softmax(log_weights: &[f64]) -> Result<Vec<f64>, StatsError> {
    const WHAT: &str = "the log weights of a distribution";
    let finite: Vec<f64> = log_weights
        .iter()
        .copied()
        .filter(|weight| *weight != f64::NEG_INFINITY)
        .collect();
    check(WHAT, &finite, 1)?;
    let greatest = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = log_weights
        .iter()
        .map(|weight| libm::exp(weight - greatest));
    let total: f64 = weights.clone().sum();
    Ok(weights.map(|weight| weight / total).collect())
}

/// The total variation distance, half the sum of |p - q|.
///
/// The probabilities are taken as they stand: where `p` lacks mass (because some of it lies outside the
/// enumerated set), give that mass as a further category, with its share (0, say) under `q`.
pub fn total_variation(p: &[f64], q: &[f64]) -> Result<f64, StatsError> {
    check_lengths("two distributions", p.len(), q.len())?;
    check_weights("the total variation", p)?;
    check_weights("the total variation", q)?;
    Ok(p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0)
}

/// The Kullback-Leibler divergence from `q` to `p`, the sum of `p ln(p / q)` in nats; infinite where
/// `p` has mass and `q` has none.
pub fn kullback_leibler(p: &[f64], q: &[f64]) -> Result<f64, StatsError> {
    check_lengths("two distributions", p.len(), q.len())?;
    check_weights("the divergence", p)?;
    check_weights("the divergence", q)?;
    Ok(p.iter()
        .zip(q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| p * (libm::log(*p) - libm::log(*q)))
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// scipy.stats.entropy([3, 1, 0, 4])
    /// ```
    #[test]
    fn entropy_agrees_with_scipy() {
        assert!((entropy(&[3.0, 1.0, 0.0, 4.0]).unwrap() - 0.974_314_752_869_349_3).abs() < 1e-14);
        assert!((entropy(&[0.25; 4]).unwrap() - 4f64.ln()).abs() < 1e-15);
        assert_eq!(entropy(&[0.0, 7.0]).unwrap().to_bits(), 0.0f64.to_bits());
    }

    #[test]
    fn log_weights_of_any_size_are_normalised() {
        let found = softmax(&[1000.0, 1000.0 + 3f64.ln(), f64::NEG_INFINITY]).unwrap();
        assert!((found[0] - 0.25).abs() < 1e-12 && (found[1] - 0.75).abs() < 1e-12);
        assert_eq!(found[2], 0.0);
        assert!(softmax(&[f64::NEG_INFINITY]).is_err());
        assert!(softmax(&[0.0, f64::INFINITY]).is_err());
        assert!(softmax(&[0.0, f64::NAN]).is_err());
        assert!(softmax(&[]).is_err());
    }

    #[test]
    fn distances_between_distributions() {
        let (p, q) = ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]);
        assert_eq!(total_variation(&p, &q).unwrap(), 0.5);
        assert_eq!(total_variation(&p, &p).unwrap(), 0.0);
        assert!((kullback_leibler(&p, &q).unwrap() - 2f64.ln()).abs() < 1e-15);
        assert_eq!(kullback_leibler(&q, &p).unwrap(), f64::INFINITY);
    }

    #[test]
    fn weights_are_not_negative() {
        assert!(entropy(&[1.0, -1.0]).is_err());
        assert!(entropy(&[0.0, 0.0]).is_err());
        assert!(entropy(&[]).is_err());
        assert!(total_variation(&[1.0], &[0.5, 0.5]).is_err());
        assert!(total_variation(&[1.0, f64::NAN], &[0.5, 0.5]).is_err());
    }
}
