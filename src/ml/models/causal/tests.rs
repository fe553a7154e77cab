//! The model against Hugging Face's, recorded by `tests/fixtures/llama.py`.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::projection::dropout_mask;
use super::*;
use crate::ml::adapter::{Adapter, LoraConfig};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::optimizer::Gradients;
use crate::ml::parameters;
use crate::random::Stream;

/// Largest difference allowed, as a share of the largest value (or of 1).
const TOLERANCE: f32 = 1e-5;

const ROWS: [&[u32]; 2] = [&[3, 17, 9, 21, 30, 4, 11], &[8, 2, 25, 13, 6]];

struct Fixture(Weights);

impl Fixture {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama.safetensors");
        Self(parameters::load(&path, &Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn weights(&self, tag: &str) -> Weights {
        let prefix = format!("{tag}.weight.");
        self.0
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_owned(), t.clone())))
            .collect()
    }

    /// Coefficients of the loss at each place: (rows, time).
    fn coefficients(&self, tag: &str) -> Tensor {
        self.get(&format!("{tag}.coefficients"))
            .pad_with_zeros(1, 0, 1)
            .unwrap()
    }

    fn assert(&self, name: &str, found: &Tensor) {
        assert_close(name, found, self.get(name), TOLERANCE);
    }
}

fn config(tied: bool) -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32,
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::HalfSplit,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: tied,
        max_position_embeddings: 64,
    }
}

fn lora_config() -> LoraConfig {
    LoraConfig {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        target_modules: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..LoraConfig::default()
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

fn assert_close(name: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(1f32, |most, x| most.max(x.abs()));
    for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * scale,
            "{name}[{place}]: {found} is not {expected}"
        );
    }
}

/// Zeroes what lies outside the rows.
fn within(batch: &TokenBatch, x: &Tensor) -> Tensor {
    let mask: Vec<f32> = batch
        .spans()
        .iter()
        .flat_map(|span| (0..batch.time()).map(|t| f32::from(u8::from(span.contains(&t)))))
        .collect();
    let mask = Tensor::from_vec(mask, (batch.rows(), batch.time(), 1), &Device::Cpu).unwrap();
    x.broadcast_mul(&mask).unwrap()
}

/// Returns the loss and the gradients of everything trainable.
fn gradients(model: &CausalLm, batch: &TokenBatch, coefficients: &Tensor) -> (Tensor, Gradients) {
    let hidden = model.forward(batch).unwrap();
    let log_probs = model.next_token_log_probs(&hidden, batch).unwrap();
    let loss = (log_probs * coefficients).unwrap().sum_all().unwrap();
    let mut sums = Gradients::default();
    sums.add(&loss.backward().unwrap(), model.trainable())
        .expect("every trainable tensor has a gradient");
    (loss, sums)
}

fn assert_outputs(fixture: &Fixture, tag: &str, model: &CausalLm) {
    let batch = TokenBatch::right_padded(&ROWS);
    let hidden = model.forward(&batch).unwrap();
    fixture.assert(&format!("{tag}.hidden"), &within(&batch, &hidden));
    let layer = model.layer_hidden_states(&batch, 1).unwrap();
    fixture.assert(&format!("{tag}.layer1"), &within(&batch, &layer));
    let log_probs = model.next_token_log_probs(&hidden, &batch).unwrap();
    let log_probs = log_probs.narrow(1, 0, 6).unwrap();
    fixture.assert(&format!("{tag}.log_probs"), &log_probs);
    let logits = model.logits(&hidden).unwrap();
    let plain = candle_nn::ops::log_softmax(&logits, 2).unwrap();
    let first = plain.get(0).unwrap().get(0).unwrap().get(17).unwrap();
    assert!((values(&first)[0] - values(&log_probs)[0]).abs() < 1e-5);
}

#[test]
fn full_training_agrees_with_transformers() {
    let fixture = Fixture::load();
    for (tag, tied) in [("tied", true), ("untied", false)] {
        let model = CausalLm::new(config(tied), &fixture.weights(tag), Training::Full).unwrap();
        assert_outputs(&fixture, tag, &model);
        let batch = TokenBatch::right_padded(&ROWS);
        let (loss, found) = gradients(&model, &batch, &fixture.coefficients(tag));
        fixture.assert(&format!("{tag}.loss"), &loss.reshape(1).unwrap());
        assert_eq!(model.trainable().len(), if tied { 20 } else { 21 });
        for (name, _) in model.trainable() {
            fixture.assert(&format!("{tag}.gradient.{name}"), found.get(name).unwrap());
        }
    }
}

