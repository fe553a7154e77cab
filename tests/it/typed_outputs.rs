//! Outputs of commands that are artifacts of some kind: what any port takes, and what is refused.

use serde_json::Value as Json;

use super::space::{Report, Space};

/// Completions of three questions, and a command that writes scores of them by `score.py`.
const SCORED: &str = r"name: typed
stages:
  base:
    kind: command
    params: { run: 'python3 base.py > base.jsonl', code: [base.py], outputs: { rows: { path: base.jsonl, kind: completions } } }
  scored:
    kind: command
    inputs: { completions: base }
    params: { run: 'python3 score.py > scores.jsonl', code: [base.py, score.py], outputs: { scores: { path: scores.jsonl, kind: scores } } }
  test: { kind: normality, inputs: { scores: [scored] }, params: { row: stage } }
";

const BASE: &str = r#"
import json
rows = [dict(question_id=i, sample=0, question=f"q{i}", prompt=f"p{i}", completion=f" c{i}", tokens=2,
             truncated=False, log_prob=-1.5) for i in range(12)]
if __name__ == "__main__":
    for row in rows: print(json.dumps(row))
"#;

fn scored(score: &str) -> Space {
    let space = Space::new(SCORED);
    space.write("base.py", BASE);
    let import = "import json\nfrom base import rows\n";
    space.write("score.py", &format!("{import}{score}\n"));
    space
}

/// Returns what a run says of the stage that failed.
fn failure(report: &Report, stage: &str) -> (String, String) {
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed" && event["stage"] == stage);
    let failed = failed.unwrap_or_else(|| panic!("{:#?}", report.events));
    let text = |key: &str| failed[key].as_str().unwrap_or_default().to_owned();
    (text("message"), text("hint"))
}

#[test]
fn scores_of_a_program_are_taken_by_any_port_for_scores() {
    let space =
        scored("for row in rows: print(json.dumps(row | dict(reward=len(row['completion']) / 3)))");
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let made = &space.record("scored").outputs["scores"];
    assert_eq!(made.kind, "scores");
    let files: Vec<&str> = made.files.iter().map(|file| &*file.path).collect();
    assert_eq!(files, ["table.json", "table.parquet"]);
    // The same rows however they are written.
    let digest = made.digest.to_string();
    space.write(
        "score.py",
        "import csv, sys\nfrom base import rows\nout = csv.DictWriter(sys.stdout, [*rows[0], 'reward'])\nout.writeheader()\n\
         for row in rows: out.writerow(row | dict(reward=len(row['completion']) / 3))\n",
    );
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(report.digests()["scored"], digest);
}

#[test]
fn what_is_no_artifact_of_the_kind_is_refused_with_its_place() {
    let all = "for row in rows: print(json.dumps(row | dict(reward=1)))";
    for (score, expected) in [
        (
            "print('{}')",
            "scores.jsonl: no column `question_id`; found: ",
        ),
        ("print()", "scores.jsonl: no column `question_id`; found: "),
        (
            "for row in rows: print(json.dumps(row))",
            "scores.jsonl: no column `reward`; found: question_id, sample, question, prompt, completion, tokens, truncated, log_prob",
        ),
        (
            "for row in rows: print(json.dumps(row | dict(reward=float('nan') if row['question_id'] == 2 else 1)))",
            "scores.jsonl, row 3: `reward` is NaN, expected a finite number or null (expected value at column 149)",
        ),
        (
            "for row in rows: print(json.dumps(row | dict(reward='high')))",
            "scores.jsonl, row 1: `reward` is \"high\", expected a finite number",
        ),
        (
            "for row in rows: print(json.dumps(row | dict(reward=1, truncated=0)))",
            "scores.jsonl, row 1: `truncated` is 0, expected true or false",
        ),
        (
            "for row in rows[1:]: print(json.dumps(row | dict(reward=1)))",
            "scores.jsonl: it has 11 rows, expected the 12 of input `completions`, one for each",
        ),
        (
            "rows[2], rows[3] = rows[3], rows[2]\nfor row in rows: print(json.dumps(row | dict(reward=1)))",
            "scores.jsonl, row 3: `question_id` is 3, expected 2 as in row 3 of input `completions`",
        ),
        (
            "rows[5]['completion'] = 'other'\nfor row in rows: print(json.dumps(row | dict(reward=1)))",
            "scores.jsonl, row 6: `completion` is \"other\", expected \" c5\" as in row 6 of input `completions`",
        ),
    ] {
        let space = scored(score);
        let report = space.run(&[]);
        assert_eq!(report.outcomes(), "base done, scored failed, test skipped");
        let (message, hint) = failure(&report, "scored");
        assert_eq!(message, format!("output `scores`: {expected}"), "{score}");
        assert!(
            hint.ends_with("`flowgraph kinds --artifacts scores` says what it must hold"),
            "{hint}"
        );
    }
    let space = scored(&all.replace("in rows", "in rows[1:]"));
    let report = space.run(&[
        "--set",
        "stages.scored.params.outputs.scores.same_rows=false",
    ]);
    assert_eq!(report.code, 0, "{}", report.stderr);
}

