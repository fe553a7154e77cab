//! Somebody's own completions and texts, and what is said of them.

use flowgraph::artifacts::completions::read;
use flowgraph::artifacts::table::Table;

use super::space::{Report, Space};
use super::tiny;

/// Samples of the tiny world, and what is said of them.
const SAMPLED: &str = "
  samples:
    kind: sample
    inputs: { policy: base, prompts: world.evaluation }
    params: { strategy: sampling, n: 12, samples_per_prompt: 3, max_new_tokens: 8, seed: 1 }
  scores: { kind: score, inputs: { completions: samples, reward: scorer, reference: base } }
";

/// The same, from a file.
const LOADED: &str = "
  own: { kind: load_completions, inputs: { prompts: world.evaluation, model: base }, params: { source: samples/table.jsonl } }
  own_scores: { kind: score, inputs: { completions: own, reward: scorer, reference: base } }
  own_table: { kind: metric_table, inputs: { scores: own_scores }, params: { row: stage, top_k: 4 } }
  probabilities: { kind: score_policy, inputs: { completions: own, policy: base } }
  judged: { kind: judge, inputs: { completions: own, opponent: world.evaluation, reward: scorer }, params: { judge: { kind: reward_model } } }
";

fn table(space: &Space, stage: &str) -> Table {
    let record = space.record(stage);
    let folder = tempfile::tempdir().unwrap();
    let artifact = record.outputs.values().next().unwrap();
    space.store().lay_out(artifact, folder.path()).unwrap();
    Table::read(folder.path()).unwrap()
}

fn done(report: &Report) {
    assert_eq!(report.code, 0, "{}\n{:#?}", report.stderr, report.events);
}

#[test]
fn exported_completions_are_the_same_when_they_are_loaded() {
    let space = Space::new(&tiny::pipeline("", &format!("{SAMPLED}{LOADED}")));
    done(&space.run(&["--only", "scores"]));
    let export = [
        "export", "p.yaml", "samples", "samples", "--format", "jsonl",
    ];
    assert_eq!(space.flowgraph(&export).code, 0);
    let report = space.run(&[]);
    done(&report);
    let digests = report.digests();
    assert_eq!(digests["own"], digests["samples"]);
    assert_eq!(digests["own_scores"], digests["scores"]);
    assert_eq!(table(&space, "judged").height(), 12);
    let sampled = table(&space, "samples").all_numbers("log_prob").unwrap();
    let again = table(&space, "probabilities")
        .all_numbers("log_prob")
        .unwrap();
    assert!(
        sampled
            .iter()
            .zip(&again)
            .all(|(one, other)| (one - other).abs() < 1e-4)
    );
}

#[test]
fn texts_of_others_are_scored_as_those_of_a_policy() {
    // No tokens, no numbers: what a paper's appendix has.
    let own = LOADED.replace(
        ", model: base }, params: { source: samples/table.jsonl }",
        " }, params: { source: own.jsonl }",
    );
    assert_ne!(own, LOADED);
    let space = Space::new(&tiny::pipeline("", &format!("{SAMPLED}{own}")));
    done(&space.run(&["--only", "scores"]));
    let folder = tempfile::tempdir().unwrap();
    let record = space.record("samples");
    space
        .store()
        .lay_out(&record.outputs["completions"], folder.path())
        .unwrap();
    let rows = read(folder.path()).unwrap().into_iter().map(|row| {
        let reason = if row.truncated { "length" } else { "stop" };
        serde_json::json!({ "prompt": row.prompt, "response": row.completion, "finish_reason": reason }).to_string() + "\n"
    });
    let rows: String = rows.collect();
    space.write("own.jsonl", &rows.replace("\"response\"", "\"completion\""));
    // Nobody knows how probable they are under a policy.
    let report = space.run(&[]);
    assert_eq!(report.code, 1);
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed")
        .unwrap();
    assert_eq!(failed["stage"], "own_scores", "{failed}");
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .contains("`kl` compares"),
        "{failed}"
    );
    assert!(
        failed["hint"]
            .as_str()
            .unwrap()
            .starts_with("`score_policy`"),
        "{failed}"
    );
    done(&space.run(&[
        "--set",
        "stages.own_scores.inputs.completions=probabilities",
    ]));
    for (ours, theirs) in [("own_scores", "scores"), ("probabilities", "samples")] {
        let column = if ours == "own_scores" {
            "reward"
        } else {
            "log_prob"
        };
        let numbers = |stage| table(&space, stage).all_numbers(column).unwrap();
        let (ours, theirs) = (numbers(ours), numbers(theirs));
        assert_eq!(ours.len(), 12);
        // Read again from its text, a completion lacks the special tokens within it.
        let pairs = ours.iter().zip(&theirs);
        let same = pairs.filter(|(one, other)| (*one - *other).abs() < 1e-4);
        assert!(same.count() >= 10, "{ours:?} {theirs:?}");
    }
}

#[test]
fn texts_become_what_is_learnt_and_compared_with() {
    let stages = "
  texts: { kind: load_texts, params: { source: corpus.txt } }
  learnt: { kind: load_texts, params: { source: corpus.txt, prompt_words: 1 } }
  own_tokenizer: { kind: train_tokenizer, inputs: { data: texts }, params: { algorithm: word_level, vocab_size: 32 } }
  blank: { kind: init_model, inputs: { tokenizer: own_tokenizer }, params: { hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 16, max_position_embeddings: 16, seed: 1 } }
  model: { kind: train_sft, inputs: { model: blank, data: learnt }, params: { steps: 2, batch_size: 2, learn_prompts: true, optimizer: { lr: 1e-2 }, seed: 1 } }
";
    let space = Space::new(&format!("name: texts\nstages:{stages}"));
    space.write(
        "corpus.txt",
        "one two three\n\nfour five\n  \nsix seven eight nine\n",
    );
    let report = space.run(&[]);
    done(&report);
    let texts = table(&space, "texts");
    assert_eq!(
        texts.all_texts("chosen").unwrap(),
        ["one two three", "four five", "six seven eight nine"]
    );
    assert_eq!(
        table(&space, "learnt").all_texts("prompt").unwrap(),
        ["one", "four", "six"]
    );
}