#[test]
fn adapter_training_agrees_with_a_low_rank_update_in_torch() {
    let fixture = Fixture::load();
    let base = fixture.weights("untied");
    let stored = fixture.weights("lora");
    let adapter = Adapter::from_weights(&lora_config(), &base, &stored, &Device::Cpu).unwrap();
    let model = CausalLm::new(config(false), &base, Training::Adapter(&adapter)).unwrap();
    assert_outputs(&fixture, "lora", &model);
    let batch = TokenBatch::right_padded(&ROWS);
    let (loss, found) = gradients(&model, &batch, &fixture.coefficients("lora"));
    fixture.assert("lora.loss", &loss.reshape(1).unwrap());
    assert_eq!(model.trainable().len(), 28);
    for (name, _) in model.trainable() {
        fixture.assert(&format!("lora.gradient.{name}"), found.get(name).unwrap());
    }
    let merged = adapter.merge(&base).unwrap();
    let merged = CausalLm::new(config(false), &merged, Training::Frozen).unwrap();
    let (expected, found) = (
        model.forward(&batch).unwrap(),
        merged.forward(&batch).unwrap(),
    );
    assert_close("merged", &found, &expected, 2e-5);
}

/// Reorders the rows of query and key weights from half-split pairs to neighbouring pairs.
fn interleave(name: &str, weight: &Tensor) -> Tensor {
    if !name.contains("q_proj") && !name.contains("k_proj") {
        return weight.clone();
    }
    let half = config(true).head_size() / 2;
    let order: Vec<u32> = (0..weight.dims()[0])
        .map(|row| {
            let (head, place) = (row / (2 * half), row % (2 * half));
            (head * 2 * half + place / 2 + place % 2 * half) as u32
        })
        .collect();
    let order = Tensor::new(order, &Device::Cpu).unwrap();
    weight.index_select(&order, 0).unwrap()
}

#[test]
fn interleaved_rotation_is_half_split_rotation_of_reordered_weights() {
    let fixture = Fixture::load();
    let mut config = config(true);
    config.rope_layout = RopeLayout::Interleaved;
    let weights = fixture.weights("tied");
    let reordered = weights
        .iter()
        .map(|(name, weight)| (name.clone(), interleave(name, weight)))
        .collect();
    let model = CausalLm::new(&config, &reordered, Training::Full).unwrap();
    assert_outputs(&fixture, "tied", &model);
    let batch = TokenBatch::right_padded(&ROWS);
    let (_, found) = gradients(&model, &batch, &fixture.coefficients("tied"));
    for (name, _) in model.trainable() {
        let expected = interleave(name, fixture.get(&format!("tied.gradient.{name}")));
        assert_close(name, found.get(name).unwrap(), &expected, TOLERANCE);
    }
    let unordered = CausalLm::new(&config, &weights, Training::Full).unwrap();
    let wrong = within(&batch, &unordered.forward(&batch).unwrap());
    assert_ne!(bits(&wrong), bits(fixture.get("tied.hidden")));
}

#[test]
fn padding_changes_no_bit() {
    if !crate::ml::kernels::form::bits_are_promised() {
        return;
    }
    let fixture = Fixture::load();
    let model = CausalLm::new(config(true), &fixture.weights("tied"), Training::Frozen).unwrap();
    let states = |batch: &TokenBatch| model.forward(batch).unwrap();
    let (right, left) = (
        TokenBatch::right_padded(&ROWS),
        TokenBatch::left_padded(&ROWS),
    );
    let (at_right, at_left) = (states(&right), states(&left));
    for (row, tokens) in ROWS.iter().enumerate() {
        let alone = TokenBatch::right_padded(&[tokens]);
        let alone = bits(&states(&alone).get(0).unwrap());
        for (batch, states) in [(&right, &at_right), (&left, &at_left)] {
            let span = batch.spans()[row].clone();
            let found = states.get(row).unwrap();
            let found = found.narrow(0, span.start, span.len()).unwrap();
            assert_eq!(alone, bits(&found), "row {row}");
        }
    }
}

