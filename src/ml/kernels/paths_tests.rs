//! Every path of instructions, number of threads and batch gives the same bits.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::attention::Attention;
use super::form::bits_are_promised;
use super::layer_norm::layer_norm;
use super::linear::{linear, lora_linear};
use super::matmul::{Matrix, Term, Threads, multiply, product_sum};
use super::packed_weight::PackedWeight;
use super::pointwise::{exp, gelu};
use super::rms_norm::rms_norm;
use super::rope::Rope;
use super::simd::Path;
use super::span_attention::{DistanceBuckets, SpanAttention};
use super::sums::add_bias;
use super::swiglu::swiglu;
use super::token_log_probs::token_log_probs;
use crate::ml::kernels::rope::RopeLayout;
use crate::random::Stream;

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_available())
}

/// The bits of a number; all NaN are one.
fn bits(value: f32) -> u32 {
    if value.is_nan() {
        f32::NAN.to_bits()
    } else {
        value.to_bits()
    }
}

fn normal(label: &str, count: usize) -> Vec<f32> {
    let mut draws = Stream::new(5, label).at(0);
    (0..count).map(|_| draws.normal() as f32).collect()
}

/// Numbers of all sizes, some of them denormal, and here and there what is no number.
fn hostile(label: &str, count: usize) -> Vec<f32> {
    let mut draws = Stream::new(6, label).at(0);
    (0..count)
        .map(|_| match draws.below(400) {
            0 => f32::INFINITY,
            1 => f32::NEG_INFINITY,
            2 => f32::NAN,
            3..20 => draws.normal() as f32 * f32::MIN_POSITIVE,
            20..40 => draws.normal() as f32 * 1e30,
            40..60 => 0.0 * draws.normal() as f32,
            _ => draws.normal() as f32,
        })
        .collect()
}

/// `out = scale * a b (+ out)` as the documentation of the kernels says it.
fn chain(out: &mut [f32], a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), add: bool) {
    for row in 0..m {
        for column in 0..n {
            let mut sum = 0f32;
            for step in 0..k {
                sum = a[row * k + step].mul_add(b[step * n + column], sum);
            }
            let out = &mut out[row * n + column];
            *out = if add { *out + 0.7 * sum } else { 0.7 * sum };
        }
    }
}

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        for column in 0..columns {
            out[column * rows + row] = values[row * columns + column];
        }
    }
    out
}

#[test]
fn products_are_chains_on_every_path_and_number_of_threads() {
    let pools: Vec<rayon::ThreadPool> = [1, 2, 3, 8]
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap()
        })
        .into();
    let sizes = [1, 2, 7, 17, 63, 65];
    let shapes = sizes.into_iter().flat_map(|m| sizes.map(|n| (m, n)));
    let shapes = shapes.flat_map(|(m, n)| [1, 2, 7, 64, 511, 3001].map(|k| (m, n, k)));
    // Several blocks of lanes in several parts of the sum, of rows and of columns, none of them whole.
    for (m, n, k) in shapes.chain([(17, 401, 1283), (401, 17, 1283)]) {
        let label = format!("{m} {n} {k}");
        // Long sums with NaN in them would be NaN all over.
        let numbers = if k < 100 { hostile } else { normal };
        let (a, b) = (
            numbers(&label, m * k),
            numbers(&(label.clone() + "b"), k * n),
        );
        let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
        let old = normal("old", m * n);
        for add in [false, true] {
            let mut expected = old.clone();
            chain(&mut expected, &a, &b, (m, n, k), add);
            let expected: Vec<u32> = expected.into_iter().map(bits).collect();
            for path in paths() {
                path.choose();
                for (layout, a, b) in [
                    ("a b", Matrix::new(&a, m, k, k), Matrix::new(&b, k, n, n)),
                    (
                        "a b^T",
                        Matrix::new(&a, m, k, k),
                        Matrix::new(&b_t, n, k, k).t(),
                    ),
                    (
                        "a^T b",
                        Matrix::new(&a_t, k, m, m).t(),
                        Matrix::new(&b, k, n, n),
                    ),
                ] {
                    for pool in &pools {
                        let mut out = old.clone();
                        pool.install(|| multiply(&mut out, n, a, b, 0.7, add, Threads::All))
                            .unwrap();
                        let same = out.iter().map(|x| bits(*x)).eq(expected.iter().copied());
                        let threads = pool.current_num_threads();
                        assert!(same, "{label} {layout} {path:?} {threads} {add}");
                        if m * n * k < 1 << 17 {
                            break;
                        }
                    }
                }
            }
        }
    }
    Path::best().choose();
}

