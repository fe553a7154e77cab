//! Behaviour of trained and loaded tokenizers.

use super::*;

const WORLD: [&str; 4] = [
    "Question: how do i sort a list in python ? Answer: just run pipx order on the list .",
    "Question: my docker can not merge this image , why ? Answer: the image is busy , so podman must join it .",
    "Question: help , i want to print one table using rust . Answer: see the cargo guide about show and table . good luck .",
    "Question: is there a way in git to move some file ? Answer: it depends on many things .",
];

fn spelt(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    ids.iter()
        .map(|id| tokenizer.id_to_token(*id).unwrap())
        .collect()
}

#[test]
fn words_round_trip() {
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, WORLD, 512, &["<sep>"]).unwrap();
    for text in WORLD {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), text.split(' ').count());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let prompt = tokenizer.encode_prompt(text).unwrap();
        assert_eq!((prompt[0], &prompt[1..]), (1, ids.as_slice()));
        // Special tokens are left out of decoded text.
        assert_eq!(
            tokenizer.decode(&[&prompt[..], &[2, 0]].concat()).unwrap(),
            text
        );
    }
    assert_eq!(
        spelt(&tokenizer, "sort <sep> sorts"),
        ["sort", "<sep>", "<unk>"]
    );
    assert_eq!(tokenizer.token_to_id("<sep>"), Some(4));
    assert_eq!(tokenizer.bos_id(), Some(1));
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.pad_id(), 0);
    assert_eq!(tokenizer.surroundings(), (&[1][..], &[][..]));
}

#[test]
fn frequent_words_come_first_and_ties_in_order() {
    let texts = ["b a c a", "c a d <bos>"];
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, texts, 7, &[]).unwrap();
    let words: Vec<_> = (4..7)
        .map(|id| tokenizer.id_to_token(id).unwrap())
        .collect();
    assert_eq!(words, ["a", "c", "b"]);
    assert_eq!(tokenizer.vocab_size(), 7);
}

