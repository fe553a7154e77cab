//! Functions between layers, by the names that `transformers` and PyTorch have for them.

use candle_core::{Result, Tensor};

use crate::ml::kernels::pointwise::{gelu, gelu_tanh, tanh};

/// What is applied to every number between two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x Phi(x)`, with the normal distribution function.
    #[default]
    Gelu,
    /// The same with a hyperbolic tangent for the distribution.
    GeluTanh,
    /// The positive part.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// Nothing.
    Identity,
}

/// Names in `config.json`; the first of an activation is the one that is written.
const NAMES: [(&str, Activation); 13] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("sigmoid", Activation::Sigmoid),
    ("tanh", Activation::Tanh),
    ("linear", Activation::Identity),
];

/// Classes of PyTorch, as sentence-transformers writes them.
const CLASSES: [(&str, Activation); 6] = [
    ("torch.nn.modules.activation.GELU", Activation::Gelu),
    ("torch.nn.modules.activation.ReLU", Activation::Relu),
    ("torch.nn.modules.activation.SiLU", Activation::Silu),
    ("torch.nn.modules.activation.Sigmoid", Activation::Sigmoid),
    ("torch.nn.modules.activation.Tanh", Activation::Tanh),
    ("torch.nn.modules.linear.Identity", Activation::Identity),
];

fn named(names: &[(&str, Activation)], wanted: &str) -> Option<Activation> {
    let found = names.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, activation)| *activation)
}

fn listed(names: &[(&str, Activation)]) -> String {
    let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

impl Activation {
    /// Finds the activation that `config.json` calls `name`.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        named(&NAMES, name)
    }

    /// Finds the activation that a class of PyTorch computes.
    pub(crate) fn by_class(class: &str) -> Option<Self> {
        named(&CLASSES, class)
    }

    /// Lists the names that [`Activation::by_name`] knows.
    pub(crate) fn names() -> String {
        listed(&NAMES)
    }

    /// Lists the classes that [`Activation::by_class`] knows.
    pub(crate) fn classes() -> String {
        listed(&CLASSES)
    }

    /// Returns the name of the activation in `config.json`.
    pub(crate) fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(_, activation)| *activation == self);
        found.map_or("linear", |(name, _)| name)
    }

    /// Returns the class of the activation in PyTorch; that of the tangent for one without a class.
    pub(crate) fn class(self) -> &'static str {
        let found = CLASSES.iter().find(|(_, activation)| *activation == self);
        found.map_or("torch.nn.modules.activation.Tanh", |(class, _)| class)
    }

    /// Applies the activation to each element.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Relu => x.relu(),
            Self::Silu => x.mul(&sigmoid(x)?),
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => tanh(x),
            Self::Identity => Ok(x.clone()),
        }
    }
}

/// `1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    tanh(&x.affine(0.5, 0.0)?)?.affine(0.5, 0.5)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::ml::kernels::form::bits_are_promised;

    #[test]
    fn values_and_slopes_are_those_of_the_formulas() {
        let points = [-3.0f64, -0.7, 0.4, 2.5];
        let logistic = |x: f64| 1.0 / (1.0 + libm::exp(-x));
        let normal = |x: f64| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
        let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        for (name, activation) in NAMES {
            let exact = |x: f64| match activation {
                Activation::Gelu => x * normal(x),
                Activation::GeluTanh => 0.5 * x * (1.0 + libm::tanh(inner(x))),
                Activation::Relu => x.max(0.0),
                Activation::Silu => x * logistic(x),
                Activation::Sigmoid => logistic(x),
                Activation::Tanh => libm::tanh(x),
                Activation::Identity => x,
            };
            let x = Var::from_tensor(&Tensor::new(&points, &Device::Cpu).unwrap()).unwrap();
            let out = activation.apply(&x).unwrap();
            // A weight of one each: the identity is its own variable, which has no graph.
            let slopes = (&out * 1.0).unwrap().backward().unwrap();
            let slopes: Vec<f64> = slopes.get(&x).unwrap().to_vec1().unwrap();
            for (at, found) in out.to_vec1::<f64>().unwrap().into_iter().enumerate() {
                let x = points[at];
                assert!((found - exact(x)).abs() < 1e-12, "{name}({x}) is {found}");
                let slope = (exact(x + 1e-5) - exact(x - 1e-5)) / 2e-5;
                let found = slopes[at];
                let allowed = if bits_are_promised() { 1e-8 } else { 1e-6 };
                assert!((found - slope).abs() < allowed, "{name}'({x}) is {found}");
            }
        }
    }

    #[test]
    fn every_activation_is_written_under_a_name_that_is_read() {
        for (name, activation) in NAMES {
            assert_eq!(Activation::by_name(name), Some(activation));
            assert_eq!(Activation::by_name(activation.name()), Some(activation));
        }
        for (class, activation) in CLASSES {
            assert_eq!(Activation::by_class(class), Some(activation));
            assert_eq!(activation.class(), class);
        }
        assert_eq!(Activation::by_name("quick_gelu"), None);
    }
}
