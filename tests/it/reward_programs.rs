//! Rewards that programs of the user's give: what is received is never asked for again.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value as Json;

use crate::space::Space;
use crate::tiny;

const STAGES: &str = r#"
  reward:
    kind: reward_command
    params: { run: "sh reward.sh {here}", code: [reward.sh], batch_size: 1 }
  policy:
    kind: train_policy_gradient
    inputs: { policy: base, reward: reward, data: world.rl }
    params:
      objective: dr_grpo
      steps: 6
      updates_per_batch: 2
      prompts_per_step: 2
      completions_per_prompt: 4
      optimizer: { lr: 1e-3 }
      max_new_tokens: 12
      monitor_every: 0
      seed: 1
"#;

/// Answers by chance; ends after some answers unless a file says that it may go on.
const RANDOM: &str = r#"
n=0
while read -r line; do
  n=$((n+1))
  if [ $n -gt 10 ] && [ ! -e "$1/go" ]; then echo tired >&2; exit 9; fi
  echo asked >> "$1/asked"
  echo "{\"rewards\": [$(od -An -N2 -tu2 /dev/urandom)]}"
done
"#;

fn failure(space: &Space) -> String {
    let report = space.run(&[]);
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed");
    failed.unwrap()["message"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_program_answered_by_chance_is_kept_for_the_next_try_and_the_audit() {
    let space = Space::new(&tiny::pipeline("", STAGES));
    space.write("reward.sh", RANDOM);
    let message = failure(&space);
    assert!(
        message.contains("ended (exit status: 9)") && message.ends_with("tired"),
        "{message}"
    );
    space.write("go", "");
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    let told = report.events.iter().any(|event| {
        event["event"] == "stage_note"
            && event["text"]
                .as_str()
                .unwrap()
                .contains("its rewards are kept")
    });
    assert!(told, "{:#?}", report.events);
    let exported = space.flowgraph(&["export", "p.yaml", "policy.curve", "curve"]);
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    let received = fs::read_to_string(space.path("curve/received.jsonl")).unwrap();
    let lines: Vec<Json> = received
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let distinct: BTreeSet<String> = lines
        .iter()
        .map(|line| format!("{}{}", line["prompt"], line["completion"]))
        .collect();
    assert_eq!(distinct.len(), lines.len());
    // Each completion was asked about once in both tries together.
    let asked = fs::read_to_string(space.path("asked")).unwrap();
    assert_eq!(asked.lines().count(), lines.len());
    // The audit asks for nothing, and finds the same bytes.
    let audit = space.flowgraph(&["audit", "p.yaml", "policy", "--json"]);
    let report: Json = serde_json::from_str(&audit.stdout).unwrap();
    assert_eq!(report["findings"][0]["verdict"], "reproduced", "{report:#}");
    let after = fs::read_to_string(space.path("asked")).unwrap();
    assert_eq!(after, asked);
}

const COPIES: &str = r#"
  samples: { kind: sample, inputs: { policy: base, prompts: world.evaluation }, params: { strategy: sampling, n: 40, max_new_tokens: 12 } }
  one: { kind: reward_command, params: { run: "sh reward.sh {here}/one", code: [reward.sh], batch_size: 1, deterministic: true } }
  some: { kind: reward_command, params: { run: "sh reward.sh {here}/some", code: [reward.sh], batch_size: 1, deterministic: true, parallel: true } }
  by_one: { kind: score, resources: { cpus: 2 }, inputs: { completions: samples, reward: one } }
  by_some: { kind: score, resources: { cpus: 2 }, inputs: { completions: samples, reward: some } }
"#;

/// The length of the line, whoever counts.
const LENGTH: &str = r#"
echo $$ >> "$1"
while read -r line; do echo "{\"rewards\": [${#line}]}"; done
"#;

#[test]
fn copies_run_where_a_stage_has_processors_and_change_nothing() {
    let space = Space::new(&tiny::pipeline("", COPIES));
    space.write("reward.sh", LENGTH);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    for (file, copies) in [("one", 1), ("some", 2)] {
        let text = fs::read_to_string(space.path(file)).unwrap();
        assert_eq!(text.lines().count(), copies, "{file}");
    }
    let digest = |stage: &str| {
        let shown = space.flowgraph(&["show", "p.yaml", stage, "--json"]);
        let shown: Json = serde_json::from_str(&shown.stdout).unwrap();
        shown["digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(digest("by_one.scores"), digest("by_some.scores"));
    // How it is run is no part of what it gives.
    let shorter = COPIES.replace(
        "deterministic: true, parallel: true",
        "deterministic: true, timeout: 9.5",
    );
    space.write("p.yaml", &tiny::pipeline("", &shorter));
    let outcomes = space.run(&[]).outcomes();
    assert!(!outcomes.contains("done"), "{outcomes}");
    // Another program is another reward.
    space.write("reward.sh", &LENGTH.replace("${#line}", "-1"));
    let before = digest("samples");
    let outcomes = space.run(&[]).outcomes();
    assert!(
        outcomes.contains("by_one done") && outcomes.contains("samples cached"),
        "{outcomes}"
    );
    assert_eq!(digest("samples"), before);
}
