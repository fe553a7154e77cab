//! Checks of gradients against central differences, in f64.

use candle_core::{Tensor, Var};

/// Asserts `|got - want| <= tolerance`.
#[track_caller]
pub(crate) fn close(got: f64, want: f64, tolerance: f64) {
    assert!(
        (got - want).abs() <= tolerance,
        "got {got}, want {want} within {tolerance}"
    );
}

/// Asserts that every input has a gradient and that `factor` times it is the central difference of `loss`.
///
/// A factor other than 1 is for losses with a detached part that moves with the inputs.
#[track_caller]
pub(crate) fn assert_gradients(inputs: &[Tensor], factor: f64, loss: impl Fn(&[Tensor]) -> Tensor) {
    const STEP: f64 = 1e-5;
    const TOLERANCE: f64 = 1e-7;
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let leaves: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = loss(&leaves).backward().unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let gradient = gradients
            .get(&vars[index])
            .unwrap_or_else(|| panic!("input {index} has no gradient"))
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap();
        assert!(
            gradient.iter().any(|g| *g != 0.0),
            "input {index} has a zero gradient"
        );
        let values = input.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (entry, found) in gradient.iter().enumerate() {
            let at = |delta: f64| {
                let mut moved = values.clone();
                moved[entry] += delta;
                let mut inputs = inputs.to_vec();
                inputs[index] = Tensor::from_vec(moved, input.shape(), input.device()).unwrap();
                loss(&inputs).to_scalar::<f64>().unwrap()
            };
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(
                (found * factor - difference).abs() <= TOLERANCE * (1.0 + difference.abs()),
                "input {index}, entry {entry}: gradient {found} times {factor}, difference {difference}"
            );
        }
    }
}

/// Asserts recorded gradients of a loss, entry by entry.
#[track_caller]
pub(crate) fn assert_recorded(
    inputs: &[&Tensor],
    recorded: &[&[f64]],
    loss: impl Fn(&[Tensor]) -> Tensor,
) {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let leaves: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = loss(&leaves).backward().unwrap();
    for (index, (var, recorded)) in vars.iter().zip(recorded).enumerate() {
        let gradient = gradients.get(var).unwrap().flatten_all().unwrap();
        let gradient = gradient.to_vec1::<f64>().unwrap();
        assert_eq!(gradient.len(), recorded.len());
        for (found, recorded) in gradient.iter().zip(*recorded) {
            assert!(
                (found - recorded).abs() < 1e-9,
                "input {index}: {gradient:?}, recorded {recorded:?}"
            );
        }
    }
}
