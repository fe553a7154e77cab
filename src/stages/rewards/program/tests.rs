//! Programs that give rewards, good ones and bad ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::*;
use crate::artifacts::dataset::{Dataset, Example};
use crate::engine::context::RECEIVED;
use crate::engine::context::tests::context;

/// Answers each request of one completion by how many there were before.
const COUNTER: &str =
    r#"n=0; while read -r line; do echo "{\"rewards\": [$n.5]}"; n=$((n+1)); done"#;

fn description(run: &str) -> ProgramDescription {
    ProgramDescription {
        run: run.to_owned(),
        environment: BTreeMap::new(),
        secrets: Vec::new(),
        columns: Vec::new(),
        prefixes: false,
        deterministic: false,
        batch_size: 1,
    }
}

fn open(folder: &Path, description: &ProgramDescription, data: &Dataset) -> (Program, RunContext) {
    let artifact = folder.join("artifact");
    fs_err::create_dir_all(&artifact).unwrap();
    RewardProgram::save(description, data, &artifact).unwrap();
    let program = RewardProgram::load(&artifact).unwrap();
    assert_eq!(program.description, *description);
    let (mut ctx, _) = context(folder, BTreeMap::new(), None);
    let program = Program::open(program, "scores", &mut ctx).unwrap();
    (program, ctx)
}

fn text(completion: &str) -> Text<'_> {
    Text {
        asked: Asked {
            prompt: "p",
            question: "q",
        },
        completion,
        finished: true,
        prefix: false,
    }
}

fn asked(description: &ProgramDescription, completions: &[&str]) -> Result<Vec<f64>, ProgramError> {
    let folder = tempfile::tempdir().unwrap();
    let (program, _ctx) = open(folder.path(), description, &Dataset::default());
    let texts: Vec<Text<'_>> = completions
        .iter()
        .map(|completion| text(completion))
        .collect();
    program.rewards(&texts)
}

#[test]
fn each_text_is_asked_about_once_even_by_the_next_try() {
    let folder = tempfile::tempdir().unwrap();
    let counter = description(COUNTER);
    let (program, ctx) = open(folder.path(), &counter, &Dataset::default());
    program.ahead(&[text("a"), text("b"), text("a")]).unwrap();
    let found = program.rewards(&[text("b"), text("a"), text("c"), text("b")]);
    assert_eq!(found.unwrap(), [1.5, 0.5, 2.5, 1.5]);
    // Nothing was finished; another try goes on where this one was.
    drop(program);
    let (program, mut other) = open(folder.path(), &counter, &Dataset::default());
    let found = program.rewards(&[text("c"), text("d")]);
    assert_eq!(found.unwrap(), [2.5, 0.5]);
    program.finish("scores", &mut other).unwrap();
    let kept = ctx.output("scores").unwrap().join(RECEIVED);
    let lines = fs_err::read_to_string(kept).unwrap();
    assert_eq!(lines.lines().count(), 4, "{lines}");
    // A program that would fail is not even started where everything is known.
    let (program, _ctx) = open(folder.path(), &description("exit 3"), &Dataset::default());
    assert_eq!(program.rewards(&[text("a")]).unwrap(), [0.5]);
    // One that promises to answer the same again keeps nothing.
    let promised = ProgramDescription {
        deterministic: true,
        ..description(r#"while read -r line; do echo '{"rewards": [1]}'; done"#)
    };
    let folder = tempfile::tempdir().unwrap();
    let (program, mut ctx) = open(folder.path(), &promised, &Dataset::default());
    assert_eq!(
        program.rewards(&[text("a"), text("b")]).unwrap(),
        [1.0, 1.0]
    );
    program.finish("scores", &mut ctx).unwrap();
    assert!(!ctx.output("scores").unwrap().join(RECEIVED).exists());
}

#[test]
fn a_promise_to_answer_the_same_is_checked() {
    let promised = ProgramDescription {
        deterministic: true,
        ..description(COUNTER)
    };
    let error = asked(&promised, &["a"]).unwrap_err().to_string();
    assert!(
        error.contains("the rewards 0.5 and 1.5, but says that it is deterministic"),
        "{error}"
    );
    // The first of two has 1: the request is made again in other parts.
    let by_place = r#"while read -r line; do case $line in *true,true*) echo '{"rewards": [1, 0]}';;
        *) echo '{"rewards": [0]}';; esac; done"#;
    let by_place = ProgramDescription {
        deterministic: true,
        batch_size: 2,
        ..description(by_place)
    };
    let error = asked(&by_place, &["a", "b"]).unwrap_err().to_string();
    assert!(error.contains("the rewards 1 and 0, but"), "{error}");
}

