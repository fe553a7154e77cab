//! A tiny world with a model and a reward model, for pipelines that train something.

/// Stages `world` to `base` and `scorer`; stages of the test's own follow.
const STAGES: &str = r"
stages:
  world:
    kind: generate_world
    params: { seed: 1, pretraining_documents: 200, finetune_pairs: 100, reward_pairs: 100, rl_questions: 30 }
  tokenizer:
    kind: train_tokenizer
    inputs: { data: [world.pretrain, world.evaluation] }
    params: { algorithm: word_level, vocab_size: 256 }
  random_model:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 }
  base:
    kind: train_sft
    inputs: { model: random_model, data: world.finetune }
    params: { steps: 4, batch_size: 8, optimizer: { lr: 1e-2 }, seed: 1 }
  scorer:
    kind: train_reward
    inputs: { model: base, data: world.reward, evaluation: world.validation }
    params: { steps: 4, batch_size: 8, optimizer: { lr: 3e-3 }, prefix_weight: 0.5, calibration: standard, seed: 1 }
";

/// A pipeline of the tiny world: what stands before its stages, and stages beside those of the world.
pub(crate) fn pipeline(head: &str, stages: &str) -> String {
    format!("name: tiny\n{head}{STAGES}{stages}")
}
