//! Models in and out: what `export` writes is read back as it was, whatever the model is made of.

use std::path::PathBuf;

use candle_core::Tensor;
use flowgraph::ml::formats::safetensors::{load_safetensors, save_safetensors};
use serde_json::{Value as Json, json};

use super::space::{Report, Space};

const STAGES: &str = r"name: models
stages:
  world:
    kind: generate_world
    params: { seed: 1, pretraining_documents: 20, finetune_pairs: 30, reward_pairs: 30, rl_questions: 5 }
  tokenizer:
    kind: train_tokenizer
    inputs: { data: [world.pretrain, world.evaluation] }
    params: { algorithm: word_level, vocab_size: 128 }
  base:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 128,
              tie_word_embeddings: false, seed: 1 }
  policy:
    kind: train_sft
    inputs: { model: base, data: world.finetune }
    params: { steps: 2, batch_size: 2, optimizer: { lr: 1e-2 }, seed: 1,
              adapter: { rank: 2, alpha: 16, target_modules: [self_attn.q_proj, down_proj] } }
  whole_reward:
    kind: train_reward
    inputs: { model: base, data: world.reward, evaluation: world.validation }
    params: { steps: 2, batch_size: 2, optimizer: { lr: 3e-3 }, calibration: standard, seed: 1 }
  adapted_reward:
    kind: train_reward
    inputs: { model: base, data: world.reward, evaluation: world.validation }
    params: { steps: 2, batch_size: 2, optimizer: { lr: 3e-3 }, calibration: standard, seed: 1,
              adapter: { rank: 3, alpha: 16, target_modules: [v_proj] } }
";

fn json_of(space: &Space, name: &str) -> Json {
    serde_json::from_str(&space.read(name)).unwrap()
}

/// Exports stages, loads what was written, and compares its digests with those of the stages.
fn assert_read_back(space: &Space, made: &Report, stages: &[(&str, &str)]) {
    let mut again = String::from("name: again\nstages:\n");
    for (stage, kind) in stages {
        let export = space.flowgraph(&["export", "p.yaml", stage, stage]);
        assert_eq!(export.code, 0, "{}", export.stderr);
        again += &format!("  {stage}: {{ kind: {kind}, params: {{ source: {stage} }} }}\n");
    }
    space.write("again.yaml", &again);
    let read = space
        .program(&["run", "again.yaml", "--json"])
        .output()
        .unwrap();
    let read = space.report(&read);
    assert_eq!(read.code, 0, "{}", read.stderr);
    for (stage, (_, digest)) in &read.stages {
        let mut digests = made.stages[stage].1.split(' ');
        assert!(digests.any(|made| made == digest), "{stage}: {digest}");
    }
}

#[test]
fn exported_models_are_read_back_as_they_were() {
    let space = Space::new(STAGES);
    let made = space.run(&[]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_read_back(
        &space,
        &made,
        &[
            ("base", "load_model"),
            ("policy", "load_model"),
            ("whole_reward", "load_reward"),
            ("adapted_reward", "load_reward"),
        ],
    );

    // What other programs go by.
    let tokenizer = json_of(&space, "policy/tokenizer_config.json");
    assert_eq!(
        tokenizer["model_input_names"],
        json!(["input_ids", "attention_mask"])
    );
    let adapter = json_of(&space, "policy/adapter_config.json");
    let here = std::fs::canonicalize(space.path("policy")).unwrap();
    assert_eq!(adapter["base_model_name_or_path"], here.to_str().unwrap());
    let reward = json_of(&space, "whole_reward/config.json");
    assert_eq!(
        reward["architectures"],
        json!(["LlamaForSequenceClassification"])
    );
    assert_eq!(reward["id2label"], json!({ "0": "LABEL_0" }));
    let adapted = json_of(&space, "adapted_reward/adapter_config.json");
    assert_eq!(adapted["task_type"], "SEQ_CLS");
    assert_eq!(adapted["modules_to_save"], json!(["score"]));
    assert!(!space.path("whole_reward/score.safetensors").exists());
    // The head stands among the weights of the base too: nothing is drawn that the adapter then replaces.
    let index = json_of(&space, "adapted_reward/model.safetensors.index.json");
    let file = index["weight_map"]["score.weight"].as_str().unwrap();
    let of_base = load_safetensors(&space.path("adapted_reward").join(file)).unwrap();
    let adapter = space.path("adapted_reward/adapter_model.safetensors");
    let of_adapter = load_safetensors(&adapter).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(
        values(&of_base["score.weight"]),
        values(&of_adapter["base_model.model.score.weight"])
    );

    // A classifier's adapter is no language model, and an adapter alone needs its model.
    std::fs::create_dir(space.path("alone")).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(
            space.path("adapted_reward").join(name),
            space.path("alone").join(name),
        )
        .unwrap();
    }
    space.write(
        "wrong.yaml",
        "name: wrong\nstages:\n  reward: { kind: load_model, params: { source: adapted_reward } }\n  \
         alone: { kind: load_reward, params: { source: alone } }\n",
    );
    let wrong = space.flowgraph(&["run", "wrong.yaml"]);
    assert_eq!(wrong.code, 1);
    assert!(
        wrong
            .stderr
            .contains("its adapter is a classifier's, with a head"),
        "{}",
        wrong.stderr
    );
    assert!(
        wrong.stderr.contains("it holds an adapter and no model"),
        "{}",
        wrong.stderr
    );
}

