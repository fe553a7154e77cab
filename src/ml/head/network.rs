//! A small network from a state to one number: `FlowRL`'s log Z.

use candle_core::{DType, Device, Tensor, Var};

use crate::ml::kernels::layer_norm::layer_norm;
use crate::ml::kernels::linear::linear;
use crate::ml::kernels::pointwise::gelu;
use crate::ml::kernels::sums::add_bias;
use crate::ml::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

/// Hidden layers.
const LAYERS: usize = 2;
/// Entries of a sequential module that a hidden layer takes: linear map, activation, norm, dropout.
const ENTRIES: usize = 4;
/// Share of a hidden layer's outputs that training drops.
const DROPOUT: f64 = 0.1;
const EPSILON: f64 = 1e-5;

/// Two layers `Dropout(LayerNorm(GELU(W x + b)))` of the state's width, then a linear map to one number, in `f32`
/// (Zhu et al. 2025, as in their code: exact GELU, 10% dropout).
///
/// Weights are named as in the released code, `net.0.weight` to `net.8.bias`.
#[derive(Debug, Clone)]
pub struct ScalarNetwork {
    parameters: Parameters,
    hidden_size: usize,
}

/// Which dropout masks an application uses: row `r` draws from `stream` at `first_row + r`, so that it depends on no
/// other row.
#[derive(Debug, Clone)]
pub struct NetworkDropout {
    /// A stream of the step's own.
    pub stream: Stream,
    /// Number of the first row within the step.
    pub first_row: u64,
}

impl ScalarNetwork {
    /// Makes a trainable network. Hidden layers start as PyTorch's do, even within `1 / sqrt(width)`; the last map is
    /// zero, so that every state gets the same number at first.
    pub fn init(
        hidden_size: usize,
        stream: &Stream,
        device: &Device,
    ) -> Result<Self, ParameterError> {
        let bound = 1.0 / (hidden_size as f64).sqrt();
        let mut weights = Weights::new();
        for layer in 0..LAYERS {
            let mut draws = stream.at(layer as u64);
            let mut even = |count: usize| -> Vec<f32> {
                let draw = |_| (bound * (2.0 * draws.uniform() - 1.0)) as f32;
                (0..count).map(draw).collect()
            };
            let [linear, norm] = [ENTRIES * layer, ENTRIES * layer + 2];
            let (square, bias) = (even(hidden_size * hidden_size), even(hidden_size));
            weights.extend([
                (
                    format!("net.{linear}.weight"),
                    Tensor::from_vec(square, (hidden_size, hidden_size), device)?,
                ),
                (format!("net.{linear}.bias"), Tensor::new(bias, device)?),
                (
                    format!("net.{norm}.weight"),
                    Tensor::ones(hidden_size, DType::F32, device)?,
                ),
                (
                    format!("net.{norm}.bias"),
                    Tensor::zeros(hidden_size, DType::F32, device)?,
                ),
            ]);
        }
        weights.extend([
            (
                format!("net.{}.weight", ENTRIES * LAYERS),
                Tensor::zeros((1, hidden_size), DType::F32, device)?,
            ),
            (Self::last_bias(), Tensor::zeros(1, DType::F32, device)?),
        ]);
        Self::from_weights(hidden_size, &weights)
    }

    /// The name of the number that is added last.
    pub fn last_bias() -> String {
        format!("net.{}.bias", ENTRIES * LAYERS)
    }

    /// Takes trainable copies of `weights`.
    pub fn from_weights(hidden_size: usize, weights: &Weights) -> Result<Self, ParameterError> {
        let network = Self {
            parameters: Parameters::new(weights, |_| true)?,
            hidden_size,
        };
        for layer in 0..LAYERS {
            for entry in [ENTRIES * layer, ENTRIES * layer + 2] {
                network.layer(entry, entry.is_multiple_of(ENTRIES))?;
            }
        }
        network.last()?;
        Ok(network)
    }

    fn layer(&self, entry: usize, is_square: bool) -> Result<[&Tensor; 2], ParameterError> {
        let width = self.hidden_size;
        let shape: &[usize] = if is_square { &[width, width] } else { &[width] };
        Ok([
            self.parameters.get(&format!("net.{entry}.weight"), shape)?,
            self.parameters
                .get(&format!("net.{entry}.bias"), &[width])?,
        ])
    }

    fn last(&self) -> Result<[&Tensor; 2], ParameterError> {
        let weight = format!("net.{}.weight", ENTRIES * LAYERS);
        Ok([
            self.parameters.get(&weight, &[1, self.hidden_size])?,
            self.parameters.get(&Self::last_bias(), &[1])?,
        ])
    }

