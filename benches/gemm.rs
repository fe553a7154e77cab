//! Matrix products against the `gemm` crate, on the calling thread, and against a loop of fused products that never
//! leaves the registers: `cargo bench --bench gemm`.
//!
//! Both take the best of the processor's instructions that they know; FLOWGRAPH_SIMD chooses ours. The crate as it is
//! built here (without its feature `x86-v4`, which would need a second build of candle) knows AVX2 at most.
#![expect(clippy::print_stdout, reason = "a benchmark's output is for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark may fail at once")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use flowgraph::ml::kernels::linear::linear;
use flowgraph::ml::kernels::simd::Path;
use flowgraph::random::Stream;

/// (rows, inputs, outputs) of `x weight^T`: a projection of SmolLM2-135M in training and in generation, and that of
/// the embedded world.
const SHAPES: [(usize, usize, usize); 5] = [
    (512, 1536, 576),
    (512, 576, 1536),
    (16, 1536, 576),
    (1, 1536, 576),
    (400, 64, 64),
];

/// How long each of the two is repeated, in turns.
const TIME: Duration = Duration::from_millis(1500);

fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .unwrap();
    let path = Path::in_use();
    let peak = peak(path);
    println!("{}: {:.1} GFLOP/s in registers", path.name(), peak / 1e9);
    for (rows, inputs, outputs) in SHAPES {
        let normal = |label: &str, count: usize| -> Vec<f32> {
            let mut draws = Stream::new(1, label).at(0);
            (0..count).map(|_| draws.normal() as f32).collect()
        };
        let (x, weight) = (normal("x", rows * inputs), normal("w", outputs * inputs));
        let tensor = |values: &[f32], shape| Tensor::from_slice(values, shape, &Device::Cpu);
        let (x_tensor, weight_tensor) = (
            tensor(&x, (rows, inputs)).unwrap(),
            tensor(&weight, (outputs, inputs)).unwrap(),
        );
        let mut ours = || {
            black_box(linear(&x_tensor, &weight_tensor).unwrap());
        };
        let mut theirs = || {
            let mut out = vec![0f32; rows * outputs];
            crate_product(&mut out, &x, &weight, (rows, inputs, outputs));
            black_box(out);
        };
        let (mut best, start) = ([f64::INFINITY; 2], Instant::now());
        while start.elapsed() < 2 * TIME {
            for (best, run) in best
                .iter_mut()
                .zip([&mut ours as &mut dyn FnMut(), &mut theirs])
            {
                let start = Instant::now();
                run();
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
        let speed = best.map(|seconds| 2.0 * (rows * inputs * outputs) as f64 / seconds);
        println!(
            "{rows} x {inputs} x {outputs}: {:.1} GFLOP/s ({:.0}% of the loop), gemm {:.1}, ratio {:.2}",
            speed[0] / 1e9,
            100.0 * speed[0] / peak,
            speed[1] / 1e9,
            speed[0] / speed[1],
        );
    }
}

/// `out = x weight^T` by the `gemm` crate.
fn crate_product(
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    (rows, inputs, outputs): (usize, usize, usize),
) {
    assert!(x.len() == rows * inputs && weight.len() == outputs * inputs);
    assert!(out.len() == rows * outputs);
    #[expect(unsafe_code, reason = "gemm takes raw pointers")]
    // SAFETY: the three matrices have the lengths that were checked.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            outputs as isize,
            false,
            x.as_ptr(),
            1,
            inputs as isize,
            weight.as_ptr(),
            inputs as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Operations per second of a loop of independent fused products in registers.
fn peak(path: Path) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        black_box(match path {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "a path in use is one that the processor has")]
            // SAFETY: as said.
            Path::Avx512 => unsafe { wide(black_box(1.5)) },
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "a path in use is one that the processor has")]
            // SAFETY: as said.
            Path::Avx2 => unsafe { narrow(black_box(1.5)) },
            _ => products(black_box(1.5), STEPS / 16),
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    let lanes = match path {
        Path::Avx512 => 16,
        Path::Avx2 => 8,
        Path::Scalar => 1,
    };
    let steps = if path == Path::Scalar {
        STEPS / 16
    } else {
        STEPS
    };
    2.0 * (CHAINS * lanes * (steps / CHAINS)) as f64 / best
}

/// Products of the loop.
const STEPS: usize = 20_000_000;

/// Sums that are independent of each other: as many as hide the latency of a product.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide(factor: f32) -> f32 {
    use std::arch::x86_64::{_mm512_add_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(factor), _mm512_set1_ps(-factor));
    let mut sums = [_mm512_set1_ps(0.0); CHAINS];
    for _ in 0..STEPS / CHAINS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(a, *sum, b);
        }
    }
    let total = sums
        .into_iter()
        .fold(a, |total, sum| _mm512_add_ps(total, sum));
    _mm512_reduce_add_ps(total)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn narrow(factor: f32) -> f32 {
    use std::arch::x86_64::{_mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(factor), _mm256_set1_ps(-factor));
    let mut sums = [_mm256_set1_ps(0.0); CHAINS];
    for _ in 0..STEPS / CHAINS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(a, *sum, b);
        }
    }
    let total = sums
        .into_iter()
        .fold(a, |total, sum| _mm256_add_ps(total, sum));
    _mm256_cvtss_f32(total)
}

fn products(factor: f32, steps: usize) -> f32 {
    let mut sums = [0f32; CHAINS];
    for _ in 0..steps / CHAINS {
        for sum in &mut sums {
            *sum = factor.mul_add(*sum, -factor);
        }
    }
    sums.into_iter().sum::<f32>()
}