#[test]
fn sums_of_products_are_products_added_in_order() {
    for (m, n, wide, narrow) in [
        (1, 700, 300, 16),
        (7, 1, 65, 3),
        (2, 63, 16, 700),
        (65, 129, 17, 5),
        (1100, 400, 40, 16),
    ] {
        let label = format!("{m} {n} {wide} {narrow}");
        let numbers = |what: &str, count| hostile(&format!("{label} {what}"), count);
        let (a, b) = (numbers("a", m * wide), numbers("b", wide * n));
        let (c, d) = (numbers("c", m * narrow), numbers("d", narrow * n));
        let mut expected = vec![0f32; m * n];
        chain(&mut expected, &a, &b, (m, n, wide), false);
        chain(&mut expected, &c, &d, (m, n, narrow), true);
        let expected: Vec<u32> = expected.into_iter().map(bits).collect();
        let (b_t, d_t) = (transposed(&b, wide, n), transposed(&d, narrow, n));
        let term = |a, b| Term { a, b, scale: 0.7 };
        for path in paths() {
            path.choose();
            for threads in [1, 2, 8] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let pool = pool.build().unwrap();
                let terms = [
                    term(
                        Matrix::new(&a, m, wide, wide),
                        Matrix::new(&b_t, n, wide, wide).t(),
                    ),
                    term(
                        Matrix::new(&c, m, narrow, narrow),
                        Matrix::new(&d_t, n, narrow, narrow).t(),
                    ),
                ];
                let rows = pool.install(|| product_sum(&terms, Threads::All)).unwrap();
                let terms = [
                    term(Matrix::new(&a, m, wide, wide), Matrix::new(&b, wide, n, n)),
                    term(
                        Matrix::new(&c, m, narrow, narrow),
                        Matrix::new(&d, narrow, n, n),
                    ),
                ];
                let columns = pool.install(|| product_sum(&terms, Threads::All)).unwrap();
                for found in [rows, columns] {
                    let same = found.into_iter().map(bits).eq(expected.iter().copied());
                    assert!(same, "{label} {path:?} {threads}");
                }
            }
        }
    }
    Path::best().choose();
    let (a, b) = ([0f32; 6], [0f32; 6]);
    let term = |rows, columns| Term {
        a: Matrix::new(&a, rows, 1, 1),
        b: Matrix::new(&b, 1, columns, columns),
        scale: 1.0,
    };
    assert!(product_sum(&[term(2, 3), term(3, 2)], Threads::One).is_err());
}