#[test]
fn judgements_are_about_completions_that_were_read() {
    let judge = "for row in rows[:2]: print(json.dumps(dict(question_id=row['question_id'], sample=SAMPLE, order='either', verdict='win')))";
    for (sample, expected) in [
        ("0", None),
        (
            "7",
            Some("row 1: `question_id` 0 and `sample` 7 are no row of input `completions`"),
        ),
    ] {
        let space = scored(&judge.replace("SAMPLE", sample));
        let scores = "scores: { path: scores.jsonl, kind: scores }";
        let judged = SCORED.replace(scores, "judged: { path: scores.jsonl, kind: judgements }");
        space.write("p.yaml", judged.split("  test:").next().unwrap());
        let report = space.run(&[]);
        match expected {
            None => assert_eq!(report.code, 0, "{}", report.stderr),
            Some(expected) => {
                let (message, hint) = failure(&report, "scored");
                assert!(message.ends_with(expected), "{message}");
                assert!(hint.contains("same_rows: false"), "{hint}");
            }
        }
    }
}

#[test]
fn every_kind_of_rows_can_be_written_from_its_documented_example() {
    let space = Space::new("name: none\nstages: {}\n");
    let kinds = space.flowgraph(&["kinds", "--artifacts", "--json"]);
    let kinds: Json = serde_json::from_str(&kinds.stdout).unwrap();
    let mut stages = String::from("name: examples\nstages:\n");
    for kind in kinds.as_array().unwrap() {
        let kind = kind["kind"].as_str().unwrap();
        let told = space.flowgraph(&["kinds", "--artifacts", kind, "--json"]);
        let told: Json = serde_json::from_str(&told.stdout).unwrap();
        let Some(columns) = told["columns"].as_array() else {
            continue;
        };
        let cell = |column: &Json| {
            (
                column["name"].as_str().unwrap().to_owned(),
                column["example"].clone(),
            )
        };
        let mut row: serde_json::Map<String, Json> = columns.iter().map(cell).collect();
        if row.is_empty() {
            row.insert("name".to_owned(), "a".into());
        }
        space.write(
            &format!("{kind}.jsonl"),
            &format!("{}\n", Json::Object(row)),
        );
        stages += &format!(
            "  {kind}: {{ kind: command, params: {{ run: 'mv {kind}.jsonl rows', code: [{kind}.jsonl], outputs: {{ out: {{ path: rows, kind: {kind} }} }} }} }}\n"
        );
        let text = space.flowgraph(&["kinds", "--artifacts", kind]);
        assert!(
            text.stdout.starts_with(&format!("{kind}: ")),
            "{}",
            text.stdout
        );
    }
    space.write("p.yaml", &stages);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let made: Vec<&str> = report.stages.keys().map(String::as_str).collect();
    assert_eq!(
        made,
        [
            "completions",
            "curve",
            "dataset",
            "embeddings",
            "judgements",
            "labelled_texts",
            "scores",
            "table"
        ]
    );
    assert!(
        space.record("table").outputs["out"]
            .files
            .iter()
            .any(|file| file.path == "table.md")
    );
}

