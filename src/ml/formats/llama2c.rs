//! Models of llama2.c: the legacy `.bin` checkpoint and its tokenizer.
//!
//! A checkpoint is seven `i32` (width, feed-forward width, layers, heads, key/value heads, vocabulary size,
//! longest sequence), then `f32` tensors, each kind for all layers at once. A negative vocabulary size says
//! that the output head is a tensor of its own. Rotary pairs are interleaved, their base is 10,000 and
//! RMSNorm's epsilon 1e-5 (`run.c`, `export.py` of github.com/karpathy/llama2.c).
//!
//! A tokenizer is an `i32` (longest token), then for each token a `f32` score, an `i32` length and its bytes.
//! Ids: 0 unknown, 1 begin, 2 end, 3 to 258 the bytes.

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::bytes::{Bytes, f32_values, map_file};
use super::shapes::check_config;
use super::{Checkpoint, FormatError, llama_tensors};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::parameters::Weights;
use crate::ml::tokenizer::{ScoredToken, ScoredTokenKind, ScoredVocabulary, Tokenizer};

const ROPE_THETA: f64 = 10_000.0;
const RMS_NORM_EPS: f64 = 1e-5;
const UNKNOWN_ID: usize = 0;
const BOS_ID: usize = 1;
const EOS_ID: usize = 2;
/// Id of the token for byte 0.
const FIRST_BYTE_ID: usize = 3;

/// Loads a checkpoint and its tokenizer.
pub fn load_llama2c(model: &Path, tokenizer: &Path) -> Result<Checkpoint, FormatError> {
    let (config, weights) = parse_model(model, &map_file(model)?)?;
    let tokenizer = parse_tokenizer(tokenizer, &map_file(tokenizer)?, config.vocab_size)?;
    Ok(Checkpoint {
        config: config.into(),
        weights,
        tokenizer: Some(tokenizer),
        eos_ids: vec![EOS_ID as u32],
        added_rows: 0,
    })
}

/// Parses the bytes of a checkpoint; `path` is for messages.
pub fn parse_model(path: &Path, data: &[u8]) -> Result<(LlamaConfig, Weights), FormatError> {
    let mut bytes = Bytes::new(path, data);
    let config = read_header(&mut bytes)?;
    check_config(path, &config)?;

    let angles = (config.max_position_embeddings * config.head_size()) as u64;
    let floats = parameter_count(&config).and_then(|count| count.checked_add(angles));
    let needed = floats.and_then(|count| count.checked_mul(4));
    let found = bytes.remaining() as u64;
    if needed != Some(found) {
        return Err(bytes.malformed(format!(
            "{found} bytes follow the header, expected {} for the shape it states",
            needed.map_or_else(|| "more than 2^64".to_owned(), |count| count.to_string()),
        )));
    }

    let mut slices = Vec::with_capacity(9 * config.num_layers + 3);
    for (name, shape) in file_order(&config) {
        if name == "lm_head.weight" {
            // Tables of rotary angles, which every implementation recomputes.
            bytes.take(angles * 4, "rotary angles")?;
        }
        let floats: usize = shape.iter().product();
        slices.push((name, bytes.take(floats as u64 * 4, "a tensor")?, shape));
    }
    let weights = slices
        .into_par_iter()
        .map(|(name, slice, shape)| {
            let tensor = Tensor::from_vec(f32_values(slice).collect(), shape, &Device::Cpu)
                .map_err(FormatError::tensor(path))?;
            Ok((name, tensor))
        })
        .collect::<Result<Weights, FormatError>>()?;
    Ok((config, weights))
}

