//! Problems of arithmetic from the world to the table: trained on, sampled, rewarded by rules, counted in several attempts.

use flowgraph::artifacts::table::Table;

use crate::space::Space;

const PIPELINE: &str = r#"
name: arithmetic
stages:
  world:
    kind: generate_world
    params: { form: arithmetic, template: "{question} :", seed: 1, finetune_pairs: 400, reward_pairs: 20, rl_questions: 20 }
  tokenizer:
    kind: train_tokenizer
    inputs: { data: [world.finetune, world.evaluation] }
    params: { algorithm: word_level, vocab_size: 64 }
  start:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 40, seed: 1 }
  sft:
    kind: train_sft
    inputs: { model: start, data: world.finetune }
    params: { steps: 60, batch_size: 16, optimizer: { lr: 2e-2 }, seed: 1 }
  rule:
    kind: reward_rule
    inputs: { data: world.evaluation }
    params: { rule: { arithmetic: {} }, wrong: -0.5, malformed: -1 }
  sums: { kind: reward_rule, params: { rule: { regex: { pattern: "\\d \\+ \\d" } } } }
  first:
    kind: reward_rule
    inputs: { data: world.evaluation }
    params: { rule: { exact: { extract: "^(\\d+)", numbers: true } } }
  samples:
    matrix: { policy: [sft, start], seed: [1, 2] }
    kind: sample
    inputs: { policy: "${matrix.policy}", prompts: world.evaluation }
    params: { strategy: sampling, n: 64, samples_per_prompt: 16, max_new_tokens: 18, seed: "${matrix.seed}" }
  scored:
    matrix: { policy: [sft, start], seed: [1, 2] }
    kind: score
    inputs: { completions: samples, reward: rule }
  summed:
    matrix: { policy: [sft, start], seed: [1, 2] }
    kind: score
    inputs: { completions: samples, reward: sums }
  led: { kind: score, inputs: { completions: "samples[policy=sft,seed=1]", reward: first } }
  exact:
    matrix: { policy: [sft, start], seed: [1, 2] }
    kind: score_world
    inputs: { completions: scored }
  table:
    kind: metric_table
    inputs: { scores: "summed[*]" }
    params: { k: [1, 4, 16], top_k: 4, replicates: 200 }
  answers: { kind: enumerate_answers, inputs: { prompts: world.evaluation }, params: { n: 6 } }
  answer_rewards: { kind: score, inputs: { completions: answers, reward: rule } }
  answer_scores:
    matrix: { policy: [sft, start], seed: [1] }
    kind: score_policy
    inputs: { completions: answer_rewards, policy: "${matrix.policy}" }
  distances: { kind: target_distance, inputs: { scores: "answer_scores[*]" }, params: { scales: [1] } }
  judged:
    kind: judge
    inputs: { completions: "samples[policy=sft,seed=1]", opponent: world.evaluation, reward: rule }
    params: { judge: { kind: reward_model } }
"#;

fn table(space: &Space, stage: &str, output: &str) -> Table {
    let record = space.record(stage);
    let folder = tempfile::tempdir().unwrap();
    let artifact = &record.outputs[output];
    space.store().lay_out(artifact, folder.path()).unwrap();
    Table::read(folder.path()).unwrap()
}