#[test]
fn a_frozen_model_builds_no_graph_and_sees_updates() {
    let fixture = Fixture::load();
    let model = CausalLm::new(config(true), &fixture.weights("tied"), Training::Full).unwrap();
    let frozen = model.detached();
    let batch = TokenBatch::right_padded(&ROWS);
    let before = frozen.forward(&batch).unwrap();
    assert!(!before.track_op());
    assert!(model.forward(&batch).unwrap().track_op());
    let (_, var): &(String, Var) = &model.trainable()[0];
    var.set(&var.as_detached_tensor().affine(0.5, 0.0).unwrap())
        .unwrap();
    assert_ne!(bits(&before), bits(&frozen.forward(&batch).unwrap()));
}

fn wider() -> (LlamaConfig, Weights) {
    let config = LlamaConfig {
        vocab_size: 300,
        hidden_size: 64,
        intermediate_size: 176,
        num_kv_heads: 2,
        ..config(true)
    };
    let weights = init(&config, &Stream::new(4, "init"), &Device::Cpu).unwrap();
    (config, weights)
}

fn eight_rows() -> Vec<Vec<u32>> {
    let mut draws = Stream::new(4, "rows").at(0);
    (0..8)
        .map(|row| (0..30 + row).map(|_| draws.below(300) as u32).collect())
        .collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (config, weights) = wider();
    let adapter = Adapter::init(
        &lora_config(),
        &weights,
        &Stream::new(4, "lora"),
        &Device::Cpu,
    )
    .unwrap();
    let batch = TokenBatch::right_padded(&eight_rows());
    let ones = Tensor::ones((8, batch.time()), candle_core::DType::F32, &Device::Cpu).unwrap();
    let run = |threads: usize, training: Training<'_>| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let model = CausalLm::new(&config, &weights, training).unwrap();
        let (loss, found) = pool.install(|| gradients(&model, &batch, &ones));
        let mut all = bits(&loss);
        for (name, _) in model.trainable() {
            all.extend(bits(found.get(name).unwrap()));
        }
        all
    };
    for training in [Training::Full, Training::Adapter(&adapter)] {
        let one = run(1, training);
        assert!(one == run(2, training), "two threads differ from one");
        assert!(one == run(3, training), "three threads differ from one");
    }
}

#[test]
fn eight_micro_batches_of_one_are_one_batch_of_eight() {
    let (config, weights) = wider();
    let model = CausalLm::new(&config, &weights, Training::Full).unwrap();
    let rows = eight_rows();
    let whole = TokenBatch::right_padded(&rows);
    let ones = |batch: &TokenBatch| {
        Tensor::ones(
            (batch.rows(), batch.time()),
            candle_core::DType::F32,
            &Device::Cpu,
        )
        .unwrap()
    };
    let (_, expected) = gradients(&model, &whole, &ones(&whole));
    let mut sums = Gradients::default();
    for row in &rows {
        let batch = TokenBatch::right_padded(std::slice::from_ref(row));
        let log_probs = model
            .next_token_log_probs(&model.forward(&batch).unwrap(), &batch)
            .unwrap();
        let loss = log_probs.sum_all().unwrap();
        sums.add(&loss.backward().unwrap(), model.trainable())
            .unwrap();
    }
    for (name, _) in model.trainable() {
        assert_close(
            name,
            sums.get(name).unwrap(),
            expected.get(name).unwrap(),
            1e-5,
        );
    }
}

