//! What README shows works as it stands there.

use std::process::Command;

use serde_json::json;

use crate::space::Space;

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));

/// The blocks of a language in the part under a heading.
fn blocks_of(heading: &str, language: &str) -> Vec<&'static str> {
    let start = README.find(&format!("## {heading}\n")).unwrap();
    let end = start + README[start..].find("\n## ").unwrap();
    let fence = format!("```{language}\n");
    let parts = README[start..end].split(fence.as_str()).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap())
        .collect()
}

/// Those on one's own data and reward.
fn blocks(language: &str) -> Vec<&'static str> {
    blocks_of("Your own data, your own reward", language)
}

#[test]
fn the_first_pipeline_runs_as_it_stands() {
    let space = Space::new(blocks_of("Writing a pipeline", "yaml")[0]);
    for (args, expected) in [(&[][..], "20"), (&["--profile", "big"][..], "2000")] {
        assert_eq!(space.run(args).code, 0);
        let shown = space.flowgraph(&[&["show", "p.yaml", "total"], args].concat());
        assert_eq!(shown.stdout.trim(), expected, "{}", shown.stderr);
    }
}

#[test]
fn it_is_short() {
    assert!(README.lines().count() <= 220);
}

#[test]
fn own_data_and_own_reward_go_from_a_file_to_python() {
    let space = Space::new("");
    let said = |role: &str, text: String| json!({ "role": role, "content": text });
    let rows = (0..40).map(|row| {
        let asked = said("user", format!("May I have number {row}?"));
        json!({
            "chosen": [asked.clone(), said("assistant", format!("Yes, please take {row}."))],
            "rejected": [asked, said("assistant", "No.".to_owned())],
        })
        .to_string()
    });
    let rows: Vec<String> = rows.collect();
    space.write("conversations.jsonl", &rows.join("\n"));
    space.write("own.yaml", &blocks("yaml").concat());
    for program in blocks("python") {
        let name = program.lines().next().unwrap().trim_start_matches("# ");
        space.write(name, program);
    }
    let commands: Vec<&str> = blocks("sh")[0].lines().collect();
    assert_eq!(commands.len(), 3);
    for command in &commands[..2] {
        let args: Vec<&str> = command.split(' ').skip(1).collect();
        let outcome = space.flowgraph(&args);
        assert_eq!(
            outcome.code, 0,
            "{command}\n{}{}",
            outcome.stdout, outcome.stderr
        );
    }
    let read = Command::new("python3")
        .arg("read.py")
        .current_dir(space.path(""))
        .output()
        .unwrap();
    let printed = String::from_utf8(read.stdout).unwrap();
    assert_eq!(printed.lines().count(), 6, "{printed}");
    assert!(printed.contains("lr=0.001"), "{printed}");
    // What the data was put together by goes with the models.
    let exported = space.files("results/policy");
    let mut tokenizers = exported
        .iter()
        .filter(|file| file.ends_with("tokenizer_config.json"));
    let tokenizer = std::fs::read_to_string(tokenizers.next().unwrap()).unwrap();
    assert!(tokenizer.contains("add_generation_prompt"), "{tokenizer}");
    let mut cards = exported.iter().filter(|file| file.ends_with("README.md"));
    let card = std::fs::read_to_string(cards.next().unwrap()).unwrap();
    assert!(
        card.contains("training data; that data had `template: chatml`."),
        "{card}"
    );
    let shown = space.flowgraph(&[
        "show", "own.yaml", "scores", "--rows", "3", "--where", "lr=0.001",
    ]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert!(shown.stdout.contains("reward"), "{}", shown.stdout);
}

#[test]
fn the_verdicts_are_those_of_the_page() {
    const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/flowhf.md"));
    let cells = |line: &'static str| -> Vec<&'static str> {
        let line = line.strip_prefix("| ").unwrap_or(line);
        let line = line.strip_suffix(" |").unwrap_or(line);
        line.split(" | ").map(str::trim).collect()
    };
    let mut page = PAGE.lines().map(cells);
    let heading = page.find(|row| row[0] == "Claim").unwrap();
    let column = |name: &str| heading.iter().position(|cell| *cell == name).unwrap();
    let columns = ["Statement", "Effect", "Verdict"].map(column);
    let rows = page.skip(1).take_while(|row| row.len() == heading.len());
    let expected: Vec<Vec<&str>> = rows.map(|row| columns.map(|at| row[at]).to_vec()).collect();
    let mut readme = README.lines().map(cells);
    assert!(readme.any(|row| row == ["claim", "effect", "verdict"]));
    let found: Vec<Vec<&str>> = readme.skip(1).take(expected.len()).collect();
    assert!(expected.len() > 3);
    assert_eq!(found, expected);
}
