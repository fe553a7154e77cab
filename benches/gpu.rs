//! One measurement on a GPU, as a line of JSON: `gpu ITEM`; `gpu list` names them all. `benches/gpu.sh` takes them in turn.
//!
//! With GPU_BENCH_SMALL=1 it runs on the processor, in the form of the operations that a GPU takes and with a tiny model: to
//! see that all of it works where there is no GPU.
#![expect(clippy::print_stdout, reason = "a benchmark's output is for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark may fail at once")]

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use flowgraph::engine::machine::{Driver, Products};
use flowgraph::ml::adapter::Adapter;
use flowgraph::ml::generate::{Contrastive, GenerateOptions, Sampling, Strategy, generate};
use flowgraph::ml::kernels::form::{COMPOSED, VARIABLE};
use flowgraph::ml::kernels::layer_norm::layer_norm;
use flowgraph::ml::kernels::linear::{linear, lora_linear};
use flowgraph::ml::kernels::rms_norm::rms_norm;
use flowgraph::ml::kernels::sums::total;
use flowgraph::ml::kernels::swiglu::swiglu;
use flowgraph::ml::kernels::token_log_probs::token_log_probs;
use flowgraph::ml::models::causal::{Architecture, CausalLm, LlamaConfig, TokenBatch, Training};
use flowgraph::ml::optimizer::{AdamW, AdamWConfig, Gradients, LearningRate, ParameterGroup};
use flowgraph::ml::parameters::Weights;
use flowgraph::ml::trainer::{ModelSize, backward_flops, forward_flops};
use flowgraph::random::Stream;
use serde_json::{Value as Json, json};

mod lora;
mod smollm2;

const PROMPT_TOKENS: usize = 128;
const NEW_TOKENS: usize = 128;

/// A model shape.
#[derive(Clone, Copy)]
enum Shape {
    SmolLm2,
    SevenBillion,
}

fn is_small() -> bool {
    std::env::var_os("GPU_BENCH_SMALL").is_some()
}

#[expect(clippy::disallowed_methods, reason = "no record is written here")]
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        if is_small() {
            Device::Cpu
        } else {
            Device::new_cuda(0).unwrap()
        }
    });
    device.clone()
}

impl Shape {
    fn config(self) -> LlamaConfig {
        let config = match self {
            Self::SmolLm2 => smollm2::config(),
            Self::SevenBillion => LlamaConfig {
                vocab_size: 32_000,
                hidden_size: 4096,
                intermediate_size: 11_008,
                num_layers: 32,
                num_heads: 32,
                num_kv_heads: 32,
                rope_theta: 10_000.0,
                tie_word_embeddings: false,
                ..smollm2::config()
            },
        };
        if !is_small() {
            return config;
        }
        LlamaConfig {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 96,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            ..config
        }
    }

    /// Rows and tokens of a training step.
    fn rows(self) -> (usize, usize) {
        match self {
            _ if is_small() => (2, 16),
            Self::SmolLm2 => (32, 512),
            Self::SevenBillion => (4, 512),
        }
    }
}

/// Random weights, drawn on the device.
fn weights(config: &LlamaConfig, dtype: DType) -> Weights {
    let architecture = Architecture::from(config);
    let slots = architecture.slots().map(|slot| {
        let drawn = Tensor::randn(0f32, 0.02, slot.shape, &device()).unwrap();
        (slot.name, drawn.to_dtype(dtype).unwrap())
    });
    slots.collect()
}

fn prompts(config: &LlamaConfig, rows: usize, length: usize) -> Vec<Vec<u32>> {
    let mut draws = Stream::new(2, "tokens").at(0);
    let mut row = || {
        (0..length)
            .map(|_| draws.below(config.vocab_size) as u32)
            .collect()
    };
    (0..rows).map(|_| row()).collect()
}

/// Waits for the device, which works on while this process goes ahead.
fn wait() {
    device().synchronize().unwrap();
}

