//! TF-IDF embeddings.

use std::collections::{BTreeMap, BTreeSet};

use super::error::StatsError;

/// Term weights fitted on a set of documents: the entry of word `w` in a text is `sqrt(count of w) *
/// idf(w)`, `idf(w) = ln((N + 1) / (df(w) + 1)) + 1` with `N` documents, `df(w)` of which hold `w`; rows
/// are scaled to unit length. (The idf of scikit-learn with `smooth_idf`, with square roots of counts.)
///
/// Words are runs of letters and digits, in lower case, and every other visible character by itself.
/// Words that no document held are passed over; a text without known words is a zero row.
#[derive(Debug, Clone)]
pub struct TfIdf {
    /// Column and idf of each word; columns in the order of the words.
    words: BTreeMap<String, (usize, f64)>,
}

impl TfIdf {
    /// Fits the weights, keeping at most `maximum_words`: those in the most documents, of equals the
    /// first in alphabetical order.
    pub fn fit<'a>(
        documents: impl IntoIterator<Item = &'a str>,
        maximum_words: usize,
    ) -> Result<Self, StatsError> {
        let mut count = 0usize;
        let mut frequencies: BTreeMap<String, usize> = BTreeMap::new();
        for document in documents {
            count += 1;
            for word in words_of(document).into_iter().collect::<BTreeSet<_>>() {
                *frequencies.entry(word).or_default() += 1;
            }
        }
        if frequencies.is_empty() || maximum_words == 0 {
            return Err(StatsError::TooFew {
                what: "the words of TF-IDF",
                needed: 1,
                found: 0,
            });
        }
        let mut kept: Vec<(String, usize)> = frequencies.into_iter().collect();
        // Both sorts are stable, so equals stay in alphabetical order.
        kept.sort_by_key(|(_, frequency)| std::cmp::Reverse(*frequency));
        kept.truncate(maximum_words);
        kept.sort();
        let words = kept
            .into_iter()
            .enumerate()
            .map(|(column, (word, frequency))| {
                let idf = libm::log((count + 1) as f64 / (frequency + 1) as f64) + 1.0;
                (word, (column, idf))
            })
            .collect();
        Ok(Self { words })
    }

    /// The number of columns.
    pub fn dimension(&self) -> usize {
        self.words.len()
    }

    /// The words, in the order of the columns.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.words.keys().map(String::as_str)
    }

    /// Embeds texts as rows of a row-major matrix with [`Self::dimension`] columns.
    pub fn embed<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Vec<f32> {
        let mut matrix = Vec::new();
        for text in texts {
            let mut row = vec![0.0f64; self.dimension()];
            for word in words_of(text) {
                if let Some((column, _)) = self.words.get(&word) {
                    row[*column] += 1.0;
                }
            }
            for (column, idf) in self.words.values() {
                row[*column] = row[*column].sqrt() * idf;
            }
            let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            matrix.extend(row.iter().map(|value| (value * scale) as f32));
        }
        matrix
    }
}

/// Returns the words of a text: runs of letters and digits, in lower case, and every other visible character by itself.
pub fn words_of(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for character in text.chars() {
        if character.is_alphanumeric() {
            word.extend(character.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if !character.is_whitespace() {
            words.push(character.to_string());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// docs = ["a b a .", "b c", "a a a a d"]; N = 3
    /// df = Counter(w for t in docs for w in set(t.split())); W = sorted(df)
    /// for t in docs + ["a d zz"]:
    ///     c = Counter(t.split()); v = np.array([sqrt(c[w]) * (log((N+1)/(df[w]+1)) + 1) for w in W])
    ///     v / np.linalg.norm(v)
    /// ```
    #[test]
    fn agrees_with_the_definition_in_numpy() {
        let documents = ["a b a .", "b c", "a a a a d"];
        let weights = TfIdf::fit(documents, 100).unwrap();
        assert_eq!(
            weights.words().collect::<Vec<_>>(),
            [".", "a", "b", "c", "d"]
        );
        let found = weights.embed(documents.into_iter().chain(["A, d zz"]));
        let expected = [
            [0.604_652_1, 0.650_331_1, 0.459_853_53, 0.0, 0.0],
            [0.0, 0.0, 0.605_348_5, 0.795_960_5, 0.0],
            [0.0, 0.835_591_54, 0.0, 0.0, 0.549_351_2],
            [0.0, 0.605_348_5, 0.0, 0.0, 0.795_960_5],
        ];
        for (found, expected) in found.iter().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(found.len(), 20);
    }

    #[test]
    fn splits_text_into_lower_case_words_and_signs() {
        assert_eq!(
            words_of("It's  42-ÄÖ ?"),
            ["it", "'", "s", "42", "-", "äö", "?"]
        );
        assert_eq!(words_of(" \n"), [""; 0]);
    }

    #[test]
    fn keeps_the_most_frequent_words_and_gives_zero_rows() {
        let weights = TfIdf::fit(["z y", "z x", "w"], 2).unwrap();
        assert_eq!(weights.words().collect::<Vec<_>>(), ["w", "z"]);
        assert_eq!(weights.embed(["", "x y"]), [0.0; 4]);
        assert!(TfIdf::fit(["", " "], 5).is_err());
        assert!(TfIdf::fit(["a"], 0).is_err());
    }
}
