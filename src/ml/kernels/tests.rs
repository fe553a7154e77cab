//! Fused operations against plain candle operations, whose gradients candle derives itself.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::attention::Attention;
use super::dora::{composed_row_lengths, composed_scale_columns, row_lengths, scale_columns};
use super::linear::{DropoutMask, composed_linear, composed_lora_linear, linear, lora_linear};
use super::rms_norm::{composed_rms_norm, rms_norm};
use super::rope::Rope;
use super::swiglu::{composed_swiglu, swiglu};
use super::token_log_probs::{IGNORED, composed_token_log_probs, token_log_probs};
use crate::ml::kernels::rope::RopeLayout;
use crate::random::Stream;

/// Largest difference allowed, as a share of the largest value (or of 1).
const TOLERANCE: f32 = 5e-6;

fn normal(label: &str, shape: &[usize]) -> Tensor {
    let mut draws = Stream::new(1, label).at(0);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| draws.normal() as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(1f32, |most, x| most.max(x.abs()));
    for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= TOLERANCE * scale,
            "{what}[{place}]: {found} is not {expected}"
        );
    }
}

/// Compares outputs and the gradients of all inputs under a random linear loss.
fn assert_same(
    inputs: &[Tensor],
    fused: impl Fn(&[&Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[&Tensor]) -> Result<Tensor>,
) {
    let run = |operation: &dyn Fn(&[&Tensor]) -> Result<Tensor>| {
        let vars: Vec<Var> = inputs
            .iter()
            .map(|x| Var::from_tensor(x).unwrap())
            .collect();
        let tensors: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
        let out = operation(&tensors).unwrap();
        let loss = (&out * normal("loss", out.dims()))
            .unwrap()
            .sum_all()
            .unwrap();
        let store = loss.backward().unwrap();
        let gradients: Vec<Tensor> = vars
            .iter()
            .map(|var| store.get(var).expect("every input has a gradient").clone())
            .collect();
        (out, gradients)
    };
    let ((found, found_gradients), (expected, expected_gradients)) = (run(&fused), run(&composed));
    assert_close("output", &found, &expected);
    for (index, (found, expected)) in found_gradients.iter().zip(&expected_gradients).enumerate() {
        assert_close(&format!("gradient of input {index}"), found, expected);
    }
}

#[test]
fn linear_is_a_product() {
    assert_same(
        &[normal("x", &[3, 5, 24]), normal("w", &[40, 24])],
        |t| linear(t[0], t[1]),
        |t| composed_linear(t[0], t[1]),
    );
}

#[test]
fn lora_linear_is_two_products() {
    let weight = normal("w", &[40, 24]);
    let mask = DropoutMask {
        kept: vec![0x5af3_9d10_77e2_c8b6; 6],
        scale: 2.0,
    };
    for dropout in [None, Some(mask)] {
        assert_same(
            &[
                normal("x", &[3, 5, 24]),
                normal("a", &[4, 24]),
                normal("b", &[40, 4]),
            ],
            |t| lora_linear(t[0], &weight, t[1], t[2], 0.7, dropout.clone()),
            |t| composed_lora_linear(t[0], &weight, t[1], t[2], 0.7, dropout.as_ref()),
        );
    }
}

#[test]
fn rows_are_scaled_and_measured() {
    assert_same(
        &[normal("x", &[3, 5, 24]), normal("f", &[24])],
        |t| scale_columns(t[0], t[1]),
        |t| composed_scale_columns(t[0], t[1]),
    );
    for rows in [7, 4000] {
        let x = normal("x", &[rows, 24]);
        let (found, expected) = (row_lengths(&x).unwrap(), composed_row_lengths(&x).unwrap());
        assert_close("lengths", &found, &expected);
    }
}

#[test]
fn frozen_operands_get_no_gradient() {
    let x = Var::from_tensor(&normal("x", &[6, 24])).unwrap();
    let weight = normal("w", &[40, 24]);
    let store = linear(&x, &weight).unwrap().backward().unwrap();
    assert!(store.get(&x).is_some());
    assert!(store.get(&weight).is_none());
    let trained = Var::from_tensor(&weight).unwrap();
    let input = x.as_detached_tensor();
    let store = linear(&input, &trained).unwrap().backward().unwrap();
    assert!(store.get(&trained).is_some());
    assert!(store.get(&input).is_none());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "candle's own gradient")]
