//! How much the texts of one set repeat each other, by their n-grams.

use std::collections::{BTreeMap, BTreeSet};

use super::error::StatsError;

/// The greatest n of the n-grams of BLEU-4.
const LONGEST: usize = 4;
/// What a precision without a match has in place of its count: method 1 of Chen and Cherry (2014), with the
/// value of nltk and Texygen.
const EPSILON: f64 = 0.1;

type Counts<'a> = BTreeMap<&'a [String], usize>;

/// Distinct-n (Li et al. 2016): different n-grams / n-grams, over all texts together.
///
/// Texts of fewer than n words have no n-gram; it is 0 if there is none at all.
pub fn distinct_n(texts: &[Vec<String>], n: usize) -> f64 {
    let grams = || texts.iter().flat_map(|words| words.windows(n));
    let total = grams().count();
    if total == 0 {
        return 0.0;
    }
    grams().collect::<BTreeSet<_>>().len() as f64 / total as f64
}

/// Self-BLEU (Zhu et al. 2018, Texygen): the mean over texts of BLEU-4 against all others, from 0 to 1; less is
/// more diverse.
///
/// BLEU is that of nltk's `sentence_bleu` with `method1`: clipped precisions of 1- to 4-grams in a geometric mean, a
/// count of 0 matches replaced by 0.1, and the brevity penalty for the nearest length of a reference. A text without
/// a word in common with the others has 0, and so has an empty one.
pub fn self_bleu(texts: &[Vec<String>]) -> Result<f64, StatsError> {
    if texts.len() < 2 {
        return Err(StatsError::TooFew {
            what: "self-BLEU",
            needed: 2,
            found: texts.len(),
        });
    }
    // counts[text][n - 1]
    let counts: Vec<Vec<Counts>> = texts
        .iter()
        .map(|words| (1..=LONGEST).map(|n| count(words, n)).collect())
        .collect();
    let sum: f64 = (0..texts.len()).map(|at| bleu(texts, &counts, at)).sum();
    Ok(sum / texts.len() as f64)
}

fn count(words: &[String], n: usize) -> Counts<'_> {
    let mut counts = Counts::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// BLEU-4 of one text against all others.
fn bleu(texts: &[Vec<String>], counts: &[Vec<Counts>], at: usize) -> f64 {
    let length = texts[at].len();
    let others = || (0..texts.len()).filter(|other| *other != at);
    let mut log_precision = 0.0;
    for n in 1..=LONGEST {
        let matches: usize = counts[at][n - 1]
            .iter()
            .map(|(gram, count)| {
                let most = others().filter_map(|other| counts[other][n - 1].get(gram));
                (*count).min(most.copied().max().unwrap_or(0))
            })
            .sum();
        if n == 1 && matches == 0 {
            return 0.0;
        }
        let matches = if matches == 0 {
            EPSILON
        } else {
            matches as f64
        };
        // nltk counts one n-gram in a text that is too short for any.
        let grams = (length + 1).saturating_sub(n).max(1);
        log_precision += libm::log(matches / grams as f64) / LONGEST as f64;
    }
    // Of two references as near, the shorter one.
    let nearest = others()
        .map(|other| texts[other].len())
        .min_by_key(|other| (other.abs_diff(length), *other))
        .unwrap_or(length);
    let brevity = if length > nearest {
        0.0
    } else {
        1.0 - nearest as f64 / length as f64
    };
    libm::exp(brevity + log_precision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::words_of;

    const TEXTS: [&str; 4] = [
        "The cat sat on the mat.",
        "The cat sat on the red mat, and slept.",
        "A dog sat on the mat.",
        "Why not? The dog slept on a mat.",
    ];

    fn split(texts: &[&str]) -> Vec<Vec<String>> {
        texts.iter().map(|text| words_of(text)).collect()
    }

    /// ```python
    /// words = lambda t: re.findall(r"[a-z0-9]+|[^\sa-z0-9]", t.lower())
    /// f = SmoothingFunction().method1  # nltk 3.10.4
    /// [sentence_bleu([w for j, w in enumerate(W) if j != i], W[i], smoothing_function=f) for i in range(4)]
    /// ```
    #[test]
    fn self_bleu_agrees_with_nltk() {
        let texts = split(&TEXTS);
        let counts: Vec<Vec<Counts>> = texts
            .iter()
            .map(|words| (1..=LONGEST).map(|n| count(words, n)).collect())
            .collect();
        let expected = [
            1.0,
            0.394_588_125_559_176_7,
            0.668_740_304_976_422,
            0.055_237_934_114_639_67,
        ];
        for (at, expected) in expected.into_iter().enumerate() {
            let found = bleu(&texts, &counts, at);
            assert!((found - expected).abs() < 1e-14, "{at}: {found}");
        }
        assert!((self_bleu(&texts).unwrap() - 0.529_641_591_162_559_6).abs() < 1e-14);
        // Shorter than a 4-gram, without a common word, and empty.
        let short = split(&["yes", "yes indeed it is so", "no", ""]);
        assert!((self_bleu(&short).unwrap() - 0.057_889_109_398_767_35).abs() < 1e-14);
        assert!(self_bleu(&texts[..1]).is_err());
    }

    #[test]
    fn distinct_n_is_the_share_of_different_n_grams() {
        let texts = split(&TEXTS);
        assert_eq!(distinct_n(&texts, 1), 15.0 / 35.0);
        assert_eq!(distinct_n(&texts, 2), 22.0 / 31.0);
        assert_eq!(distinct_n(&texts, 3), 21.0 / 27.0);
        // By hand: a b, b a | a b: the bigrams are ab, ba, ab.
        assert_eq!(distinct_n(&split(&["a b a", "a b"]), 2), 2.0 / 3.0);
        assert_eq!(distinct_n(&split(&["a", ""]), 2), 0.0);
    }

    #[test]
    fn equal_texts_repeat_each_other_wholly() {
        let same = split(&["one two three four five"; 3]);
        assert!((self_bleu(&same).unwrap() - 1.0).abs() < 1e-15);
        assert_eq!(distinct_n(&same, 1), 1.0 / 3.0);
        assert_eq!(self_bleu(&split(&["a b c", "d e f"])).unwrap(), 0.0);
    }
}
