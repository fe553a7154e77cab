use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use serde_json::json;

use super::http::ByRequest;
use super::*;
use crate::sources::ChatClient;
use crate::sources::test_server::{Reply, Request, TestServer};

fn kind(params: serde_json::Value) -> Judge {
    serde_json::from_value(params).unwrap()
}

fn row(question_id: u64, sample: u64, completion: &str) -> CompletionRow {
    CompletionRow {
        question_id,
        sample,
        question: format!("What is {question_id}?"),
        prompt: format!("Question: What is {question_id}?\n\nAnswer: "),
        completion: completion.to_owned(),
        ..CompletionRow::default()
    }
}

/// Three questions; our completions are `good ...`, `bad ...` and the same as theirs.
fn pairs() -> Vec<Pair> {
    let ours = vec![
        row(1, 0, "good one"),
        row(2, 0, "bad one"),
        row(3, 0, "same"),
    ];
    let theirs = vec![row(1, 0, "plain"), row(2, 0, "plain"), row(3, 0, " same\n")];
    let opponents = Opponents::of_completions(theirs);
    let kind = kind(json!({ "judge": { "kind": "reward_model" } }));
    kind.pairs(ours, &opponents).unwrap()
}

fn server(address: &str, changes: serde_json::Value) -> Server {
    let mut params = json!({
        "url": format!("{address}/v1"), "model": "judge-1", "template": "hh", "max_retries": 2,
        "timeout_seconds": 0.5, "first_pause_seconds": 0.002, "concurrency": 1
    });
    for (key, value) in changes.as_object().unwrap() {
        params[key] = value.clone();
    }
    let server: Server = serde_json::from_value(params).unwrap();
    let mut problems = Vec::new();
    server.validate(&mut problems);
    assert_eq!(problems, []);
    server
}

fn client(server: &Server) -> ChatClient {
    let variables = |name: &str| (name == "PIP_CONFIG_FILE").then(|| "/dev/null".to_owned());
    server
        .client(&Settings::read(&variables), &|_| None, 1)
        .unwrap()
}

fn ask(server: &Server, pairs: &[Pair], kept: &Path) -> Result<ByRequest, StageError> {
    let requests = server.requests(pairs)?;
    let cancelled = AtomicBool::new(false);
    server.ask_all(&client(server), &requests, kept, &cancelled, &mut |_, _| ())
}

/// A judge who wants `good`, and of two others the first: it cannot tell `bad` from `plain`.
fn judged(request: &Request) -> Reply {
    let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body["temperature"], 0);
    let prompt = body["messages"][0]["content"].as_str().unwrap();
    let second = prompt.find("Response B").unwrap();
    let letter = match prompt.find("good") {
        Some(place) if place > second => "B",
        _ => "A",
    };
    let answer = format!("Comparison: so.\nMore helpful: {letter}");
    let reply = json!({ "choices": [{ "message": { "content": answer } }] });
    Reply::new(200, reply.to_string().as_bytes())
}

fn verdicts(judged: &[Judgement]) -> Vec<(u64, Verdict)> {
    let each = judged.iter();
    each.map(|found| (found.question_id, found.verdict))
        .collect()
}

