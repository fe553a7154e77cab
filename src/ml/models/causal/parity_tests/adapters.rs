//! Adapters of every kind against PEFT, recorded by `tests/fixtures/models/adapters.py`.

use super::*;
use crate::ml::formats::hugging_face::{PeftAdapter, load_peft_adapter, save_peft_adapter};
use crate::ml::models::fixture::adapter_tensor;

/// Largest difference of a log-probability.
const LOG_PROB: f32 = 1e-5;

const ADAPTERS: [&str; 13] = [
    "peft_bias_all",
    "peft_bias_lora_only",
    "peft_dora",
    "peft_dora_bias",
    "peft_dora_saved",
    "peft_excluded",
    "peft_layers",
    "peft_patterns",
    "peft_patterns_by_name",
    "peft_saved",
    "peft_saved_tied_embedding",
    "peft_saved_tied_head",
    "peft_stabilised",
];

/// A recorded adapter, written as the folder that PEFT had, and the model it is for.
struct Adapted {
    recorded: Recorded,
    folder: tempfile::TempDir,
    architecture: Architecture,
    base: Weights,
    stored: PeftAdapter,
    adapter: Adapter,
}

impl Adapted {
    fn of(name: &'static str) -> Self {
        let recorded = Recorded::of(name);
        let folder = tempfile::tempdir().unwrap();
        let config = recorded.description["adapter_config"].to_string();
        fs_err::write(folder.path().join("adapter_config.json"), config).unwrap();
        let tensors = recorded.description["adapter_tensors"].as_object().unwrap();
        let weights: Weights = tensors
            .iter()
            .map(|(name, shape)| {
                let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
                (name.clone(), adapter_tensor(name, &shape))
            })
            .collect();
        let path = folder.path().join("adapter_model.safetensors");
        save_safetensors(&path, &weights).unwrap();
        let Checkpoint {
            config: mut architecture,
            weights: mut base,
            ..
        } = recorded.load();
        let stored = load_peft_adapter(folder.path(), &architecture);
        let stored = stored.unwrap_or_else(|error| panic!("{name}: {error}"));
        stored.config.untie(&mut architecture, &mut base);
        let adapter =
            Adapter::from_weights(&stored.config, &base, &stored.weights, &Device::Cpu).unwrap();
        Self {
            recorded,
            folder,
            architecture,
            base,
            stored,
            adapter,
        }
    }

    fn model(&self) -> CausalLm {
        let training = Training::Adapter(&self.adapter);
        CausalLm::new(&self.architecture, &self.base, training).unwrap()
    }

    fn merged(&self) -> CausalLm {
        let merged = self.adapter.merge(&self.base).unwrap();
        CausalLm::new(&self.architecture, &merged, Training::Frozen).unwrap()
    }

    fn batch(&self) -> TokenBatch {
        TokenBatch::right_padded(&self.recorded.rows("rows"))
    }

    fn off(&self, name: &str, model: &CausalLm) -> f32 {
        let found = log_probs(model, &self.batch());
        difference(&found, self.recorded.number(name))
    }
}

/// The rows of `pipelines/models.md`.
pub(in crate::ml::models) fn table() -> String {
    let rows = ADAPTERS.map(|name| {
        let adapted = Adapted::of(name);
        let model = adapted.model();
        let (_, found) = gradients(&adapted.recorded, &model, &adapted.batch());
        let slopes = slopes(&adapted.recorded, "", &model, &found);
        let most = largest_of(&slopes);
        let off = slopes.iter().map(|slope| slope.off / most);
        format!(
            "| {} | {:.1e} | {:.1e} | {:.1e} |\n",
            name.trim_start_matches("peft_"),
            adapted.off("log_probs", &model),
            off.fold(0.0, f32::max),
            adapted.off("merged", &adapted.merged()),
        )
    });
    rows.concat()
}

fn for_each_adapter(test: impl Fn(&Adapted) + Copy + std::panic::RefUnwindSafe) {
    for_each_of(&ADAPTERS, |name| test(&Adapted::of(name)));
}

#[test]
fn log_probabilities_and_gradients_are_those_of_peft() {
    for_each_adapter(|adapted| {
        let model = adapted.model();
        let off = adapted.off("log_probs", &model);
        assert!(off <= LOG_PROB, "off by {off}");
        let (loss, found) = gradients(&adapted.recorded, &model, &adapted.batch());
        adapted.recorded.assert("loss", &loss);
        assert_gradients(&adapted.recorded, "", &model, &found);
    });
}

#[test]
fn merged_adapters_are_those_of_peft() {
    for_each_adapter(|adapted| {
        let off = adapted.off("merged", &adapted.merged());
        assert!(off <= LOG_PROB, "off by {off}");
    });
}

#[test]
fn adapted_models_decode_as_in_transformers() {
    for_each_adapter(|adapted| {
        let prompts = adapted.recorded.rows("rows");
        let options = GenerateOptions::new(12, &[]);
        let stream = Stream::new(1, "decoding");
        let go_on = &mut |_| ControlFlow::Continue(());
        let (model, keys) = (adapted.model(), [0, 1]);
        let strategy = Strategy::Greedy;
        let rows = generate(&model, &prompts, &options, &strategy, &stream, &keys, go_on).unwrap();
        for ((prompt, row), expected) in prompts
            .iter()
            .zip(rows)
            .zip(adapted.recorded.rows("greedy"))
        {
            assert_eq!(row.tokens, expected);
            // What was decoded with memory, and with all that follows from the weights worked out once, has the bits of
            // a whole pass.
            let whole = [prompt.as_slice(), &row.tokens].concat();
            let whole = log_probs(&model, &TokenBatch::right_padded(&[whole]));
            let whole = whole.get(0).unwrap().to_vec1::<f32>().unwrap();
            assert!(are_same(&row.log_probs, &whole[prompt.len() - 1..]));
        }
    });
}

#[test]
fn adapters_are_written_so_that_they_are_the_same_again() {
    for_each_adapter(|adapted| {
        let copy = tempfile::tempdir().unwrap();
        let stored = PeftAdapter {
            config: adapted.adapter.config().clone(),
            weights: adapted.adapter.parameters().weights().unwrap(),
            score: None,
        };
        save_peft_adapter(copy.path(), &stored).unwrap();
        let bytes = |folder: &tempfile::TempDir| {
            fs_err::read(folder.path().join("adapter_model.safetensors")).unwrap()
        };
        assert!(bytes(&copy) == bytes(&adapted.folder));
        let again = load_peft_adapter(copy.path(), &adapted.recorded.load().config).unwrap();
        assert_eq!(again.config, adapted.stored.config);
        // Continued, it is the same adapter.
        let lora: LoraConfig =
            serde_json::from_value(serde_json::to_value(&again.config).unwrap()).unwrap();
        assert_eq!(lora, again.config);
    });
}
