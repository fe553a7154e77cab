//! What is read of prompts and of files of texts, by stages that follow each other.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use flowgraph::artifacts::table::Table;

use crate::space::{Report, Space};

fn table(space: &Space, stage: &str) -> Table {
    let record = space.record(stage);
    let folder = tempfile::tempdir().unwrap();
    let artifact = record.outputs.values().next().unwrap();
    space.store().lay_out(artifact, folder.path()).unwrap();
    Table::read(folder.path()).unwrap()
}

fn notes(report: &Report, stage: &str) -> String {
    let of_stage = report
        .events
        .iter()
        .filter(|event| event["stage"] == stage && event["event"] == "stage_note");
    let texts = of_stage.filter_map(|event| event["text"].as_str());
    texts.collect::<Vec<_>>().join("\n")
}

const CUT: &str = "
name: cut
stages:
  t: { kind: generate_tree, params: { symbols: 3, horizon: 3, prompts: 3, spread: 3, hidden_size: 16, num_layers: 1, seed: 1 } }
  s: { kind: sample, inputs: { policy: t.policy, prompts: t.data }, params: { strategy: greedy, n: 3, max_new_tokens: 3, max_prompt_tokens: 1 } }
  k: { kind: score, inputs: { completions: s, reward: t.reward, reference: t.policy } }
  p: { kind: score_policy, inputs: { completions: k, policy: t.policy } }
  j: { kind: judge, inputs: { completions: s, opponent: s, reward: t.reward }, params: { judge: { kind: reward_model } } }
";

#[test]
fn scorers_read_a_prompt_as_it_was_cut_for_the_policy() {
    let space = Space::new(CUT);
    let report = space.run(&["--only", "p", "--only", "j"]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    let (sampled, scored) = (table(&space, "s"), table(&space, "k"));
    let whole = sampled.all_texts("question").unwrap();
    let read = sampled.all_texts("prompt").unwrap();
    assert!(
        read.iter()
            .zip(&whole)
            .all(|(read, whole)| read.len() < whole.len())
    );
    // A policy is no nat away from itself.
    for kl in scored.all_numbers("kl").unwrap() {
        assert!(kl.abs() < 1e-5, "{kl}");
    }
    let again = table(&space, "p").all_numbers("log_prob").unwrap();
    for (first, again) in sampled.all_numbers("log_prob").unwrap().iter().zip(&again) {
        assert!((first - again).abs() < 1e-5, "{first} {again}");
    }
    // The three prompts end in the same token, so their completions have the same reward.
    let rewards = scored.all_numbers("reward").unwrap();
    assert!(
        rewards.iter().all(|reward| *reward == rewards[0]),
        "{rewards:?}"
    );
}

const LONG: &str = "
name: long
stages:
  pairs: { kind: load_preferences, params: { source: 'file:pairs.csv', layout: stack_exchange_paired, template: '{question} : ' } }
  tokenizer: { kind: train_tokenizer, inputs: { data: [pairs] }, params: { algorithm: word_level, vocab_size: 32 } }
  model:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 16, seed: 1 }
  reward:
    kind: train_reward
    inputs: { model: model, data: pairs, evaluation: pairs }
    params: { steps: 1, batch_size: 2, optimizer: { lr: 1e-3 }, seed: 1 }
  samples: { kind: sample, inputs: { policy: model, prompts: pairs }, params: { strategy: greedy, n: 2, max_new_tokens: 4 } }
  too_many: { kind: sample, inputs: { policy: model, prompts: pairs }, params: { strategy: greedy, n: 3, max_new_tokens: 4 } }
  all_cut: { kind: sample, inputs: { policy: model, prompts: pairs }, params: { strategy: greedy, n: 3, max_new_tokens: 4, max_prompt_tokens: 6 } }
  gflownet:
    kind: train_gflownet
    inputs: { policy: model, reward: reward, data: pairs }
    params: { objective: trajectory_balance, on_policy: 1, steps: 3, prompts_per_step: 2, completions_per_prompt: 2, max_new_tokens: 4, monitor_every: 1, monitor_completions: 4, optimizer: { lr: 1e-3 }, reward_scale: 1, seed: 1 }
  ppo:
    kind: train_ppo
    inputs: { policy: model, reward: reward, data: pairs }
    params: { steps: 1, batch_size: 2, minibatch_size: 2, ppo_epochs: 1, optimizer: { lr: 1e-3 }, max_new_tokens: 4, seed: 1 }