    /// Applies the network to every state: (rows, hidden size) to (rows), in `f32`.
    pub fn apply(
        &self,
        states: &Tensor,
        dropout: Option<&NetworkDropout>,
    ) -> Result<Tensor, ParameterError> {
        let mut x = states.to_dtype(DType::F32)?;
        for layer in 0..LAYERS {
            let [weight, bias] = self.layer(ENTRIES * layer, true)?;
            x = gelu(&add_bias(&linear(&x, weight)?, bias)?)?;
            let [weight, bias] = self.layer(ENTRIES * layer + 2, false)?;
            x = layer_norm(&x, weight, bias, EPSILON)?;
            if let Some(dropout) = dropout {
                x = (x * self.mask(dropout, layer, states)?)?;
            }
        }
        let [weight, bias] = self.last()?;
        Ok(add_bias(&linear(&x, weight)?, bias)?.squeeze(1)?)
    }

    /// Zero where an output is dropped, and what keeps the mean elsewhere: (rows, hidden size).
    fn mask(
        &self,
        dropout: &NetworkDropout,
        layer: usize,
        states: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let rows = states.dim(0)?;
        let stream = dropout.stream.child(&layer.to_string());
        let mut mask = Vec::with_capacity(rows * self.hidden_size);
        for row in 0..rows as u64 {
            let mut draws = stream.at(dropout.first_row + row);
            let scale = (1.0 / (1.0 - DROPOUT)) as f32;
            mask.extend((0..self.hidden_size).map(
                |_| {
                    if draws.chance(DROPOUT) { 0.0 } else { scale }
                },
            ));
        }
        Tensor::from_vec(mask, (rows, self.hidden_size), states.device())
    }

