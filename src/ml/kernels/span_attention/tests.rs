use candle_core::Device;

use super::super::fixture::{assert_close, gradients, random};
use super::*;

fn attention(lengths: &[usize]) -> SpanAttention {
    let mut start = 0;
    let spans = lengths.iter().map(|length| {
        start += length;
        start - length..start
    });
    SpanAttention {
        heads: 3,
        head_size: 5,
        spans: spans.collect(),
    }
}

#[test]
fn values_and_gradients_are_those_of_the_plain_form() {
    let attention = attention(&[7, 1, 70]);
    let inputs = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
    let fused = gradients(&inputs, |[q, k, v]| attention.apply(q, k, v));
    let composed = gradients(&inputs, |[q, k, v]| attention.composed(q, k, v, None));
    for (fused, composed) in fused.iter().zip(&composed) {
        assert_close(fused, composed, 1e-5);
    }
}

/// Buckets that hold one, two or many distances.
fn buckets(longest: usize) -> DistanceBuckets {
    DistanceBuckets::new(longest, |distance| match distance {
        ..-4 => 0,
        -4..=-2 => 1,
        -1..=1 => (distance + 3) as u32,
        2..=20 => 5,
        _ => 6,
    })
}

#[test]
fn biased_values_and_gradients_are_those_of_the_plain_form() {
    let (attention, buckets) = (attention(&[7, 1, 70]), buckets(70));
    let [q, k, v] = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
    let table = random(4, &[8, 3]);
    let run = |fused: bool, inputs: &[Tensor; 3]| {
        gradients(inputs, |[q, k, table]| {
            if fused {
                attention.apply_biased(q, k, &v, table, &buckets)
            } else {
                attention.composed(q, k, &v, Some((table, &buckets)))
            }
        })
    };
    let inputs = [q, k, table];
    for (fused, composed) in run(true, &inputs).iter().zip(&run(false, &inputs)) {
        assert_close(fused, composed, 1e-5);
    }
    let [q, k, table] = inputs;
    let of_values = |fused: bool| {
        gradients(&[v.clone(), q.clone(), table.clone()], |[v, q, table]| {
            if fused {
                attention.apply_biased(q, &k, v, table, &buckets)
            } else {
                attention.composed(q, &k, v, Some((table, &buckets)))
            }
        })
    };
    for (fused, composed) in of_values(true).iter().zip(&of_values(false)) {
        assert_close(fused, composed, 1e-5);
    }
    // The bucket that no distance has gets nothing.
    let last = of_values(true)[3].get(7).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(last, [0.0; 3]);
}

#[test]
fn biases_of_zero_change_no_bit() {
    let [q, k, v] = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
    let attention = attention(&[7, 1, 70]);
    let zeros = Tensor::zeros((7, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let biased = attention.apply_biased(&q, &k, &v, &zeros, &buckets(90));
    assert_eq!(
        biased.unwrap().to_vec2::<f32>().unwrap(),
        attention
            .apply(&q, &k, &v)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
    );
}

#[test]
fn a_table_that_does_not_fit_is_an_error() {
    let x = random(1, &[9, 15]);
    for (shape, longest) in [([7, 2], 9), ([6, 3], 30), ([7, 3], 8)] {
        let table = random(2, &shape);
        let found = attention(&[9]).apply_biased(&x, &x, &x, &table, &buckets(longest));
        let error = found.unwrap_err().to_string();
        assert!(error.contains("does not fit 3 heads"), "{error}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_to_the_last_bit() {
    let inputs = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
    let together = gradients(&inputs, |[q, k, v]| attention(&[7, 1, 70]).apply(q, k, v));
    let alone = inputs
        .each_ref()
        .map(|input| input.narrow(0, 8, 70).unwrap().contiguous().unwrap());
    let alone = attention(&[70]).apply(&alone[0], &alone[1], &alone[2]);
    let part = together[0].narrow(0, 8, 70).unwrap();
    assert_eq!(
        part.to_vec2::<f32>().unwrap(),
        alone.unwrap().to_vec2::<f32>().unwrap()
    );
}

#[test]
fn spans_must_cover_the_tokens() {
    let x = random(1, &[9, 15]);
    for lengths in [&[8][..], &[5, 5], &[9, 0]] {
        let error = attention(lengths).apply(&x, &x, &x).unwrap_err();
        assert!(
            error.to_string().contains("do not cover 9 tokens"),
            "{error}"
        );
    }
}