#[test]
fn initial_weights_have_the_stated_spread() {
    let (config, weights) = wider();
    assert_eq!(
        weights.keys().cloned().collect::<BTreeSet<_>>(),
        crate::ml::formats::llama_tensors(&config)
            .map(|(name, _)| name)
            .collect::<BTreeSet<_>>()
    );
    let std = |name: &str| {
        let values = values(&weights[name]);
        (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
    };
    let projection = 0.04 * 2f32.sqrt();
    for (name, expected) in [
        ("model.embed_tokens.weight", 0.05),
        ("model.layers.0.mlp.up_proj.weight", projection),
        ("model.layers.1.self_attn.q_proj.weight", projection),
        ("model.layers.1.self_attn.o_proj.weight", projection / 2.0),
        ("model.layers.0.mlp.down_proj.weight", projection / 2.0),
        ("model.norm.weight", 1.0),
    ] {
        assert!(
            (std(name) / expected - 1.0).abs() < 0.04,
            "{name}: {}",
            std(name)
        );
    }
}

#[test]
fn dropout_drops_the_stated_share_and_depends_on_its_key_only() {
    for use_dora in [false, true] {
        drops_the_stated_share(use_dora);
    }
}

fn drops_the_stated_share(use_dora: bool) {
    let (config, weights) = wider();
    let mut lora = lora_config();
    lora.dropout = 0.25;
    lora.use_dora = use_dora;
    let adapter = Adapter::init(&lora, &weights, &Stream::new(4, "lora"), &Device::Cpu).unwrap();
    // B is zero at first: give it values, or dropout would have nothing to act on.
    for (name, var) in adapter.parameters().trainable() {
        if name.contains("lora_B") {
            var.set(&var.ones_like().unwrap().affine(0.01, 0.0).unwrap())
                .unwrap();
        }
    }
    let model = CausalLm::new(&config, &weights, Training::Adapter(&adapter)).unwrap();
    let batch = TokenBatch::right_padded(&eight_rows());
    let run = |counter: u64| {
        let key = DropoutKey {
            stream: Stream::new(9, "dropout"),
            counter,
        };
        bits(&model.forward_training(&batch, Some(&key)).unwrap())
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
    assert!(run(1) != bits(&model.forward(&batch).unwrap()));
    let QueryKeyValues::Separate([query, ..]) = &model.blocks[0].query_key_value else {
        unreachable!("a LLaMA model projects them apart");
    };
    let update = query.update.as_ref().unwrap();
    let key = DropoutKey {
        stream: Stream::new(9, "dropout"),
        counter: 1,
    };
    let mask = dropout_mask(update, &key, 64_000);
    let kept: u32 = mask.kept.iter().map(|word| word.count_ones()).sum();
    assert!((f64::from(kept) / 64_000.0 - 0.75).abs() < 0.01, "{kept}");
    assert!((mask.scale - 4.0 / 3.0).abs() < 1e-6);
}

#[test]
fn what_does_not_fit_is_an_error_that_names_it() {
    let fixture = Fixture::load();
    let mut weights = fixture.weights("tied");
    let model = CausalLm::new(config(true), &weights, Training::Frozen).unwrap();
    let error = |rows: &[&[u32]]| {
        let batch = TokenBatch::right_padded(rows);
        model.forward(&batch).unwrap_err().to_string()
    };
    assert_eq!(
        error(&[&[1, 32]]),
        "token batch: token 32 is outside the vocabulary of 32"
    );
    assert_eq!(
        error(&[&[1; 65]]),
        "token batch: a row has 65 tokens, the model takes 64"
    );
    assert_eq!(error(&[]), "token batch: there are no tokens");
    assert!(
        model
            .layer_hidden_states(&TokenBatch::right_padded(&ROWS), 3)
            .is_err()
    );
    let build = |config: &LlamaConfig, weights: &Weights| {
        CausalLm::new(config, weights, Training::Frozen)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        build(&config(false), &weights),
        "weight `lm_head.weight` is missing"
    );
    let mut odd = config(true);
    odd.num_kv_heads = 3;
    assert_eq!(
        build(&odd, &weights),
        "model configuration: 4 query heads do not share 3 key/value heads evenly"
    );
    weights.insert(
        "model.norm.weight".into(),
        Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
    );
    assert_eq!(
        build(&config(true), &weights),
        "weight `model.norm.weight` has shape [3], expected [16]"
    );
}

/// An adapter that changes something: at first B is zero.
fn adapter_with_an_effect(lora: &LoraConfig, weights: &Weights) -> Adapter {
    let adapter = Adapter::init(lora, weights, &Stream::new(4, "lora"), &Device::Cpu).unwrap();
    for (name, var) in adapter.parameters().trainable() {
        if name.contains("lora_B") {
            let mut draws = Stream::new(5, &name).at(0);
            let b: Vec<f32> = (0..var.elem_count())
                .map(|_| (0.1 * draws.normal()) as f32)
                .collect();
            var.set(&Tensor::from_vec(b, var.shape(), &Device::Cpu).unwrap())
                .unwrap();
        }
    }
    adapter
}

/// Loss and gradients with dropout.
fn dropped_gradients(model: &CausalLm, batch: &TokenBatch) -> (Tensor, Gradients) {
    let key = DropoutKey {
        stream: Stream::new(9, "dropout"),
        counter: 3,
    };
    let hidden = model.forward_training(batch, Some(&key)).unwrap();
    let log_probs = model.next_token_log_probs(&hidden, batch).unwrap();
    let loss = log_probs.sqr().unwrap().sum_all().unwrap();
    let mut sums = Gradients::default();
    sums.add_of(&loss, model.trainable())
        .expect("every trainable tensor has a gradient");
    for (name, _) in model.trainable() {
        let is_tracked = sums.get(name).is_some_and(Tensor::track_op);
        assert!(
            !is_tracked,
            "the gradient of {name} keeps its pass in memory"
        );
    }
    (loss, sums)
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let (config, weights) = wider();
    let lora = LoraConfig {
        dropout: 0.25,
        ..lora_config()
    };
    let adapter = adapter_with_an_effect(&lora, &weights);
    let batch = TokenBatch::right_padded(&eight_rows());
    for training in [Training::Adapter(&adapter), Training::Full] {
        let model = CausalLm::new(&config, &weights, training).unwrap();
        let (kept_loss, kept) = dropped_gradients(&model, &batch);
        let model = model.with_gradient_checkpointing();
        let (loss, found) = dropped_gradients(&model, &batch);
        assert_eq!(
            bits(&loss.reshape(1).unwrap()),
            bits(&kept_loss.reshape(1).unwrap())
        );
        for (name, _) in model.trainable() {
            let (found, kept) = (found.get(name).unwrap(), kept.get(name).unwrap());
            assert_eq!(bits(found), bits(kept), "{name}");
        }
    }
}

/// The cosine of the angle between two tensors.
fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let pairs = || values(a).into_iter().zip(values(b));
    let dot = |of: fn((f32, f32)) -> f64| pairs().map(of).sum::<f64>();
    let product = dot(|(a, b)| f64::from(a) * f64::from(b));
    let squares = dot(|(a, _)| f64::from(a).powi(2)) * dot(|(_, b)| f64::from(b).powi(2));
    product / squares.sqrt()
}

#[test]
fn frozen_weights_in_16_bits_give_nearly_the_gradients_of_32() {
    let (config, weights) = wider();
    let narrow: Weights = weights
        .iter()
        .map(|(name, weight)| (name.clone(), weight.to_dtype(DType::BF16).unwrap()))
        .collect();
    for use_dora in [false, true] {
        let lora = LoraConfig {
            dropout: 0.25,
            use_dora,
            ..lora_config()
        };
        let adapter = adapter_with_an_effect(&lora, &weights);
        let batch = TokenBatch::right_padded(&eight_rows());
        let of = |weights: &Weights| {
            let model = CausalLm::new(&config, weights, Training::Adapter(&adapter)).unwrap();
            dropped_gradients(&model.clone().with_gradient_checkpointing(), &batch)
        };
        let ((loss, found), (wide_loss, wide)) = (of(&narrow), of(&weights));
        assert_eq!(loss.dtype(), DType::F32, "losses are wide");
        let (loss, wide_loss) = (
            loss.to_vec0::<f32>().unwrap(),
            wide_loss.to_vec0::<f32>().unwrap(),
        );
        assert!(
            loss != wide_loss && (loss - wide_loss).abs() < 0.01 * wide_loss,
            "{loss} {wide_loss}"
        );
        for (name, _) in adapter.parameters().trainable() {
            let (found, wide) = (found.get(&name).unwrap(), wide.get(&name).unwrap());
            assert_eq!(found.dtype(), DType::F32, "what is trained is wide");
            let cosine = cosine(found, wide);
            assert!(cosine > 0.99, "{name}: {cosine}");
        }
    }
}
