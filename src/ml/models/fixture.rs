//! Weights by a formula: what `tests/fixtures/models/*.py` recorded with, without a file for them.
//!
//! Number `i` of the tensor `name`, row by row, is `offset + 2 scale (u - 1/2)`, in `f64` and then rounded, where `u` in
//! [0, 1) is the upper 24 bits of `splitmix64(fnv1a64(name) + i)`.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

use crate::ml::formats::safetensors::load_safetensors;
use crate::ml::parameters::Weights;

/// The hash of Fowler, Noll and Vo (FNV-1a) in 64 bits.
pub(crate) fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The generator of Steele et al. 2014, at a state.
fn splitmix64(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns a tensor of the formula.
pub(crate) fn numbers(name: &str, shape: &[usize], scale: f64, offset: f64) -> Tensor {
    let hash = fnv1a64(name);
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(|at| {
            let drawn = splitmix64(hash.wrapping_add(at)) >> 40;
            let uniform = drawn as f64 / f64::from(1 << 24);
            (offset + scale * (uniform - 0.5) * 2.0) as f32
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Returns the parameter `name` of a model, as it is called in the model's file.
pub(crate) fn parameter(name: &str, shape: &[usize]) -> Tensor {
    match shape {
        [_, _, ..] => numbers(name, shape, 0.35, 0.0),
        _ if name.ends_with(".weight") => numbers(name, shape, 0.3, 1.0),
        _ => numbers(name, shape, 0.2, 0.0),
    }
}

/// Returns a factor of a low-rank adapter.
pub(crate) fn factor(name: &str, shape: &[usize]) -> Tensor {
    numbers(name, shape, 0.3, 0.0)
}

/// Returns a tensor of an adapter, as it is called in the adapter's file.
pub(crate) fn adapter_tensor(name: &str, shape: &[usize]) -> Tensor {
    if name.contains("lora_A") || name.contains("lora_B") {
        factor(name, shape)
    } else if name.ends_with("lora_magnitude_vector") {
        numbers(name, shape, 0.3, 1.0)
    } else {
        parameter(name, shape)
    }
}

/// Returns all parameters in an object of names and shapes.
pub(crate) fn parameters(tensors: &Value) -> Weights {
    let shape = |shape: &Value| -> Vec<usize> {
        let sizes = shape.as_array().unwrap().iter();
        sizes.map(|size| size.as_u64().unwrap() as usize).collect()
    };
    let tensors: &Map<String, Value> = tensors.as_object().unwrap();
    tensors
        .iter()
        .map(|(name, of)| (name.clone(), parameter(name, &shape(of))))
        .collect()
}

/// Returns what was recorded under a name: the description, and the numbers.
pub(crate) fn recorded(name: &str) -> (Value, Weights) {
    let text = fs_err::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    (serde_json::from_str(&text).unwrap(), numbers_of(name))
}

/// Returns the numbers that were recorded under a name.
pub(crate) fn numbers_of(name: &str) -> Weights {
    load_safetensors(&folder().join(format!("{name}.safetensors"))).unwrap()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models")
}

/// Returns the largest magnitude in a tensor.
pub(crate) fn largest(tensor: &Tensor) -> f32 {
    let largest = tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    largest.to_scalar().unwrap()
}

/// Returns the largest difference between two tensors of the same shape.
pub(crate) fn difference(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    largest(&(found - expected).unwrap())
}

#[test]
fn the_formula_gives_the_numbers_of_the_recordings() {
    let name = "model.embed_tokens.weight";
    assert_eq!(fnv1a64(name), 0xa88f_d795_d5c6_d156);
    let found = parameter(name, &[1, 3]).to_vec2::<f32>().unwrap();
    assert_eq!(found, [[-0.090_096_69, -0.103_874_79, 0.282_171_82]]);
}