fn read_header(bytes: &mut Bytes) -> Result<LlamaConfig, FormatError> {
    let mut field = |name: &str| -> Result<i32, FormatError> {
        let value = bytes.i32(name)?;
        if value <= 0 && name != "vocabulary size" {
            return Err(bytes.malformed(format!("{name} is {value}, expected a positive number")));
        }
        Ok(value)
    };
    let hidden_size = field("width")? as usize;
    let intermediate_size = field("feed-forward width")? as usize;
    let num_layers = field("number of layers")? as usize;
    let num_heads = field("number of heads")? as usize;
    let num_kv_heads = field("number of key/value heads")? as usize;
    let vocab_size = field("vocabulary size")?;
    let max_position_embeddings = field("longest sequence")? as usize;
    Ok(LlamaConfig {
        vocab_size: vocab_size.unsigned_abs() as usize,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads,
        rope_theta: ROPE_THETA,
        rope_layout: RopeLayout::Interleaved,
        rms_norm_eps: RMS_NORM_EPS,
        tie_word_embeddings: vocab_size > 0,
        max_position_embeddings,
    })
}

/// Number of weights, without walking over layers that a forged header may claim.
fn parameter_count(config: &LlamaConfig) -> Option<u64> {
    let one_layer = LlamaConfig {
        num_layers: 1,
        ..config.clone()
    };
    let mut count = 0u64;
    for (name, shape) in llama_tensors(&one_layer) {
        let repeats = if name.starts_with("model.layers.") {
            config.num_layers
        } else {
            1
        };
        let size = shape
            .iter()
            .chain([&repeats])
            .try_fold(1u64, |product, size| product.checked_mul(*size as u64))?;
        count = count.checked_add(size)?;
    }
    Some(count)
}

/// Names and shapes in the order of the file: each kind of layer tensor for all layers, the head last.
fn file_order(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    const KINDS: [&str; 9] = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
    ];
    let rank = |name: &str| match name {
        "model.embed_tokens.weight" => 0,
        "model.norm.weight" => KINDS.len() + 1,
        "lm_head.weight" => KINDS.len() + 2,
        name => {
            let kind = KINDS.iter().position(|kind| name.contains(kind));
            1 + kind.unwrap_or_default()
        }
    };
    let mut tensors: Vec<_> = llama_tensors(config).collect();
    // Stable: layers of one kind stay in their order.
    tensors.sort_by_key(|(name, _)| rank(name));
    tensors
}

/// Parses the bytes of a tokenizer with `vocab_size` tokens; `path` is for messages.
pub fn parse_tokenizer(
    path: &Path,
    data: &[u8],
    vocab_size: usize,
) -> Result<Tokenizer, FormatError> {
    let mut bytes = Bytes::new(path, data);
    bytes.u32("longest token")?;
    let mut tokens = Vec::new();
    for id in 0..vocab_size {
        let what = format!("token {id} of {vocab_size}");
        let score = bytes.f32(&what)?;
        let length = u64::from(bytes.u32(&what)?);
        let text = bytes.text(length, &what)?;
        let (text, kind) = match id {
            UNKNOWN_ID => ("<unk>".to_owned(), ScoredTokenKind::Unknown),
            // The file holds "\n<s>\n" and "\n</s>\n", which is how llama2.c prints them.
            BOS_ID => ("<s>".to_owned(), ScoredTokenKind::Control),
            EOS_ID => ("</s>".to_owned(), ScoredTokenKind::Control),
            id if id < FIRST_BYTE_ID + 256 => (
                format!("<0x{:02X}>", id - FIRST_BYTE_ID),
                ScoredTokenKind::Byte,
            ),
            _ => (text.replace(' ', "\u{2581}"), ScoredTokenKind::Normal),
        };
        tokens.push(ScoredToken { text, score, kind });
    }
    if bytes.remaining() > 0 {
        return Err(bytes.malformed(format!(
            "{} bytes follow the last of {vocab_size} tokens",
            bytes.remaining()
        )));
    }
    ScoredVocabulary {
        tokens,
        bos: Some(BOS_ID as u32),
        eos: Some(EOS_ID as u32),
        pad: None,
        adds_bos: true,
        adds_space_prefix: true,
    }
    .into_tokenizer()
    .map_err(FormatError::tokenizer(path))
}

#[cfg(test)]
mod tests {
    use super::super::damage::survives;
    use super::super::fixture;
    use super::*;