#[test]
fn each_pair_is_judged_in_both_orders_and_equal_ones_unasked() {
    let local = TestServer::start(judged);
    let folder = tempfile::tempdir().unwrap();
    let server = server(&local.address, json!({ "concurrency": 3 }));
    let pairs = pairs();
    let replies = ask(&server, &pairs, folder.path()).unwrap();
    let found = server.judgements(&pairs, &replies).unwrap();
    use Verdict::{Loss, Tie, Win};
    let expected = [(1, Win), (1, Win), (2, Win), (2, Loss), (3, Tie), (3, Tie)];
    assert_eq!(verdicts(&found), expected);
    // The query is in every prompt, and each request was sent once.
    let requests = local.requests();
    assert_eq!(requests.len(), 4);
    assert!(
        requests
            .iter()
            .all(|request| request.body.contains("What is "))
    );
    assert!(found[0].request.is_some() && found[5].request.is_none());
    // Replies are in the order of the pairs, whichever came first.
    let output = tempfile::tempdir().unwrap();
    http::write_replies(output.path(), &replies).unwrap();
    let text = fs_err::read_to_string(output.path().join("replies.jsonl")).unwrap();
    let digests: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["request"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let expected: Vec<String> = found
        .iter()
        .filter_map(|found| found.request.clone())
        .collect();
    assert_eq!(digests, expected);
    assert!(text.contains("More helpful"));
}

#[test]
fn what_was_answered_before_a_failure_is_not_asked_again() {
    let broken = std::sync::Arc::new(AtomicBool::new(true));
    let fails = std::sync::Arc::clone(&broken);
    let local = TestServer::start(move |request| {
        if request.number > 1 && fails.load(Atomic::Relaxed) {
            return Reply::new(500, b"out of order");
        }
        judged(request)
    });
    let folder = tempfile::tempdir().unwrap();
    let server = server(&local.address, json!({}));
    let pairs = pairs();
    let Err(StageError::Failed { message, hint }) = ask(&server, &pairs, folder.path()) else {
        panic!("no failure");
    };
    assert!(
        message.ends_with("(3 attempts): status 500: out of order"),
        "{message}"
    );
    assert_eq!(
        hint.unwrap(),
        "2 of 4 replies are kept: the next run asks for the others alone"
    );
    assert_eq!(local.requests().len(), 5);
    broken.store(false, Atomic::Relaxed);
    // A reply that was torn, as no rename tears one, is asked for again.
    let mut kept: Vec<_> = fs_err::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    kept.sort();
    fs_err::write(&kept[0], "{").unwrap();
    let replies = ask(&server, &pairs, folder.path()).unwrap();
    assert_eq!((replies.len(), local.requests().len()), (4, 8));
    assert_eq!(ask(&server, &pairs, folder.path()).unwrap(), replies);
    assert_eq!(local.requests().len(), 8);
}

#[test]
fn a_server_that_misbehaves_now_and_then_is_judged_to_the_end() {
    let local = TestServer::start(|request| match request.number {
        0 => Reply::new(429, b"").with("retry-after", "0"),
        2 => Reply::new(200, b"{ \"choices\": ["),
        4 => judged(request).cut_after(20),
        6 => Reply {
            hang_up: true,
            ..Reply::new(200, b"")
        },
        8 => Reply {
            delay: Duration::from_secs(2),
            ..judged(request)
        },
        _ => judged(request),
    });
    let mut pairs = pairs();
    pairs.extend(pairs.clone().into_iter().map(|mut pair| {
        pair.ours.question_id += 10;
        pair.ours.question.push('!');
        pair
    }));
    let folder = tempfile::tempdir().unwrap();
    let server = server(&local.address, json!({}));
    let replies = ask(&server, &pairs, folder.path()).unwrap();
    assert_eq!((replies.len(), local.requests().len()), (8, 13));
}

#[test]
fn a_cancelled_stage_is_interrupted() {
    let local = TestServer::start(judged);
    let server = server(&local.address, json!({}));
    let folder = tempfile::tempdir().unwrap();
    let requests = server.requests(&pairs()).unwrap();
    let cancelled = AtomicBool::new(true);
    let found = server.ask_all(
        &client(&server),
        &requests,
        folder.path(),
        &cancelled,
        &mut |_, _| (),
    );
    assert!(matches!(found, Err(StageError::Interrupted)));
    assert_eq!(local.requests().len(), 0);
}

#[test]
fn opponents_are_preferred_completions_or_samples_of_the_same_number() {
    let params = |seed: u64| json!({ "judge": { "kind": "reward_model" }, "seed": seed, "max_questions": 2, "max_samples": 2 });
    let ours: Vec<CompletionRow> = (0..3)
        .flat_map(|question| (0..3).map(move |sample| row(question, sample, "ours")))
        .collect();
    let texts: Vec<String> = (0..9).map(|n| n.to_string()).collect();
    let preferred =
        Opponents::Preferred((0..2).map(|question| (question, texts.clone())).collect());
    let chosen = |seed: u64| -> Vec<(u64, String)> {
        let pairs = kind(params(seed)).pairs(ours.clone(), &preferred).unwrap();
        let each = pairs.into_iter();
        each.map(|pair| (pair.ours.question_id, pair.theirs.completion))
            .collect()
    };
    let questions: Vec<u64> = chosen(1)
        .into_iter()
        .map(|(question, _)| question)
        .collect();
    assert_eq!(questions, [0, 0, 1, 1]);
    assert_eq!(chosen(1), chosen(1));
    assert_ne!(chosen(1), chosen(2));
    let fewer = Opponents::of_completions(vec![row(0, 0, "a"), row(0, 1, "b"), row(1, 0, "c")]);
    let mut others = ours.clone();
    others[0].prompt = "another template".to_owned();
    let pairs = kind(params(1)).pairs(others, &fewer).unwrap();
    let found: Vec<&str> = pairs.iter().map(|pair| &*pair.theirs.completion).collect();
    assert_eq!(found, ["a", "b", "c", "c"]);
    assert_eq!(pairs[0].theirs.prompt, "another template");
    let none = Opponents::Preferred(BTreeMap::new());
    let Err(StageError::Failed { message, .. }) = kind(params(1)).pairs(ours, &none) else {
        panic!("no failure");
    };
    assert!(
        message.contains("2 of 2 questions, question_id 0"),
        "{message}"
    );
}

#[test]
fn a_reward_model_prefers_the_greater_reward() {
    assert_eq!(preferred((1.0, 0.5)), Verdict::Win);
    assert_eq!(preferred((0.5, 0.5)), Verdict::Tie);
    assert_eq!(preferred((-1.0, 0.5)), Verdict::Loss);
    assert_eq!(preferred((f64::NAN, 0.5)), Verdict::Unparsable);
}

#[test]
fn a_prompt_without_a_query_is_an_error() {
    let mut pairs = pairs();
    pairs[0].ours.question = " ".to_owned();
    let server = server("http://127.0.0.1:1", json!({}));
    assert!(server.requests(&pairs).is_err());
}

#[test]
fn what_changes_no_reply_is_not_in_the_fingerprint_and_the_key_is_nowhere() {
    let full = kind(json!({ "judge": {
        "kind": "http", "url": "https://host/v1", "model": "m", "template": "tldr_simple", "api_key_env": "THE_KEY",
        "max_retries": 1, "requests_per_minute": 3, "timeout_seconds": 9, "concurrency": 2, "first_pause_seconds": 2
    } }));
    let plain = kind(
        json!({ "judge": { "kind": "http", "url": "https://host/v1", "model": "m", "template": "tldr_simple" } }),
    );
    let (full_params, plain_params) = (
        serde_json::to_value(&full).unwrap(),
        serde_json::to_value(&plain).unwrap(),
    );
    assert_eq!(full_params, plain_params);
    assert!(full_params.to_string().contains("https://host/v1"));
    assert_eq!(full.validate(), []);
    let outputs = |kind: &Judge| kind.outputs().len();
    assert_eq!((outputs(&full), full.ports().len()), (2, 2));
    let reward = kind(json!({ "judge": { "kind": "reward_model" } }));
    assert_eq!((outputs(&reward), reward.ports().len()), (1, 3));
    let Judging::Http(server) = &full.judge else {
        panic!("not http");
    };
    let settings =
        Settings::read(&|name| (name == "PIP_CONFIG_FILE").then(|| "/dev/null".to_owned()));
    let message =
        |value: Option<&str>| match server.client(&settings, &|_| value.map(str::to_owned), 1) {
            Err(StageError::Failed { message, .. }) => message,
            _ => panic!("no failure"),
        };
    assert_eq!(message(None), "the environment variable THE_KEY is not set");
    assert_eq!(
        message(Some(" ")),
        "the environment variable THE_KEY is not set"
    );
    assert_eq!(
        message(Some("two words")),
        "the value of THE_KEY cannot be a key"
    );
}

#[test]
fn params_are_checked() {
    let problems = |judge: serde_json::Value| {
        let mut params =
            json!({ "kind": "http", "url": "https://host/v1", "model": "m", "template": "hh" });
        for (key, value) in judge.as_object().unwrap() {
            params[key] = value.clone();
        }
        kind(json!({ "judge": params })).validate()
    };
    assert_eq!(problems(json!({})), []);
    for wrong in [
        json!({ "url": "https://me:secret@host/v1" }),
        json!({ "model": "" }),
        json!({ "concurrency": 0 }),
        json!({ "timeout_seconds": 0 }),
        json!({ "requests_per_minute": -1 }),
        json!({ "api_key_env": "sk-secret" }),
    ] {
        let found = problems(wrong);
        assert_eq!(found.len(), 1, "{found:?}");
        let text = format!("{found:?}");
        assert!(!text.contains("secret"), "{text}");
    }
    let unknown = json!({ "judge": { "kind": "http", "url": "u", "model": "m", "template": "hh", "api_key": "x" } });
    assert!(serde_json::from_value::<Judge>(unknown).is_err());
}