#[test]
fn packed_weights_give_the_bits_of_the_weights() {
    if !bits_are_promised() {
        let weight = Tensor::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(PackedWeight::of(&weight).unwrap().is_none());
        return;
    }
    let shorter = |values: Vec<f32>| -> Vec<f32> {
        let short = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
        values.into_iter().map(short).collect()
    };
    let tensor =
        |values, shape: (usize, usize)| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    for (outputs, inputs) in [(1, 1), (7, 3), (31, 64), (33, 17), (64, 5), (1000, 130)] {
        let label = format!("{outputs} {inputs}");
        let weight = tensor(
            shorter(hostile(&label, outputs * inputs)),
            (outputs, inputs),
        );
        let packed = PackedWeight::of(&weight).unwrap().unwrap();
        let (a, b) = (
            tensor(normal("a", 4 * inputs), (4, inputs)),
            tensor(normal("b", outputs * 4), (outputs, 4)),
        );
        for rows in [0, 1, 2, 3, 5, 6, 7, 8, 9, 16, 17, 18, 63] {
            let x = tensor(
                hostile(&format!("{label} {rows}"), rows * inputs),
                (rows, inputs),
            );
            let numbers = |x: Tensor| -> Vec<u32> {
                assert_eq!(x.dims(), [rows, outputs]);
                let values = x.flatten_all().unwrap().to_vec1().unwrap();
                values.into_iter().map(bits).collect()
            };
            Path::Scalar.choose();
            let plain = numbers(linear(&x, &weight).unwrap());
            let updated = lora_linear(&x, &weight, &a, &b, 0.3, None).unwrap();
            let updated = numbers(updated);
            for path in paths() {
                path.choose();
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                    let pool = pool.build().unwrap();
                    let run = |update| pool.install(|| packed.multiply(&x, update)).unwrap();
                    let what = format!("{label} {rows} {path:?} {threads}");
                    assert!(numbers(run(None)) == plain, "{what}");
                    assert!(numbers(run(Some((&a, &b, 0.3)))) == updated, "{what}");
                }
            }
        }
        let wrong = tensor(vec![0.0; inputs + 1], (1, inputs + 1));
        assert!(packed.multiply(&wrong, None).is_err());
    }
    Path::best().choose();
    // One number that needs more bits, wherever it lies.
    for place in [0, 40_000, 79_999] {
        let mut values = vec![1.5f32; 80_000];
        values[place] = 1.0 + f32::EPSILON;
        let weight = tensor(values, (400, 200));
        assert!(PackedWeight::of(&weight).unwrap().is_none(), "{place}");
    }
}

#[test]
fn many_rows_have_the_bits_of_each_alone() {
    // Enough for several threads, and a part that is left over.
    let (rows, width) = (1003, 41);
    let x = Tensor::from_vec(normal("x", rows * width), (rows, width), &Device::Cpu).unwrap();
    let y = Tensor::from_vec(normal("y", rows * width), (rows, width), &Device::Cpu).unwrap();
    let weight = Tensor::from_vec(normal("w", width), width, &Device::Cpu).unwrap();
    type Operation<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;
    let operations: [Operation<'_>; 3] = [
        &|x, y| swiglu(x, y),
        &|x, _| rms_norm(x, &weight, 1e-5),
        &|x, _| layer_norm(x, &weight, &weight, 1e-5),
    ];
    for (index, operation) in operations.into_iter().enumerate() {
        // The result and the gradients to both.
        let run = |x: &Tensor, y: &Tensor| {
            let vars = [x, y].map(|x| Var::from_tensor(x).unwrap());
            let out = operation(&vars[0], &vars[1]).unwrap();
            let gradients = (&out * &out)
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap();
            let gradients = vars.iter().filter_map(|var| gradients.get(var).cloned());
            std::iter::once(out).chain(gradients).collect::<Vec<_>>()
        };
        let all = run(&x, &y);
        for row in [0, 1, 399, 400, rows - 1] {
            let part = |x: &Tensor| x.narrow(0, row, 1).unwrap().force_contiguous().unwrap();
            let alone = run(&part(&x), &part(&y));
            for (all, alone) in all.iter().zip(&alone) {
                let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values(&part(all)) == values(alone), "{index} {row}");
            }
        }
    }
}

