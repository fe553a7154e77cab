//! Correction for several tests.

use super::error::{StatsError, check};

/// Holm's step-down adjusted p-values (Holm 1979), in the order given: reject where the adjusted value is
/// at most the level of the whole family.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, StatsError> {
    check("Holm's correction", p_values, 1)?;
    if let Some(value) = p_values.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(StatsError::OutOfRange {
            what: "a p-value",
            value: *value,
            expected: "0 to 1",
        });
    }
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut greatest = 0.0f64;
    for (rank, index) in order.into_iter().enumerate() {
        let factor = (p_values.len() - rank) as f64;
        greatest = greatest.max(p_values[index] * factor).min(1.0);
        adjusted[index] = greatest;
    }
    Ok(adjusted)
}

/// The levels at which Holm's procedure tests each hypothesis, in the order given, at `alpha` for the whole family.
///
/// It goes from the least p-value up and tests the one after `r` rejected ones at `alpha / (k - r)`. All from the first
/// that is not rejected on are left at the level of that one. So a p-value is at most its level just where the adjusted
/// p-value is at most `alpha`.
pub fn holm_levels(p_values: &[f64], alpha: f64) -> Result<Vec<f64>, StatsError> {
    let adjusted = holm(p_values)?;
    let rejected = adjusted.iter().filter(|p| **p <= alpha).count();
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut levels = vec![0.0; p_values.len()];
    for (rank, index) in order.into_iter().enumerate() {
        levels[index] = alpha / (p_values.len() - rank.min(rejected)) as f64;
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// ```python
    /// P = np.array([.01, .04, .03, .005, .2]); o = np.argsort(P)
    /// np.minimum(1, np.maximum.accumulate(P[o] * (5 - np.arange(5))))   # put back in order
    /// ```
    #[test]
    fn agrees_with_the_definition_in_numpy() {
        let found = holm(&[0.01, 0.04, 0.03, 0.005, 0.2]).unwrap();
        for (found, expected) in found.iter().zip([0.04, 0.09, 0.09, 0.025, 0.2]) {
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
        assert_eq!(holm(&[0.7, 0.6]).unwrap(), [1.0, 1.0]);
    }

    #[test]
    fn levels_are_those_of_the_steps() {
        let levels = |p_values: &[f64]| holm_levels(p_values, 0.05).unwrap();
        let close = |found: Vec<f64>, steps: &[f64]| {
            for (found, step) in found.iter().zip(steps) {
                assert!((found - 0.05 / step).abs() < 1e-15, "{found} {step}");
            }
        };
        // The second least is not rejected at .05 / 3, so that all the others stay there.
        close(levels(&[0.2, 0.01, 0.02, 0.03]), &[3.0, 4.0, 3.0, 3.0]);
        close(levels(&[0.012, 0.01, 0.016, 0.04]), &[3.0, 4.0, 2.0, 1.0]);
        close(levels(&[0.9, 0.8]), &[2.0, 2.0]);
        let stream = Stream::new(1, "levels");
        for counter in 0..200 {
            let mut draws = stream.at(counter);
            let p_values: Vec<f64> = (0..5).map(|_| 0.1 * draws.uniform()).collect();
            let adjusted = holm(&p_values).unwrap();
            for ((p, level), adjusted) in p_values.iter().zip(levels(&p_values)).zip(adjusted) {
                assert_eq!(*p <= level, adjusted <= 0.05, "{p_values:?}");
            }
        }
    }

    #[test]
    fn takes_probabilities_only() {
        assert!(holm(&[]).is_err());
        assert!(holm(&[0.5, f64::NAN]).is_err());
        assert!(holm(&[0.5, 1.5]).is_err());
    }
}
