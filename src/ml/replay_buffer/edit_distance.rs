//! Edit distance between token sequences, up to a limit.

/// Says whether the Levenshtein distance of two sequences is at most `limit`.
///
/// Only cells of the table within `limit` of its diagonal are computed (Ukkonen 1985): the cost is the length of the
/// shorter sequence times `2 limit + 1`, and less where a row shows that the limit is passed.
pub(super) fn within(left: &[u32], right: &[u32], limit: usize) -> bool {
    let (long, short) = if left.len() >= right.len() {
        (left, right)
    } else {
        (right, left)
    };
    if long.len() - short.len() > limit {
        return false;
    }
    if limit >= long.len() {
        return true;
    }
    // Cell `offset` of row i is column i + offset - limit: the distance of the first i tokens of `short` to so many of
    // `long`. Columns outside the table count as too far.
    let far = limit + 1;
    let width = 2 * limit + 1;
    let column_of = |row: usize, offset: usize| {
        (row + offset)
            .checked_sub(limit)
            .filter(|column| *column <= long.len())
    };
    let mut above: Vec<usize> = (0..width)
        .map(|offset| column_of(0, offset).map_or(far, |column| column.min(far)))
        .collect();
    let mut here = vec![far; width];
    for row in 1..=short.len() {
        for offset in 0..width {
            here[offset] = match column_of(row, offset) {
                None => far,
                Some(0) => row.min(far),
                Some(column) => {
                    let differs = usize::from(short[row - 1] != long[column - 1]);
                    let mut least = above[offset] + differs;
                    if let Some(above) = above.get(offset + 1) {
                        least = least.min(above + 1);
                    }
                    if offset > 0 {
                        least = least.min(here[offset - 1] + 1);
                    }
                    least.min(far)
                }
            };
        }
        if here.iter().all(|distance| *distance == far) {
            return false;
        }
        std::mem::swap(&mut above, &mut here);
    }
    above[long.len() + limit - short.len()] <= limit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole table.
    fn distance(left: &[u32], right: &[u32]) -> usize {
        let mut above: Vec<usize> = (0..=right.len()).collect();
        for (row, token) in left.iter().enumerate() {
            let mut here = vec![row + 1];
            for (column, other) in right.iter().enumerate() {
                let changed = above[column] + usize::from(token != other);
                here.push(changed.min(above[column + 1] + 1).min(here[column] + 1));
            }
            above = here;
        }
        above[right.len()]
    }

    #[test]
    fn known_distances_are_limits() {
        let letters = |text: &str| text.chars().map(u32::from).collect::<Vec<_>>();
        for (left, right, far) in [
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
            ("", "abc", 3),
            ("", "", 0),
            ("abc", "abc", 0),
            ("abcdef", "uvwxyz", 6),
            ("abcdefgh", "cdefghab", 4),
        ] {
            let (left, right) = (letters(left), letters(right));
            assert_eq!(distance(&left, &right), far);
            for limit in 0..9 {
                assert_eq!(within(&left, &right, limit), far <= limit);
                assert_eq!(within(&right, &left, limit), far <= limit);
            }
        }
    }

    proptest! {
        #[test]
        fn the_band_says_what_the_whole_table_says(
            left in proptest::collection::vec(0u32..3, 0..14),
            right in proptest::collection::vec(0u32..3, 0..14),
            limit in 0usize..16,
        ) {
            prop_assert_eq!(within(&left, &right, limit), distance(&left, &right) <= limit);
        }
    }
}