";

#[test]
fn prompts_without_room_for_a_completion_are_left_out_with_a_count() {
    let space = Space::new(LONG);
    let long = "a b c ".repeat(5);
    let rows = format!("1,a b c,x y,y x\n2,{long},x,y\n3,b c a,y y,x\n");
    space.write(
        "pairs.csv",
        &format!("qid,question,response_j,response_k\n{rows}"),
    );
    let report = space.run(&[]);
    let outcomes = report.outcomes();
    let expected = "all_cut done, gflownet done, model done, pairs done, ppo done, reward done, samples done, \
                    tokenizer done, too_many failed";
    assert_eq!(outcomes, expected, "{:#?}", report.events);
    for (stage, note) in [
        (
            "samples",
            "1 of 3 prompts have more than 12 tokens (or none) and were left out",
        ),
        (
            "ppo",
            "1 of 3 prompts have more than 12 tokens (or none) and were left out",
        ),
        (
            "gflownet",
            "1 of 3 prompts have more than 12 tokens (or none) and were left out",
        ),
        ("reward", "2 of 3 pairs fit into 16 tokens"),
    ] {
        let said = notes(&report, stage);
        assert!(said.contains(note), "{stage}: {said}");
    }
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed");
    let failed = failed.unwrap().to_string();
    assert!(
        failed.contains("the dataset has 2 of at most 12 tokens"),
        "{failed}"
    );
    // Those that are left keep their questions and places.
    let questions = table(&space, "samples").all_numbers("question_id").unwrap();
    assert_eq!(questions, [0.0, 2.0]);
    assert_eq!(table(&space, "all_cut").height(), 3);
}

const PACKED: &str = "
name: packed
stages:
  first: { kind: load_preferences, params: { source: 'file:pairs.jsonl.gz', layout: anthropic_hh, max_rows: 10 } }
  all: { kind: load_preferences, params: { source: 'file:pairs.jsonl.gz', layout: anthropic_hh } }
";

#[test]
fn a_small_file_that_unpacks_to_much_takes_little_memory() {
    let space = Space::new(PACKED);
    let file = std::fs::File::create(space.path("pairs.jsonl.gz")).unwrap();
    let mut packed = GzEncoder::new(file, Compression::fast());
    let answer = "so ".repeat(300);
    for row in 0..150_000 {
        let start = format!("\\n\\nHuman: {row}\\n\\nAssistant: {answer}");
        writeln!(
            packed,
            r#"{{"chosen": "{start}", "rejected": "{start}no"}}"#
        )
        .unwrap();
    }
    let bytes = packed.finish().unwrap().metadata().unwrap().len();
    assert!(bytes < 10 << 20, "{bytes}");
    // 270 MB of rows under a limit of 500 MB: kept, they would end the worker by a signal.
    let limited = ["sh", "-c", "ulimit -d 500000; exec \"$@\"", "sh"];
    let mut program = space.under(&limited, &["run", "p.yaml", "--quiet"]);
    let outcome = space.outcome(program.output().unwrap());
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    let said = "its rows hold more than";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    assert_eq!(table(&space, "first").height(), 10);
}

#[test]
fn pipes_and_devices_are_named_and_not_opened() {
    let space = Space::new(
        "
name: pipes
stages:
  s: { kind: command, params: { run: 'cat f > o', outputs: { o: o }, code: [f] } }
  d: { kind: load_preferences, params: { source: 'file:f', layout: anthropic_hh } }
  z: { kind: load_preferences, params: { source: /dev/zero, layout: anthropic_hh } }
",
    );
    let made = std::process::Command::new("mkfifo")
        .arg(space.path("f"))
        .status();
    assert!(made.unwrap().success());
    for args in [["plan", "p.yaml"], ["run", "p.yaml"]] {
        let outcome = space.flowgraph(&args);
        let all = outcome.stdout + &outcome.stderr;
        for said in [
            "f is a named pipe, expected a regular file",
            "/dev/zero is a device, expected a regular file",
        ] {
            assert!(all.contains(said), "{args:?}: {all}");
        }
    }
    let outcome = space.flowgraph(&["check", "/dev/zero"]);
    assert!(
        outcome
            .stderr
            .contains("/dev/zero is a device, expected a regular file"),
        "{}",
        outcome.stderr
    );
}
