//! The schema of pipeline files, as editors use it.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::python::Python;
use crate::space::Space;

/// A pipeline with one stage that is wrong.
fn wrong(stage: &str) -> String {
    format!("name: n\nstages:\n  a: {stage}\n")
}

fn shipped() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        "pipelines",
        "examples",
        "examples/python_reward",
        "examples/preferences",
        "tests/golden",
    ];
    let entries = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect()
}

#[test]
fn ports_references_and_nulls_are_in_it() {
    let schema = Space::new("").flowgraph(&["schema"]).stdout;
    let schema: Json = serde_json::from_str(&schema).unwrap();
    let conditions = schema["properties"]["stages"]["additionalProperties"]["allOf"]
        .as_array()
        .unwrap();
    let of = |kind: &str| {
        let is_it = |condition: &&Json| condition["if"]["properties"]["kind"]["const"] == kind;
        &conditions.iter().find(is_it).unwrap()["then"]
    };
    let sample = of("sample");
    assert_eq!(sample["required"], json!(["inputs"]));
    let forms = sample["properties"]["inputs"]["anyOf"].as_array().unwrap();
    let reference = json!({ "type": "string", "pattern": "\\$\\{" });
    assert!(forms.contains(&reference), "{forms:?}");
    assert_eq!(forms[0]["required"], json!(["policy", "prompts"]));
    assert_eq!(forms[0]["additionalProperties"], false);
    assert!(of("command").get("required").is_none());
    // What may be left out may be null.
    let temperature = &schema["$defs"]["sample"]["properties"]["temperature"]["anyOf"];
    for form in [json!({ "type": "null" }), reference] {
        assert!(
            temperature.as_array().unwrap().contains(&form),
            "{temperature}"
        );
    }
}

#[test]
#[ignore = "installs PyPI's check-jsonschema"]
fn a_validator_takes_what_ships_and_refuses_what_is_wrong() {
    let space = Space::new("");
    Python::with(&space, &["check-jsonschema==0.39.0"]);
    space.write("schema.json", &space.flowgraph(&["schema"]).stdout);
    let program = space.path("venv/bin/check-jsonschema");
    let validates = |path: &Path| {
        let output = std::process::Command::new(&program)
            .args(["--schemafile", "schema.json"])
            .arg(path)
            .current_dir(space.path(""))
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let files = shipped();
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let (is_valid, said) = validates(&file);
        assert!(is_valid, "{}: {said}", file.display());
    }
    for (stage, said) in [
        (
            "{ kind: sample, inputs: { polcy: b, prompts: c }, params: { n: 1, max_new_tokens: 8 } }",
            "polcy",
        ),
        (
            "{ kind: sample, inputs: { policy: b, prompts: c }, params: { n: many, max_new_tokens: 8 } }",
            "many",
        ),
        (
            "{ kind: sample, inputs: { policy: b, prompts: c }, params: { n: 1, max_new_tokens: 8, m: 1 } }",
            "'m'",
        ),
        ("{ kind: smaple }", "smaple"),
        (
            "{ kind: sample, params: { n: 1, strategy: greedy, max_new_tokens: 8 } }",
            "inputs",
        ),
    ] {
        space.write("wrong.yaml", &wrong(stage));
        let (is_valid, found) = validates(&space.path("wrong.yaml"));
        assert!(!is_valid && found.contains(said), "{stage}: {found}");
    }
    let right = "{ kind: sample, inputs: { policy: b, prompts: \"${x}\" }, params: { n: \"${n}\", max_new_tokens: 8, strategy: \"${s}\", temperature: null } }";
    space.write("right.yaml", &wrong(right));
    let (is_valid, found) = validates(&space.path("right.yaml"));
    assert!(is_valid, "{found}");
}
