use serde_json::json;

use super::*;
use crate::artifacts::completions::{CompletionRow, to_table};
use crate::engine::context::Labels;
use crate::stages::report::groups::group;
use crate::stages::report::groups::tests::labels;
use crate::stages::report::repeats::tests::repeat;

fn kind(params: serde_json::Value) -> SemanticDiversity {
    serde_json::from_value(params).unwrap()
}

/// Completions as pairs of question and text, with an embedding of two numbers each.
fn scored(completions: &[(u64, &str, [f32; 2])]) -> Scored {
    let rows: Vec<CompletionRow> = completions
        .iter()
        .enumerate()
        .map(|(at, (question, text, _))| CompletionRow {
            question_id: *question,
            sample: at as u64,
            completion: (*text).to_owned(),
            tokens: Some(at as u64 + 1),
            ..CompletionRow::default()
        })
        .collect();
    let mut table = to_table("completions", &rows);
    let entropies = (0..rows.len()).map(|at| Some(at as f64 / 10.0));
    table.number_column("entropy", 3, entropies);
    let mut scored = Scored::new(table).unwrap();
    let values = completions
        .iter()
        .flat_map(|(.., vector)| *vector)
        .collect();
    let texts = EmbeddingMatrix {
        values,
        dimension: 2,
    };
    scored.embed(texts, None).unwrap();
    scored
}

/// Question 7 has three completions, question 3 two; they alternate.
fn two_prompts() -> Scored {
    scored(&[
        (7, "a b a", [2.0, 0.0]),
        (3, "the cat sat on the mat", [1.0, 1.0]),
        (7, "a b", [0.0, 5.0]),
        (7, "c", [-1.0, 0.0]),
        (3, "the cat sat on the mat", [3.0, 3.0]),
    ])
}

fn run_of(policy: &str, seed: &str, content: Measured) -> (Labels, Measured) {
    (labels(&[("policy", policy), ("seed", seed)]), content)
}

fn rows(kind: &SemanticDiversity, items: Vec<(Labels, Measured)>) -> Vec<Row<Measured>> {
    group(items, kind.grouping(), false).unwrap()
}

fn one(table: &Table, column: &str) -> f64 {
    table.numbers(column).unwrap()[0].unwrap()
}

#[test]
fn measures_are_taken_within_prompts_and_averaged_over_them() {
    let all = json!({ "columns": [
        "semantic_diversity", "distinct_1", "distinct_2", "self_bleu", "vendi", "tokens", "entropy"
    ] });
    let kind = kind(all);
    let measured = kind.measure(&two_prompts()).unwrap();
    assert_eq!((measured.completions, measured.count()), (5, 2));
    let close = |found: f64, expected: f64| {
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    };
    let at = |column: usize, prompt: usize| measured.prompts[column][prompt];
    // Cosines of question 7 by hand: 0, -1, 0; of question 3: 1.
    close(at(0, 0), 1.0 + 1.0 / 3.0);
    close(at(0, 1), 0.0);
    close(at(1, 0), 3.0 / 6.0);
    close(at(1, 1), 5.0 / 12.0);
    close(at(2, 0), 2.0 / 3.0);
    close(at(3, 1), 1.0);
    // Eigenvalues of question 7: 2/3 and 1/3.
    close(at(4, 0), (1.5f64.ln() * 2.0 / 3.0 + 3f64.ln() / 3.0).exp());
    close(at(5, 0), 8.0 / 3.0);
    // Tokens 1, 3, 4 with entropies 0, 0.2, 0.3.
    close(at(6, 0), (0.6 + 1.2) / 8.0);
    let table = kind.table(&rows(&kind, vec![run_of("dpo", "1", measured)]));
    let table = table.unwrap();
    close(one(&table, "Semantic diversity"), 2.0 / 3.0);
    // (4/3 - 0) / sqrt(2) / sqrt(2)
    close(one(&table, "Semantic diversity se"), 2.0 / 3.0);
    assert_eq!((one(&table, "Prompts"), one(&table, "n")), (2.0, 5.0));
    let bounds = ["low", "high"].map(|end| one(&table, &format!("Semantic diversity {end}")));
    close(bounds[0], 0.0);
    close(bounds[1], 4.0 / 3.0);
    assert!(!table.has("Runs") && !table.has("Tokens low"));
}