    /// The bytes of the tiny model as `export.py` would write them.
    fn tiny(config: &LlamaConfig) -> Vec<u8> {
        let sign = if config.tie_word_embeddings { 1 } else { -1 };
        let header = [
            config.hidden_size as i32,
            config.intermediate_size as i32,
            config.num_layers as i32,
            config.num_heads as i32,
            config.num_kv_heads as i32,
            config.vocab_size as i32 * sign,
            config.max_position_embeddings as i32,
        ];
        let weights = fixture::weights(config);
        let mut floats = Vec::new();
        let mut push = |name: String| floats.extend(fixture::values(&weights[&name]));
        push("model.embed_tokens.weight".to_owned());
        // run.c, memory_map_weights: rms_att, wq, wk, wv, wo, rms_ffn, w1, w2, w3, rms_final.
        for kind in [
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.down_proj",
            "mlp.up_proj",
        ] {
            for layer in 0..config.num_layers {
                push(format!("model.layers.{layer}.{kind}.weight"));
            }
        }
        push("model.norm.weight".to_owned());
        floats.extend(vec![
            0.5;
            config.max_position_embeddings * config.head_size()
        ]);
        if !config.tie_word_embeddings {
            floats.extend(fixture::values(&weights["lm_head.weight"]));
        }
        let header = header.iter().flat_map(|value| value.to_le_bytes());
        let floats = floats.iter().flat_map(|value| value.to_le_bytes());
        header.chain(floats).collect()
    }

    fn interleaved(tied: bool) -> LlamaConfig {
        LlamaConfig {
            rope_layout: RopeLayout::Interleaved,
            tie_word_embeddings: tied,
            ..fixture::config()
        }
    }

    fn tiny_tokenizer() -> Vec<u8> {
        let mut out = 7u32.to_le_bytes().to_vec();
        let mut push = |score: f32, text: &str| {
            out.extend(score.to_le_bytes());
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        };
        push(0.0, "<unk>");
        push(0.0, "\n<s>\n");
        push(0.0, "\n</s>\n");
        (0..256).for_each(|byte| push(0.0, &format!("<0x{byte:02X}>")));
        for (rank, text) in [" a", "ab", "abc", " ", "a", "b", "c"].iter().enumerate() {
            push(-(rank as f32), text);
        }
        out
    }
    const TINY_TOKENIZER_SIZE: usize = 3 + 256 + 7;

    #[test]
    fn tensors_come_out_under_their_hugging_face_names() {
        for tied in [true, false] {
            let config = interleaved(tied);
            let (found, weights) = parse_model(Path::new("m.bin"), &tiny(&config)).unwrap();
            assert_eq!(found, config);
            fixture::assert_equal(&weights, &fixture::weights(&config));
        }
    }

    #[test]
    fn the_length_must_fit_the_shape() {
        let mut bytes = tiny(&interleaved(true));
        bytes.extend([0; 4]);
        let error = parse_model(Path::new("m.bin"), &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "m.bin: 5028 bytes follow the header, expected 5024 for the shape it states"
        );
    }

    #[test]
    fn forged_sizes_are_errors() {
        let error = |field: usize, value: i32| {
            let mut bytes = tiny(&interleaved(true));
            bytes[4 * field..4 * field + 4].copy_from_slice(&value.to_le_bytes());
            let error = parse_model(Path::new("m.bin"), &bytes).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            error(2, -1),
            "m.bin: number of layers is -1, expected a positive number"
        );
        assert_eq!(
            error(3, 3),
            "m.bin: hidden size 8 does not split into 3 heads of an even size"
        );
        assert!(error(2, i32::MAX).contains("expected 1 to 4096"));
        assert!(error(1, i32::MAX).contains("bytes follow the header"));
    }

