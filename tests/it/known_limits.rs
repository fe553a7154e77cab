//! What params tell of inputs before they are made is checked before anything runs.

use crate::space::Space;

/// A tree of three prompts of one token, completions of up to three tokens: a context of six.
const STAGES: &str = "
name: n
params: { n: 3, samples: 1, horizon: 3, top_k: 2 }
stages:
  tree: { kind: generate_tree, params: { symbols: 3, horizon: 3, prompts: 3, spread: 3, hidden_size: 16, num_layers: 1, seed: 1 } }
  trained:
    kind: train_ppo
    inputs: { policy: tree.policy, reward: tree.reward, data: tree.data }
    params: { steps: 1, batch_size: 2, minibatch_size: 2, optimizer: { lr: 1e-3 }, max_new_tokens: 3, seed: 1 }
  samples:
    kind: sample
    inputs: { policy: trained, prompts: tree.data }
    params: { strategy: sampling, n: '${n}', samples_per_prompt: '${samples}', max_new_tokens: '${horizon}' }
  scores: { kind: score, inputs: { completions: samples, reward: tree.reward } }
  table: { kind: metric_table, inputs: { scores: scores }, params: { top_k: '${top_k}' } }
";

fn checked(space: &Space, set: &[&str]) -> (i32, String) {
    let set = set.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["check", "p.yaml"].into_iter().chain(set).collect();
    let outcome = space.flowgraph(&args);
    // The frame breaks lines.
    let words: Vec<&str> = outcome.stderr.split_whitespace().collect();
    (outcome.code, words.join(" ").replace(" │ ", " "))
}

#[test]
fn what_can_work_is_not_refused() {
    let space = Space::new(STAGES);
    for set in [
        &[][..],
        // As much as there is of each.
        &["top_k=3"],
        &["horizon=5"],
        &["n=6", "samples=2", "top_k=6"],
    ] {
        let (code, said) = checked(&space, set);
        assert_eq!(code, 0, "{set:?}: {said}");
    }
}

#[test]
fn a_top_k_above_the_number_of_completions_is_refused_before_any_training() {
    let space = Space::new(STAGES);
    let (code, said) = checked(&space, &["top_k=20"]);
    assert_eq!(code, 3, "{said}");
    for part in [
        "p.yaml:15:",
        "stage `table`: `top_k` is 20, but `n` of stage `samples` is 3: what it reads has at most 3 completions",
        "lower it, or raise the number of completions",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let run = space.flowgraph(&["run", "p.yaml", "--set", "top_k=20"]);
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(!space.path(".flowgraph").exists(), "nothing ran");
    // Other metrics need no top K.
    let text = STAGES.replace(
        "top_k: '${top_k}'",
        "top_k: '${top_k}', columns: [mean, std]",
    );
    space.write("p.yaml", &text);
    assert_eq!(checked(&space, &["top_k=20"]).0, 0);
}

#[test]
fn a_horizon_that_fills_the_context_is_refused_through_trainings() {
    let space = Space::new(STAGES);
    let (code, said) = checked(&space, &["horizon=6"]);
    assert_eq!(code, 3, "{said}");
    let message = "stage `samples`: `max_new_tokens` is 6, but `horizon` of stage `tree` is 3: what it reads has at most 6 tokens of context";
    assert!(said.contains(message), "{said}");
    let trained = checked(&space, &["stages.trained.params.max_new_tokens=6"]);
    assert_eq!(trained.0, 3, "{}", trained.1);
    assert!(
        trained.1.contains("stage `trained`: `max_new_tokens` is 6"),
        "{}",
        trained.1
    );
}

#[test]
fn more_prompts_than_there_are_are_refused() {
    let space = Space::new(STAGES);
    for set in [
        &["n=4"][..],
        &["n=7", "samples=2"],
        &["stages.samples.params.skip=1"],
    ] {
        let (code, said) = checked(&space, set);
        assert_eq!(code, 3, "{set:?}: {said}");
        let part = "what it reads has at most 3 distinct prompts";
        assert!(said.contains(part), "{set:?}: {said}");
    }
}

#[test]
fn packed_rows_longer_than_the_context_are_refused() {
    let text = "
name: n
stages:
  world: { kind: generate_world, params: { seed: 1, finetune_pairs: 10, reward_pairs: 10, rl_questions: 5 } }
  tokenizer: { kind: train_tokenizer, inputs: { data: world.pretrain }, params: { algorithm: word_level, vocab_size: 256 } }
  model: { kind: init_model, inputs: { tokenizer: tokenizer }, params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 } }
  sft: { kind: train_sft, inputs: { model: model, data: world.pretrain }, params: { steps: 1, batch_size: 1, learn_prompts: true, packing: 65, optimizer: { lr: 1e-3 }, seed: 1 } }
";
    let space = Space::new(text);
    let (code, said) = checked(&space, &[]);
    assert_eq!(code, 3, "{said}");
    let message =
        "stage `sft`: `packing` is 65, but `max_position_embeddings` of stage `model` is 64";
    assert!(said.contains(message), "{said}");
    assert_eq!(checked(&space, &["stages.sft.params.packing=64"]).0, 0);
}

#[test]
fn diversity_of_a_prompt_needs_two_completions_of_it() {
    let text = format!(
        "{STAGES}  diversity: {{ kind: semantic_diversity, inputs: {{ completions: samples }}, params: {{ columns: [distinct_1] }} }}\n"
    );
    let space = Space::new(&text);
    let (code, said) = checked(&space, &[]);
    assert_eq!(code, 3, "{said}");
    let message = "stage `diversity`: it needs 2 completions of a prompt, but `samples_per_prompt` of stage `samples` is 1";
    assert!(said.contains(message), "{said}");
    assert_eq!(checked(&space, &["n=6", "samples=2"]).0, 0);
}
