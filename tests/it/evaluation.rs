//! The evaluation of policies: diversity, win rates by a reward model and by a server, and the frontier of both.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flowgraph::artifacts::table::Table;

use crate::space::Space;

/// Two policies without training, two temperatures and two seeds of the draws.
const PIPELINE: &str = r#"
name: evaluation
params: { url: "http://127.0.0.1:1", policies: [first, second], temperatures: [0.7, 1.0], seeds: [1, 2] }
stages:
  world:
    kind: generate_world
    params: { seed: 1, pretraining_documents: 400, finetune_pairs: 200, reward_pairs: 100, rl_questions: 50 }
  tokenizer:
    kind: train_tokenizer
    inputs: { data: [world.pretrain, world.evaluation] }
    params: { algorithm: word_level, vocab_size: 256 }
  first:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 }
  second:
    kind: train_sft
    inputs: { model: first, data: world.finetune }
    params: { steps: 20, batch_size: 8, optimizer: { lr: 1e-2 }, seed: 1 }
  reward_model:
    kind: train_reward
    inputs: { model: second, data: world.reward, evaluation: world.validation }
    params: { steps: 5, batch_size: 8, optimizer: { lr: 3e-3 }, calibration: standard, seed: 1 }
  samples:
    matrix: { policy: "${policies}", temperature: "${temperatures}", seed: "${seeds}" }
    kind: sample
    inputs: { policy: "${matrix.policy}", prompts: world.reward }
    params: { strategy: sampling, temperature: "${matrix.temperature}", n: 12, samples_per_prompt: 3, max_new_tokens: 8, seed: "${matrix.seed}" }
  scored:
    matrix: { policy: "${policies}", temperature: "${temperatures}", seed: "${seeds}" }
    kind: score_policy
    inputs: { completions: samples, policy: "${matrix.policy}" }
  embedded:
    matrix: { policy: "${policies}", temperature: "${temperatures}", seed: "${seeds}" }
    kind: embed_hidden
    inputs: { texts: samples, model: first }
  diversity:
    kind: semantic_diversity
    inputs: { completions: "scored[*]", embeddings: "embedded[*]" }
    params: { row: [policy, temperature], columns: [semantic_diversity, distinct_2, self_bleu, vendi, tokens, entropy], replicates: 200 }
  judged:
    matrix: { policy: "${policies}", temperature: "${temperatures}", seed: "${seeds}" }
    kind: judge
    inputs: { completions: samples, opponent: world.reward, reward: reward_model }
    params: { judge: { kind: reward_model } }
  wins:
    kind: win_rate
    inputs: { judgements: "judged[*]" }
    params: { row: [policy, temperature], replicates: 200 }
  frontier:
    kind: plot_frontier
    inputs: { quality: wins.per_seed, diversity: diversity.per_seed }
    params: { along: temperature }
  asked:
    kind: judge
    inputs: { completions: "samples[policy=second,temperature=1.0,seed=1]", opponent: world.reward }
    params: { judge: { kind: http, url: "${url}", model: judge-1, template: hh, api_key_env: JUDGE_KEY, max_retries: 1, first_pause_seconds: 0.01, concurrency: 2 } }
"#;

const KEY: &str = "sk-never-to-be-seen-42";

fn table(space: &Space, stage: &str, output: &str) -> Table {
    let record = space.record(stage);
    let folder = tempfile::tempdir().unwrap();
    space
        .store()
        .lay_out(&record.outputs[output], folder.path())
        .unwrap();
    Table::read(folder.path()).unwrap()
}

