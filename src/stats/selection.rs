//! Selection by reward.

use super::error::{StatsError, check};

/// The positions of the `k` greatest rewards, best first; of equal rewards the earlier comes first.
pub fn top_k(rewards: &[f64], k: usize) -> Result<Vec<usize>, StatsError> {
    check("the top-k selection", rewards, 0)?;
    if k > rewards.len() {
        return Err(StatsError::TooManyAskedFor {
            k,
            n: rewards.len(),
        });
    }
    let mut order: Vec<usize> = (0..rewards.len()).collect();
    // `partial_cmp` on finite numbers: unlike `total_cmp` it takes -0 and 0 as equal.
    order.sort_by(|a, b| {
        rewards[*b]
            .partial_cmp(&rewards[*a])
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    order.truncate(k);
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_ties_keep_their_order() {
        let rewards = [1.0, 3.0, -0.0, 3.0, 0.0, 2.0];
        assert_eq!(top_k(&rewards, 3).unwrap(), [1, 3, 5]);
        assert_eq!(top_k(&rewards, 6).unwrap(), [1, 3, 5, 0, 2, 4]);
        assert_eq!(top_k(&rewards, 0).unwrap(), [0usize; 0]);
    }

    #[test]
    fn asks_for_no_more_than_there_are() {
        assert_eq!(
            top_k(&[1.0], 2),
            Err(StatsError::TooManyAskedFor { k: 2, n: 1 })
        );
        assert!(top_k(&[1.0, f64::NAN], 1).is_err());
    }
}
