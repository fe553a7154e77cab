//! Low-rank adapters (LoRA, Hu et al. 2021), as the PEFT library has them: with ranks and scales of some projections,
//! trained lengths of rows (DoRA, Liu et al. 2024), and tensors of the model that are trained whole. Starts that change
//! the base (PiSSA, OLoRA, CorDA, LoftQ) are refused.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::kernels::dora::{adapted_weight, row_lengths};
use super::kernels::form::wide;
use super::kernels::sums::spread;
use super::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

mod config;

pub(crate) use config::PREFIX;
use config::Part;
use config::projection;
pub(super) use config::{AdapterTensor, is_named, named};
pub use config::{Biases, LoraConfig};

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

/// What is trained on top of a frozen model, in `f32`.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: LoraConfig,
    parameters: Parameters,
    /// Names of what stands in place of the model's tensors, by the names of these.
    whole: BTreeMap<String, String>,
}

/// The update of a projection.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// (rank, inputs).
    pub(super) a: Tensor,
    /// (outputs, rank).
    pub(super) b: Tensor,
    /// Lengths of the rows of what is adapted, if they are trained: (outputs).
    pub(super) magnitude: Option<Tensor>,
    /// The factor of `B A`.
    pub(super) scale: f64,
}

impl Update {
    /// Returns the same without gradients.
    pub(super) fn detached(&self) -> Self {
        Self {
            a: self.a.detach(),
            b: self.b.detach(),
            magnitude: self.magnitude.as_ref().map(Tensor::detach),
            scale: self.scale,
        }
    }

    /// Returns what the rows of `W + scale B A` are multiplied by, if their lengths are trained: (outputs).
    ///
    /// No gradient passes through the lengths that they have (section 4.3 of the paper).
    pub(super) fn factors(&self, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else {
            return Ok(None);
        };
        let adapted = adapted_weight(weight, &self.a, &self.b, self.scale)?;
        Ok(Some((magnitude / row_lengths(&adapted)?)?))
    }
}

impl Adapter {
    /// Makes an adapter that changes nothing yet: B is zero, and A is normal with PEFT's default variance,
    /// `1 / (3 inputs)`; all else is the model's.
    pub fn init(
        config: &LoraConfig,
        base: &Weights,
        stream: &Stream,
        device: &Device,
    ) -> Result<Self> {
        let tensors = base
            .iter()
            .map(|(name, weight)| (name.as_str(), weight.rank()));
        let config = config.resolved(tensors.clone());
        config.check(tensors)?;
        let (mut weights, mut whole) = (Weights::new(), BTreeMap::new());
        for (of, tensor) in base {
            for AdapterTensor { name, shape, part } in config.tensors(of, tensor.dims()) {
                let own = || tensor.to_dtype(DType::F32)?.to_device(device);
                let first = match part {
                    Part::A => {
                        let mut draws = stream.child(&name).at(0);
                        let std = 1.0 / (3.0 * tensor.dim(1)? as f64).sqrt();
                        let a: Vec<f32> = (0..shape.iter().product())
                            .map(|_| (std * draws.normal()) as f32)
                            .collect();
                        Tensor::from_vec(a, shape, device)?
                    }
                    Part::B => Tensor::zeros(shape, DType::F32, device)?,
                    Part::Magnitude => row_lengths(&own()?)?,
                    Part::Whole => {
                        whole.insert(of.clone(), name.clone());
                        own()?
                    }
                };
                weights.insert(name, first);
            }
        }
        Ok(Self {
            config,
            parameters: Parameters::new(&weights, |_| true)?,
            whole,
        })
    }

    /// Makes an adapter of stored weights, named as in PEFT's files; they must be exactly those that the
    /// configuration has for `base`.
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