#[test]
fn figures_and_curves_are_looked_into() {
    let stage = |name: &str, run: &str, path: &str, kind: &str| {
        format!(
            "  {name}: {{ kind: command, params: {{ run: '{run}', code: [whole.svg, half.svg, back.csv, curve], outputs: {{ out: {{ path: {path}, kind: {kind} }} }} }} }}\n"
        )
    };
    let stages = [
        stage("svg", "cp whole.svg a.svg", "a.svg", "figure"),
        stage(
            "several",
            "mkdir d; cp whole.svg d/a.svg; cp whole.svg d/b.svg",
            "d",
            "figure",
        ),
        stage("png", "echo x > a.png", "a.png", "figure"),
        stage("half", "cp half.svg a.svg", "a.svg", "figure"),
        stage("back", "cp back.csv c.csv", "c.csv", "curve"),
        stage("curve", "cp -r curve c", "c", "curve"),
    ];
    let space = Space::new(&format!(
        "name: figures\nstages:\n{}  costs: {{ kind: efficiency, inputs: {{ curves: [curve] }} }}\n",
        stages.concat()
    ));
    space.write(
        "whole.svg",
        "<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>\n",
    );
    space.write("half.svg", "<svg><g>\n");
    space.write("back.csv", "step,loss\n2,1\n2,1\n");
    space.write("curve/table.csv", "step,loss\n1,3\n2,1\n");
    space.write(
        "curve/summary.json",
        r#"{"status": "diverged", "reason": "r", "steps": 2, "trained_tokens": 5, "generated_tokens": 0, "flops": 1e9, "trained_parameters": 3}"#,
    );
    let report = space.run(&[]);
    assert_eq!(
        report.outcomes(),
        "back failed, costs done, curve done, half failed, png failed, several done, svg done"
    );
    for (stage, expected) in [
        ("png", "a.png: expected an .svg file"),
        (
            "half",
            "a.svg: found no whole `<svg>` element, expected a figure",
        ),
        (
            "back",
            "c.csv, row 2: `step` is 2, expected more than the 2 of the row before",
        ),
    ] {
        assert_eq!(
            failure(&report, stage).0,
            format!("output `out`: {expected}")
        );
    }
}

#[test]
fn models_in_the_layout_of_the_hub_are_models() {
    let copy = |name: &str, kind: &str, more: &str| {
        format!(
            "{{ kind: command, inputs: {{ model: {name} }}, params: {{ run: 'cp -rL $model m{more}', outputs: {{ out: {{ path: m, kind: {kind} }} }} }} }}"
        )
    };
    let bert = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bert/bert");
    let space = Space::new(&format!(
        r"name: models
stages:
  world: {{ kind: generate_world, params: {{ seed: 1, pretraining_documents: 20, finetune_pairs: 30, reward_pairs: 30, rl_questions: 5 }} }}
  tokenizer: {{ kind: train_tokenizer, inputs: {{ data: [world.pretrain, world.evaluation] }}, params: {{ algorithm: word_level, vocab_size: 128 }} }}
  base: {{ kind: init_model, inputs: {{ tokenizer: tokenizer }}, params: {{ hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 128, seed: 1 }} }}
  reward: {{ kind: train_reward, inputs: {{ model: base, data: world.reward, evaluation: world.validation }}, params: {{ steps: 2, batch_size: 2, optimizer: {{ lr: 1e-3 }}, calibration: standard, seed: 1, adapter: {{ rank: 3, alpha: 16, target_modules: [v_proj] }} }} }}
  copied: {}
  copied_reward: {}
  samples: {{ kind: sample, inputs: {{ policy: copied, prompts: world.evaluation }}, params: {{ strategy: sampling, n: 4, max_new_tokens: 4, seed: 1 }} }}
  scores: {{ kind: score, inputs: {{ completions: samples, reward: copied_reward }} }}
  headless: {}
  damaged: {}
  piped: {}
  encoder: {{ kind: command, params: {{ run: 'cp -r {bert} m; cp words.json m/tokenizer.json', code: [words.json], outputs: {{ out: {{ path: m, kind: text_encoder }} }} }} }}
  vectors: {{ kind: embed_sentences, inputs: {{ texts: samples, encoder: encoder }} }}
",
        copy("base", "language_model", ""),
        copy("reward", "reward_model", ""),
        copy("base", "reward_model", ""),
        copy(
            "base",
            "language_model",
            "; head -c 2000 m/model.safetensors > x; mv x m/model.safetensors"
        ),
        copy(
            "base",
            "text_encoder",
            "; rm m/config.json; mkfifo m/config.json"
        ),
    ));
    space.write(
        "words.json",
        r#"{"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "[UNK]": 1, "the": 2}, "unk_token": "[UNK]"}}"#,
    );
    let report = space.run(&[]);
    let digests = report.digests();
    for name in ["headless", "damaged", "piped"] {
        let (message, hint) = failure(&report, name);
        assert!(message.starts_with("output `out`: "), "{message}");
        assert!(hint.contains("flowgraph kinds --artifacts "), "{hint}");
    }
    assert!(failure(&report, "piped").0.contains("is a named pipe"));
    let outcomes = report.outcomes();
    for done in ["scores done", "vectors done"] {
        assert!(outcomes.contains(done), "{outcomes}\n{}", report.stderr);
    }
    assert_eq!(digests["copied"], digests["base"]);
    for (stage, parts) in [
        (
            "copied_reward",
            [
                "library_name: peft",
                "pipeline_tag: text-classification",
                "kind: reward_model",
                "| `base` | `init_model` |",
            ],
        ),
        (
            "copied",
            [
                "library_name: transformers",
                "pipeline_tag: text-generation",
                "kind: language_model",
                "| `world` | `generate_world` |",
            ],
        ),
        (
            "encoder",
            [
                "library_name: transformers",
                "pipeline_tag: feature-extraction",
                "path: m",
                "AutoModel.from_pretrained",
            ],
        ),
    ] {
        let export = space.flowgraph(&["export", "p.yaml", stage, stage]);
        assert_eq!(export.code, 0, "{}", export.stderr);
        let card = space.read(&format!("{stage}/README.md"));
        for part in parts {
            assert!(card.contains(part), "{part}: {card}");
        }
        // A card that somebody wrote stays.
        for file in space.files(stage) {
            if !file.ends_with("README.md") {
                std::fs::remove_file(file).unwrap();
            }
        }
        assert_eq!(space.flowgraph(&["export", "p.yaml", stage, stage]).code, 2);
    }
    let made = &space.record("reward").outputs["model"];
    assert_eq!(
        space.record("copied_reward").outputs["out"].digest,
        made.digest
    );
}