    /// Returns the trainable variables in name order, their names behind `prefix`.
    pub fn trainable(&self, prefix: &str) -> Vec<(String, Var)> {
        self.parameters
            .trainable()
            .into_iter()
            .map(|(name, var)| (format!("{prefix}{name}"), var))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights sin(0), sin(1), ... in the order of the names, in each tensor row by row.
    fn network() -> ScalarNetwork {
        let shapes = ScalarNetwork::init(3, &Stream::new(1, "shapes"), &Device::Cpu).unwrap();
        let mut number = 0.0f64;
        let mut weights = Weights::new();
        for (name, var) in shapes.trainable("") {
            let values = (0..var.elem_count()).map(|_| {
                number += 1.0;
                (number - 1.0).sin() as f32
            });
            let values: Vec<f32> = values.collect();
            let tensor = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
            weights.insert(name, tensor);
        }
        ScalarNetwork::from_weights(3, &weights).unwrap()
    }

    fn states() -> Var {
        Var::new(&[[0.5f32, -1.0, 2.0], [1.5, 0.25, -0.75]], &Device::Cpu).unwrap()
    }

    /// The first number minus twice the second.
    fn objective(
        network: &ScalarNetwork,
        states: &Tensor,
        mask: Option<&NetworkDropout>,
    ) -> Tensor {
        let factors = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let found = network.apply(states, mask).unwrap();
        (found * factors).unwrap().sum_all().unwrap()
    }

    /// ```python
    /// net = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.LayerNorm(3), nn.Dropout(.1),
    ///     nn.Linear(3, 3), nn.GELU(), nn.LayerNorm(3), nn.Dropout(.1), nn.Linear(3, 1)).double().eval()
    /// # sin(0), sin(1), ... in the order of sorted names
    /// y = net(torch.tensor([[.5, -1., 2.], [1.5, .25, -.75]], requires_grad=True)).squeeze(1)
    /// (y * torch.tensor([1., -2.])).sum().backward()
    /// ```
    #[test]
    fn numbers_and_gradients_are_those_of_pytorch() {
        let recorded: [(&str, &[f64]); 10] = [
            ("net.0.bias", &[1.362_086_7, -0.364_050_3, -0.430_809_8]),
            (
                "net.0.weight",
                &[
                    2.043_183_5,
                    0.340_588_4,
                    -1.021_711_9,
                    -0.546_082_3,
                    -0.091_021_2,
                    0.273_056_7,
                    -0.646_088_7,
                    -0.107_544_9,
                    0.322_760_8,
                ],
            ),
            ("net.2.bias", &[4.131_467_3, 0.887_920_7, -3.171_976_1]),
            ("net.2.weight", &[-1.343_955_9, -0.923_890_3, -4.325_019_1]),
            ("net.4.bias", &[-0.044_802_8, -2.362_865_1, 2.121_751_7]),
            (
                "net.4.weight",
                &[
                    0.033_182_7,
                    -0.033_143_8,
                    0.016_950_8,
                    1.768_390_8,
                    -1.697_436_8,
                    0.752_343,
                    -1.586_340_3,
                    1.528_627_3,
                    -0.687_906_8,
                ],
            ),
            ("net.6.bias", &[0.643_538_1, -0.296_368_6, -0.963_795_4]),
            ("net.6.weight", &[-1.386_323_5, 0.110_198_5, -2.434_595_6]),
            ("net.8.bias", &[-1.0]),
            ("net.8.weight", &[3.142_062_9, 0.600_766, 0.530_184_3]),
        ];
        let (network, states) = (network(), states());
        let found = network.apply(&states, None).unwrap();
        let found = found.to_vec1::<f32>().unwrap();
        assert!((found[0] - 1.008_623_4).abs() < 1e-5, "{found:?}");
        assert!((found[1] - 0.674_922_2).abs() < 1e-5, "{found:?}");
        let gradients = objective(&network, &states, None).backward().unwrap();
        let close = |var: &Var, recorded: &[f64], name: &str| {
            let gradient = gradients.get(var).unwrap().flatten_all().unwrap();
            let gradient = gradient.to_vec1::<f32>().unwrap();
            assert_eq!(gradient.len(), recorded.len(), "{name}");
            for (found, recorded) in gradient.iter().zip(recorded) {
                let found = f64::from(*found);
                assert!((found - recorded).abs() < 1e-4, "{name}: {gradient:?}");
            }
        };
        let vars = network.trainable("");
        assert_eq!(vars.len(), recorded.len());
        for ((name, var), (expected, recorded)) in vars.iter().zip(recorded) {
            assert_eq!(name, expected);
            close(var, recorded, name);
        }
        // (rows, hidden size)
        let of_states = [
            -6.14e-5,
            1.135e-4,
            1.841e-4,
            0.116_455_7,
            -1.035_750_7,
            -1.235_692_6,
        ];
        close(&states, &of_states, "states");
    }

    #[test]
    fn dropout_is_of_the_row_and_the_counter() {
        let network = network();
        let states = states();
        let mask = |seed, first_row| NetworkDropout {
            stream: Stream::new(seed, "dropout"),
            first_row,
        };
        let apply = |states: &Tensor, mask: &NetworkDropout| {
            network
                .apply(states, Some(mask))
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        let both = apply(&states, &mask(1, 0));
        let second = apply(&states.narrow(0, 1, 1).unwrap(), &mask(1, 1));
        assert_eq!(both[1].to_bits(), second[0].to_bits());
        let many = Tensor::ones((4000, 3), DType::F32, &Device::Cpu).unwrap();
        let drawn = network.mask(&mask(2, 0), 0, &many).unwrap();
        let drawn = drawn.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let dropped = drawn.iter().filter(|value| **value == 0.0).count();
        assert!((1080..1320).contains(&dropped), "{dropped} of 12000");
        let other = network.mask(&mask(2, 0), 1, &many).unwrap();
        assert_ne!(
            drawn,
            other.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );

        // Gradients under a mask, against differences.
        let mask = (0..1000).map(|seed| mask(seed, 0)).find(|mask| {
            let first = network.mask(mask, 0, &states).unwrap();
            let dropped = first.eq(0f32).unwrap().to_dtype(DType::F32).unwrap();
            dropped.sum_all().unwrap().to_scalar::<f32>().unwrap() >= 2.0
        });
        let mask = mask.unwrap();
        let gradients = objective(&network, &states, Some(&mask))
            .backward()
            .unwrap();
        for (name, var) in network.trainable("") {
            let gradient = gradients.get(&var).unwrap().flatten_all().unwrap();
            let gradient = gradient.to_vec1::<f32>().unwrap();
            let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let whole = var.as_detached_tensor().copy().unwrap();
            for entry in 0..values.len() {
                let at = |delta: f32| {
                    let mut moved = values.clone();
                    moved[entry] += delta;
                    var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap())
                        .unwrap();
                    let found = objective(&network, &states, Some(&mask));
                    f64::from(found.to_scalar::<f32>().unwrap())
                };
                let difference = (at(4e-3) - at(-4e-3)) / 8e-3;
                var.set(&whole).unwrap();
                let found = f64::from(gradient[entry]);
                assert!(
                    (found - difference).abs() < 2e-2 * (1.0 + difference.abs()),
                    "{name}, entry {entry}: gradient {found}, difference {difference}"
                );
            }
        }
    }

    #[test]
    fn a_new_network_gives_one_number_and_learns() {
        let network = ScalarNetwork::init(8, &Stream::new(3, "log_z"), &Device::Cpu).unwrap();
        let states = Tensor::new(&[[1f32; 8], [-2.0; 8]], &Device::Cpu).unwrap();
        let found = network.apply(&states, None).unwrap();
        assert_eq!(found.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        let gradients = found.sum_all().unwrap().backward().unwrap();
        let largest = |name: &str| {
            let (_, var) = network
                .trainable("")
                .into_iter()
                .find(|(own, _)| own == name)
                .unwrap();
            let gradient = gradients
                .get(&var)
                .unwrap()
                .abs()
                .unwrap()
                .max_all()
                .unwrap();
            gradient.to_scalar::<f32>().unwrap()
        };
        assert!(largest("net.8.weight") > 0.0 && largest("net.8.bias") > 0.0);
        let mut weights = Weights::new();
        for (name, var) in network.trainable("") {
            weights.insert(name, var.as_detached_tensor().clone());
        }
        weights.remove("net.2.bias");
        let error = ScalarNetwork::from_weights(8, &weights).unwrap_err();
        assert_eq!(error.to_string(), "weight `net.2.bias` is missing");
    }
}