#[test]
fn policies_temperatures_and_seeds_become_rows_lines_and_runs() {
    let space = Space::new(PIPELINE);
    let report = space.run(&["--only", "frontier"]);
    assert_eq!(report.code, 0, "{:#?}\n{}", report.events, report.stderr);
    let diversity = table(&space, "diversity", "table");
    let rows: Vec<(String, String)> = diversity
        .all_texts("policy")
        .unwrap()
        .into_iter()
        .zip(diversity.all_texts("temperature").unwrap())
        .collect();
    let expected = [
        ("first", "0.7"),
        ("first", "1.0"),
        ("second", "0.7"),
        ("second", "1.0"),
    ];
    let expected =
        expected.map(|(policy, temperature)| (policy.to_owned(), temperature.to_owned()));
    assert_eq!(rows, expected);
    assert_eq!(diversity.all_numbers("Prompts").unwrap(), [8.0; 4]);
    // An untrained model is nearly uniform over its words, a trained one is not.
    let entropies = diversity.all_numbers("Entropy").unwrap();
    assert!(
        entropies[0] > 4.0 && entropies[2] < entropies[0] - 0.2,
        "{entropies:?}"
    );
    let wins = table(&space, "wins", "per_seed");
    assert_eq!(wins.all_numbers("n").unwrap(), [12.0; 8]);
    assert_eq!(wins.all_texts("seed").unwrap()[..2], ["1", "2"]);
    let frontier = table(&space, "frontier", "table");
    assert_eq!(frontier.height(), 4);
    assert!(
        frontier
            .all_texts("Pareto-optimal")
            .unwrap()
            .contains(&"yes".to_owned())
    );
}

#[test]
fn tables_are_exported_in_the_formats_asked_for() {
    let space = Space::new(PIPELINE);
    let report = space.run(&["--only", "wins"]);
    assert_eq!(report.code, 0, "{:#?}\n{}", report.events, report.stderr);
    let export = |result: &str, args: &[&str]| {
        space.flowgraph(&[&["export", "p.yaml", result, "out"], args].concat())
    };
    let all = [
        "--format", "latex", "--format", "csv", "--format", "markdown", "--format", "parquet",
    ];
    let found = export("wins", &all);
    assert_eq!(found.code, 0, "{}", found.stderr);
    let names = space.files("out");
    let names: Vec<&str> = names
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["table.csv", "table.md", "table.parquet", "table.tex"]
    );
    assert!(space.read("out/table.tex").contains("Win rate (\\%)"));
    let csv = space.read("out/table.csv");
    assert!(csv.starts_with("policy,temperature,Win rate (%),"), "{csv}");
    assert_eq!(csv.lines().count(), 5);
    assert!(space.read("out/table.tex").contains("\\label{tab:wins}"));
    let columns = ["--column", "Wins", "--column", "policy", "--force"];
    let chosen = |args: &[&str]| export("wins", &[args, &columns].concat()).code;
    let caption = ["--caption", "Who wins"];
    assert_eq!(chosen(&["--format", "csv"]), 0);
    assert_eq!(chosen(&[&["--format", "latex"], &caption[..]].concat()), 0);
    // What a format has no room for is refused.
    assert_eq!(chosen(&[&["--format", "csv"], &caption[..]].concat()), 2);
    assert_eq!(chosen(&["--format", "latex", "--spreadsheet"]), 2);
    assert!(space.read("out/table.csv").starts_with("Wins,policy\n"));
    assert!(space.read("out/table.tex").contains("\\caption{Who wins}"));
    let unknown = export(
        "wins",
        &["--format", "csv", "--column", "Losers", "--force"],
    );
    assert_eq!(unknown.code, 2);
    assert!(
        unknown.stderr.contains("no column `Losers`"),
        "{}",
        unknown.stderr
    );
    assert_eq!(chosen(&["--format", "parquet"]), 2);
    // Nothing is overwritten unasked, and what is no table has no such form.
    assert_eq!(export("wins", &["--format", "csv"]).code, 2);
    assert_eq!(export("wins", &["--format", "csv", "--force"]).code, 0);
    let model = export("first", &["--format", "csv", "--force"]);
    assert_eq!(model.code, 2);
    assert!(
        model
            .stderr
            .contains("`first` is no table but language_model"),
        "{}",
        model.stderr
    );
    // Completions are a table for programs.
    let samples = "samples[policy=first,temperature=1.0,seed=1]";
    assert_eq!(export(samples, &["--format", "csv", "--force"]).code, 0);
    assert!(
        space
            .read("out/table.csv")
            .starts_with("question_id,sample,question,")
    );
}