#[test]
fn any_text_round_trips_through_bytes() {
    let tokenizer = train_tokenizer(TokenizerAlgorithm::Bpe, WORLD, 300, &[]).unwrap();
    assert_eq!(tokenizer.vocab_size(), 300);
    for text in WORLD.into_iter().chain([
        "",
        " ",
        "na\u{ef}ve \u{65e5}\u{672c} \u{1f642}\0",
        "  two\n\nlines\t",
    ]) {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    let ids = tokenizer.encode_prompt(WORLD[0]).unwrap();
    assert_eq!(ids[0], 1);
    // Merges save tokens.
    assert!(ids.len() < WORLD[0].len() * 3 / 4);
}

/// The crate's trainer agrees where there are no ties for it to break at random.
#[test]
fn merges_are_those_of_the_crate() {
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{AddedToken, NormalizerWrapper, TokenizerBuilder};

    let ours = train_tokenizer(TokenizerAlgorithm::Bpe, WORLD, 330, &[]).unwrap();
    let byte_level = ByteLevel::new(false, true, true);
    let mut theirs = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .unwrap();
    let specials = ["<pad>", "<bos>", "<eos>", "<unk>"].map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(330)
        .min_frequency(2)
        .special_tokens(specials.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    theirs.train(&mut trainer, WORLD.into_iter()).unwrap();
    let tokens =
        |token: &dyn Fn(u32) -> Option<String>| -> Vec<_> { (0..330).map(token).collect() };
    assert_eq!(
        tokens(&|id| ours.id_to_token(id)),
        tokens(&|id| theirs.id_to_token(id))
    );
    for text in WORLD {
        let ids = theirs.encode(text, false).unwrap();
        assert_eq!(ours.encode(text).unwrap(), ids.get_ids());
    }
}

#[test]
fn training_depends_on_the_texts_only() {
    for algorithm in [TokenizerAlgorithm::WordLevel, TokenizerAlgorithm::Bpe] {
        let train = |texts: &[&str]| {
            let texts = texts.iter().copied();
            let tokenizer = train_tokenizer(algorithm, texts, 400, &["<sep>"]).unwrap();
            tokenizer.to_json().unwrap()
        };
        let expected = train(&WORLD);
        let mut reversed = WORLD;
        reversed.reverse();
        assert_eq!(train(&reversed), expected);
        assert_ne!(train(&WORLD[1..]), expected);
    }
}

/// Golden: other bytes here mean other digests and other results in every store.
#[test]
fn trained_documents_are_pinned() {
    let digest = |algorithm| {
        let tokenizer = train_tokenizer(algorithm, WORLD, 320, &["<sep>"]).unwrap();
        let json = tokenizer.to_json().unwrap();
        blake3::hash(json.as_bytes()).to_hex()[..16].to_owned()
    };
    assert_eq!(digest(TokenizerAlgorithm::WordLevel), "40a63703b88530be");
    assert_eq!(digest(TokenizerAlgorithm::Bpe), "68beb8fe4d1ddd85");
}

#[test]
fn too_small_a_vocabulary_is_an_error() {
    let error = |algorithm, size| {
        let error = train_tokenizer(algorithm, WORLD, size, &[]).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        error(TokenizerAlgorithm::Bpe, 259),
        "vocabulary size 259 is too small, expected at least 260: 4 special tokens and 256 bytes"
    );
    assert_eq!(
        error(TokenizerAlgorithm::WordLevel, 4),
        "vocabulary size 4 is too small, expected at least 5: 4 special tokens and a word"
    );
    let repeated = train_tokenizer(TokenizerAlgorithm::Bpe, WORLD, 300, &["<eos>"]);
    assert!(repeated.unwrap_err().to_string().contains("repeated"));
}

#[test]
fn a_saved_tokenizer_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let saved = train_tokenizer(TokenizerAlgorithm::Bpe, WORLD, 300, &["<sep>"]).unwrap();
    saved.save(folder.path()).unwrap();
    let read = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(read.to_json().unwrap(), saved.to_json().unwrap());
    assert_eq!(read.special_tokens(), saved.special_tokens());
    assert_eq!(read.surroundings(), saved.surroundings());
    assert_eq!(
        read.encode_batch(&WORLD).unwrap(),
        WORLD.map(|text| saved.encode(text).unwrap())
    );
}

#[test]
fn scored_tokens_that_split_without_end_are_refused() {
    let vocabulary = |longest: usize| super::ScoredVocabulary {
        tokens: (1..=longest)
            .map(|length| super::ScoredToken {
                text: "a".repeat(length),
                score: 0.0,
                kind: super::ScoredTokenKind::Normal,
            })
            .collect(),
        bos: None,
        eos: None,
        pad: None,
        adds_bos: false,
        adds_space_prefix: false,
    };
    assert!(vocabulary(50).into_tokenizer().is_ok());
    let error = vocabulary(1000).into_tokenizer().unwrap_err().to_string();
    assert!(error.contains("more than 64 MiB of merges"), "{error}");
    let mut long = vocabulary(3);
    long.tokens[2].text = "a".repeat(5000);
    let error = long.into_tokenizer().unwrap_err().to_string();
    assert!(
        error.contains("a token has 5000 bytes, expected at most 4096"),
        "{error}"
    );
}

#[test]
fn special_tokens_must_exist() {
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, WORLD, 300, &[]).unwrap();
    let tokens = SpecialTokens {
        eos: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    };
    let json = tokenizer.to_json().unwrap();
    let error = Tokenizer::from_json(json.as_bytes(), tokens).unwrap_err();
    assert_eq!(
        error.to_string(),
        "end token `</s>` is not in the vocabulary"
    );
}

#[test]
fn texts_are_cut_with_their_special_tokens_kept() {
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, ["a b c"], 9, &[]).unwrap();
    let cut = tokenizer.clone().truncated_to(3).unwrap();
    assert_eq!(cut.encode_with_special_tokens("a b c").unwrap(), [1, 4, 5]);
    let error = tokenizer.truncated_to(1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid tokenizer: texts cannot be cut to 1 ids, 1 are special"
    );
}