    #[test]
    fn tokens_merge_by_score() {
        let path = Path::new("tok.bin");
        let tokenizer = parse_tokenizer(path, &tiny_tokenizer(), TINY_TOKENIZER_SIZE).unwrap();
        let spelt = |text: &str| {
            let ids = tokenizer.encode(text).unwrap();
            let spelt = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap());
            spelt.collect::<Vec<_>>().join(" ")
        };
        // " a" scores above "ab", so that "abc" arises only where no space precedes it.
        assert_eq!(spelt("abc"), "\u{2581}a b c");
        assert_eq!(spelt("cabc"), "\u{2581} c abc");
        assert_eq!(spelt("\u{e9}"), "\u{2581} <0xC3> <0xA9>");
        let text = "cabc ab \u{e9}\n";
        let ids = tokenizer.encode_prompt(text).unwrap();
        assert_eq!(ids[0], 1);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    }

    #[test]
    fn damaged_files_are_errors() {
        survives(&tiny(&interleaved(false)), 2000, parse_model);
        survives(&tiny_tokenizer(), 200, |path, bytes| {
            parse_tokenizer(path, bytes, TINY_TOKENIZER_SIZE)
        });
    }

    /// The encoder of llama2.c's `run.c`, as written there: best score of all neighbours, leftmost first.
    fn encode_as_run_c(tokens: &[(f32, Vec<u8>)], text: &str) -> Vec<u32> {
        let find = |bytes: &[u8]| tokens.iter().position(|(_, token)| token == bytes);
        let mut ids = Vec::new();
        for character in format!(" {text}").chars() {
            let bytes = character.to_string().into_bytes();
            match find(&bytes) {
                Some(id) => ids.push(id),
                None => ids.extend(bytes.iter().map(|byte| *byte as usize + FIRST_BYTE_ID)),
            }
        }
        loop {
            let mut best: Option<(f32, usize, usize)> = None;
            for at in 1..ids.len() {
                let pair = [tokens[ids[at - 1]].1.as_slice(), &tokens[ids[at]].1].concat();
                if let Some(id) = find(&pair)
                    && best.is_none_or(|(score, ..)| tokens[id].0 > score)
                {
                    best = Some((tokens[id].0, id, at));
                }
            }
            let Some((_, id, at)) = best else { break };
            ids[at - 1] = id;
            ids.remove(at);
        }
        ids.into_iter().map(|id| id as u32).collect()
    }

    /// Set `FLOWGRAPH_TEST_STORIES260K` to a folder with `stories260K.bin` and `tok512.bin`.
    #[test]
    fn the_smallest_real_model_loads() {
        let Some(folder) = std::env::var_os("FLOWGRAPH_TEST_STORIES260K") else {
            println!("skipped: FLOWGRAPH_TEST_STORIES260K is not set");
            return;
        };
        let folder = Path::new(&folder);
        let tokenizer_path = folder.join("tok512.bin");
        let checkpoint = load_llama2c(&folder.join("stories260K.bin"), &tokenizer_path).unwrap();
        assert_eq!(checkpoint.config.hidden_size, 64);
        assert_eq!(checkpoint.config.num_layers, 5);
        assert!(checkpoint.config.tie_word_embeddings);
        let tokenizer = checkpoint.tokenizer.unwrap();
        assert_eq!(tokenizer.vocab_size(), 512);

        let data = fs_err::read(&tokenizer_path).unwrap();
        let mut bytes = Bytes::new(&tokenizer_path, &data);
        bytes.u32("").unwrap();
        let mut tokens = Vec::new();
        while bytes.remaining() > 0 {
            let score = bytes.f32("").unwrap();
            let length = bytes.u32("").unwrap();
            tokens.push((score, bytes.take(length.into(), "").unwrap().to_vec()));
        }
        // doc/stories260K.md of llama2.c
        let story = "Once upon a time, there was a little girl named Lily. She loved to play outside \
            in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too \
            high.\nLily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what \
            to do. She said, \"I want to play with your ball, but I can't find it.\"";
        for text in story
            .split_inclusive('.')
            .chain([story, "\u{e9}\u{1f642} a  b\t", "x"])
        {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids, encode_as_run_c(&tokens, text), "{text}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