/// A judge on this machine who always prefers A, repeats the key, and breaks down after some answers.
struct Judge {
    address: String,
    /// The bodies that were answered.
    answered: Arc<Mutex<Vec<String>>>,
    /// How many more are answered.
    left: Arc<AtomicUsize>,
}

impl Judge {
    fn start(left: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let judge = Self {
            address: format!("http://{}/v1", listener.local_addr().unwrap()),
            answered: Arc::default(),
            left: Arc::new(AtomicUsize::new(left)),
        };
        let (answered, left) = (Arc::clone(&judge.answered), Arc::clone(&judge.left));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is no concern.
                let _ = answer(stream, &answered, &left);
            }
        });
        judge
    }

    fn answered(&self) -> Vec<String> {
        self.answered.lock().unwrap().clone()
    }
}

fn answer(
    stream: TcpStream,
    answered: &Mutex<Vec<String>>,
    left: &AtomicUsize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap_or(0);
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut authorization);
            }
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let works = left
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        })
        .is_ok();
    let (status, reply) = if works {
        answered
            .lock()
            .unwrap()
            .push(String::from_utf8_lossy(&body).into_owned());
        let content = format!("Comparison: you sent {authorization}.\nMore helpful: A");
        let reply = serde_json::json!({ "choices": [{ "message": { "content": content } }] });
        (200, reply.to_string())
    } else {
        (500, format!("broken: {authorization}"))
    };
    let head = format!(
        "HTTP/1.1 {status} Status\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        reply.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(reply.as_bytes())
}

#[test]
fn a_judge_is_asked_nothing_twice_and_its_key_is_nowhere() {
    let space = Space::new(PIPELINE);
    let judge = Judge::start(5);
    let url = format!("url={}", judge.address);
    let args = ["run", "p.yaml", "--json", "--only", "asked", "--set", &url];
    let run = |key: Option<&str>| {
        let mut program = space.program(&args);
        program
            .env_remove("JUDGE_KEY")
            .envs(key.map(|key| ("JUDGE_KEY", key)));
        let output = program.output().unwrap();
        let shown = [&output.stdout[..], &output.stderr].concat();
        assert!(!String::from_utf8_lossy(&shown).contains(KEY));
        space.report(&output)
    };
    let error = |report: &crate::space::Report| format!("{:?}", report.events);
    let unset = run(None);
    assert_eq!(unset.code, 1);
    assert!(error(&unset).contains("the environment variable JUDGE_KEY is not set"));
    let broken = run(Some(KEY));
    assert_eq!(broken.code, 1);
    let found = error(&broken);
    assert!(
        found.contains("status 500: broken: Bearer [key]"),
        "{found}"
    );
    assert!(found.contains("5 of "), "{found}");
    assert_eq!(judge.answered().len(), 5);
    judge.left.store(1000, Ordering::SeqCst);
    let mended = run(Some(KEY));
    assert_eq!(mended.code, 0, "{:#?}\n{}", mended.events, mended.stderr);
    let mut answered = judge.answered();
    let all = answered.len();
    answered.sort();
    answered.dedup();
    assert_eq!(answered.len(), all, "a request was answered twice");
    assert!(
        answered
            .iter()
            .all(|body| body.contains("Query:\\n") && !body.contains("Query:\\n\\n"))
    );
    // Who always prefers the first calls every pair a tie.
    let judged = table(&space, "asked", "judgements");
    let verdicts = judged.all_texts("verdict").unwrap();
    assert_eq!(verdicts.len(), 24);
    let wins = verdicts.iter().filter(|verdict| *verdict == "win").count();
    assert!(
        wins <= 12 && wins * 2 + verdicts.iter().filter(|verdict| *verdict == "tie").count() == 24
    );
    // Now the server is not needed, and neither is the key.
    assert_eq!(run(None).code, 0);
    assert_eq!(judge.answered().len(), all);
    for file in space.files(".flowgraph") {
        let bytes = std::fs::read(&file).unwrap();
        let holds = bytes
            .windows(KEY.len())
            .any(|window| window == KEY.as_bytes());
        assert!(!holds, "{} holds the key", file.display());
    }
}
