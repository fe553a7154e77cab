//! The past of a store: `why`, `runs`, `diff`, `show --run`, `gc`, `audit`.

use serde_json::Value as Json;

use crate::space::Space;

const PIPELINE: &str = r#"
name: past
params: { a: one, b: two }
stages:
  a: { kind: command, params: { run: "echo ${a} > out", outputs: { out: out } } }
  b: { kind: command, inputs: { x: a }, params: { run: "cat $x > out; echo ${b} >> out", outputs: { out: out } } }
  c: { kind: command, inputs: { x: b }, params: { run: "wc -l < $x > out", outputs: { out: out } } }
"#;

fn json(space: &Space, args: &[&str]) -> Json {
    let outcome = space.flowgraph(&[args, &["--json"]].concat());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[test]
fn why_follows_a_change_up_to_its_cause() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    let cached = json(&space, &["why", "p.yaml", "c"]);
    assert_eq!(cached["stages"][0]["decision"], "cached");
    assert_eq!(cached["stages"][0]["nearest"], Json::Null);
    assert_eq!(cached["stages"][0]["record"]["stage"], "c");

    let args = ["why", "p.yaml", "c", "--set", "a=three"];
    let changed = json(&space, &args);
    let names: Vec<&Json> = changed["stages"].as_array().unwrap().iter().collect();
    let names: Vec<&str> = names
        .iter()
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c", "b", "a"]);
    let difference = &changed["stages"][2]["differences"][0];
    assert_eq!(difference["key"], "params.run");
    assert_eq!(
        (&difference["old"], &difference["new"]),
        (
            &Json::from("echo one > out"),
            &Json::from("echo three > out")
        )
    );
    let text = space.flowgraph(&args).stdout;
    assert!(
        text.contains("params.run echo one > out -> echo three > out"),
        "{text}"
    );
    let unknown = space.flowgraph(&["why", "p.yaml", "d"]);
    assert_eq!(unknown.code, 2);
}

#[test]
fn runs_are_listed_and_compared() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    space.run(&["--set", "b=four"]);
    let runs = json(&space, &["runs"]);
    let runs = runs["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[1]["description"]["set"], serde_json::json!(["b=four"]));
    assert_eq!(
        runs[1]["outcomes"],
        serde_json::json!({ "cached": 1, "done": 2, "failed": 0, "skipped": 0, "interrupted": 0 })
    );

    let diff = json(&space, &["diff"]);
    assert_eq!(
        diff["params"],
        serde_json::json!([{ "key": "params.b", "old": "two", "new": "four" }])
    );
    let changed = diff["changed"].as_array().unwrap();
    // `b` gave other bytes, so `c` has another manifest, though it gave the same.
    let names: Vec<&str> = changed
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["b", "c"]);

    // What a past run had, whatever the pipeline says now.
    let past = |run: &str| {
        space
            .flowgraph(&["show", "p.yaml", "b", "--run", run])
            .stdout
    };
    assert_eq!(
        (past("last-1").as_str(), past("last").as_str()),
        ("one\ntwo\n", "one\nfour\n")
    );
    assert_eq!(space.flowgraph(&["diff", "last-7"]).code, 2);
    assert_eq!(
        space
            .flowgraph(&["show", "p.yaml", "z", "--run", "last"])
            .code,
        2
    );
}

const TABLE: &str = r#"
name: table
params: { mean: 0.5, n: 3 }
stages:
  scores:
    kind: command
    params:
      run: "printf 'policy,seed,Mean,n\nppo,1,${mean},${n}\nppo,2,0.25,${n}\n' > t"
      outputs: { out: { path: t, kind: table } }
"#;

