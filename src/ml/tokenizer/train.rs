//! Training of tokenizers.
//!
//! The trainers are our own because those of the `tokenizers` crate are not deterministic to the last tie:
//! its BPE trainer queues merges out of randomly seeded hash maps, and a pair that two different merges
//! have created sits in the queue twice with equal rank.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizers::PreTokenizer as _;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString};

use super::byte_level::{ByteLevelBpe, PreTokenizer};
use super::document::{Document, vocabulary};
use super::{SpecialTokens, Tokenizer, TokenizerError};

const PAD: &str = "<pad>";
const BOS: &str = "<bos>";
const EOS: &str = "<eos>";
const UNKNOWN: &str = "<unk>";

/// A pair of neighbours must occur this often to become a token.
const LEAST_COUNT: u64 = 2;

/// How a trained tokenizer cuts text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerAlgorithm {
    /// One token a word; words are what white space separates, and decode with single spaces.
    WordLevel,
    /// Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909), split as in GPT-2.
    Bpe,
}

/// Trains a tokenizer on texts; their order does not matter.
///
/// Ids 0 to 3 are `<pad>`, `<bos>`, `<eos>` and `<unk>`, then come `special_tokens`, then words by falling
/// frequency, or the 256 bytes and merges in order. Ties go to the smaller word or pair. Every text begins
/// with `<bos>` (see [`Tokenizer::encode_prompt`]). The vocabulary is smaller than `vocab_size` if the texts
/// do not give more.
pub fn train_tokenizer<'a>(
    algorithm: TokenizerAlgorithm,
    texts: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
    special_tokens: &[&str],
) -> Result<Tokenizer, TokenizerError> {
    let mut tokens: Vec<String> = [PAD, BOS, EOS, UNKNOWN]
        .iter()
        .chain(special_tokens)
        .map(|token| (*token).to_owned())
        .collect();
    let distinct: BTreeSet<_> = tokens.iter().collect();
    if distinct.len() < tokens.len() || special_tokens.iter().any(|token| token.is_empty()) {
        return Err(TokenizerError::Invalid(format!(
            "special tokens {special_tokens:?} are empty, repeated, or among {PAD}, {BOS}, {EOS}, {UNKNOWN}"
        )));
    }
    let specials = tokens.len();
    let least = match algorithm {
        TokenizerAlgorithm::WordLevel => specials + 1,
        TokenizerAlgorithm::Bpe => specials + 256,
    };
    if vocab_size < least {
        let why = match algorithm {
            TokenizerAlgorithm::WordLevel => format!("{specials} special tokens and a word"),
            TokenizerAlgorithm::Bpe => format!("{specials} special tokens and 256 bytes"),
        };
        return Err(TokenizerError::VocabularyTooSmall {
            found: vocab_size,
            least,
            why,
        });
    }
    match algorithm {
        TokenizerAlgorithm::WordLevel => {
            let counts = count(texts.into_iter().flat_map(str::split_whitespace));
            tokens.extend(most_frequent(counts, &tokens, vocab_size - specials));
            word_level(tokens, specials)
        }
        TokenizerAlgorithm::Bpe => byte_pairs(texts, vocab_size, tokens),
    }
}

fn count<T: Into<String>>(words: impl Iterator<Item = T>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word.into()).or_default() += 1;
    }
    counts
}

fn most_frequent(
    mut counts: BTreeMap<String, u64>,
    specials: &[String],
    room: usize,
) -> Vec<String> {
    for special in specials {
        counts.remove(special);
    }
    let mut words: Vec<(String, u64)> = counts.into_iter().collect();
    // Stable: equally frequent words stay in their order.
    words.sort_by_key(|(_, count)| Reverse(*count));
    words.into_iter().take(room).map(|(word, _)| word).collect()
}

fn word_level(tokens: Vec<String>, specials: usize) -> Result<Tokenizer, TokenizerError> {
    let added_tokens = (0u32..)
        .zip(&tokens[..specials])
        .map(|(id, token)| (token.clone(), id, true))
        .collect();
    let document = Document {
        added_tokens,
        pre_tokenizer: Some(json!({ "type": "WhitespaceSplit" })),
        begin: Some((BOS.to_owned(), 1)),
        // Without a decoder, tokens are joined with single spaces.
        decoder: None,
        model: json!({
            "type": "WordLevel",
            "vocab": vocabulary(tokens.iter().map(String::as_str))?,
            "unk_token": UNKNOWN,
        }),
        normalizer: None,
    };
    let special = SpecialTokens {
        bos: Some(BOS.to_owned()),
        eos: Some(EOS.to_owned()),
        pad: Some(PAD.to_owned()),
    };
    Tokenizer::from_document(document.into_value(), special)
}

