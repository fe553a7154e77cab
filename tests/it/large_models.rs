//! Models that leave no room for a second copy.

use std::io::{BufWriter, Write};
use std::path::Path;

use flowgraph::ml::formats::hugging_face::load_hugging_face_at;
use flowgraph::ml::kernels::form::Form;
use flowgraph::ml::placement::{Placement, Precision};

/// A LLaMA of this shape.
struct Shape {
    vocabulary: usize,
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
}

const SEVEN_BILLION: Shape = Shape {
    vocabulary: 32_000,
    width: 4096,
    inner: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: 32,
};
const ONE_BILLION: Shape = Shape {
    vocabulary: 32_000,
    width: 2048,
    inner: 5632,
    layers: 22,
    heads: 32,
    kv_heads: 4,
};

/// Writes a model of bfloat16 numbers; returns the bytes of its weights.
fn write_model(folder: &Path, shape: &Shape) -> u64 {
    let Shape {
        vocabulary,
        width,
        inner,
        layers,
        heads,
        kv_heads,
    } = *shape;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": false, "eos_token_id": 2, "torch_dtype": "bfloat16"
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let kv = width / heads * kv_heads;
    let mut tensors = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![vocabulary, width],
        ),
        ("model.norm.weight".to_owned(), vec![width]),
        ("lm_head.weight".to_owned(), vec![vocabulary, width]),
    ];
    for layer in 0..layers {
        let parts = [
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
            ("self_attn.q_proj", vec![width, width]),
            ("self_attn.k_proj", vec![kv, width]),
            ("self_attn.v_proj", vec![kv, width]),
            ("self_attn.o_proj", vec![width, width]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("mlp.down_proj", vec![width, inner]),
        ];
        let named =
            parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape));
        tensors.extend(named);
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        let entry =
            serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
    let mut file = BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(&header).unwrap();
    // Numbers from 0.01 on, all finite.
    let block: Vec<u8> = (0..u16::MAX)
        .flat_map(|number| (0x3C23 + number % 64).to_le_bytes())
        .collect();
    let mut left = end as usize;
    while left > 0 {
        let count = left.min(block.len());
        file.write_all(&block[..count]).unwrap();
        left -= count;
    }
    file.flush().unwrap();
    end
}

/// The most bytes that this process has had in memory since [`forget_peak`].
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
    kilobytes.parse::<u64>().unwrap() << 10
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[test]
#[ignore = "needs the disk and the memory of its model; run it alone with FLOWGRAPH_KERNELS=composed"]
fn a_model_in_16_bits_takes_little_more_than_its_size() {
    assert_eq!(
        Form::in_use(),
        Form::Composed,
        "the fused form computes in 32 bits; set FLOWGRAPH_KERNELS=composed"
    );
    let is_large = std::env::var("FLOWGRAPH_SHAPE").is_ok_and(|shape| shape == "7b");
    let shape = if is_large { SEVEN_BILLION } else { ONE_BILLION };
    let folder = tempfile::tempdir().unwrap();
    let bytes = write_model(folder.path(), &shape);
    let placement = Placement {
        precision: Precision::Bf16,
        ..Placement::HOST
    };
    forget_peak();
    let before = peak();
    let model = load_hugging_face_at(folder.path(), &[], &placement).unwrap();
    let taken = peak() - before;
    assert_eq!(model.weights.len(), 3 + 9 * shape.layers);
    let share = taken as f64 / bytes as f64;
    println!("{bytes} bytes of weights, {taken} taken at most: {share:.3}");
    assert!(share < 1.15, "{share}");
}