#[test]
fn tables_of_runs_are_compared_by_rows_that_name_their_axes() {
    let space = Space::new(TABLE);
    space.run(&[]);
    space.run(&["--set", "mean=0.75"]);
    space.run(&["--set", "mean=1", "--set", "n=4"]);
    let diff = space.flowgraph(&["diff", "last-2", "last-1"]);
    assert_eq!(diff.code, 0, "{}", diff.stderr);
    assert!(diff.stdout.contains("out: "), "{}", diff.stdout);
    let rows: Vec<&str> = diff
        .stdout
        .lines()
        .filter(|line| line.contains("policy ppo"))
        .collect();
    assert_eq!(rows.len(), 1, "{}", diff.stdout);
    assert!(
        rows[0].contains("policy ppo, seed 1") && rows[0].contains("0.75"),
        "{}",
        rows[0]
    );

    let metric = "scores:policy ppo, seed 1:Mean";
    let compared = json(&space, &["compare", "--metric", metric]);
    let means: Vec<Json> = (0..3)
        .map(|run| compared["runs"][run]["metrics"][metric].clone())
        .collect();
    assert_eq!(means, [0.5, 0.75, 1.0]);
    // The same table by the name of its output.
    let named = json(
        &space,
        &["compare", "--metric", &metric.replacen(':', ".out:", 1)],
    );
    let name = metric.replacen(':', ".out:", 1);
    assert_eq!(named["runs"][1]["metrics"][name], 0.75);
    let params = |run: usize, key: &str| compared["runs"][run]["params"][key].clone();
    assert_eq!((params(1, "mean"), params(2, "n")), (0.75.into(), 4.into()));
    let two = space.flowgraph(&["compare", "last-1", "last-2"]);
    assert_eq!(two.code, 0, "{}", two.stderr);
    // Of these two no other param differs.
    assert!(
        two.stdout.contains("mean") && !two.stdout.contains(" n "),
        "{}",
        two.stdout
    );
    let wrong = space.flowgraph(&["compare", "--metric", "scores:ppo:Mean"]);
    assert_eq!(wrong.code, 2);
    assert!(
        wrong.stderr.contains("rows: policy ppo, seed 1"),
        "{}",
        wrong.stderr
    );
    assert_eq!(space.flowgraph(&["compare", "--metric", "scores"]).code, 2);
}

#[test]
fn what_no_run_and_no_pipeline_needs_goes_and_comes_back() {
    let space = Space::new(PIPELINE);
    let first = space.run(&[]);
    space.run(&["--set", "b=four"]);
    assert_eq!(
        space.flowgraph(&["gc", "--keep", "0"]).code,
        2,
        "it would empty the store"
    );

    let dry = json(&space, &["gc", "--keep", "1", "--dry-run"]);
    let stages = dry["results"].as_array().unwrap();
    let mut stages: Vec<&str> = stages
        .iter()
        .map(|result| result["stage"].as_str().unwrap())
        .collect();
    stages.sort_unstable();
    assert_eq!(stages, ["b", "c"]);
    assert_eq!(
        space.run(&[]).outcomes(),
        "a cached, b cached, c cached",
        "a dry run takes nothing"
    );

    // The pipeline as it stands keeps its results even without runs.
    let kept = json(&space, &["gc", "p.yaml", "--keep", "0"]);
    assert_eq!(kept["results"].as_array().unwrap().len(), 2);
    assert_eq!(space.run(&[]).outcomes(), "a cached, b cached, c cached");
    let plan = space.plan(&["--set", "b=four"]);
    assert!(
        plan[1].text().contains("its result was evicted"),
        "{}",
        plan[1].text()
    );
    let again = space.run(&["--set", "b=four"]);
    assert_eq!(again.outcomes(), "a cached, b done, c done");
    assert_eq!(space.run(&[]).digests(), first.digests());
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn an_audit_tells_reproducible_stages_from_others_and_changes_nothing() {
    let space = Space::new(
        r#"
name: audited
stages:
  fixed: { kind: command, params: { run: "echo one > out", outputs: { out: out } } }
  random: { kind: command, inputs: { x: fixed }, params: { run: "cat $x /proc/sys/kernel/random/uuid > out", outputs: { out: out } } }
  after: { kind: command, inputs: { x: random }, params: { run: "cat $x > out", outputs: { out: out } } }
  broken: { kind: command, params: { run: "test -e {here}/there && echo > out", outputs: { out: out } } }
"#,
    );
    space.write("there", "");
    let before = space.run(&[]);
    assert_eq!(before.code, 0, "{}", before.stderr);
    std::fs::remove_file(space.path("there")).unwrap();
    let audit = space.flowgraph(&["audit", "p.yaml", "--json"]);
    assert_eq!(audit.code, 5, "{}", audit.stderr);
    let report: Json = serde_json::from_str(&audit.stdout).unwrap();
    let verdicts: Vec<String> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| format!("{} {}", found["stage"], found["verdict"]).replace('"', ""))
        .collect();
    // `after` reads the recorded bytes of `random`, not those of the audit.
    assert_eq!(
        verdicts,
        [
            "fixed reproduced",
            "random different",
            "after reproduced",
            "broken not_auditable"
        ]
    );
    assert_eq!(
        space.flowgraph(&["audit", "p.yaml", "fixed", "after"]).code,
        0
    );
    assert_eq!(space.flowgraph(&["audit", "p.yaml", "nothing"]).code, 2);
    let sampled = space.flowgraph(&["audit", "p.yaml", "--sample", "1", "--json"]);
    let sampled: Json = serde_json::from_str(&sampled.stdout).unwrap();
    assert_eq!(sampled["findings"].as_array().unwrap().len(), 1);

    assert_eq!(space.run(&[]).digests(), before.digests());
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
    let left = std::fs::read_dir(space.path(".flowgraph/audit")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "the audit's store is removed");
    // What a killed one leaves, the next run sweeps away.
    std::fs::create_dir_all(space.path(".flowgraph/audit/1/objects")).unwrap();
    space.run(&[]);
    assert!(!space.path(".flowgraph/audit/1").exists());
}

