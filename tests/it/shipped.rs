//! The pipelines that come with the program.

use serde_json::Value as Json;

use crate::space::Space;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines");

#[test]
fn every_pipeline_checks_in_every_profile() {
    let space = Space::new("");
    let mut files = 0;
    for entry in std::fs::read_dir(FOLDER).unwrap() {
        let path = entry.unwrap().path();
        // Pages of results lie beside the pipelines.
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let found = space.flowgraph(&["check", path.to_str().unwrap()]);
        assert_eq!(found.code, 0, "{}: {}", path.display(), found.stderr);
        assert!(!found.stderr.contains("warning:"), "{}", found.stderr);
        files += 1;
    }
    assert!(files >= 3, "{files} pipelines in {FOLDER}");
}

/// Plans a profile of a shipped pipeline where there is no network and nothing of its data.
fn plan(pipeline: &str, settings: &[&str]) -> Vec<Json> {
    let space = Space::new("");
    let file = format!("{FOLDER}/{pipeline}");
    let args = [&["plan", &file, "--json", "--profile", "paper"], settings].concat();
    let output = space
        .program(&args)
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let plan: Json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    plan["stages"].as_array().unwrap().clone()
}

fn of_kind<'a>(plan: &'a [Json], kind: &str) -> Vec<&'a Json> {
    plan.iter().filter(|stage| stage["kind"] == kind).collect()
}

#[test]
fn the_paper_profile_of_gdpo_plans_with_estimates() {
    let summaries = [
        "--set",
        "data.layout=openai_summarize_comparisons",
        "--set",
        "data.judge=tldr_concise",
        "--set",
        "steps=5783",
    ];
    for (settings, steps) in [(&[][..], 9981.0), (&summaries[..], 5783.0)] {
        let plan = plan("gdpo.yaml", settings);
        // SFT, reward model, DPO, IPO, GDPO and the released code; the two temperatures of each policy.
        let trained = ["train_sft", "train_preference", "train_gflownet_dpo"]
            .map(|kind| of_kind(&plan, kind));
        assert_eq!(trained.each_ref().map(Vec::len), [1, 2, 2]);
        assert_eq!(of_kind(&plan, "sample").len(), 10);
        assert_eq!(of_kind(&plan, "judge").len(), 10);
        let estimated = ["sample", "train_reward"].map(|kind| of_kind(&plan, kind));
        for stage in trained.iter().chain(&estimated).flatten() {
            assert_eq!(stage["decision"], "run", "{stage}");
            for key in ["seconds", "memory_bytes", "flops"] {
                let value = stage["estimate"][key].as_f64();
                assert!(value.is_some_and(|value| value > 0.0), "{key} of {stage}");
            }
        }
        // 16 rows of 300 tokens a step through 134.5 million weights, forward and twice that backward.
        let expected = 6.0 * 134_515_008.0 * 300.0 * 16.0 * steps;
        let found = trained[0][0]["estimate"]["flops"].as_f64().unwrap();
        assert!(
            (found / expected - 1.0).abs() < 1e-9,
            "{found} for {expected}"
        );
    }
}
