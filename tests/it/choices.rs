//! Choosing among tries: what is unfair is refused before anything runs, and the winner's model is handed on.

use crate::space::Space;

/// Two methods, each tried with two learning rates on two tuning seeds.
const TRIES: &str = "
name: tries
params: { seeds: [11, 12], steps: 2, reported: [1, 2] }
stages:
  tree: { kind: generate_tree, params: { symbols: 3, horizon: 3, prompts: 3, spread: 3, hidden_size: 16, num_layers: 1, seed: 1 } }
  ppo:
    matrix: { lr: [1e-4, 3e-2], seed: '${seeds}' }
    kind: train_ppo
    inputs: { policy: tree.policy, reward: tree.reward, data: tree.data }
    params: { steps: '${steps}', batch_size: 4, minibatch_size: 4, optimizer: { lr: '${matrix.lr}' }, max_new_tokens: 3, seed: '${matrix.seed}' }
  rloo:
    matrix: { lr: [1e-4, 3e-2], seed: '${seeds}' }
    kind: train_policy_gradient
    inputs: { policy: tree.policy, reward: tree.reward, data: tree.data }
    params: { objective: rloo, steps: 2, prompts_per_step: 2, completions_per_prompt: 2, optimizer: { lr: '${matrix.lr}' }, max_new_tokens: 3, seed: '${matrix.seed}' }
  samples:
    matrix: { policy: [ppo, rloo], lr: [1e-4, 3e-2], seed: '${seeds}' }
    kind: sample
    inputs: { policy: '${matrix.policy}', prompts: tree.data }
    params: { strategy: sampling, n: 30, samples_per_prompt: 10, max_new_tokens: 3, seed: '${matrix.seed}' }
  scores:
    matrix: { policy: [ppo, rloo], lr: [1e-4, 3e-2], seed: '${seeds}' }
    kind: score
    inputs: { completions: samples, reward: tree.reward, reference: tree.policy }
  chosen:
    kind: choose
    inputs: { scores: 'scores[*]', curves: ['ppo[*].curve', 'rloo[*].curve'] }
    params: { candidate: lr, method: policy, reported: '${reported}' }
  one:
    kind: choose
    inputs: { scores: 'scores[policy=ppo,lr=*,seed=*]', candidates: 'ppo[*]' }
    params: { candidate: lr, hand_on: true }
  again:
    kind: sample
    inputs: { policy: one.best, prompts: tree.data }
    params: { strategy: sampling, n: 30, samples_per_prompt: 10, max_new_tokens: 3, seed: 11 }
";

fn refused(space: &Space, text: &str, set: &[&str]) -> String {
    space.write("p.yaml", text);
    let set = set.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["check", "p.yaml"].into_iter().chain(set).collect();
    let outcome = space.flowgraph(&args);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    // The frame breaks lines.
    let words: Vec<&str> = outcome.stderr.split_whitespace().collect();
    words.join(" ").replace(" │ ", " ")
}

#[test]
fn unfair_tries_are_refused_before_anything_runs() {
    let space = Space::new(TRIES);
    let check = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!(check.code, 0, "{}", check.stderr);
    let said = refused(&space, TRIES, &["steps=3"]);
    let message = "stage `chosen`: tries learn from different numbers of samples: ppo, lr 0.0001 from 12 (`steps` of stage \
        `ppo` is 3); rloo, lr 0.0001 from 8 (`steps` of stage `rloo` is 2)";
    assert!(said.contains(message), "{said}");
    let said = refused(&space, TRIES, &["reported=[1, 12]"]);
    assert!(
        said.contains("stage `chosen`: seed 12 is a try's and is reported"),
        "{said}"
    );
    let fewer = TRIES.replace("policy: [ppo, rloo], lr: [1e-4, 3e-2], seed: '${seeds}' }", "policy: [ppo, rloo], lr: [1e-4, 3e-2], seed: '${seeds}', exclude: [{ policy: rloo, lr: 3e-2 }] }");
    let said = refused(&space, &fewer, &[]);
    assert!(
        said.contains("methods have different numbers of candidates: ppo 2, rloo 1"),
        "{said}"
    );
    let lost = TRIES.replace(
        "curves: ['ppo[*].curve', 'rloo[*].curve']",
        "curves: 'ppo[*].curve'",
    );
    let said = refused(&space, &lost, &[]);
    assert!(
        said.contains("no input of `curves` belongs to [policy=rloo, lr=0.0001, seed=11"),
        "{said}"
    );
    let model = TRIES.replace("candidates: 'ppo[*]'", "candidates: 'ppo[lr=0.03,seed=*]'");
    let said = refused(&space, &model, &[]);
    assert!(
        said.contains(
            "stage `one`: no input of `candidates` belongs to [policy=ppo, lr=0.0001, seed=11"
        ),
        "{said}"
    );
    assert!(!space.path(".flowgraph").exists(), "nothing ran");
}

#[test]
fn axes_that_a_report_would_mix_are_refused_before_anything_runs() {
    let space = Space::new(TRIES);
    for (kind, port, params) in [
        ("plot_profiles", "scores", ""),
        ("plot_histograms", "scores", ""),
        ("metric_table", "scores", ""),
        ("t_test", "scores", "pairs: [{ a: ppo, b: rloo }]"),
        ("semantic_diversity", "completions", "columns: [distinct_1]"),
    ] {
        let stage = format!(
            "{TRIES}  more: {{ kind: {kind}, inputs: {{ {port}: 'scores[*]' }}, params: {{ {params} }} }}\n"
        );
        let said = refused(&space, &stage, &[]);
        assert!(
            said.contains(
                "stage `more`: the inputs have more than one value of the axis `lr`: 0.0001, 0.03"
            ),
            "{kind}: {said}"
        );
    }
    let row = format!(
        "{TRIES}  more: {{ kind: plot_profiles, inputs: {{ scores: 'scores[policy=*,lr=0.03,seed=*]' }}, params: {{ rows: [tb] }} }}\n"
    );
    let said = refused(&space, &row, &[]);
    assert!(
        said.contains("stage `more`: no input is the row `tb`"),
        "{said}"
    );
    assert!(!space.path(".flowgraph").exists(), "nothing ran");
}

#[test]
fn the_model_of_the_winner_is_handed_on() {
    let space = Space::new(TRIES);
    let run = space.flowgraph(&["run", "p.yaml", "-q"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let table: serde_json::Value = serde_json::from_str(
        &space
            .flowgraph(&["show", "p.yaml", "one.table", "--json"])
            .stdout,
    )
    .unwrap();
    let rows = table["rows"].as_array().unwrap();
    let chosen: Vec<&serde_json::Value> =
        rows.iter().filter(|row| row["Chosen"] == "yes").collect();
    assert_eq!(chosen.len(), 1, "{rows:?}");
    assert_eq!(chosen[0]["Rank"], 1);
    // The completions of its first run again: the same model, prompts and seed.
    let lr = &chosen[0]["lr"];
    let completions = |reference: &str, folder: &str| {
        let export = space.flowgraph(&["export", "p.yaml", reference, folder]);
        assert_eq!(export.code, 0, "{}", export.stderr);
        std::fs::read(space.path(folder).join("table.parquet")).unwrap()
    };
    let first = completions(&format!("samples[policy=ppo,lr={lr},seed=11]"), "first");
    assert!(completions("again", "again") == first);
    let other = completions(&format!("samples[policy=ppo,lr={lr},seed=12]"), "other");
    assert!(other != first);
}