fn the_composed_product_has_the_gradients_of_candles() {
    assert_same(
        &[normal("x", &[3, 5, 24]), normal("w", &[40, 24])],
        |t| composed_linear(t[0], t[1]),
        |t| t[0].broadcast_matmul(&t[1].t()?),
    );
}

#[test]
fn lora_refuses_a_trained_weight_and_a_short_mask() {
    let (x, a, b) = (
        normal("x", &[6, 24]),
        normal("a", &[4, 24]),
        normal("b", &[40, 4]),
    );
    let trained = Var::from_tensor(&normal("w", &[40, 24])).unwrap();
    assert!(lora_linear(&x, &trained, &a, &b, 1.0, None).is_err());
    let mask = DropoutMask {
        kept: vec![0; 2],
        scale: 1.0,
    };
    assert!(lora_linear(&x, &normal("w", &[40, 24]), &a, &b, 1.0, Some(mask)).is_err());
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    assert_same(
        &[normal("x", &[70, 3, 24]), normal("w", &[24])],
        |t| rms_norm(t[0], t[1], 1e-5),
        |t| composed_rms_norm(t[0], t[1], 1e-5),
    );
}

#[test]
fn swiglu_gates() {
    assert_same(
        &[normal("x", &[50, 3, 24]), normal("w", &[50, 3, 24])],
        |t| swiglu(t[0], t[1]),
        |t| composed_swiglu(t[0], t[1]),
    );
}

/// `1 / sqrt(8)`, for heads of 8.
const SCALE: f32 = 0.353_553_4;

fn attention(layout: RopeLayout, spans: &[Range<usize>]) -> Attention {
    Attention {
        heads: 4,
        kv_heads: 2,
        head_size: 8,
        rope: Some(Arc::new(Rope::new(layout, 8, 200, 10_000.0))),
        scale: SCALE,
        window: None,
        spans: spans.into(),
        masks: Arc::default(),
    }
}

#[test]
fn attention_is_causal_within_spans_and_zero_outside() {
    let time = 150;
    for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
        let attention = attention(layout, &[0..150, 0..70, 33..150, 5..5, 149..150]);
        assert_same(
            &[
                normal("q", &[5, time, 32]),
                normal("k", &[5, time, 16]),
                normal("v", &[5, time, 16]),
            ],
            |t| attention.apply(t[0], t[1], t[2]),
            |t| attention.composed(t[0], t[1], t[2]),
        );
    }
}

#[test]
fn windows_partial_rotations_and_none_are_those_of_the_plain_form() {
    let partial = Rope::new(RopeLayout::HalfSplit, 4, 200, 10_000.0);
    let stretched =
        Rope::of_frequencies(RopeLayout::HalfSplit, vec![0.7, 0.02, 1.3, 0.1], 1.2, 200);
    for rope in [None, Some(partial), Some(stretched)].map(|rope| rope.map(Arc::new)) {
        for window in [None, Some(1), Some(7), Some(100)] {
            let mut attention = attention(RopeLayout::HalfSplit, &[0..90, 20..85, 3..4]);
            attention.rope.clone_from(&rope);
            attention.window = window;
            attention.scale = 0.5;
            assert_same(
                &[
                    normal("q", &[3, 90, 32]),
                    normal("k", &[3, 90, 16]),
                    normal("v", &[3, 90, 16]),
                ],
                |t| attention.apply(t[0], t[1], t[2]),
                |t| attention.composed(t[0], t[1], t[2]),
            );
        }
    }
}

#[test]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "a batch of one row has one span"
)]
fn attention_refuses_spans_that_do_not_fit() {
    let (q, k) = (normal("q", &[1, 9, 32]), normal("k", &[1, 9, 16]));
    assert!(
        attention(RopeLayout::HalfSplit, &[0..9])
            .apply(&q, &k, &k)
            .is_ok()
    );
    let reversed = Range { start: 5, end: 4 };
    for spans in [&[][..], &[0..10], &[0..9, 0..9], &[reversed]] {
        assert!(
            attention(RopeLayout::HalfSplit, spans)
                .apply(&q, &k, &k)
                .is_err()
        );
    }
    let mut short = attention(RopeLayout::HalfSplit, &[0..9]);
    short.rope = Some(Arc::new(Rope::new(RopeLayout::HalfSplit, 8, 8, 10_000.0)));
    assert!(short.apply(&q, &k, &k).is_err());
}

