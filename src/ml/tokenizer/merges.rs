//! The merges of a BPE vocabulary with scores, as `generate_merges` of `transformers` makes them.

use std::collections::BTreeMap;

use super::TokenizerError;
use super::document::check_length;

/// Most bytes of all merges' texts: each split of a piece is one, so that a few long pieces could fill any memory.
const MOST_BYTES: usize = 64 << 20;
/// Most merges; Gemma has half as many.
const MOST: usize = 1 << 20;

/// Returns every split of a scored text into two pieces, ranked by the score of the whole, then by the parts' lengths.
///
/// `ids` are those of the pieces that may be parts; `scores` are in the order of ids.
pub(super) fn merges<'a>(
    ids: &BTreeMap<&str, usize>,
    scores: &[(&'a str, f32)],
) -> Result<Vec<(&'a str, &'a str)>, TokenizerError> {
    let mut merges = Vec::new();
    let mut bytes = 0;
    for (text, score) in scores {
        // Or the many splits of one text would take any time.
        check_length(text)?;
        let mut splits: Vec<_> = text
            .char_indices()
            .skip(1)
            .map(|(at, _)| text.split_at(at))
            .filter_map(|(left, right)| Some(((*ids.get(left)?, *ids.get(right)?), left, right)))
            .collect();
        bytes += splits.len() * text.len();
        if bytes > MOST_BYTES {
            return Err(TokenizerError::Invalid(format!(
                "its pieces split into more than {} MiB of merges",
                MOST_BYTES >> 20
            )));
        }
        if merges.len() + splits.len() > MOST {
            return Err(TokenizerError::Invalid(format!(
                "its pieces split into more than {MOST} merges"
            )));
        }
        splits.sort_by_key(|(ids, _, _)| *ids);
        merges.extend(splits.into_iter().map(|(_, l, r)| (*score, l, r)));
    }
    let lengths = |left: &str, right: &str| (left.chars().count(), right.chars().count());
    merges.sort_by(|first, second| {
        // A negative zero is a zero.
        let by_score = (second.0 + 0.0).total_cmp(&(first.0 + 0.0));
        by_score.then_with(|| lengths(second.1, second.2).cmp(&lengths(first.1, first.2)))
    });
    Ok(merges.into_iter().map(|(_, l, r)| (l, r)).collect())
}