#[test]
fn provenance_is_written_so_that_every_reference_leads_somewhere() {
    let space = Space::new(&PIPELINE.replace(
        "  c:",
        "  t: { kind: normality, inputs: { scores: [s] } }\n  s: { kind: score_world, inputs: { completions: m }, params: { reward: exact } }\n  \
         m: { kind: enumerate_answers, inputs: { prompts: w.evaluation }, params: { n: 1 } }\n  \
         w: { kind: generate_world, params: { seed: 1, pretraining_documents: 10, finetune_pairs: 10, reward_pairs: 10, rl_questions: 5 } }\n  c:",
    ).replace("inputs: { scores: [s] }", "inputs: { scores: [s] }, params: { row: stage }"));
    let run = space.run(&[]);
    assert_eq!(run.code, 0, "{}", run.stderr);

    let export =
        |args: &[&str]| space.flowgraph(&[&["export-provenance", "p.yaml"], args].concat());
    // As it is: an outcome has its digests replaced.
    let written = |args: &[&str]| {
        let args = [&["export-provenance", "p.yaml"], args].concat();
        String::from_utf8(space.program(&args).output().unwrap().stdout).unwrap()
    };
    let prov: Json = serde_json::from_str(&written(&["--format", "prov"])).unwrap();
    for relation in ["used", "wasGeneratedBy"] {
        let links = prov[relation].as_object().unwrap();
        assert!(links.len() > 3, "{relation}");
        for link in links.values() {
            let id = |key: &str| link[key].as_str().unwrap();
            assert!(
                prov["activity"].get(id("prov:activity")).is_some(),
                "{link}"
            );
            assert!(prov["entity"].get(id("prov:entity")).is_some(), "{link}");
        }
    }
    assert_eq!(prov["activity"].as_object().unwrap().len(), 7);

    // One stage with what it is made of.
    let statements = written(&["--format", "in-toto", "c"]);
    let statements: Vec<Json> = statements
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(statements.len(), 3);
    for statement in &statements {
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        for subject in statement["subject"].as_array().unwrap() {
            assert_eq!(subject["digest"]["blake3"].as_str().unwrap().len(), 64);
        }
    }
    let made = &statements[0]["subject"][0]["digest"];
    let read = &statements[1]["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"];
    assert_eq!(made, read, "what `a` made is what `b` read");

    let crated = export(&["--format", "ro-crate", "--output", "crate"]);
    assert_eq!(crated.code, 0, "{}", crated.stderr);
    let metadata: Json = serde_json::from_str(&space.read("crate/ro-crate-metadata.json")).unwrap();
    let graph = metadata["@graph"].as_array().unwrap();
    let ids: Vec<&str> = graph
        .iter()
        .map(|entity| entity["@id"].as_str().unwrap())
        .collect();
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "each entity stands once");
    let root = graph.iter().find(|entity| entity["@id"] == "./").unwrap();
    for part in root["hasPart"].as_array().unwrap() {
        let id = part["@id"].as_str().unwrap();
        assert!(space.path("crate").join(id).exists(), "{id}");
    }
    for entity in graph
        .iter()
        .filter(|entity| entity["@type"] == "CreateAction")
    {
        let lists = ["object", "result"].map(|key| entity[key].as_array().unwrap());
        for reference in lists.into_iter().flatten() {
            assert!(
                ids.contains(&reference["@id"].as_str().unwrap()),
                "{reference}"
            );
        }
    }
    assert!(space.path("crate/t/table/table.md").exists());
    assert_eq!(
        export(&["--format", "ro-crate", "--output", "crate"]).code,
        2,
        "it is not overwritten"
    );
}