/// The crate would panic on these.
#[test]
fn merges_that_do_not_fit_the_vocabulary_are_errors() {
    let load = |merges: Value, prefix: Option<&str>| {
        let model = json!({
            "type": "BPE",
            "vocab": { "a": 0, "b": 1, "ab": 2 },
            "merges": merges,
            "continuing_subword_prefix": prefix,
        });
        let document = json!({ "version": "1.0", "model": model });
        let loaded = Tokenizer::from_document(document, SpecialTokens::default());
        loaded.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(load(json!([["a", "b"]]), None), Ok(()));
    assert_eq!(load(json!(["a b"]), None), Ok(()));
    for (merges, prefix, reason) in [
        (
            json!([["ab", "ab"]]),
            None,
            "merge [\"ab\",\"ab\"] needs `abab`, which is not in the vocabulary",
        ),
        (
            json!(["a c"]),
            None,
            "merge \"a c\" needs `c`, which is not in the vocabulary",
        ),
        (json!(["ab"]), None, "merge \"ab\" is not a pair of tokens"),
        (json!([3]), None, "merge 3 is not a pair of tokens"),
        (
            json!(["a b"]),
            Some("####"),
            "merge \"a b\" lacks the prefix `####`",
        ),
        (json!(["a b", "a b"]), None, "merge \"a b\" occurs twice"),
    ] {
        assert_eq!(
            load(merges, prefix),
            Err(format!("invalid tokenizer: {reason}"))
        );
    }
}

/// The crate would panic on these when encoding.
#[test]
fn templates_that_use_what_is_not_there_are_errors() {
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, ["a b"], 6, &[]).unwrap();
    let error = |old: &str, new: &str| {
        let json: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        let json = json.to_string();
        assert!(json.contains(old), "{json}");
        let json = json.replacen(old, new, 1);
        let loaded = Tokenizer::from_json(json.as_bytes(), SpecialTokens::default());
        loaded.unwrap_err().to_string()
    };
    assert_eq!(
        error(
            r#""special_tokens":{"<bos>""#,
            r#""special_tokens":{"<eos>""#
        ),
        "invalid tokenizer: the template uses `<bos>`, which its `special_tokens` do not define"
    );
    assert_eq!(
        error(
            r#""single":[{"SpecialToken":{"id":"<bos>","type_id":0}},{"Sequence":{"id":"A""#,
            r#""single":[{"SpecialToken":{"id":"<bos>","type_id":0}},{"Sequence":{"id":"B""#,
        ),
        "invalid tokenizer: the template for one text uses a second one"
    );
}