    /// Returns what is trained.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns the update of a projection (module name without `.weight`) of the given shape, if it is adapted.
    pub(super) fn update(
        &self,
        module: &str,
        (outputs, inputs): (usize, usize),
    ) -> Result<Option<Update>> {
        let rank = self.config.rank_of(module);
        let get = |end: &str, shape: &[usize]| {
            let name = format!("{PREFIX}{module}.{end}");
            self.parameters.get(&name, shape).cloned()
        };
        let a = match get("lora_A.weight", &[rank, inputs]) {
            Ok(a) => a,
            Err(ParameterError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let magnitude = || get("lora_magnitude_vector", &[outputs]);
        Ok(Some(Update {
            a,
            b: get("lora_B.weight", &[outputs, rank])?,
            magnitude: self.config.use_dora.then(magnitude).transpose()?,
            scale: self.config.scale_of(module),
        }))
    }

    /// Returns what stands in place of a tensor of the model, if anything does.
    pub(super) fn in_place_of(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let own = self.whole.get(name);
        let own = own.map(|own| self.parameters.get(own, shape).cloned());
        Ok(own.transpose()?)
    }

    /// Adds the updates to the weights they adapt, `W + scale B A`, and puts in what is trained whole; wide, however narrow
    /// the frozen weights are: they have no room for what was learnt.
    ///
    /// A tied model must be [untied](LoraConfig::untie) first.
    pub fn merge(&self, base: &Weights) -> Result<Weights> {
        let mut merged = base.clone();
        for (name, weight) in base {
            if let Some(own) = self.in_place_of(name, weight.dims())? {
                merged.insert(name.clone(), own.detach());
            }
            let Some(module) = projection(name, weight.rank()) else {
                continue;
            };
            if let Some(update) = self.update(module, weight.dims2()?)? {
                let weight = &weight.to_dtype(wide(weight.dtype()))?;
                let mut sum = adapted_weight(weight, &update.a, &update.b, update.scale)?;
                if let Some(factors) = update.factors(weight)? {
                    let factors = factors.detach().unsqueeze(1)?;
                    sum = (&sum * spread(&factors, sum.shape())?)?;
                }
                merged.insert(name.clone(), sum);
            }
        }
        Ok(merged)
    }
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
            ..LoraConfig::default()
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
    fn one_word_stands_for_all_linear_layers_of_the_blocks() {
        let read = |targets: &str| {
            let text = format!("{{ rank: 2, alpha: 4, target_modules: {targets} }}");
            serde_yaml::from_str::<LoraConfig>(&text)
        };
        let config = read("all-linear").unwrap();
        assert_eq!(config, read("[all-linear]").unwrap());
        let stream = Stream::new(1, "lora");
        let adapter = Adapter::init(&config, &base(), &stream, &Device::Cpu).unwrap();
        let named = Adapter::init(
            &read("[q_proj, v_proj]").unwrap(),
            &base(),
            &stream,
            &Device::Cpu,
        );
        let named = named.unwrap();
        assert_eq!(adapter.config(), named.config());
        assert_eq!(adapter.parameters().trainable().len(), 4);
        let error = read("all").unwrap_err().to_string();
        assert!(
            error.contains("expected a list of names, or `all-linear`"),
            "{error}"
        );
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
        assert_eq!(
            build(|c| c.rank_pattern = [("v_proj".to_owned(), 3)].into()),
            "adapter: `rank_pattern`: no adapted projection is called `v_proj`"
        );
        assert_eq!(
            build(|c| {
                c.alpha_pattern.insert("q_proj".into(), 3.0);
                c.alpha_pattern.insert("self_attn.q_proj".into(), 3.0);
            }),
            "adapter: `alpha_pattern`: both `q_proj` and `self_attn.q_proj` name `model.layers.0.self_attn.q_proj`, \
             expected one key for each projection"
        );
        assert_eq!(
            build(|c| c.alpha_pattern = [("q_proj".to_owned(), f64::NAN)].into()),
            "adapter: `alpha_pattern.q_proj` is NaN, expected a number"
        );
        assert_eq!(
            build(|c| c.modules_to_save.push("lm_head".into())),
            "adapter: `modules_to_save`: no module of the model is called `lm_head`"
        );
        assert_eq!(
            build(|c| c.modules_to_save.push("attn".into())),
            "adapter: `modules_to_save`: `attn` names `model.layers.0.self_attn.q_proj`, a linear layer of a block, \
             expected modules outside them; put it into `target_modules`"
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

    #[test]
    fn what_is_trained_whole_starts_as_the_model_has_it() {
        let mut base = base();
        let vector = |value: f32| {
            (Tensor::ones(4, DType::F32, &Device::Cpu).unwrap() * f64::from(value)).unwrap()
        };
        base.insert(
            "model.layers.0.self_attn.q_proj.bias".to_owned(),
            vector(3.0),
        );
        base.insert("model.norm.bias".to_owned(), vector(5.0));
        let mut config = config();
        config.use_dora = true;
        config.modules_to_save = vec!["embed_tokens".to_owned()];
        let names = |bias| {
            let config = LoraConfig {
                bias,
                ..config.clone()
            };
            let stream = Stream::new(1, "lora");
            let adapter = Adapter::init(&config, &base, &stream, &Device::Cpu).unwrap();
            let merged = adapter.merge(&base).unwrap();
            for (name, weight) in &base {
                let [found, expected] = [&merged[name], weight]
                    .map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                let off = found.iter().zip(expected).map(|(x, y)| (x - y).abs());
                assert!(off.fold(0.0, f32::max) < 1e-6, "{name}");
            }
            let names = adapter.parameters().trainable().into_iter();
            let names = names.map(|(name, _)| name.strip_prefix(PREFIX).unwrap().to_owned());
            names.collect::<Vec<_>>()
        };
        let query = "model.layers.0.self_attn.q_proj";
        let embedding = "model.embed_tokens.weight".to_owned();
        let factors = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
            .map(|end| format!("{query}.{end}"));
        let all = |others: &[String]| {
            let mut all = [std::slice::from_ref(&embedding), &factors, others].concat();
            all.sort();
            all
        };
        let bias = format!("{query}.base_layer.bias");
        assert_eq!(names(Biases::None), all(&[]));
        assert_eq!(names(Biases::LoraOnly), all(std::slice::from_ref(&bias)));
        assert_eq!(
            names(Biases::All),
            all(&[bias, "model.norm.bias".to_owned()])
        );
        config.bias = Biases::All;
        config.modules_to_save.push("model.norm".to_owned());
        let stream = Stream::new(1, "lora");
        let error = Adapter::init(&config, &base, &stream, &Device::Cpu).unwrap_err();
        assert_eq!(
            error.to_string(),
            "adapter: `bias` is \"all\", and `modules_to_save` names `model.norm`, which has a bias, expected one of the \
             two"
        );
    }
}