#[test]
fn token_log_probs_are_those_of_the_softmax() {
    let rows = 300;
    let mut draws = Stream::new(3, "targets").at(0);
    let targets: Vec<u32> = (0..rows * 2)
        .map(|_| {
            if draws.chance(0.5) {
                IGNORED
            } else {
                draws.below(50) as u32
            }
        })
        .collect();
    for temperature in [1.0, 0.3] {
        let both = |found: super::token_log_probs::TokenLogProbs| {
            Tensor::cat(&[found.log_probs, found.log_sum_exp.unsqueeze(1)?], 1)
        };
        assert_same(
            &[normal("h", &[rows, 24]), normal("w", &[50, 24])],
            |t| both(token_log_probs(t[0], t[1], &targets, temperature)?),
            |t| both(composed_token_log_probs(t[0], t[1], &targets, temperature)?),
        );
        // A frozen head takes another way to the gradient of the hidden states.
        let frozen = normal("w", &[50, 24]);
        assert_same(
            &[normal("h", &[rows, 24])],
            |t| both(token_log_probs(t[0], &frozen, &targets, temperature)?),
            |t| {
                both(composed_token_log_probs(
                    t[0],
                    &frozen,
                    &targets,
                    temperature,
                )?)
            },
        );
    }
}

#[test]
fn token_log_probs_refuse_what_has_no_meaning() {
    let (hidden, weight) = (normal("h", &[2, 8]), normal("w", &[5, 8]));
    assert!(token_log_probs(&hidden, &weight, &[4, IGNORED], 1.0).is_ok());
    assert!(token_log_probs(&hidden, &weight, &[IGNORED, IGNORED], 1.0).is_ok());
    assert!(token_log_probs(&hidden, &weight, &[5, 0], 1.0).is_err());
    assert!(token_log_probs(&hidden, &weight, &[1, 2, 3], 1.0).is_err());
    assert!(token_log_probs(&hidden, &weight, &[], 1.0).is_err());
    assert!(token_log_probs(&hidden, &weight, &[1, 2], 0.0).is_err());
}

#[test]
fn other_dtypes_take_the_plain_path() {
    let wide = |t: Tensor| t.to_dtype(DType::F64).unwrap();
    let (x, weight) = (wide(normal("x", &[4, 8])), wide(normal("w", &[6, 8])));
    assert_eq!(linear(&x, &weight).unwrap().dtype(), DType::F64);
    assert_eq!(swiglu(&x, &x).unwrap().dtype(), DType::F64);
    let found = token_log_probs(&x, &weight, &[1, 2, 3, 4], 1.0).unwrap();
    assert_eq!(found.log_probs.dtype(), DType::F64);
}

/// Runs a row-wise operation on the first rows of its input and on all of them.
fn assert_rows_are_independent(what: &str, x: &Tensor, operation: impl Fn(&Tensor) -> Tensor) {
    let bits = |t: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    let all = bits(&operation(x));
    let width = all.len() / x.dims()[0];
    for rows in [1, 2, 3, 7, 16, 64, 100] {
        let found = bits(&operation(&x.narrow(0, 0, rows).unwrap()));
        assert!(found == all[..rows * width], "{what}: {rows} rows");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_number_of_rows() {
    if !crate::ml::kernels::form::bits_are_promised() {
        return;
    }
    for (inputs, outputs) in [(16, 8), (24, 16), (600, 8), (600, 40), (600, 100), (2, 300)] {
        let x = normal("x", &[200, inputs]);
        let (weight, a, b) = (
            normal("w", &[outputs, inputs]),
            normal("a", &[3, inputs]),
            normal("b", &[outputs, 3]),
        );
        let shape = format!("{inputs} -> {outputs}");
        assert_rows_are_independent(&shape, &x, |x| linear(x, &weight).unwrap());
        assert_rows_are_independent(&shape, &x, |x| {
            lora_linear(x, &weight, &a, &b, 0.5, None).unwrap()
        });
        assert_rows_are_independent(&shape, &x, |x| {
            let targets: Vec<u32> = (0..x.dims()[0] as u32).map(|row| row % 8).collect();
            token_log_probs(x, &weight, &targets, 1.0)
                .unwrap()
                .log_sum_exp
        });
    }
}