#[test]
fn answers_more_than_requests_are_errors_in_the_end() {
    for run in [
        r#"while read -r line; do echo '{"rewards": [1]}'; echo '{"rewards": [1]}'; done"#,
        r#"echo '{"rewards": [1]}'; while read -r line; do echo '{"rewards": [1]}'; done"#,
        r#"while read -r line; do echo '{"rewards": [1]}'; done; echo bye"#,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (program, mut ctx) = open(folder.path(), &description(run), &Dataset::default());
        let found = program.rewards(&[text("a"), text("b")]);
        let ended = found
            .map_err(StageError::from)
            .and_then(|_| program.finish("scores", &mut ctx));
        let Err(StageError::Failed { message, .. }) = ended else {
            panic!("{run}");
        };
        assert!(
            message.contains("it is more than was asked for")
                || message.contains("nothing was asked"),
            "{run}: {message}"
        );
        assert!(!ctx.output("scores").unwrap().join(RECEIVED).exists());
    }
    let folder = tempfile::tempdir().unwrap();
    let late = r#"while read -r line; do echo '{"rewards": [1]}'; done; echo sorry >&2; exit 9"#;
    let (program, mut ctx) = open(folder.path(), &description(late), &Dataset::default());
    program.rewards(&[text("a")]).unwrap();
    program.finish("scores", &mut ctx).unwrap();
}