fn byte_pairs<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
    mut tokens: Vec<String>,
) -> Result<Tokenizer, TokenizerError> {
    let added = tokens.iter().map(|token| (token.clone(), true)).collect();
    // The stand-in characters of the 256 bytes, in code point order.
    let alphabet: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    let first_byte = tokens.len() as u32;
    let ids: BTreeMap<char, u32> = alphabet.iter().copied().zip(first_byte..).collect();
    tokens.extend(alphabet.iter().map(char::to_string));

    let pre_tokenizer = ByteLevel::new(false, true, true);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        for word in split(pre_tokenizer, text)? {
            *counts.entry(word).or_default() += 1;
        }
    }
    let words = counts
        .into_iter()
        .map(|(word, count)| Word {
            symbols: word.chars().filter_map(|c| ids.get(&c).copied()).collect(),
            count,
        })
        .collect();
    let merges = learn_merges(words, &mut tokens, vocab_size);
    ByteLevelBpe {
        tokens,
        merges,
        added,
        pre_tokenizer: PreTokenizer::Gpt2,
        bos: Some(1),
        eos: Some(2),
        pad: Some(0),
        adds_bos: true,
    }
    .into_tokenizer()
}

/// Splits a text and writes its bytes as stand-in characters.
fn split(pre_tokenizer: ByteLevel, text: &str) -> Result<Vec<String>, TokenizerError> {
    let mut string = PreTokenizedString::from(text);
    pre_tokenizer
        .pre_tokenize(&mut string)
        .map_err(|error| TokenizerError::Text {
            action: "split",
            reason: error.to_string(),
        })?;
    let splits = string.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(splits
        .into_iter()
        .map(|(word, ..)| word.to_owned())
        .collect())
}

type Pair = (u32, u32);

/// A distinct word of the texts and how often it occurs.
struct Word {
    symbols: Vec<u32>,
    count: u64,
}

/// Merges the most frequent pair of neighbours until the vocabulary is full.
fn learn_merges(
    mut words: Vec<Word>,
    tokens: &mut Vec<String>,
    vocab_size: usize,
) -> Vec<(String, String)> {
    let mut known: BTreeMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut pairs = Pairs::default();
    for (index, word) in words.iter().enumerate() {
        pairs.add(index, word);
    }
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> = pairs
        .counts
        .iter()
        .map(|(pair, count)| (*count, Reverse(*pair)))
        .collect();
    let mut merges = Vec::new();
    let mut merged = BTreeSet::new();
    while tokens.len() < vocab_size {
        let Some((count, Reverse(pair))) = queue.pop() else {
            break;
        };
        // An entry is stale if the count has changed since; the change has queued a new one.
        if pairs.counts.get(&pair) != Some(&count) {
            continue;
        }
        if count < LEAST_COUNT {
            break;
        }
        let (left, right) = (&tokens[pair.0 as usize], &tokens[pair.1 as usize]);
        let token = format!("{left}{right}");
        // A pair can come back when another merge makes one of its halves again; it is listed once.
        if merged.insert(pair) {
            merges.push((left.clone(), right.clone()));
        }
        let id = *known.entry(token).or_insert_with_key(|token| {
            tokens.push(token.clone());
            tokens.len() as u32 - 1
        });
        let mut changed = BTreeSet::new();
        for index in pairs.places.remove(&pair).unwrap_or_default() {
            let word = &mut words[index];
            changed.extend(neighbours(word));
            pairs.remove(index, word);
            word.symbols = merge(&word.symbols, pair, id);
            changed.extend(neighbours(word));
            pairs.add(index, word);
        }
        for pair in changed {
            if let Some(count) = pairs.counts.get(&pair) {
                queue.push((*count, Reverse(pair)));
            }
        }
    }
    merges
}

/// How often and in which words each pair of neighbours occurs.
#[derive(Default)]
struct Pairs {
    counts: BTreeMap<Pair, u64>,
    places: BTreeMap<Pair, BTreeSet<usize>>,
}

impl Pairs {
    fn add(&mut self, index: usize, word: &Word) {
        for pair in neighbours(word) {
            *self.counts.entry(pair).or_default() += word.count;
            self.places.entry(pair).or_default().insert(index);
        }
    }

    fn remove(&mut self, index: usize, word: &Word) {
        for pair in neighbours(word) {
            if let Some(count) = self.counts.get_mut(&pair) {
                *count -= word.count;
                if *count == 0 {
                    self.counts.remove(&pair);
                }
            }
            if let Some(places) = self.places.get_mut(&pair) {
                places.remove(&index);
            }
        }
    }
}

fn neighbours(word: &Word) -> impl Iterator<Item = Pair> + '_ {
    word.symbols.windows(2).map(|pair| (pair[0], pair[1]))
}

/// Replaces each occurrence of the pair, from the left.
fn merge(symbols: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(symbols.len());
    let mut at = 0;
    while at < symbols.len() {
        if symbols
            .get(at + 1)
            .is_some_and(|next| (symbols[at], *next) == pair)
        {
            merged.push(id);
            at += 2;
        } else {
            merged.push(symbols[at]);
            at += 1;
        }
    }
    merged
}
