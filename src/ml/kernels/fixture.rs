//! Random inputs, gradients of a form and how close they are, for tests.

use candle_core::{Device, Result, Tensor, Var};

use crate::random::Stream;

pub(super) fn random(counter: u64, shape: &[usize]) -> Tensor {
    let mut draws = Stream::new(1, "kernel tests").at(counter);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| draws.normal() as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Returns the result of `form` and the gradients of its three inputs under fixed random weights.
pub(super) fn gradients(
    inputs: &[Tensor; 3],
    form: impl Fn([&Tensor; 3]) -> Result<Tensor>,
) -> Vec<Tensor> {
    let vars = inputs
        .each_ref()
        .map(|input| Var::from_tensor(input).unwrap());
    let out = form(vars.each_ref().map(Var::as_tensor)).unwrap();
    let weights = random(99, out.dims());
    let loss = (&out * weights).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
    std::iter::once(out).chain(grads).collect()
}

pub(super) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    let difference = (found - expected).unwrap().abs().unwrap();
    let difference = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference < tolerance, "largest difference {difference}");
}
