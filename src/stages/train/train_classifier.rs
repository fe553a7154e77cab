//! `train_classifier`: a text classifier from an encoder and texts with classes.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::micro_batch::MicroBatch;
use super::training::{self, Course, NO_LABELS, OptimizerParams};
use crate::artifacts::curve::CURVE;
use crate::artifacts::labelled_texts::{LABELLED_TEXTS, LabelledText, read};
use crate::artifacts::table::{TABLE, Table};
use crate::artifacts::text_encoder::{
    ClassifierMetrics, TEXT_CLASSIFIER, TEXT_ENCODER, TextClassifier, TextEncoder, save,
};
use crate::engine::context::RunContext;
use crate::engine::stage::{Continuation, GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::formats::hugging_face::EncoderCheckpoint;
use crate::ml::models::encoder::{ClassifierHead, EncoderClassifier};
use crate::ml::parameters::device_of;
use crate::ml::placement::Precision;
use crate::ml::trainer::classifier::{
    ClassifiedTokens, ClassifierOptions, ClassifierTrainer, balanced_weights,
};
use crate::random::Stream;
use crate::stages::passes;
use crate::stages::placement::placement;
use crate::stages::ranges::at_least_one;

/// Trains a classification head on a text encoder, and the encoder with it, and measures both on test sets.
///
/// The head is linear, on the mean of the last hidden states.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainClassifier {
    /// Optimizer steps.
    #[schemars(extend("also" = ["epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"]))]
    steps: u64,
    /// Texts in a step.
    #[schemars(extend("also" = ["train_batch_size", "per_device_train_batch_size"]))]
    batch_size: usize,
    /// Texts in a forward pass; all texts of a step if absent. `auto` begins with
    /// all texts of a step, and halves them each time that the GPU has no room for them.
    #[serde(default)]
    micro_batch: Option<MicroBatch>,
    /// AdamW and its schedule.
    optimizer: OptimizerParams,
    /// What is trained.
    #[serde(default)]
    train: Trained,
    /// Whether every class counts the same, however many texts it has.
    #[serde(default)]
    balanced: bool,
    /// Longer texts are cut.
    #[serde(default)]
    #[schemars(extend("also" = ["max_length", "max_seq_length"]))]
    max_tokens: Option<usize>,
    /// Seed of the head and of the order of texts.
    seed: u64,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// Encoder and head.
    #[default]
    All,
    /// The head; the encoder stays as it is.
    Head,
}

/// Tokens in a forward pass of an evaluation.
const BATCH_TOKENS: usize = 4096;

impl Kind for TrainClassifier {
    const NAME: &'static str = "train_classifier";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str =
        "{ steps: 300, batch_size: 32, optimizer: { lr: 5e-5 }, balanced: true, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("encoder", &[TEXT_ENCODER], "the encoder to start from"),
            Port::one("data", &[LABELLED_TEXTS], "texts to learn from"),
            Port::many("test", &[LABELLED_TEXTS], "test sets of the same classes").labelled(),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![
            Output::new("classifier", TEXT_CLASSIFIER),
            Output::new("table", TABLE),
            Output::new("curve", CURVE),
        ]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, value) in [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("max_tokens", self.max_tokens.unwrap_or(1) as u64),
        ] {
            at_least_one(key, value, &mut problems);
        }
        self.optimizer.validate("optimizer", &mut problems);
        problems
    }

    fn continuation(&self) -> Option<Continuation> {
        training::continuation(self.steps, &NO_LABELS, &self.optimizer)
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let device = placement(ctx, Precision::F32)?.device;
        let TextEncoder {
            checkpoint,
            tokenizer,
            encoder,
        } = TextEncoder::load_at(&ctx.input("encoder")?.path, &device)?;
        let data = read(&ctx.input("data")?.path)?;
        let labels: Vec<String> = data
            .iter()
            .map(|row| row.label.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if labels.len() < 2 {
            return Err(StageError::new(format!(
                "the texts have {} classes, a classifier needs at least 2",
                labels.len()
            )));
        }
        let texts: Vec<&str> = data.iter().map(|row| row.text.as_str()).collect();
        let longest = self
            .max_tokens
            .unwrap_or(usize::MAX)
            .min(checkpoint.config.max_tokens());
        let cut = tokenizer.clone().truncated_to(longest)?;
        let tokens = ctx.pass("texts read", &texts, passes::TEXTS, |texts| {
            encoder.encode_texts(&cut, texts)
        })?;
        let rows = tokens
            .into_iter()
            .zip(&data)
            .filter_map(|(mut tokens, row)| {
                tokens.truncate(longest);
                let class = labels.iter().position(|label| *label == row.label)?;
                Some(ClassifiedTokens { tokens, class })
            })
            .collect::<Vec<_>>();
        let tests = tests(ctx, &labels)?;
        let stream = Stream::new(self.seed, "train_classifier");
        let head = ClassifierHead::mean(labels.len());
        let mut weights = checkpoint.weights.clone();
        weights.extend(head.init(&checkpoint.config, &stream, &device_of(&weights))?);
        let classifier = EncoderClassifier::new(&checkpoint.config, &head, &weights, |name| {
            self.train == Trained::All || ClassifierHead::is_part(name)
        })?;
        let options = ClassifierOptions {
            batch_size: self.batch_size,
            micro_batch: MicroBatch::rows(self.micro_batch, self.batch_size),
            optimizer: self.optimizer.options(self.steps),
            class_weights: if self.balanced {
                balanced_weights(&rows, labels.len())
            } else {
                vec![1.0; labels.len()]
            },
        };
        let mut trainer = ClassifierTrainer::new(classifier, rows, options, &stream)?;
        let course = Course {
            is_evaluated: true,
            halves: MicroBatch::halves(self.micro_batch),
            ..Course::new("text classifier", self.steps, &self.optimizer)
        };
        let result = course.train(&mut trainer, ctx)?;
        weights.extend(result.end);
        let trained = EncoderCheckpoint {
            sentence: None,
            head: Some(head),
            labels,
            weights,
            ..checkpoint
        };
        let output = ctx.output("classifier")?;
        save(&output, &trained, None)?;
        let classifier = TextClassifier::load_at(&output, &device)?;
        let mut measured = Vec::new();
        for (name, test) in tests {
            measured.push((name, measure(&classifier, &test, ctx)?));
        }
        for (name, metrics) in &measured {
            ctx.note(&format!(
                "{name}: accuracy {:.3} (the most frequent class: {:.3}), macro F1 {:.3} on {} texts",
                metrics.accuracy, metrics.majority, metrics.macro_f1, metrics.texts
            ));
        }
        save(
            &output,
            &trained,
            measured.first().map(|(_, metrics)| metrics),
        )?;
        table(&measured).write(&ctx.output("table")?)?;
        Ok(result.curve.write(&ctx.output("curve")?)?)
    }
}

