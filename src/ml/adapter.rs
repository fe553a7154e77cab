//! Low-rank adapters (LoRA, Hu et al. 2021).

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::kernels::linear::linear;
use super::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

/// Shape and constants of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner dimension of the update.
    pub rank: usize,
    /// The update is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Share of a projection's inputs that are dropped on the way into the update, in training.
    #[serde(default)]
    pub dropout: f64,
    /// Names of the projections that are adapted, or last parts of them, as `q_proj`.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Returns the factor of the update.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Returns the names of the adapted projections among `weights`, without their `.weight`.
    fn modules<'a>(&'a self, weights: &'a Weights) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        weights.iter().filter_map(|(name, tensor)| {
            let module = name.strip_suffix(".weight")?;
            let mut targets = self.target_modules.iter();
            (is_projection(module, tensor) && targets.any(|target| is_named(module, target)))
                .then_some((module, tensor))
        })
    }
}

/// Tells whether `target` is the name of a module or its last parts, as PEFT has it.
pub(super) fn is_named(module: &str, target: &str) -> bool {
    let rest = module.strip_suffix(target);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Tells whether a module is a linear layer of a block, the only ones that a model applies updates to: a matrix with
/// the block's number in its name.
fn is_projection(module: &str, weight: &Tensor) -> bool {
    let is_number = |part: &str| part.parse::<usize>().is_ok();
    weight.rank() == 2 && module.split('.').any(is_number)
}

/// Why an adapter could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A value of the configuration is out of range.
    #[error("adapter: {reason}")]
    Config {
        /// Which value, and what is allowed.
        reason: String,
    },
    /// A target names nothing in the model.
    #[error("adapter: no projection of the model is called `{target}`")]
    NoSuchTarget {
        /// The target module.
        target: String,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, AdapterError>;

/// Trainable low-rank updates of some projections of a model, in `f32`.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: LoraConfig,
    parameters: Parameters,
}

/// Returns the name of one factor in the files of the PEFT library.
pub(super) fn factor_name(module: &str, factor: char) -> String {
    format!("base_model.model.{module}.lora_{factor}.weight")
}

impl Adapter {
    /// Makes an adapter that changes nothing yet: B is zero, and A is normal with PEFT's default variance,
    /// `1 / (3 inputs)`.
    pub fn init(
        config: &LoraConfig,
        base: &Weights,
        stream: &Stream,
        device: &Device,
    ) -> Result<Self> {
        check(config, base)?;
        let mut weights = Weights::new();
        for (module, weight) in config.modules(base) {
            let (outputs, inputs) = weight.dims2()?;
            let name = factor_name(module, 'A');
            let mut draws = stream.child(&name).at(0);
            let std = 1.0 / (3.0 * inputs as f64).sqrt();
            let a: Vec<f32> = (0..config.rank * inputs)
                .map(|_| (std * draws.normal()) as f32)
                .collect();
            weights.insert(name, Tensor::from_vec(a, (config.rank, inputs), device)?);
            weights.insert(
                factor_name(module, 'B'),
                Tensor::zeros((outputs, config.rank), DType::F32, device)?,
            );
        }
        Ok(Self {
            config: config.clone(),
            parameters: Parameters::new(&weights, |_| true)?,
        })
    }

    /// Makes an adapter of stored weights, named as in PEFT's files; they must be exactly those that the
    /// configuration adapts in `base`.
    pub fn from_weights(
        config: &LoraConfig,
        base: &Weights,
        stored: &Weights,
        device: &Device,
    ) -> Result<Self> {
        let adapter = Self::init(config, base, &Stream::new(0, "overwritten"), device)?;
        let wide: Weights = stored
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F32)?)))
            .collect::<Result<_>>()?;
        adapter.parameters.restore(&wide)?;
        Ok(adapter)
    }

    /// Returns the configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Returns the trainable factors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns both factors of a projection (module name without `.weight`) of the given shape, if it is adapted.
    pub(super) fn factors(
        &self,
        module: &str,
        (outputs, inputs): (usize, usize),
    ) -> Result<Option<(Tensor, Tensor)>> {
        let rank = self.config.rank;
        match self
            .parameters
            .get(&factor_name(module, 'A'), &[rank, inputs])
        {
            Ok(a) => {
                let b = self
                    .parameters
                    .get(&factor_name(module, 'B'), &[outputs, rank])?;
                Ok(Some((a.clone(), b.clone())))
            }
            Err(ParameterError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds the updates to the weights they adapt: `W + scale B A`, in the weights' dtype.
    pub fn merge(&self, base: &Weights) -> Result<Weights> {
        let mut merged = base.clone();
        for (module, weight) in self.config.modules(base) {
            if let Some((a, b)) = self.factors(module, weight.dims2()?)? {
                let update = linear(&b.detach(), &a.detach().t()?)?;
                let update = update.affine(self.config.scale(), 0.0)?;
                let sum = (weight.to_dtype(DType::F32)? + update)?.to_dtype(weight.dtype())?;
                merged.insert(format!("{module}.weight"), sum);
            }
        }
        Ok(merged)
    }
}

fn check(config: &LoraConfig, base: &Weights) -> Result<()> {
    let reason = if config.rank == 0 {
        Some("`rank` is 0, expected at least 1".to_owned())
    } else if !config.alpha.is_finite() {
        Some(format!("`alpha` is {}, expected a number", config.alpha))
    } else if !(0.0..1.0).contains(&config.dropout) {
        Some(format!(
            "`dropout` is {}, expected a number from 0 to below 1",
            config.dropout
        ))
    } else if config.target_modules.is_empty() {
        Some("`target_modules` is empty".to_owned())
    } else {
        None
    };
    if let Some(reason) = reason {
        return Err(AdapterError::Config { reason });
    }
    for target in &config.target_modules {
        let is_target = |(name, weight): (&String, &Tensor)| {
            let module = name.strip_suffix(".weight");
            module.is_some_and(|module| is_projection(module, weight) && is_named(module, target))
        };
        if !base.iter().any(is_target) {
            return Err(AdapterError::NoSuchTarget {
                target: target.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Weights {
        let weight =
            |rows, columns| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).unwrap();
        Weights::from([
            (
                "model.layers.0.self_attn.q_proj.weight".to_owned(),
                weight(4, 6),
            ),
            (
                "model.layers.0.self_attn.v_proj.weight".to_owned(),
                weight(2, 6),
            ),
            ("model.embed_tokens.weight".to_owned(), weight(9, 6)),
        ])
    }

    fn config() -> LoraConfig {
        LoraConfig {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".to_owned()],
        }
    }

    fn adapter() -> Adapter {
        Adapter::init(&config(), &base(), &Stream::new(1, "lora"), &Device::Cpu).unwrap()
    }

    #[test]
    fn factors_are_named_as_in_peft_and_change_nothing_at_first() {
        let adapter = adapter();
        let weights = adapter.parameters().weights().unwrap();
        let shapes: Vec<(&str, &[usize])> = weights
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.dims()))
            .collect();
        let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
        assert_eq!(
            shapes,
            [
                (format!("{prefix}.lora_A.weight").as_str(), &[2, 6][..]),
                (format!("{prefix}.lora_B.weight").as_str(), &[4, 2][..]),
            ]
        );
        let merged = adapter.merge(&base()).unwrap();
        for (name, weight) in base() {
            let rows = weight.to_vec2::<f32>().unwrap();
            assert_eq!(merged[&name].to_vec2::<f32>().unwrap(), rows);
        }
    }

    #[test]
    fn merging_adds_the_scaled_product_to_its_target_only() {
        let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
        let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..8).map(|i| i as f32 - 3.0).collect();
        let stored = Weights::from([
            (
                format!("{prefix}.lora_A.weight"),
                Tensor::from_vec(a, (2, 6), &Device::Cpu).unwrap(),
            ),
            (
                format!("{prefix}.lora_B.weight"),
                Tensor::from_vec(b, (4, 2), &Device::Cpu).unwrap(),
            ),
        ]);
        let adapter = Adapter::from_weights(&config(), &base(), &stored, &Device::Cpu).unwrap();
        let merged = adapter.merge(&base()).unwrap();
        let query = merged["model.layers.0.self_attn.q_proj.weight"]
            .to_vec2::<f32>()
            .unwrap();
        // 1 + 4/2 * (b[3][0] a[0][5] + b[3][1] a[1][5]) = 1 + 2 * (3 * 5 + 4 * 11)
        assert_eq!(query[3][5], 119.0);
        let value = merged["model.layers.0.self_attn.v_proj.weight"]
            .to_vec2::<f32>()
            .unwrap();
        assert_eq!(value, vec![vec![1.0; 6]; 2]);
    }

    #[test]
    fn a_module_is_named_by_its_whole_name_or_its_last_parts() {
        for target in [
            "q_proj",
            "self_attn.q_proj",
            "0.self_attn.q_proj",
            "model.layers.0.self_attn.q_proj",
        ] {
            let mut config = config();
            config.target_modules = vec![target.to_owned()];
            let stream = Stream::new(1, "lora");
            let adapter = Adapter::init(&config, &base(), &stream, &Device::Cpu).unwrap();
            assert_eq!(adapter.parameters().trainable().len(), 2, "{target}");
        }
        assert!(!is_named("model.layers.10.q_proj", "0.q_proj"));
    }

    #[test]
    fn adapters_that_fit_nothing_are_refused() {
        let build = |change: fn(&mut LoraConfig)| {
            let mut config = config();
            change(&mut config);
            Adapter::init(&config, &base(), &Stream::new(1, "lora"), &Device::Cpu)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            build(|c| c.rank = 0),
            "adapter: `rank` is 0, expected at least 1"
        );
        assert_eq!(
            build(|c| c.dropout = 1.0),
            "adapter: `dropout` is 1, expected a number from 0 to below 1"
        );
        assert_eq!(
            build(|c| c.target_modules.push("proj".into())),
            "adapter: no projection of the model is called `proj`"
        );
        assert_eq!(
            build(|c| c.target_modules.push("embed_tokens".into())),
            "adapter: no projection of the model is called `embed_tokens`"
        );
        let stored = adapter().parameters().weights().unwrap();
        let mut both = config();
        both.target_modules.push("v_proj".into());
        let error = Adapter::from_weights(&both, &base(), &stored, &Device::Cpu).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("v_proj.lora_A.weight` is missing"),
            "{error}"
        );
    }
}