/// On a tied model: DoRA on some layers with ranks of their own, a saved embedding, which unties the head; continued as it
/// is, and merged under another adapter.
#[test]
fn adapters_of_every_kind_are_trained_continued_merged_and_read_back() {
    let lora = "{ rank: 3, alpha: 16, dropout: 0.1, target_modules: [q_proj, v_proj, down_proj], use_dora: true, \
                bias: all, rank_pattern: { v_proj: 1 }, alpha_pattern: { layers.1.mlp.down_proj: 4 }, \
                modules_to_save: [embed_tokens, model.norm] }";
    let train = "params: { steps: 3, batch_size: 2, optimizer: { lr: 1e-2 }, seed: 1, adapter:";
    let base = STAGES
        .split_once("  policy:")
        .unwrap()
        .0
        .replace("num_layers: 1", "num_layers: 2")
        .replace("tie_word_embeddings: false", "tie_word_embeddings: true");
    let space = Space::new(&format!(
        "{base}  policy: {{ kind: train_sft, inputs: {{ model: base, data: world.finetune }}, {train} {lora} }} }}
  longer: {{ kind: train_sft, inputs: {{ model: policy, data: world.finetune }}, {train} {lora} }} }}
  merged:
    kind: train_sft
    inputs: {{ model: policy, data: world.finetune }}
    {train} {{ rank: 1, alpha: 1, target_modules: [k_proj] }} }}
  sampled:
    kind: sample
    inputs: {{ policy: longer, prompts: world.rl }}
    params: {{ strategy: greedy, n: 3, max_new_tokens: 8 }}
  reward:
    kind: train_reward
    inputs: {{ model: base, data: world.reward, evaluation: world.validation }}
    {train} {lora}, calibration: standard }}
  longer_reward:
    kind: train_reward
    inputs: {{ model: policy, data: world.reward, evaluation: world.validation }}
    {train} {lora}, calibration: standard }}
"
    ));
    let made = space.run(&[]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_read_back(
        &space,
        &made,
        &[
            ("policy", "load_model"),
            ("longer", "load_model"),
            ("merged", "load_model"),
            ("reward", "load_reward"),
            ("longer_reward", "load_reward"),
        ],
    );
    for stage in ["policy", "longer"] {
        assert_eq!(
            json_of(&space, &format!("{stage}/config.json"))["tie_word_embeddings"],
            true
        );
        let adapter = json_of(&space, &format!("{stage}/adapter_config.json"));
        assert_eq!(
            adapter["modules_to_save"],
            json!(["embed_tokens", "model.norm"])
        );
        assert_eq!(adapter["rank_pattern"], json!({ "v_proj": 1 }));
    }
    assert_eq!(
        json_of(&space, "merged/config.json")["tie_word_embeddings"],
        false
    );
    assert!(!space.path("merged/adapter_config.json").exists());
    let saved = &json_of(&space, "reward/adapter_config.json")["modules_to_save"];
    assert_eq!(*saved, json!(["embed_tokens", "model.norm", "score"]));
}

