//! Small scored completions for tests.

use std::collections::BTreeMap;

use super::groups::tests::labels;
use super::groups::{Grouping, Row, group};
use super::scored::Scored;
use crate::artifacts::completions::{CompletionRow, to_table};
use crate::artifacts::curve::{Curve, Status, TrainingSummary};
use crate::engine::context::Labels;
use crate::random::Stream;

/// Normal rewards, one sample of each question, that say which policy and seed they are of.
pub(super) fn scored(policy: &str, seed: u64, center: f64, n: usize) -> (Labels, Scored) {
    let noise = Stream::new(seed, "questions");
    let own = Stream::new(seed, policy);
    let rewards: Vec<f64> = (0..n as u64)
        .map(|question| {
            center + 0.3 * noise.at(question).normal() + 0.3 * own.at(question).normal()
        })
        .collect();
    let completions: Vec<String> = (0..n)
        .map(|at| format!("{policy} says word{} and word{}", at % 7, at % 3))
        .collect();
    (
        labels(&[
            ("policy", policy),
            ("seed", &seed.to_string()),
            ("stage", "scored"),
        ]),
        with_rewards(&rewards, &completions),
    )
}

/// Completions with these rewards, one sample of each question.
pub(super) fn with_rewards(rewards: &[f64], completions: &[String]) -> Scored {
    let rows: Vec<CompletionRow> = completions
        .iter()
        .enumerate()
        .map(|(at, completion)| CompletionRow {
            question_id: at as u64 + 100,
            question: format!("question {at}"),
            prompt: format!("Question: question {at}\n\nAnswer: "),
            completion: completion.clone(),
            tokens: Some(3),
            truncated: at % 4 == 0,
            ..CompletionRow::default()
        })
        .collect();
    let mut table = to_table("scores", &rows);
    table.number_column("reward", 3, rewards.iter().map(|reward| Some(*reward)));
    table.text_column(
        "mode",
        (0..rewards.len()).map(|at| Some(format!("mode {}", at % 2))),
    );
    Scored::new(table).unwrap()
}

/// Groups by policy and seed.
pub(super) fn rows<T>(items: Vec<(Labels, T)>) -> Vec<Row<T>> {
    let names = BTreeMap::new();
    let grouping = Grouping {
        row: &["policy".to_owned()],
        aggregate: "seed",
        names: &names,
    };
    group(items, grouping, true).unwrap()
}

/// A training of a stage: a metric `loss` that falls from the seed to zero.
pub(super) fn curve(stage: &str, seed: u64, status: Status, flops: f64) -> (Labels, Curve) {
    let steps: Vec<u64> = (0..4).collect();
    let loss = steps
        .iter()
        .map(|step| Some(seed as f64 * (3 - step) as f64))
        .collect();
    let curve = Curve {
        title: stage.to_owned(),
        steps,
        metrics: [("loss".to_owned(), loss)].into_iter().collect(),
        summary: TrainingSummary {
            status,
            reason: None,
            steps: 4,
            trained_tokens: 1000 * seed,
            generated_tokens: 10,
            flops,
            trained_parameters: 77,
        },
    };
    let stage = format!("{stage}.curve");
    (
        labels(&[("seed", &seed.to_string()), ("stage", &stage)]),
        curve,
    )
}