/// Runs an operation and its gradients on every path; the bits must be those of the first.
fn assert_same_on_all_paths(
    what: &str,
    shapes: &[&[usize]],
    operation: impl Fn(&[&Tensor]) -> Result<Tensor>,
) {
    let run = || {
        let vars: Vec<Var> = shapes
            .iter()
            .enumerate()
            .map(|(index, shape)| {
                let values = normal(&format!("{what} {index}"), shape.iter().product());
                let tensor = Tensor::from_vec(values, *shape, &Device::Cpu).unwrap();
                Var::from_tensor(&tensor).unwrap()
            })
            .collect();
        let inputs: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
        let out = operation(&inputs).unwrap();
        let weights = normal("weights", out.elem_count());
        let weights = Tensor::from_vec(weights, out.shape(), &Device::Cpu).unwrap();
        let loss = super::sums::total(&(&out * weights).unwrap()).unwrap();
        let gradients = loss.backward().unwrap();
        let mut all = vec![out];
        all.extend(vars.iter().map(|var| gradients.get(var).unwrap().clone()));
        all.iter()
            .map(|tensor| {
                let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
                values.into_iter().map(bits).collect::<Vec<u32>>()
            })
            .collect::<Vec<_>>()
    };
    Path::Scalar.choose();
    let expected = run();
    for path in paths() {
        path.choose();
        assert!(run() == expected, "{what} on {path:?}");
    }
    Path::best().choose();
}

#[test]
fn operations_and_their_gradients_have_the_same_bits_on_every_path() {
    let (rows, width) = (37, 40);
    assert_same_on_all_paths("linear", &[&[rows, width], &[23, width]], |t| {
        linear(t[0], t[1])
    });
    let frozen = Tensor::from_vec(normal("w", 23 * width), (23, width), &Device::Cpu).unwrap();
    assert_same_on_all_paths("lora", &[&[rows, width], &[4, width], &[23, 4]], |t| {
        lora_linear(t[0], &frozen, t[1], t[2], 0.3, None)
    });
    assert_same_on_all_paths("bias", &[&[rows, width], &[width]], |t| {
        add_bias(t[0], t[1])
    });
    assert_same_on_all_paths("rms_norm", &[&[rows, width], &[width]], |t| {
        rms_norm(t[0], t[1], 1e-5)
    });
    assert_same_on_all_paths("layer_norm", &[&[rows, width], &[width], &[width]], |t| {
        layer_norm(t[0], t[1], t[2], 1e-5)
    });
    assert_same_on_all_paths("swiglu", &[&[rows, width], &[rows, width]], |t| {
        swiglu(t[0], t[1])
    });
    assert_same_on_all_paths("gelu", &[&[rows, width]], |t| gelu(t[0]));
    assert_same_on_all_paths("exp", &[&[rows, width]], |t| exp(t[0]));
    let targets: Vec<u32> = (0..rows as u32).collect();
    assert_same_on_all_paths("head", &[&[rows, width], &[61, width]], |t| {
        Ok(token_log_probs(t[0], t[1], &targets, 0.7)?.log_probs)
    });
    let attention = Attention {
        heads: 4,
        kv_heads: 2,
        head_size: 10,
        rope: Some(Arc::new(Rope::new(
            RopeLayout::HalfSplit,
            10,
            200,
            10_000.0,
        ))),
        scale: 0.3,
        window: Some(50),
        spans: [0..70, 3..70, 0..41].into(),
        masks: Arc::default(),
    };
    assert_same_on_all_paths(
        "attention",
        &[&[3, 70, 40], &[3, 70, 20], &[3, 70, 20]],
        |t| attention.apply(t[0], t[1], t[2]),
    );
    let spans = SpanAttention {
        heads: 4,
        head_size: 10,
        spans: [0..37, 37..40, 40..77].into(),
    };
    assert_same_on_all_paths("span attention", &[&[77, 40], &[77, 40], &[77, 40]], |t| {
        spans.apply(t[0], t[1], t[2])
    });
    let buckets = DistanceBuckets::new(37, |distance| (distance.rem_euclid(5)) as u32);
    let (k, v) = (normal("k", 77 * 40), normal("v", 77 * 40));
    let [k, v] = [k, v].map(|values| Tensor::from_vec(values, (77, 40), &Device::Cpu).unwrap());
    assert_same_on_all_paths("biased attention", &[&[77, 40], &[5, 4]], |t| {
        spans.apply_biased(t[0], &(&k * 0.5)?, &v, t[1], &buckets)
    });
}