#[test]
fn tokens_that_a_model_has_no_row_for_are_counted_and_last() {
    let space = Space::new(&STAGES[..STAGES.find("  policy:").unwrap()]);
    let made = space.run(&[]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let export = space.flowgraph(&["export", "p.yaml", "base", "base"]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    let rows = json_of(&space, "base/config.json")["vocab_size"]
        .as_u64()
        .unwrap();
    let mut settings = json_of(&space, "base/tokenizer_config.json");
    settings["additional_special_tokens"] = json!(["<|turn|>", "<|end|>"]);
    settings["chat_template"] = "{{ messages }}\r\n".into();
    space.write("base/tokenizer_config.json", &settings.to_string());
    let ends = json!({ "eos_token_id": [2, rows + 1] });
    space.write("base/generation_config.json", &ends.to_string());
    space.write(
        "more.yaml",
        "name: more\nstages:\n  more: { kind: load_model, params: { source: base } }\n",
    );
    let run = space.flowgraph(&["run", "more.yaml"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let note = format!(
        "2 of the tokenizer's {} tokens had no row in the model: embedding and output head were given the mean of the \
         other {rows} rows for each",
        rows + 2
    );
    assert!(run.stderr.contains(&note), "{}", run.stderr);
    let export = space.flowgraph(&["export", "more.yaml", "more", "more"]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    let config = json_of(&space, "more/config.json");
    assert_eq!(config["vocab_size"], rows + 2);
    assert_eq!(config["eos_token_id"], json!([2, rows + 1]));
    let exported = json_of(&space, "more/tokenizer_config.json");
    assert_eq!(exported["chat_template"], "{{ messages }}\r\n");
    // It needs no more rows.
    space.write(
        "again.yaml",
        "name: again\nstages:\n  again: { kind: load_model, params: { source: more } }\n",
    );
    let again = space.flowgraph(&["run", "again.yaml"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(!again.stderr.contains("had no row"), "{}", again.stderr);
}

#[test]
fn an_export_takes_the_place_of_another_with_all_its_files() {
    let space = Space::new(STAGES);
    assert_eq!(space.run(&[]).code, 0);
    let export = |stage: &str, more: &[&str]| {
        space.flowgraph(&[&["export", "p.yaml", stage, "out"], more].concat())
    };
    assert_eq!(export("adapted_reward", &[]).code, 0);
    assert_eq!(export("whole_reward", &[]).code, 2);
    let forced = export("whole_reward", &["--force"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    ] {
        assert!(!space.path("out").join(name).exists(), "{name}");
    }
    space.write(
        "q.yaml",
        "name: q\nstages:\n  again: { kind: load_reward, params: { source: out } }\n",
    );
    let read = space.flowgraph(&["run", "q.yaml"]);
    assert_eq!(read.code, 0, "{}", read.stderr);
    // A tokenizer is none: the model stays.
    let tokenizer = export("tokenizer", &["--force"]);
    assert_eq!(tokenizer.code, 0, "{}", tokenizer.stderr);
    assert!(space.path("out/model.safetensors").exists());
    // Nothing of the user's is replaced unasked.
    std::fs::create_dir(space.path("mine")).unwrap();
    space.write("mine/model-00002-of-00002.safetensors", "precious");
    let refused = space.flowgraph(&["export", "p.yaml", "adapted_reward", "mine"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert_eq!(
        space.read("mine/model-00002-of-00002.safetensors"),
        "precious"
    );
}

#[test]
fn the_files_of_a_sentence_encoder_may_lie_in_folders() {
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert/bert");
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"];
    let vocabulary: serde_json::Map<_, _> = words
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), json!(id)))
        .collect();
    let space = Space::new("");
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    space.write("tokenizer.json", &tokenizer.to_string());
    let modules = json!([
        { "type": "sentence_transformers.models.Transformer", "path": "" },
        { "type": "sentence_transformers.models.Pooling", "path": "1_Pooling" },
    ]);
    space.write("modules.json", &modules.to_string());
    space.write("pooling.json", r#"{ "pooling_mode": "cls" }"#);
    let at = fixture.display();
    space.write(
        "p.yaml",
        &format!(
            "name: encoder
stages:
  encoder:
    kind: load_encoder
    params:
      files:
        config.json: {{ source: \"{at}/config.json\" }}
        model.safetensors: {{ source: \"{at}/model.safetensors\" }}
        tokenizer.json: {{ source: tokenizer.json }}
        modules.json: {{ source: modules.json }}
        1_Pooling/config.json: {{ source: pooling.json }}
"
        ),
    );
    let run = space.run(&[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(
        space
            .flowgraph(&["export", "p.yaml", "encoder", "out"])
            .code,
        0
    );
    let pooling = json_of(&space, "out/1_Pooling/config.json");
    assert_eq!(pooling["pooling_mode_cls_token"], true);
    assert_eq!(
        json_of(&space, "out/modules.json")
            .as_array()
            .unwrap()
            .len(),
        2
    );

    space.write(
        "p.yaml",
        &space
            .read("p.yaml")
            .replace("1_Pooling/config.json", "../config.json"),
    );
    let check = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!(check.code, 3);
    assert!(
        check
            .stderr
            .contains("`../config.json` is not the name of a file"),
        "{}",
        check.stderr
    );
}

/// Returns a column of an exported table.
fn column(space: &Space, stage: &str, name: &str) -> Vec<String> {
    let export = space.flowgraph(&[
        "export", "q.yaml", stage, stage, "--format", "csv", "--force",
    ]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    let path = space.path(stage).join("table.csv");
    let mut reader = csv::Reader::from_path(path).unwrap();
    let headings = reader.headers().unwrap().clone();
    let place = headings.iter().position(|heading| heading == name).unwrap();
    let rows = reader.records();
    rows.map(|row| row.unwrap()[place].to_owned()).collect()
}

#[test]
fn a_reward_is_read_where_it_is_asked_for_and_the_record_says_where() {
    let space = Space::new(STAGES);
    assert_eq!(space.run(&[]).code, 0);
    for (stage, folder) in [("whole_reward", "reward"), ("whole_reward", "labels")] {
        let export = space.flowgraph(&["export", "p.yaml", stage, folder]);
        assert_eq!(export.code, 0, "{}", export.stderr);
        // As a model that another program trained, which pads with its end token.
        std::fs::remove_file(space.path(folder).join("reward.json")).unwrap();
        let mut config = json_of(&space, &format!("{folder}/config.json"));
        config["pad_token_id"] = config["eos_token_id"].clone();
        if folder == "labels" {
            config["id2label"] = json!({ "0": "bad", "1": "good" });
        }
        space.write(&format!("{folder}/config.json"), &config.to_string());
    }
    let path = space.path("labels").join("model.safetensors");
    let mut weights = load_safetensors(&path).unwrap();
    let score = weights["score.weight"].clone();
    let both = Tensor::cat(&[score.neg().unwrap(), score], 0).unwrap();
    weights.insert("score.weight".to_owned(), both);
    save_safetensors(&path, &weights).unwrap();

    let mut stages = STAGES.replace("name: models", "name: read");
    stages += "  samples:\n    kind: sample\n    inputs: { policy: base, prompts: world.evaluation }\n    \
               params: { strategy: sampling, temperature: 3, n: 40, max_new_tokens: 24, seed: 1 }\n";
    for (name, params) in [
        ("library", "source: reward"),
        ("last_token", "source: reward, score_at: last_token"),
        ("end_token", "source: reward, score_at: end_token"),
        ("label", "source: labels, score_at: last_token, label: 1"),
        ("unlabelled", "source: labels"),
    ] {
        stages += &format!("  {name}: {{ kind: load_reward, params: {{ {params} }} }}\n");
        stages += &format!(
            "  by_{name}: {{ kind: score, inputs: {{ completions: samples, reward: {name} }} }}\n"
        );
    }
    space.write("q.yaml", &stages);
    let run = space.flowgraph(&["run", "q.yaml"]);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr
            .contains("the head has 2 labels; a reward is the score of one"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("give `label`, an index from 0 to 1"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("rewards are read at the token before the end token"),
        "{}",
        run.stderr
    );
    let rewards = |name: &str| column(&space, &format!("by_{name}"), "reward");
    let (library, last, end) = (
        rewards("library"),
        rewards("last_token"),
        rewards("end_token"),
    );
    let truncated = column(&space, "by_library", "truncated");
    let cut = truncated
        .iter()
        .filter(|cut| *cut == "1" || *cut == "true")
        .count();
    assert!(0 < cut && cut < truncated.len(), "{truncated:?}");
    for (place, cut) in truncated.iter().enumerate() {
        let is_cut = cut == "1" || cut == "true";
        // A text that did not end of itself has no end token to be skipped, and one to be added.
        assert_eq!(library[place] == last[place], is_cut, "{place}");
        assert_eq!(end[place] == last[place], !is_cut, "{place}");
    }
    assert_eq!(rewards("label"), last);
    // What skips its end token here pads with it, so that other programs skip it too.
    let export = space.flowgraph(&["export", "q.yaml", "library", "skips"]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    let config = json_of(&space, "skips/config.json");
    assert_eq!(config["pad_token_id"], config["eos_token_id"]);
}

#[test]
fn a_model_that_names_no_end_is_refused_until_one_is_given() {
    let space = Space::new(STAGES);
    assert_eq!(space.run(&[]).code, 0);
    let export = space.flowgraph(&["export", "p.yaml", "base", "base"]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    for (file, key) in [
        ("config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ] {
        let file = format!("base/{file}");
        let mut document = json_of(&space, &file);
        document[key] = Json::Null;
        space.write(&file, &document.to_string());
    }
    let load = |params: &str| {
        let stage = format!(
            "name: m\nstages:\n  m: {{ kind: load_model, params: {{ source: base{params} }} }}\n"
        );
        space.write("m.yaml", &stage);
        space.flowgraph(&["run", "m.yaml"])
    };
    let refused = load("");
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("it names no token that ends a text")
            && refused.stderr.contains("give `eos_token`"),
        "{}",
        refused.stderr
    );
    let given = load(", eos_token: \".\"");
    assert_eq!(given.code, 0, "{}", given.stderr);
}
