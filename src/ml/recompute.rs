//! Gradient checkpointing (Chen et al. 2016): of a segment its input is kept, and what lies between is computed again when
//! the gradient comes back.
//!
//! An operation of candle's hands gradients to its operands alone. Those of the variables within a segment are collected
//! beside, in the thread that runs the backward pass, and [`backward`] puts them where those of all others are.

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use super::kernels::given::with_gradient_to;

thread_local! {
    /// Gradients of variables within segments, in the order in which they were found.
    static FOUND: RefCell<Vec<(Var, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// Computes `segment` of `x` and keeps nothing but `x` for the gradient.
///
/// `frozen` computes the same without a graph. Both must give the same numbers however often they are asked; `variables` are
/// those that the segment reads.
pub(super) fn recomputed(
    x: &Tensor,
    frozen: impl FnOnce(&Tensor) -> Result<Tensor>,
    segment: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
    variables: Vec<Var>,
) -> Result<Tensor> {
    let out = frozen(&x.detach())?;
    // The gradient must come here even where nothing before the segment is trained.
    let x = if x.track_op() {
        x.clone()
    } else {
        Var::from_tensor(x)?.into_inner()
    };
    with_gradient_to("recomputed", out, &x, move |x, gradient| {
        let input = Var::from_tensor(&x.detach())?;
        let out = segment(input.as_tensor())?;
        let found = backward(&with_seed(&out, gradient.detach())?)?;
        FOUND.with_borrow_mut(|all| {
            for variable in &variables {
                if let Some(gradient) = found.get(variable) {
                    all.push((variable.clone(), gradient.detach()));
                }
            }
        });
        Ok(found.get(&input).cloned())
    })
}

/// Returns a number whose gradient to `out` is `gradient`.
fn with_seed(out: &Tensor, gradient: Tensor) -> Result<Tensor> {
    let number = Tensor::zeros((), out.dtype(), out.device())?;
    with_gradient_to("seed", number, out, move |_, _| Ok(Some(gradient.clone())))
}

/// Returns the gradients of a loss, those of variables within recomputed segments among them.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let before = FOUND.take();
    let gradients = loss.backward();
    let found = FOUND.replace(before);
    let mut gradients = gradients?;
    for (variable, gradient) in found {
        let sum = match gradients.get(&variable) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        gradients.insert(&variable, sum);
    }
    Ok(gradients)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Two segments that share a variable, which is read outside of them too.
    fn gradients(keeps: bool) -> Vec<Vec<f64>> {
        let var = |values: &[f64]| Var::new(values, &Device::Cpu).unwrap();
        let (a, b, x) = (var(&[0.5, -1.0]), var(&[2.0, 0.3]), var(&[1.5, 0.7]));
        let segment = {
            let (a, b) = (a.clone(), b.clone());
            move |x: &Tensor| x.mul(a.as_tensor())?.sin()?.mul(b.as_tensor())
        };
        let apply = |x: &Tensor| {
            if keeps {
                return segment(x).unwrap();
            }
            let (segment, frozen) = (segment.clone(), segment.clone());
            let variables = vec![a.clone(), b.clone()];
            recomputed(x, move |x| Ok(frozen(x)?.detach()), segment, variables).unwrap()
        };
        let out = apply(&apply(x.as_tensor()));
        let loss = (out.sqr().unwrap().sum_all().unwrap() + a.sum_all().unwrap()).unwrap();
        let found = backward(&loss).unwrap();
        let of = |var: &Var| found.get(var).unwrap().to_vec1().unwrap();
        vec![of(&a), of(&b), of(&x)]
    }

    #[test]
    fn gradients_are_those_of_what_is_kept() {
        assert_eq!(gradients(false), gradients(true));
        // Nothing is left for the next one.
        assert_eq!(gradients(false), gradients(true));
    }

    #[test]
    fn variables_have_gradients_where_the_input_has_none() {
        let a = Var::new(&[3.0f64], &Device::Cpu).unwrap();
        let x = Tensor::new(&[2.0f64], &Device::Cpu).unwrap();
        let segment = {
            let a = a.clone();
            move |x: &Tensor| x.mul(a.as_tensor())
        };
        let frozen = segment.clone();
        let out = recomputed(
            &x,
            move |x| Ok(frozen(x)?.detach()),
            segment,
            vec![a.clone()],
        );
        let found = backward(&out.unwrap().sum_all().unwrap()).unwrap();
        assert_eq!(found.get(&a).unwrap().to_vec1::<f64>().unwrap(), [2.0]);
    }
}
