//! Model files: GGUF, safetensors, llama2.c, and the configuration of a Hugging Face folder.

use std::path::Path;

use candle_core::{Device, Tensor};
use flowgraph::ml::formats::gguf::load_gguf;
use flowgraph::ml::formats::hugging_face::{load_hugging_face, save_hugging_face};
use flowgraph::ml::formats::llama2c::load_llama2c;
use flowgraph::ml::formats::safetensors::{load_safetensors, save_safetensors};
use flowgraph::ml::formats::{FormatError, llama_tensors};
use flowgraph::ml::kernels::rope::RopeLayout;
use flowgraph::ml::models::causal::LlamaConfig;
use flowgraph::ml::parameters::Weights;
use flowgraph::random::Stream;

use crate::watch::Reader;

/// A tiny model; its width is that of one quantised block.
fn config(vocab_size: usize, rope_layout: RopeLayout) -> LlamaConfig {
    LlamaConfig {
        vocab_size,
        hidden_size: 32,
        intermediate_size: 32,
        num_layers: 1,
        num_heads: 2,
        num_kv_heads: 1,
        rope_theta: 10_000.0,
        rope_layout,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        max_position_embeddings: 16,
    }
}

fn weights(config: &LlamaConfig) -> Weights {
    let stream = Stream::new(1, "tiny model");
    let tensors = llama_tensors(config).enumerate();
    let tensors = tensors.map(|(index, (name, shape))| {
        let mut draws = stream.at(index as u64);
        let count = shape.iter().product();
        let values = (0..count).map(|_| draws.normal() as f32).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    tensors.collect()
}

/// A refusal must name the file.
fn told<T>(read: Result<T, FormatError>, file: &str) -> Result<bool, String> {
    match read {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains(file) => Ok(false),
        Err(error) => Err(format!("the error does not name the file: {error}")),
    }
}

/// Puts the bytes into a file of their own for a loader.
fn reader(
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    words: &'static [&'static str],
    read: impl Fn(&Path, &[u8]) -> Result<bool, String> + 'static,
) -> Reader {
    let folder = tempfile::tempdir().unwrap();
    Reader {
        name,
        corpus,
        words,
        short: 300,
        read: Box::new(move |bytes| read(folder.path(), bytes)),
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A file of version 3; tensors in `f32`, or in blocks of 8 bits.
fn gguf_file(blocks: bool) -> Vec<u8> {
    let config = config(24, RopeLayout::Interleaved);
    let mut fields = Vec::new();
    let mut count = 0u64;
    let mut field = |key: &str, code: u32, value: &[u8]| {
        text(&mut fields, key);
        fields.extend(code.to_le_bytes());
        fields.extend(value);
        count += 1;
    };
    let long = |value: &str| {
        let mut out = Vec::new();
        text(&mut out, value);
        out
    };
    let list = |values: &[String]| {
        let mut out = 8u32.to_le_bytes().to_vec();
        out.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(&mut out, value));
        out
    };
    field("general.architecture", 8, &long("llama"));
    for (key, value) in [
        ("llama.block_count", 1u32),
        ("llama.context_length", 16),
        ("llama.embedding_length", 32),
        ("llama.feed_forward_length", 32),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 1),
    ] {
        field(key, 4, &value.to_le_bytes());
    }
    let epsilon = 1e-5f32.to_le_bytes();
    field("llama.attention.layer_norm_rms_epsilon", 6, &epsilon);
    let mut tokens = vec!["<|start|>".to_owned(), "<|end|>".to_owned()];
    tokens.extend("abcdefghijklmnopqr".chars().map(String::from));
    tokens.extend(["ab", "abc", "\u{120}", "\u{120}ab"].map(str::to_owned));
    let mut kinds = 5u32.to_le_bytes().to_vec();
    kinds.extend((tokens.len() as u64).to_le_bytes());
    for id in 0..tokens.len() {
        kinds.extend(if id < 2 { 3i32 } else { 1 }.to_le_bytes());
    }
    if blocks {
        field("tokenizer.ggml.model", 8, &long("llama"));
        let mut scores = 6u32.to_le_bytes().to_vec();
        scores.extend((tokens.len() as u64).to_le_bytes());
        for id in 0..tokens.len() {
            scores.extend((-(id as f32)).to_le_bytes());
        }
        tokens[2] = "<unk>".to_owned();
        kinds[12 + 2 * 4] = 2;
        field("tokenizer.ggml.scores", 9, &scores);
        field("tokenizer.ggml.unknown_token_id", 4, &2u32.to_le_bytes());
    } else {
        field("tokenizer.ggml.model", 8, &long("gpt2"));
        field("tokenizer.ggml.pre", 8, &long("smollm"));
        let merges = ["a b", "ab c", "\u{120} ab"].map(str::to_owned);
        field("tokenizer.ggml.merges", 9, &list(&merges));
    }
    field("tokenizer.ggml.tokens", 9, &list(&tokens));
    field("tokenizer.ggml.token_type", 9, &kinds);
    field("tokenizer.ggml.add_bos_token", 7, &[0]);

    let (mut infos, mut data) = (Vec::new(), Vec::new());
    let weights = weights(&config);
    for (name, tensor) in &weights {
        text(&mut infos, &stored_name(name));
        infos.extend((tensor.rank() as u32).to_le_bytes());
        for size in tensor.dims().iter().rev() {
            infos.extend((*size as u64).to_le_bytes());
        }
        let packed = blocks && tensor.rank() == 2;
        infos.extend(if packed { 8u32 } else { 0 }.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        if packed {
            for block in values.chunks(32) {
                data.extend(half::f16::from_f32(0.01).to_le_bytes());
                data.extend(block.iter().map(|value| (value * 20.0) as i8 as u8));
            }
        } else {
            values
                .iter()
                .for_each(|value| data.extend(value.to_le_bytes()));
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((weights.len() as u64).to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(fields);
    out.extend(infos);
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn stored_name(name: &str) -> String {
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

pub(crate) fn gguf() -> Reader {
    let words = &[
        "llama",
        "gpt2",
        "general.alignment",
        "tokenizer.ggml.tokens",
        "blk.0.attn_q.weight",
    ];
    reader(
        "gguf",
        vec![gguf_file(false), gguf_file(true)],
        words,
        |folder, bytes| {
            let path = folder.join("model.gguf");
            std::fs::write(&path, bytes).unwrap();
            let loaded = load_gguf(&path);
            if let Ok(checkpoint) = &loaded
                && let Some(tokenizer) = &checkpoint.tokenizer
            {
                let _ = tokenizer
                    .encode_prompt("ab abc")
                    .map(|ids| tokenizer.decode(&ids));
            }
            told(loaded, "model.gguf")
        },
    )
}

pub(crate) fn safetensors() -> Reader {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    save_safetensors(&path, &weights(&config(4, RopeLayout::HalfSplit))).unwrap();
    let words = &[
        "\"dtype\":",
        "\"F32\"",
        "\"BF16\"",
        "\"I64\"",
        "\"shape\":",
        "\"data_offsets\":",
        "[0,0]",
        "__metadata__",
    ];
    reader(
        "safetensors",
        vec![std::fs::read(path).unwrap()],
        words,
        |folder, bytes| {
            let path = folder.join("x.safetensors");
            std::fs::write(&path, bytes).unwrap();
            told(load_safetensors(&path), "x.safetensors")
        },
    )
}

/// A checkpoint of llama2.c.
fn llama2c_model(config: &LlamaConfig) -> Vec<u8> {
    let header = [
        config.hidden_size,
        config.intermediate_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.vocab_size,
        config.max_position_embeddings,
    ];
    let mut out: Vec<u8> = header
        .iter()
        .flat_map(|size| (*size as i32).to_le_bytes())
        .collect();
    let parameters: usize = llama_tensors(config)
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let angles = config.max_position_embeddings * config.head_size();
    out.resize(out.len() + 4 * (parameters + angles), 0x3c);
    out
}

fn llama2c_tokenizer() -> Vec<u8> {
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

/// Both files of llama2.c, told apart by a first byte.
pub(crate) fn llama2c() -> Reader {
    let config = config(3 + 256 + 7, RopeLayout::Interleaved);
    let (model, vocabulary) = (llama2c_model(&config), llama2c_tokenizer());
    let corpus = vec![
        [b"m", &model[..]].concat(),
        [b"t", &vocabulary[..]].concat(),
    ];
    reader(
        "llama2c",
        corpus,
        &["<s>", "<0x00>"],
        move |folder, bytes| {
            let (damaged_model, rest) = match bytes.split_first() {
                Some((first, rest)) => (first % 2 == b'm' % 2, rest),
                None => (true, bytes),
            };
            let (bin, words) = (
                folder.join("llama2c-model.bin"),
                folder.join("llama2c-words.bin"),
            );
            std::fs::write(&bin, if damaged_model { rest } else { &model }).unwrap();
            std::fs::write(&words, if damaged_model { &vocabulary } else { rest }).unwrap();
            let loaded = load_llama2c(&bin, &words);
            if let Ok(checkpoint) = &loaded
                && let Some(tokenizer) = &checkpoint.tokenizer
            {
                let _ = tokenizer
                    .encode_prompt("ab abc")
                    .map(|ids| tokenizer.decode(&ids));
            }
            told(loaded, "llama2c-")
        },
    )
}

pub(crate) fn model_config() -> Reader {
    let whole = tempfile::tempdir().unwrap();
    let config = config(24, RopeLayout::HalfSplit);
    save_hugging_face(whole.path(), &config, &weights(&config), None).unwrap();
    let corpus = vec![std::fs::read(whole.path().join("config.json")).unwrap()];
    let words = &[
        "\"rope_scaling\":",
        "\"rope_type\":",
        "\"llama3\"",
        "\"num_hidden_layers\":",
        "\"torch_dtype\":",
        "null",
        "true",
        "{}",
        "[]",
        ",",
    ];
    reader("model_config", corpus, words, move |_, bytes| {
        std::fs::write(whole.path().join("config.json"), bytes).unwrap();
        told(
            load_hugging_face(whole.path()),
            whole.path().to_str().unwrap(),
        )
    })
}
