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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn takes_probabilities_only() {
        assert!(holm(&[]).is_err());
        assert!(holm(&[0.5, f64::NAN]).is_err());
        assert!(holm(&[0.5, 1.5]).is_err());
    }
}
