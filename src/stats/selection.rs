//! Selection by reward.

use super::error::{StatsError, check};

/// The positions of the `k` greatest rewards, best first; of equal rewards the earlier comes first.
pub fn top_k(rewards: &[f64], k: usize) -> Result<Vec<usize>, StatsError> {
    check("the top-k selection", rewards, 0)?;
    if k > rewards.len() {
        return Err(StatsError::too_many_asked_for(k, rewards.len()));
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

/// Says of each point whether it is Pareto-optimal: no other is at least as great in both coordinates and greater in one.
///
/// Equal points are optimal together. A point that is not finite is not optimal, and does not count against others.
pub fn pareto_optimal(points: &[(f64, f64)]) -> Vec<bool> {
    let is_finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let dominates = |a: &(f64, f64), b: &(f64, f64)| a.0 >= b.0 && a.1 >= b.1 && a != b;
    points
        .iter()
        .map(|point| {
            let mut others = points.iter().filter(|other| is_finite(other));
            is_finite(point) && !others.any(|other| dominates(other, point))
        })
        .collect()
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
        assert_eq!(top_k(&[1.0], 2), Err(StatsError::too_many_asked_for(2, 1)));
        assert!(top_k(&[1.0, f64::NAN], 1).is_err());
    }

    #[test]
    fn points_that_nothing_beats_in_both_ways_are_optimal() {
        let points = [
            (1.0, 5.0),
            (2.0, 4.0),
            (2.0, 3.0),
            (3.0, 3.0),
            (1.0, 4.0),
            (3.0, 3.0),
            (f64::NAN, 9.0),
            (0.0, f64::INFINITY),
        ];
        let expected = [true, true, false, true, false, true, false, false];
        assert_eq!(pareto_optimal(&points), expected);
        assert_eq!(pareto_optimal(&[]), Vec::<bool>::new());
    }
}
