//! Numbers of completions among those of the same prompt.

use std::collections::BTreeMap;

/// Mean and standard deviation, with divisor `n - 1`, of the values of each group.
fn moments(values: &[f64], group_of: &[usize]) -> BTreeMap<usize, (f64, f64, f64)> {
    let mut groups: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (value, group) in values.iter().zip(group_of) {
        groups.entry(*group).or_default().push(*value);
    }
    let of = |values: Vec<f64>| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|value| (value - mean).powi(2));
        let variance = squares.sum::<f64>() / (n - 1.0).max(1.0);
        (n, mean, variance.sqrt())
    };
    groups
        .into_iter()
        .map(|(group, values)| (group, of(values)))
        .collect()
}

/// Standardises values among those of the same group: mean 0 and, unless all are equal, standard deviation 1 with
/// divisor `n - 1`, as `torch.std` has it. `epsilon` is added to the deviation.
pub fn standardised(values: &[f64], group_of: &[usize], epsilon: f64) -> Vec<f64> {
    let moments = moments(values, group_of);
    let values = values.iter().zip(group_of);
    values
        .map(|(value, group)| {
            let (_, mean, deviation) = moments[group];
            (value - mean) / (deviation + epsilon)
        })
        .collect()
}

/// Takes the mean of its group off each value, in units of the standard deviation of all values.
pub fn standardised_over_all(values: &[f64], group_of: &[usize], epsilon: f64) -> Vec<f64> {
    let deviation = moments(values, &vec![0; values.len()])
        .get(&0)
        .map_or(0.0, |(_, _, deviation)| *deviation);
    let centred = centred(values, group_of);
    centred
        .iter()
        .map(|value| value / (deviation + epsilon))
        .collect()
}

/// Takes the mean of its group off each value.
pub fn centred(values: &[f64], group_of: &[usize]) -> Vec<f64> {
    let moments = moments(values, group_of);
    let values = values.iter().zip(group_of);
    values
        .map(|(value, group)| value - moments[group].1)
        .collect()
}

/// Takes off each value the mean of the others of its group; a value without others becomes 0.
pub fn leave_one_out(values: &[f64], group_of: &[usize]) -> Vec<f64> {
    let moments = moments(values, group_of);
    let values = values.iter().zip(group_of);
    values
        .map(|(value, group)| {
            let (n, mean, _) = moments[group];
            // r - (n mean - r) / (n - 1)
            if n > 1.0 {
                (value - mean) * n / (n - 1.0)
            } else {
                0.0
            }
        })
        .collect()
}

/// Returns for each value whether its group has another one than it.
pub fn varied(values: &[f64], group_of: &[usize]) -> Vec<bool> {
    let mut ends: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (value, group) in values.iter().zip(group_of) {
        let (least, greatest) = ends.entry(*group).or_insert((*value, *value));
        *least = least.min(*value);
        *greatest = greatest.max(*value);
    }
    group_of
        .iter()
        .map(|group| ends[group].0 < ends[group].1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 6] = [1.0, 5.0, 3.0, 7.0, 7.0, 2.0];
    const GROUPS: [usize; 6] = [0, 1, 0, 2, 2, 0];

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
        }
    }

    #[test]
    fn values_are_standardised_among_their_group() {
        let found = standardised(&VALUES, &GROUPS, 1e-6);
        let one = 1.0 / (1.0 + 1e-6);
        close(&found, &[-one, 0.0, one, 0.0, 0.0, 0.0]);
        let half = 0.5f64.sqrt();
        close(&standardised(&[1.0, 3.0], &[4, 4], 0.0), &[-half, half]);
    }

    #[test]
    fn others_alone_are_a_values_baseline() {
        close(
            &leave_one_out(&VALUES, &GROUPS),
            &[-1.5, 0.0, 1.5, 0.0, 0.0, 0.0],
        );
        close(&centred(&VALUES, &GROUPS), &[-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(
            varied(&VALUES, &GROUPS),
            [true, false, true, false, false, true]
        );
    }
}