/// Reads the test sets, by name; what they cannot be measured with is found before the training.
fn tests(
    ctx: &RunContext,
    labels: &[String],
) -> Result<Vec<(String, Vec<LabelledText>)>, StageError> {
    let mut tests = Vec::new();
    for input in ctx.inputs("test") {
        let name: Vec<String> = input.labels.values().cloned().collect();
        let name = name.join(" ");
        let test = read(&input.path)?;
        if test.is_empty() {
            return Err(StageError::new(format!("the test set {name} is empty")));
        }
        if let Some(row) = test.iter().find(|row| !labels.contains(&row.label)) {
            return Err(StageError::new(format!(
                "the test set {name} has the class `{}`, the training texts have {}",
                row.label,
                labels.join(", ")
            )));
        }
        tests.push((name, test));
    }
    Ok(tests)
}

fn measure(
    classifier: &TextClassifier,
    test: &[LabelledText],
    ctx: &mut RunContext,
) -> Result<ClassifierMetrics, StageError> {
    let texts: Vec<String> = test.iter().map(|row| row.text.clone()).collect();
    let part = passes::texts_at_once(&texts);
    let logits = ctx.pass("texts of the test set", &texts, part, |texts| {
        classifier.logits(texts, BATCH_TOKENS)
    })?;
    let mut pairs = Vec::with_capacity(test.len());
    for (row, logits) in test.iter().zip(logits) {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        pairs.push((classifier.class(&row.label)?, best.unwrap_or(0)));
    }
    Ok(metrics(&pairs, &classifier.labels))
}

/// Compares classes with predicted ones.
fn metrics(pairs: &[(usize, usize)], labels: &[String]) -> ClassifierMetrics {
    let count = |matches: &dyn Fn(&(usize, usize)) -> bool| {
        pairs.iter().filter(|pair| matches(pair)).count() as f64
    };
    let texts = pairs.len() as f64;
    let f1: Vec<(String, f64)> = labels
        .iter()
        .enumerate()
        .map(|(class, label)| {
            let hits = count(&|pair| *pair == (class, class));
            let named = count(&|pair| pair.0 == class) + count(&|pair| pair.1 == class);
            // F1 = 2 hits / (true + predicted); a class that nobody names has none to miss.
            (
                label.clone(),
                if named > 0.0 { 2.0 * hits / named } else { 0.0 },
            )
        })
        .collect();
    let shares = (0..labels.len()).map(|class| count(&|pair| pair.0 == class) / texts);
    ClassifierMetrics {
        texts: pairs.len(),
        accuracy: count(&|pair| pair.0 == pair.1) / texts,
        majority: shares.fold(0.0, f64::max),
        macro_f1: f1.iter().map(|(_, value)| value).sum::<f64>() / f1.len() as f64,
        f1,
    }
}

fn table(measured: &[(String, ClassifierMetrics)]) -> Table {
    let mut table = Table::new("Text classifier on test sets");
    let numbers = |value: &dyn Fn(&ClassifierMetrics) -> f64| -> Vec<Option<f64>> {
        measured
            .iter()
            .map(|(_, metrics)| Some(value(metrics)))
            .collect()
    };
    table.text_column(
        "test set",
        measured.iter().map(|(name, _)| Some(name.clone())),
    );
    table.whole_column("texts", numbers(&|metrics| metrics.texts as f64));
    table.number_column("accuracy", 3, numbers(&|metrics| metrics.accuracy));
    table.number_column(
        "most frequent class",
        3,
        numbers(&|metrics| metrics.majority),
    );
    table.number_column("macro F1", 3, numbers(&|metrics| metrics.macro_f1));
    if let Some((_, first)) = measured.first() {
        for (class, (label, _)) in first.f1.iter().enumerate() {
            table.number_column(
                format!("F1 {label}"),
                3,
                numbers(&|metrics| metrics.f1[class].1),
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_those_of_scikit_learn() {
        // from sklearn.metrics import accuracy_score, f1_score
        // t, p = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
        // accuracy_score(t, p), f1_score(t, p, average=None), f1_score(t, p, average="macro")
        let pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (2, 0)];
        let labels = ["a", "b", "c"].map(str::to_owned);
        let found = metrics(&pairs, &labels);
        assert_eq!((found.accuracy, found.majority), (0.5, 0.5));
        let f1: Vec<f64> = found.f1.iter().map(|(_, value)| *value).collect();
        for (found, expected) in f1.iter().zip([4.0 / 7.0, 0.5, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{f1:?}");
        }
        assert!((found.macro_f1 - 0.357_142_857_142_857_1).abs() < 1e-12);
    }
}