#[test]
fn faults_of_programs_are_told_with_their_last_words() {
    let long = "head -c 2000000 /dev/zero | tr '\\0' 'x'";
    for (run, message) in [
        (
            "echo oops >&2; exit 7",
            "ended (exit status: 7), requests unanswered: 1; on standard error:\noops",
        ),
        ("read -r line; kill -9 $$", "ended (signal: 9"),
        (
            "sleep 20 & read -r line; exit 3",
            "ended (exit status: 3), requests unanswered: 1",
        ),
        ("no-such-program-here", "no-such-program-here"),
        (
            "echo hello; sleep 60",
            "answered \"hello\": it is no answer",
        ),
        (
            "read -r line; echo '{\"rewards\": [1, 2]}'; sleep 60",
            "it has 2 rewards for 1 completions",
        ),
        (
            "read -r line; echo '{\"rewards\": [NaN]}'",
            "a reward is no finite number",
        ),
        (
            "read -r line; echo '{\"rewards\": [1e39]}'",
            "reward 0 is 1e39, expected a finite number",
        ),
        (
            "read -r line; echo '{\"rewards\": [null]}'",
            "reward 0 is null, expected a finite number",
        ),
        (
            "read -r line; echo '{\"rewards\": [\"1\"]}'",
            "reward 0 is \"1\", expected a finite number",
        ),
        (
            "read -r line; echo '{\"scores\": [1]}'",
            "unknown field `scores`",
        ),
        ("read -r line; printf '\\377\\n'", "it is no UTF-8"),
        ("read -r line; echo '{\"rewards\": [1]'", "it is no answer"),
        (long, "a line of more than 1 MiB"),
        (
            "exec >&-; read -r line; sleep 60",
            "its standard output was closed",
        ),
    ] {
        let error = asked(&description(run), &["a"]).unwrap_err().to_string();
        assert!(error.contains(message), "{run}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let slow = description("echo busy >&2; sleep 60");
    let (mut program, _ctx) = open(folder.path(), &slow, &Dataset::default());
    program.timeout = Duration::from_millis(200);
    let error = program.rewards(&[text("a")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the reward program gave no answer in 0.2 s; on standard error:\nbusy"
    );
    // Only the last lines have room.
    let chatty = "for n in 1 2 3 4 5 6 7; do echo line $n >&2; done; exit 1";
    let error = asked(&description(chatty), &["a"]).unwrap_err().to_string();
    assert!(
        error.contains("\nline 3\nline 4") && !error.contains("line 2"),
        "{error}"
    );
}

#[test]
fn requests_hold_what_a_program_is_to_know() {
    let folder = tempfile::tempdir().unwrap();
    let description = ProgramDescription {
        columns: vec!["key".to_owned(), "chosen".to_owned()],
        batch_size: 2,
        ..description("read -r line; echo \"$line\" >&2; exit 1")
    };
    let row = |question: &str, key: Option<&str>| Example {
        question: question.to_owned(),
        prompt: "p".to_owned(),
        chosen: Some("c".to_owned()),
        kept: key
            .into_iter()
            .map(|key| ("key".to_owned(), key.to_owned()))
            .collect(),
        ..Example::default()
    };
    let data = Dataset {
        title: "t".to_owned(),
        examples: vec![
            row("q", Some("[4]")),
            Example {
                prompt: "other".to_owned(),
                ..row("r", None)
            },
            Example {
                prompt: "empty".to_owned(),
                ..row("", None)
            },
            Example {
                prompt: "one".to_owned(),
                ..row("two", Some("1"))
            },
            Example {
                prompt: "two".to_owned(),
                ..row("two", Some("2"))
            },
        ],
    };
    for (prefix, expected) in [
        (
            false,
            r#"{"prompts":["p","x"],"completions":["a","b"],"finished":[true,true],"columns":{"key":["[4]",null],"chosen":["c","c"]}}"#,
        ),
        (
            true,
            r#"{"prompts":["p","x"],"completions":["a","b"],"finished":[true,true],"prefixes":true,"columns":{"key":["[4]",null],"chosen":["c","c"]}}"#,
        ),
    ] {
        let (program, _ctx) = open(folder.path(), &description, &data);
        let a = Text {
            prefix,
            ..text("a")
        };
        // A prompt that was cut has its question.
        let cut = Asked {
            prompt: "x",
            question: "r",
        };
        let b = Text {
            asked: cut,
            prefix,
            ..text("b")
        };
        let error = program.rewards(&[a, b]).unwrap_err().to_string();
        assert!(error.ends_with(&format!("\n{expected}")), "{error}");
        let unknown = Asked {
            prompt: "x",
            question: "x",
        };
        let error = program.check(unknown).unwrap_err().to_string();
        // Nobody's question is everybody's.
        let nothing = Asked {
            prompt: "x",
            question: "",
        };
        assert!(program.check(nothing).is_err());
        // Of two rows with other columns nobody knows which is meant.
        let ambiguous = Asked {
            prompt: "x",
            question: "two",
        };
        assert!(program.check(ambiguous).is_err());
        assert!(
            error.contains("knows no columns of the prompt \"x\""),
            "{error}"
        );
    }
}

#[test]
fn a_stage_that_is_to_stop_waits_for_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (program, ctx) = open(
        folder.path(),
        &description("read -r line; sleep 60"),
        &Dataset::default(),
    );
    program.ahead(&[text("a")]).unwrap();
    ctx.cancel_flag().store(true, Ordering::Relaxed);
    let found = program.rewards(&[text("a")]);
    assert!(matches!(found, Err(ProgramError::Cancelled)));
}