#[test]
fn problems_are_solved_rewarded_and_counted() {
    let space = Space::new(PIPELINE);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}\n{}", report.events, report.stderr);
    // The rule and the world agree about every completion.
    let exact = table(&space, "exact[policy=sft,seed=1]", "scores");
    let rewards = exact.all_numbers("reward").unwrap();
    let right = exact.all_numbers("exact_reward").unwrap();
    for (reward, right) in rewards.iter().zip(&right) {
        assert_eq!(*reward == 1.0, *right == 1.0);
    }
    // Some are wrong, others no derivation at all.
    assert!(
        rewards.contains(&-0.5) && rewards.contains(&-1.0),
        "{rewards:?}"
    );
    // What is extracted is the answer.
    let first = table(&space, "led", "scores");
    let answers = first.texts("answer").unwrap();
    let answers = answers.iter().flatten();
    let rewards = first.all_numbers("reward").unwrap();
    assert!(answers.clone().all(|answer| answer.parse::<u32>().is_ok()));
    assert!(rewards.contains(&1.0) && answers.count() > 0);

    let per_seed = table(&space, "table", "per_seed");
    let column = |name: &str| per_seed.all_numbers(name).unwrap();
    let (one, four, sixteen) = (column("pass@1"), column("pass@4"), column("pass@16"));
    for run in 0..4 {
        assert!((one[run] - column("Mean")[run]).abs() < 1e-12);
        assert!((column("max@4")[run] - four[run]).abs() < 1e-12);
        assert!(one[run] <= four[run] && four[run] <= sixteen[run]);
    }
    assert!(
        one[0] > 0.0 && one[0] < four[0] && four[0] < 1.0,
        "{one:?} {four:?}"
    );
    assert!(column("Distinct right")[0] <= 16.0);

    // Each enumerated derivation is right, and what a policy gives to all others is outside.
    let answers = table(&space, "answer_scores[policy=sft,seed=1]", "scores");
    assert!(
        answers
            .all_numbers("reward")
            .unwrap()
            .iter()
            .all(|reward| *reward == 1.0)
    );
    let log_probs = answers.all_numbers("log_prob").unwrap();
    let inside = log_probs.iter().map(|value| libm::exp(*value)).sum::<f64>() / 6.0;
    let distances = table(&space, "distances", "table");
    let outside = distances.all_numbers("Mass outside").unwrap()[0];
    assert!((1.0 - inside - outside).abs() < 1e-9, "{inside} {outside}");
    assert!(inside > 0.0 && inside < 1.0);
    // Training moves mass to them.
    let of = |column: &str| distances.all_numbers(column).unwrap();
    assert!(of("TV exact x1")[0] < of("TV exact x1")[1]);

    let judged = table(&space, "judged", "judgements");
    let verdicts = judged.all_texts("verdict").unwrap();
    // The opponents are right: nobody wins.
    assert!(
        verdicts
            .iter()
            .all(|verdict| verdict == "loss" || verdict == "tie")
    );
    assert!(verdicts.iter().any(|verdict| verdict == "loss"));

    let second = space.flowgraph(&["run", "p.yaml"]);
    assert!(
        second.stderr.contains("31 stages: 31 cached"),
        "{}",
        second.stderr
    );
}

#[test]
fn more_attempts_than_samples_are_refused_before_anything_runs() {
    let text = PIPELINE.replace("k: [1, 4, 16]", "k: [1, 17]");
    let report = Space::new(&text).flowgraph(&["run", "p.yaml"]);
    assert_eq!(report.code, 3, "{}", report.stderr);
    let stderr = &report.stderr;
    assert!(
        stderr.contains("17") && stderr.contains("16 completions of a prompt"),
        "{stderr}"
    );
    assert!(stderr.contains("samples_per_prompt"), "{stderr}");
}

#[test]
fn a_rule_that_rewards_no_right_answer_fails_with_a_hint() {
    let text = PIPELINE.replace(r#"extract: "^(\\d+)""#, r#"extract: "answer (.+)""#);
    let report = Space::new(&text).flowgraph(&["run", "p.yaml", "--only", "first"]);
    assert_eq!(report.code, 1, "{}", report.stderr);
    let stderr = &report.stderr;
    assert!(
        stderr.contains("no answer can be taken out of any of"),
        "{stderr}"
    );
    assert!(stderr.contains("look at `extract`"), "{stderr}");
}

#[test]
fn a_reward_rule_is_no_reward_model_and_the_other_way_round() {
    let text = PIPELINE.replace("reward: sums }", "reward: sft }");
    let report = Space::new(&text).flowgraph(&["run", "p.yaml", "--only", "summed"]);
    assert_eq!(report.code, 3, "{}", report.stderr);
    assert!(report.stderr.contains("reward_rule"), "{}", report.stderr);
}