#[test]
fn the_pipeline_knows_the_kinds_and_rows_before_it_runs() {
    let check = |yaml: &str| {
        let outcome = Space::new(yaml).flowgraph(&["check", "p.yaml"]);
        (outcome.code, outcome.stderr)
    };
    let (code, told) = check(
        "name: a\nstages:\n  a: { kind: command, params: { run: x, outputs: { o: { path: o, kind: score } } } }\n  b: { kind: normality, inputs: { scores: a } }\n",
    );
    assert_eq!(code, 3);
    assert!(told.contains("unknown artifact kind `score`"), "{told}");
    assert!(told.contains("did you mean `scores`?"), "{told}");
    let (code, told) = check(
        "name: a\nstages:\n  a: { kind: command, params: { run: x, outputs: { o: { path: o, kind: dataset } } } }\n  b: { kind: normality, inputs: { scores: a } }\n",
    );
    assert_eq!(code, 3);
    assert!(
        told.contains("takes scores") || told.contains("dataset"),
        "{told}"
    );
    for (wrong, expected) in [
        ("{ path: o }", "missing"),
        ("{ path: o, kind: scores, sort: 1 }", "sort"),
        ("3", "a path or `{ path: ..., kind: ... }`"),
        (
            "{ path: o, kind: reward_rule }",
            "no command can write a `reward_rule`",
        ),
        (
            "{ path: o, kind: table, same_rows: false }",
            "never has to have the rows",
        ),
        (
            "{ path: ../o, kind: table }",
            "leaves the working directory",
        ),
    ] {
        let (code, told) = check(&format!(
            "name: a\nstages:\n  a: {{ kind: command, params: {{ run: x, outputs: {{ o: {wrong} }} }} }}\n"
        ));
        assert_eq!(code, 3, "{wrong}");
        assert!(told.contains(expected), "{wrong}: {told}");
    }
    // As many scores as completions, and no more can be asked for.
    let few = "name: a\nstages:\n  world: { kind: generate_world, params: { seed: 1, pretraining_documents: 20, finetune_pairs: 30, reward_pairs: 30, rl_questions: 5 } }\n  tokenizer: { kind: train_tokenizer, inputs: { data: world.evaluation }, params: { algorithm: word_level, vocab_size: 128 } }\n  base: { kind: init_model, inputs: { tokenizer: tokenizer }, params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 128, seed: 1 } }\n  answers: { kind: sample, inputs: { policy: base, prompts: world.evaluation }, params: { strategy: sampling, n: 4, max_new_tokens: 4, seed: 1 } }\n  a: { kind: command, inputs: { x: answers }, params: { run: x, outputs: { o: { path: o, kind: scores } } } }\n  b: { kind: metric_table, inputs: { scores: [a] }, params: { top_k: 1000000 } }\n";
    let (code, told) = check(few);
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("at most"), "{told}");
    let (code, told) = check(&few.replace("kind: scores }", "kind: scores, same_rows: false }"));
    assert_eq!(code, 0, "{told}");
}

#[test]
fn a_path_alone_has_the_fingerprint_that_it_always_had() {
    let of = |output: &str| {
        let space = Space::new(&format!(
            "name: a\nstages:\n  a: {{ kind: command, params: {{ run: 'echo 1 > o', outputs: {{ o: {output} }} }} }}\n"
        ));
        assert_eq!(space.run(&[]).code, 0);
        space.record("a").fingerprint
    };
    let plain = of("o");
    assert_eq!(of("{ path: ./o, kind: file }"), plain);
    assert_ne!(of("{ path: o, kind: table }"), plain);
}