#[test]
fn runs_are_averaged_and_stand_one_by_one_beside() {
    let kind = kind(json!({
        "columns": ["semantic_diversity", "tokens"],
        "reference_values": { "dpo": { "semantic_diversity": 0.353 } },
        "row_names": { "dpo": "DPO" }
    }));
    let run = |values: [f64; 2]| Measured {
        completions: 8,
        keys: vec![(1, "one".to_owned()), (2, "two".to_owned())],
        prompts: vec![values.to_vec(), vec![3.0, 5.0]],
    };
    let items = vec![
        run_of("dpo", "1", run([0.2, 0.4])),
        run_of("dpo", "2", run([0.4, 0.8])),
        run_of("gdpo", "1", run([0.7, 0.7])),
    ];
    let rows = rows(&kind, items);
    let table = kind.table(&rows).unwrap();
    assert_eq!(table.all_texts("policy").unwrap(), ["DPO", "gdpo"]);
    assert!((one(&table, "Semantic diversity") - 0.45).abs() < 1e-12);
    assert!((one(&table, "Semantic diversity sd") - 0.3 / 2f64.sqrt()).abs() < 1e-12);
    assert_eq!(table.numbers("Semantic diversity sd").unwrap()[1], None);
    let reported = table.numbers("Semantic diversity (paper)").unwrap();
    assert_eq!(reported, [Some(0.353), None]);
    let (low, high) = (
        one(&table, "Semantic diversity low"),
        one(&table, "Semantic diversity high"),
    );
    assert!((0.2..0.35).contains(&low) && (0.55..0.81).contains(&high));
    let per_seed = kind.per_seed(&rows).unwrap();
    assert_eq!(per_seed.all_texts("seed").unwrap(), ["1", "2", "1"]);
    let errors = per_seed.all_numbers("Semantic diversity se").unwrap();
    assert!((errors[0] - 0.1).abs() < 1e-12 && errors[2] == 0.0);
    // Equal inputs give equal bytes; another seed of the bootstrap other bounds.
    assert_eq!(kind.table(&rows).unwrap(), table);
}

#[test]
fn prompts_that_all_runs_share_are_drawn_once_for_all() {
    let kind = kind(json!({ "columns": ["semantic_diversity"] }));
    // Half of the prompts have diverse completions: the same ones in each run, or others than in the run before.
    let width = |apart: u64| {
        let runs = (0..4).map(|seed| {
            let diverse = |prompt: u64| f64::from(u8::from((prompt + seed * apart) % 40 < 20));
            let content = Measured {
                completions: 80,
                keys: (0..40).map(|prompt| (prompt, String::new())).collect(),
                prompts: vec![(0..40).map(diverse).collect()],
            };
            run_of("dpo", &seed.to_string(), content)
        });
        let table = kind.table(&rows(&kind, runs.collect())).unwrap();
        one(&table, "Semantic diversity high") - one(&table, "Semantic diversity low")
    };
    let (same, others) = (width(0), width(10));
    // 2 x 1.96 x sqrt(1 / 4 / 40)
    assert!((same - 0.31).abs() < 0.02, "{same}");
    assert!(others < 0.7 * same, "{others} {same}");
}

#[test]
fn prompts_that_runs_do_not_share_are_told() {
    let kind = kind(json!({ "columns": ["semantic_diversity"] }));
    let notes = |last: u64| {
        let runs = [("1", 2), ("2", last)].map(|(seed, last)| {
            let content = Measured {
                completions: 4,
                keys: [1, last].map(|prompt| (prompt, String::new())).into(),
                prompts: vec![vec![0.5, 0.25]],
            };
            run_of("dpo", seed, content)
        });
        kind.table(&rows(&kind, runs.into()))
            .unwrap()
            .notes
            .join("\n")
    };
    let (same, other) = (notes(2), notes(3));
    assert!(same.contains("the prompts that they share;"), "{same}");
    assert!(!same.contains("different questions"), "{same}");
    assert!(other.contains("(seed) and prompts;"), "{other}");
    assert!(other.contains("dpo, seed 1 (2) and dpo, seed 2 (2) have 1 in common."));
}

#[test]
fn prompts_with_one_completion_are_named() {
    let kind = kind(json!({}));
    let error = kind.measure(&scored(&[
        (7, "a", [1.0, 0.0]),
        (3, "b", [1.0, 0.0]),
        (7, "c", [1.0, 0.0]),
        (9, "d", [1.0, 0.0]),
    ]));
    let Err(StageError::Failed { message, hint }) = error else {
        panic!("no error");
    };
    assert!(message.ends_with("question_id 3, 9"), "{message}");
    assert!(hint.unwrap().contains("samples_per_prompt"));
}

#[test]
fn params_are_checked() {
    let parse = |params| serde_json::from_value::<SemanticDiversity>(params);
    assert!(parse(json!({ "columns": ["distinct_4"] })).is_err());
    assert_eq!(kind(json!({ "columns": [] })).validate().len(), 1);
    let hidden =
        json!({ "columns": ["tokens"], "level": 95, "reference_values": { "a": { "vendi": 2 } } });
    assert_eq!(kind(hidden).validate().len(), 2);
}

#[test]
fn runs_that_are_one_and_the_same_count_once() {
    let kind = kind(json!({ "columns": ["semantic_diversity"] }));
    let seeds = ["1", "2", "3"];
    let items = seeds.map(|seed| run_of("dpo", seed, kind.measure(&two_prompts()).unwrap()));
    let mut rows = rows(&kind, items.into());
    assert_eq!(
        kind.table(&rows).unwrap().all_numbers("Runs").unwrap(),
        [3.0]
    );
    repeat(&mut rows[0]);
    let table = kind.table(&rows).unwrap();
    assert!(!table.has("Runs") && table.has("Semantic diversity se"));
    assert_eq!(table.all_numbers("Prompts").unwrap(), [2.0]);
    let note = "dpo: runs that are one and the same, byte by byte, count once: seed 1 = 2 = 3.";
    assert!(
        table.notes.iter().any(|told| told == note),
        "{:?}",
        table.notes
    );
}