/// A file of some megabytes must not take a hundred times as much, when it is loaded or later.
#[test]
fn documents_that_grow_beyond_measure_are_errors() {
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, ["a b"], 6, &[]).unwrap();
    let error = |key: &str, value: Value| {
        let mut document: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        document[key] = value;
        let built = Tokenizer::from_document(document, SpecialTokens::default());
        built.map(|_| ()).map_err(|error| error.to_string())
    };
    let replace = |count: usize, pattern: Value, content: &str| {
        let step = json!({ "type": "Replace", "pattern": pattern, "content": content });
        json!({ "type": "Sequence", "normalizers": vec![step; count] })
    };
    let letter = json!({ "String": "a" });
    let mut prepended = replace(1, letter.clone(), &"a".repeat(64));
    let prepend = json!({ "type": "Prepend", "prepend": "a".repeat(64) });
    prepended["normalizers"]
        .as_array_mut()
        .unwrap()
        .insert(0, prepend);
    assert_eq!(
        error("normalizer", replace(12, letter.clone(), "aa")),
        Ok(())
    );
    for (key, value) in [
        ("normalizer", replace(13, letter.clone(), "aa")),
        ("normalizer", replace(13, json!({ "Regex": "" }), "a")),
        ("normalizer", replace(5000, letter, "a")),
        ("normalizer", prepended),
        (
            "pre_tokenizer",
            json!({ "type": "Split", "pattern": { "Regex": "a".repeat(1 << 15) } }),
        ),
    ] {
        let found = error(key, value).unwrap_err();
        assert!(
            found.contains(&format!("its `{key}` does more than a tokenizer's may")),
            "{found}"
        );
    }
    let token = |content: String| {
        json!({ "id": 6, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let found = error("added_tokens", json!([token("x".repeat(5000))])).unwrap_err();
    assert!(found.contains("a token has 5000 bytes"), "{found}");
    let unigram: Vec<Value> = (0..1100)
        .map(|number| json!([format!("{number:04}{}", "x".repeat(1020)), 0.0]))
        .collect();
    let model = json!({ "type": "Unigram", "unk_id": 0, "vocab": unigram });
    let found = error("model", model).unwrap_err();
    assert!(
        found.contains("different beginnings, expected at most 1048576"),
        "{found}"
    );
}

#[test]
fn random_and_endless_splitting_is_an_error() {
    let built = |model: Value| {
        let document = json!({ "version": "1.0", "model": model });
        let built = Tokenizer::from_document(document, SpecialTokens::default());
        built.map(|_| ()).map_err(|error| error.to_string())
    };
    let pairs = |dropout: Value| {
        built(json!({ "type": "BPE", "vocab": { "a": 0 }, "merges": [], "dropout": dropout }))
    };
    assert_eq!((pairs(Value::Null), pairs(json!(0.0))), (Ok(()), Ok(())));
    assert_eq!(
        pairs(json!(0.1)).unwrap_err(),
        "invalid tokenizer: its `dropout` of 0.1 would split texts at random, expected null or 0: set it so in the file"
    );
    let words = |most: u64| {
        built(json!({
            "type": "WordPiece", "vocab": { "a": 0, "?": 1 }, "unk_token": "?", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": most,
        }))
    };
    assert_eq!(words(100_000), Ok(()));
    assert_eq!(
        words(100_001).unwrap_err(),
        "invalid tokenizer: its `max_input_chars_per_word` is 100001, expected at most 100000"
    );
}

#[test]
fn damaged_documents_are_errors() {
    let words = train_tokenizer(TokenizerAlgorithm::WordLevel, ["a b"], 6, &[]).unwrap();
    let scored = ScoredVocabulary {
        tokens: ["<unk>", "<s>", "a", "b", "ab", "\u{2581}"]
            .iter()
            .enumerate()
            .map(|(id, text)| ScoredToken {
                text: (*text).to_owned(),
                score: -(id as f32),
                kind: match id {
                    0 => ScoredTokenKind::Unknown,
                    1 => ScoredTokenKind::Control,
                    _ => ScoredTokenKind::Normal,
                },
            })
            .collect(),
        bos: Some(1),
        eos: None,
        pad: None,
        adds_bos: true,
        adds_space_prefix: true,
    };
    for tokenizer in [words, scored.into_tokenizer().unwrap()] {
        let document: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        let document = document.to_string().into_bytes();
        let attempt = |bytes: &[u8]| {
            let loaded = Tokenizer::from_json(bytes, SpecialTokens::default());
            if let Ok(tokenizer) = &loaded {
                // What loads must also encode and decode, or fail to.
                let ids = tokenizer.encode("ab a").unwrap_or_default();
                let _ = tokenizer.decode(&ids);
            }
            loaded.is_ok()
        };
        assert!(attempt(&document));
        for length in 0..document.len() {
            assert!(!attempt(&document[..length]), "cut to {length} bytes");
        }
        for position in 0..document.len() {
            for replacement in [b'0', b'9', b'"', b'-', b'}', b'B', 0xff] {
                let mut damaged = document.clone();
                damaged[position] = replacement;
                attempt(&damaged);
            }
        }
    }
}