/// The median of some seconds, the first left out.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.remove(0);
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// What a GPU says of itself, with the share of its peak that so many operations a second are.
fn on_gpu(flops_per_second: f64, products: Products) -> Json {
    let Ok(driver) = Driver::start() else {
        return Json::Null;
    };
    let Ok(gpu) = driver.gpu(0) else {
        return Json::Null;
    };
    let mfu = gpu.peak_flops(products).map(|peak| flops_per_second / peak);
    json!({ "name": gpu.name, "driver": gpu.driver.to_string(), "mfu": mfu, "peak_bytes": driver.peak_memory(0).ok() })
}

/// What the process took of the machine itself.
fn on_host() -> Json {
    json!({ "peak_gigabytes": smollm2::peak_gigabytes(), "processor_seconds": smollm2::processor_seconds() })
}

fn training(shape: Shape, is_full: bool, recomputes: bool) -> Json {
    let config = shape.config();
    let dtype = if is_full { DType::F32 } else { DType::BF16 };
    let weights = weights(&config, dtype);
    let lora = lora::config();
    let adapter = Adapter::init(&lora, &weights, &Stream::new(1, "benchmark"), &device()).unwrap();
    let trained = if is_full {
        Training::Full
    } else {
        Training::Adapter(&adapter)
    };
    let mut model = CausalLm::new(&config, &weights, trained).unwrap();
    if recomputes {
        model = model.with_gradient_checkpointing();
    }
    drop(weights);
    let group = ParameterGroup {
        parameters: model.trainable().to_vec(),
        learning_rate: LearningRate::Multiple(1.0),
        weight_decay: 0.0,
    };
    let mut optimizer = AdamW::new(vec![group], AdamWConfig::default()).unwrap();
    let (rows, time) = shape.rows();
    let batch = TokenBatch::right_padded(&prompts(&config, rows, time));
    let mut seconds = Vec::new();
    for _ in 0..6 {
        wait();
        let start = Instant::now();
        let hidden = model.forward_training(&batch, None).unwrap();
        let log_probs = model.next_token_log_probs(&hidden, &batch).unwrap();
        let predicted = (rows * (time - 1)) as f64;
        let loss = total(&log_probs)
            .unwrap()
            .affine(-1.0 / predicted, 0.0)
            .unwrap();
        let mut gradients = Gradients::default();
        gradients.add_of(&loss, model.trainable()).unwrap();
        optimizer.step(&gradients, 1e-4).unwrap();
        wait();
        seconds.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(seconds);
    let size = ModelSize::of(Architecture::from(&config), is_full);
    let forward = forward_flops(&size, std::iter::repeat_n(time, rows));
    let flops = forward + backward_flops(&size, forward);
    let products = if is_full {
        Products::F32
    } else {
        Products::Bf16
    };
    json!({
        "seconds": seconds, "tokens_per_second": (rows * time) as f64 / seconds, "rows": rows, "time": time,
        "gpu": on_gpu(flops / seconds, products), "host": on_host(),
    })
}

fn generation(shape: Shape, rows: usize, strategy: &Strategy) -> Json {
    let config = shape.config();
    let model = CausalLm::new(&config, &weights(&config, DType::BF16), Training::Frozen).unwrap();
    let (read, new) = if is_small() {
        (8, 8)
    } else {
        (PROMPT_TOKENS, NEW_TOKENS)
    };
    let prompts = prompts(&config, rows, read);
    let keys: Vec<u64> = (0..rows as u64).collect();
    let options = GenerateOptions {
        batch_size: rows,
        ..GenerateOptions::new(new, &[])
    };
    let seconds = (0..4).map(|_| {
        let start = Instant::now();
        let stream = Stream::new(1, "benchmark");
        let mut go_on = |_| ControlFlow::Continue(());
        let found = generate(
            &model, &prompts, &options, strategy, &stream, &keys, &mut go_on,
        );
        assert_eq!(found.unwrap().len(), rows);
        start.elapsed().as_secs_f64()
    });
    let seconds = median(seconds.collect());
    let size = ModelSize::of(Architecture::from(&config), false);
    let flops = forward_flops(&size, std::iter::repeat_n(read + new, rows));
    json!({
        "seconds": seconds, "tokens_per_second": (rows * new) as f64 / seconds, "rows": rows,
        "gpu": on_gpu(flops / seconds, Products::Bf16), "host": on_host(),
    })
}

/// Largest difference of an operation and of its gradients from the processor's, as a share of the largest value.
fn operation(apply: impl Fn(&[Tensor]) -> Tensor, shapes: &[&[usize]], dtype: DType) -> Json {
    let operands = |device: &Device, held: DType| -> Vec<Var> {
        let of = |(number, shape): (usize, &&[usize])| {
            let mut draws = Stream::new(7, "operands").at(number as u64);
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| draws.normal() as f32)
                .collect();
            let values = Tensor::from_vec(values, *shape, &Device::Cpu).unwrap();
            // Rounded on both sides: what is measured is the operation.
            let rounded = values.to_dtype(dtype).unwrap();
            let held = rounded.to_dtype(held).unwrap().to_device(device).unwrap();
            Var::from_tensor(&held).unwrap()
        };
        shapes.iter().enumerate().map(of).collect()
    };
    let found = |device: &Device, dtype: DType| -> Vec<Vec<f32>> {
        let operands = operands(device, dtype);
        let tensors: Vec<Tensor> = operands.iter().map(|var| var.as_tensor().clone()).collect();
        let out = apply(&tensors).to_dtype(DType::F32).unwrap();
        let gradients = total(&out.sqr().unwrap()).unwrap().backward().unwrap();
        let numbers = |x: &Tensor| {
            x.to_dtype(DType::F32)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        let own = operands
            .iter()
            .filter_map(|var| gradients.get(var))
            .map(numbers);
        std::iter::once(numbers(&out)).chain(own).collect()
    };
    let start = Instant::now();
    let (there, here) = (found(&device(), dtype), found(&Device::Cpu, DType::F32));
    assert_eq!(there.len(), here.len());
    let apart = there.iter().zip(&here).map(|(there, here)| {
        let most = here
            .iter()
            .fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
        let apart = there.iter().zip(here).map(|(a, b)| (a - b).abs());
        f64::from(apart.fold(0f32, f32::max) / most)
    });
    let apart: Vec<f64> = apart.collect();
    json!({ "apart": apart, "seconds": start.elapsed().as_secs_f64() })
}

fn operations(name: &str, dtype: DType) -> Json {
    match name {
        "linear" => operation(
            |x| linear(&x[0], &x[1]).unwrap(),
            &[&[7, 64], &[48, 64]],
            dtype,
        ),
        "lora_linear" => operation(
            |x| lora_linear(&x[0], &x[1].detach(), &x[2], &x[3], 2.0, None).unwrap(),
            &[&[7, 64], &[48, 64], &[4, 64], &[48, 4]],
            dtype,
        ),
        "rms_norm" => operation(
            |x| rms_norm(&x[0], &x[1], 1e-5).unwrap(),
            &[&[7, 64], &[64]],
            dtype,
        ),
        "layer_norm" => operation(
            |x| layer_norm(&x[0], &x[1], &x[2], 1e-5).unwrap(),
            &[&[7, 64], &[64], &[64]],
            dtype,
        ),
        "swiglu" => operation(
            |x| swiglu(&x[0], &x[1]).unwrap(),
            &[&[7, 64], &[7, 64]],
            dtype,
        ),
        "token_log_probs" => operation(
            |x| {
                token_log_probs(&x[0], &x[1], &[3, 0, 8, 29, 11], 0.8)
                    .unwrap()
                    .log_probs
            },
            &[&[5, 64], &[30, 64]],
            dtype,
        ),
        "model" => model_against_processor(dtype),
        _ => panic!("no operation is called {name}"),
    }
}

/// All that a model is made of at once: its states, and the log-probabilities of its tokens.
fn model_against_processor(dtype: DType) -> Json {
    let config = LlamaConfig {
        num_layers: 2,
        vocab_size: 512,
        hidden_size: 64,
        intermediate_size: 96,
        num_heads: 4,
        num_kv_heads: 2,
        ..smollm2::config()
    };
    let host = flowgraph::ml::models::causal::init(&config, &Stream::new(1, "model"), &Device::Cpu)
        .unwrap();
    let found = |device: &Device, dtype: DType| -> Vec<f32> {
        let moved = host.iter().map(|(name, weight)| {
            let weight = weight.to_dtype(dtype).unwrap().to_device(device).unwrap();
            (name.clone(), weight)
        });
        let model = CausalLm::new(&config, &moved.collect(), Training::Frozen).unwrap();
        let batch = TokenBatch::right_padded(&prompts(&config, 3, 40));
        let hidden = model.forward(&batch).unwrap();
        let log_probs = model.next_token_log_probs(&hidden, &batch).unwrap();
        log_probs.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (there, here) = (found(&device(), dtype), found(&Device::Cpu, DType::F32));
    let apart = there.iter().zip(&here).map(|(a, b)| (a - b).abs());
    json!({ "apart": [f64::from(apart.fold(0f32, f32::max))] })
}

const OPERATIONS: [&str; 7] = [
    "linear",
    "lora_linear",
    "rms_norm",
    "layer_norm",
    "swiglu",
    "token_log_probs",
    "model",
];

fn items() -> Vec<String> {
    let of_operations = OPERATIONS
        .iter()
        .flat_map(|name| ["f32", "bf16"].map(|dtype| format!("operation-{name}-{dtype}")));
    let mut all: Vec<String> = of_operations.collect();
    for shape in ["smollm2", "7b"] {
        all.push(format!("training-{shape}-lora"));
        all.push(format!("training-{shape}-lora-checkpointing"));
        for rows in [1, 16, 64] {
            all.push(format!("generation-{shape}-sampling-{rows}"));
        }
        all.push(format!("generation-{shape}-contrastive-16"));
    }
    // All weights in 32 bits, as they were and as they are trained, with two moments and a gradient each: 140 GB for 7 billion.
    all.push("training-smollm2-full".to_owned());
    all
}

fn main() {
    if is_small() && std::env::var(VARIABLE).as_deref() != Ok(COMPOSED) {
        println!("GPU_BENCH_SMALL=1 needs {VARIABLE}={COMPOSED}");
        std::process::exit(2);
    }
    let item = std::env::args().find(|word| {
        word == "list" || word.contains('-') && !word.starts_with('-') && !word.contains('/')
    });
    let item = item.unwrap_or_else(|| "list".to_owned());
    if item == "list" {
        items().iter().for_each(|name| println!("{name}"));
        return;
    }
    let words: Vec<&str> = item.split('-').collect();
    let shape = |name: &str| {
        if name == "7b" {
            Shape::SevenBillion
        } else {
            Shape::SmolLm2
        }
    };
    let found = match words[..] {
        ["operation", name, dtype] => operations(
            name,
            if dtype == "bf16" {
                DType::BF16
            } else {
                DType::F32
            },
        ),
        ["training", of, "full"] => training(shape(of), true, false),
        ["training", of, "lora"] => training(shape(of), false, false),
        ["training", of, "lora", "checkpointing"] => training(shape(of), false, true),
        ["generation", of, "sampling", rows] => generation(
            shape(of),
            rows.parse().unwrap(),
            &Strategy::Sampling(Sampling::default()),
        ),
        ["generation", of, "contrastive", rows] => {
            let search = Contrastive {
                alpha: 0.6,
                top_k: 4,
                temperature: None,
            };
            generation(
                shape(of),
                rows.parse().unwrap(),
                &Strategy::Contrastive(search),
            )
        }
        _ => panic!("no measurement is called {item}"),
    };
    println!("{found}");
}
