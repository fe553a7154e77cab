//! What `check` says of broken pipelines: everything at once, with place and hint.

use crate::space::Space;

/// The diagnostics of `check --json`, one line each: `line:column severity: message | hint`.
fn diagnostics(pipeline: &str) -> String {
    diagnostics_with(pipeline, &[])
}

fn diagnostics_with(pipeline: &str, args: &[&str]) -> String {
    let space = Space::new(pipeline);
    let outcome = space.flowgraph(&[&["check", "p.yaml", "--json"], args].concat());
    assert_eq!(outcome.code, 3, "{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.stderr, "");
    assert!(
        !space.path(".flowgraph").exists(),
        "`check` touched the store"
    );
    let found: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let rows = found["diagnostics"].as_array().unwrap();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            assert_eq!(row["file"], "p.yaml");
            let place = match (row["line"].as_u64(), row["column"].as_u64()) {
                (Some(line), Some(column)) => format!("{line}:{column}"),
                _ => "-".to_owned(),
            };
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let hint = if row["hint"].is_null() {
                String::new()
            } else {
                format!("\n    {}", text("hint"))
            };
            format!("{place} {}: {}{hint}", text("severity"), text("message"))
        })
        .collect();
    lines.join("\n")
}

#[test]
fn every_mistake_is_found_at_once_with_its_place_and_a_hint() {
    insta::assert_snapshot!(diagnostics(
        r#"name: many
parmas: {}
params: { word: w, unused: 1, ring_a: "${ring_b}", ring_b: "${ring_a}" }
stages:
  good: { kind: command, params: { run: "echo ${word}", outputs: { out: out } } }
  Bad: { kind: command, params: { run: "echo", outputs: { out: out } } }
  kindless: { params: {} }
  misspelt: { kind: comand }
  key: { kind: command, input: { x: good }, params: { run: "echo", outputs: { out: out } } }
  param: { kind: command, params: { rum: "echo", outputs: [out], code: main.py } }
  reference: { kind: command, inputs: { x: goood, y: good.oot, z: "good[seed=1]", Port: good, w: "go od", v: [good, { a: 1 }] }, params: { run: "echo", outputs: { out: out } } }
  undefined: { kind: command, params: { run: "echo ${wrd} ${matrix.seed} ${word", outputs: { out: out } } }
  axis: { matrix: { seed: [1, 2, 2], "no!": [1], one: 3, exclude: [{ sed: 1 }] }, kind: command, params: { run: "echo", outputs: { out: out } } }
  numbers: { kind: command, retries: -1, timeout: soon, resources: { cpus: 0, memory: lots, gpu: 1 }, params: { run: "echo", outputs: { out: out } } }
  values: { kind: command, params: { run: " ", outputs: { Out: ../x }, code: [/etc/passwd], env: [LD_PRELOAD] } }
  list: [1]
"#
    ), @r#"
    2:1 error: unknown key `parmas`
        did you mean `params`?
    3:39 error: params refer to each other in a ring: ring_b -> ring_a -> ring_b
    3:60 error: params refer to each other in a ring: ring_b -> ring_a -> ring_b
    6:3 error: `Bad` cannot name a stage
        names match [a-z][a-z0-9_]*, as `bad` does
    7:3 error: stage `kindless` has no `kind`
        `flowgraph kinds` lists the kinds
    8:21 error: unknown stage kind `comand`
        did you mean `command`?
    9:25 error: unknown key `input` of stage `key`
        did you mean `inputs`?
    10:35 error: stage `param`: missing param `run` of `command`
        `run`: Shell text, run by `sh -e`.
    10:37 error: stage `param`: unknown param `rum` of `command`
        did you mean `run`?
    10:59 error: stage `param`: `outputs`: expected a map, found a list
        `outputs`: For each output, the file or folder that the command writes; the first by name is the default output.
    10:72 error: stage `param`: `code`: expected a list, found the text "main.py"
        a list of one is `[main.py]`
    11:44 error: no stage `goood`
        did you mean `good`?
    11:54 error: stage `good` has no output `oot`
        expected one of: out
    11:67 error: `good` has no axis `seed`
        `good` has no matrix
    11:83 error: `Port` cannot name a port
        names match [a-z][a-z0-9_]*
    11:98 error: `go od` is not a name; a reference looks like `stage`, `stage.output` or `stage[axis=value].output`
    11:117 error: expected a reference, found a map
        a reference looks like `stage`, `stage.output` or `stage[axis=value].output`
    12:46 error: `${wrd}` is not defined in `params`
        did you mean `word`?
    12:46 error: `${matrix.seed}` names no axis of this stage
        this stage has no `matrix`
    12:46 error: `${` without its `}`
        write `$${` for a literal `${`
    13:34 error: axis `seed` has the value `2` twice
    13:38 error: `no!` cannot name an axis
        names match [a-z][a-z0-9_]*
    13:55 error: axis `one` must be a list of values, found a whole number
    13:70 error: the matrix has no axis `sed`
        did you mean `seed`?
    14:38 error: `retries` must be a whole number, found `-1`
    14:51 error: `timeout` must be a number of seconds above 0, found `soon`
    14:76 error: `cpus` must be a whole number above 0, found `0`
    14:87 error: expected an amount of memory such as `4GB` or `512MB`, found `lots`
    14:93 error: unknown resource `gpu`
        did you mean `gpus`?
    15:43 error: stage `values`: `run` is empty
    15:64 error: stage `values`: `Out` cannot name an output
    15:64 error: stage `values`: `../x` leaves the working directory
        outputs are written in the working directory: a relative path without `..`
    15:78 error: stage `values`: `/etc/passwd` is not a relative path without `..`
        code is copied into the working directory under its relative path
    15:98 error: stage `values`: `LD_PRELOAD` cannot be passed on
    16:9 error: a stage must be a map, found a list
        a stage has a `kind`, as in `sft: { kind: train_sft, ... }`
    "#);
}

#[test]
fn references_that_cannot_be_wired_are_named() {
    insta::assert_snapshot!(diagnostics(
        r#"name: wires
stages:
  base: { kind: command, params: { run: "echo", outputs: { out: out, log: log } } }
  many: { matrix: { seed: [1, 2], lr: [0.1] }, kind: command, params: { run: "echo", outputs: { out: out } } }
  output: { kind: command, inputs: { x: base.lag }, params: { run: "echo", outputs: { out: out } } }
  axis: { kind: command, inputs: { x: many }, params: { run: "echo", outputs: { out: out } } }
  value: { kind: command, inputs: { x: "many[seed=3,lr=0.1]" }, params: { run: "echo", outputs: { out: out } } }
  unknown: { kind: command, inputs: { x: "many[sead=1,lr=0.1]" }, params: { run: "echo", outputs: { out: out } } }
  empty: { kind: command, inputs: { x: [] }, params: { run: "echo", outputs: { out: out } } }
"#
    ), @r"
    5:41 error: stage `base` has no output `lag`
        expected one of: log, out
    6:39 error: `many` has an axis `seed` that stage `axis` lacks
        select one as `many[seed=1]`, or take all with `many[*]`
    6:39 error: `many` has an axis `lr` that stage `axis` lacks
        select one as `many[lr=0.1]`, or take all with `many[*]`
    7:40 error: axis `seed` of `many` has no value `3`
        expected one of: 1, 2
    8:42 error: `many` has no axis `sead`
        did you mean `seed`?
    9:40 error: stage `empty`: port `x` needs at least one artifact
    ");
}

#[test]
fn rings_are_shown_as_rings() {
    insta::assert_snapshot!(diagnostics(
        r#"name: ring
stages:
  before: { kind: command, inputs: { x: b }, params: { run: "echo", outputs: { out: out } } }
  a: { kind: command, inputs: { x: c }, params: { run: "echo", outputs: { out: out } } }
  b: { kind: command, inputs: { x: a }, params: { run: "echo", outputs: { out: out } } }
  c: { kind: command, inputs: { x: b }, params: { run: "echo", outputs: { out: out } } }
"#
    ), @r"
    4:31 error: stages need each other in a ring: a -> b -> c -> a
        an arrow points from a stage to one that reads its output; remove one of them
    ");
    insta::assert_snapshot!(diagnostics(
        "name: self\nstages:\n  a: { kind: command, inputs: { x: a }, params: { run: echo, outputs: { out: out } } }\n"
    ), @r"
    3:31 error: stage `a` needs itself
        an arrow points from a stage to one that reads its output; remove one of them
    ");
}

#[test]
fn syntax_errors_and_duplicate_keys_have_places() {
    insta::assert_snapshot!(diagnostics("name: x\nstages:\n  a: { kind: command\n  b: {}\n"), @r"
    4:4 error: did not find expected ',' or '}', while parsing a flow mapping that begins in line 3
        a bracket is not closed, or a text with `: `, `, ` or brackets is not quoted
    ");
    insta::assert_snapshot!(diagnostics("name: x\nname: y\nstages:\n  a: { kind: command, kind: command }\n  a: {}\n"), @r"
    2:1 error: duplicate key `name`
        a key may be given once; remove or rename one of them
    4:23 error: duplicate key `stages.a.kind`
        a key may be given once; remove or rename one of them
    5:3 error: duplicate key `stages.a`
        a key may be given once; remove or rename one of them
    ");
    insta::assert_snapshot!(diagnostics("name: x\nstages:\n\ta: {}\n"), @r"
    3:1 error: found character that cannot start any token, while scanning for the next token
        the line begins with a tab: indent with spaces
    ");
    insta::assert_snapshot!(diagnostics("- a\n- b\n"), @r"- error: expected a map with `name` and `stages`, found a list");
    insta::assert_snapshot!(diagnostics(""), @r"- error: expected a map with `name` and `stages`, found nothing");
    insta::assert_snapshot!(diagnostics("name: x\nparams: { a: .nan }\nstages: {}\n"), @r"2:14 error: params.a: expected a finite number, found NaN or infinity");
    insta::assert_snapshot!(diagnostics("name: x\n"), @r"
    - error: missing key `stages`
        a pipeline without stages does nothing
    ");
    insta::assert_snapshot!(diagnostics("name: [x]\nstages: [a]\n"), @r"
    1:7 error: `name` must be text, found a list
    2:9 error: stages must be a map, found a list
        each stage stands under its name, as in `stages: { sft: { kind: train_sft, ... } }`
    ");
}

const PROFILES: &str = r#"name: profiles
params: { word: w, seeds: [1] }
profiles:
  good: { params: { seeds: [1, 2] } }
  bad_value: { params: { seeds: 7 } }
  bad_patch: { stages: { a: { params: { rum: x } }, c: { inputs: { x: b } } } }
  bad_kind: { stages: { a: { kind: comand } } }
  replaced: { stages: { b: { kind: command, inputs: { y: zzz }, params: { run: "echo" } } } }
  removed: { stages: { a: null } }
  bad_key: { parms: {} }
  misspelt: { params: { wurd: x } }
  based: { extends: bad_kind, params: { seeds: [2] } }
stages:
  a:
    matrix: { seed: "${seeds}" }
    kind: command
    params: { run: "echo ${word} ${matrix.seed}", outputs: { out: out } }
  b: { kind: command, inputs: { x: "a[*]" }, params: { run: "echo", outputs: { out: out } } }
"#;

#[test]
fn mistakes_of_profiles_are_shown_in_the_profile() {
    insta::assert_snapshot!(diagnostics(PROFILES), @r"
    10:14 error: unknown key `parms` in profile `bad_key`
        a profile may hold `extends`, `params`, `stages` and `description`
    15:21 error: profile `bad_value`: axis `seed` must be a list of values, found a whole number
    6:41 error: profile `bad_patch`: stage `a`: unknown param `rum` of `command`
        did you mean `run`?
    6:53 error: profile `bad_patch`: stage `c` has no `kind`
        `flowgraph kinds` lists the kinds
    7:36 error: profile `bad_kind`: unknown stage kind `comand`
        did you mean `command`?
    8:58 error: profile `replaced`: no stage `zzz`
        expected one of: a, b
    18:36 error: profile `removed`: no stage `a`
        expected one of: b
    7:36 error: profile `based`: unknown stage kind `comand`
        did you mean `command`?
    ");
    insta::assert_snapshot!(diagnostics_with(PROFILES, &["--profile", "gud"]), @r"
    10:14 error: unknown key `parms` in profile `bad_key`
        a profile may hold `extends`, `params`, `stages` and `description`
    - error: unknown profile `gud`
        expected one of: good, bad_value, bad_patch, bad_kind, replaced, removed, bad_key, misspelt, based
    ");
}

#[test]
fn mistakes_of_settings_are_named() {
    const PIPELINE: &str = r#"name: settings
params: { word: w, data: { n: 1 } }
stages:
  a: { kind: command, params: { run: "echo ${word} ${data.n}", outputs: { out: out } } }
"#;
    let set = |setting: &str| diagnostics_with(PIPELINE, &["--set", setting]);
    insta::assert_snapshot!(set("wrd=x"), @r"
    - error: `--set wrd=x`: no param or stage `wrd`
        did you mean `word`?
    ");
    insta::assert_snapshot!(set("word"), @r"
    - error: `--set word`: expected KEY=VALUE
        for example `--set ppo.lr=2e-5` or `--set stages.sft.params.steps=10`
    ");
    insta::assert_snapshot!(set("data.m=2"), @r"
    - error: `--set data.m=2`: the pipeline has no param `data.m`
        expected one of: n
    ");
    insta::assert_snapshot!(set("word.x=2"), @r"- error: `--set word.x=2`: the pipeline has no param `word.x`");
    insta::assert_snapshot!(set("stages.b.params.run=x"), @r"
    - error: `--set stages.b.params.run=x`: no stage `b`
        expected one of: a
    ");
    insta::assert_snapshot!(set("stages.a.params.rum=x"), @r"
    4:23 error: stage `a`: unknown param `rum` of `command` (given by `--set stages.a.params.rum=x`)
        did you mean `run`?
    ");
    insta::assert_snapshot!(set("word={"), @r"- error: `--set word={`: the value is not YAML: did not find expected node content, while parsing a flow node");
    insta::assert_snapshot!(set("a.run=[1]"), @r"
    4:38 error: stage `a`: `run`: expected a string, found a list (given by `--set a.run=[1]`)
        `run`: Shell text, run by `sh -e`.
    ");
}

#[test]
fn unused_params_are_warnings() {
    let space = Space::new(
        r#"name: unused
params: { used: 1, indirect: 2, alias: "${indirect}", left: 3 }
profiles: { big: { params: { lfet: 4 } } }
stages:
  a: { kind: command, params: { run: "echo ${used} ${alias}", outputs: { out: out } } }
"#,
    );
    let outcome = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
    insta::assert_snapshot!(outcome.stderr, @r#"
    warning: p.yaml:2:55
      ⚠ param `left` is not used by any stage
       ╭─[p.yaml:2:55]
     1 │ name: unused
     2 │ params: { used: 1, indirect: 2, alias: "${indirect}", left: 3 }
       ·                                                       ────
     3 │ profiles: { big: { params: { lfet: 4 } } }
       ╰────
      help: refer to it as `${left}`, or remove it

    warning: p.yaml:3:30
      ⚠ param `lfet` is not used by any stage
       ╭─[p.yaml:3:30]
     2 │ params: { used: 1, indirect: 2, alias: "${indirect}", left: 3 }
     3 │ profiles: { big: { params: { lfet: 4 } } }
       ·                              ────
     4 │ stages:
       ╰────
      help: refer to it as `${lfet}`, or remove it

    p.yaml is valid (default: 1 stage, big: 1 stage)
    "#);
    let json = space.flowgraph(&["check", "p.yaml", "--json"]);
    assert_eq!(
        json.stdout,
        "{\"profiles\":[{\"profile\":\"default\",\"stages\":1},{\"profile\":\"big\",\"stages\":1}],\"valid\":true}\n"
    );
    // A run says it, too, and goes on.
    let run = space.flowgraph(&["run", "p.yaml"]);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("param `left` is not used by any stage"),
        "{}",
        run.stderr
    );
}

#[test]
fn people_see_the_line_with_a_mark_under_it() {
    let space = Space::new(
        r#"name: shown
stages:
  corpus: { kind: command, params: { run: "echo", outputs: { text: out } } }
  sft:
    kind: command
    inputs: { data: korpus }
    params: { run: "echo", outputs: { out: out }, cod: [a] }
"#,
    );
    let outcome = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (3, ""));
    insta::assert_snapshot!(outcome.stderr, @r#"
    error: p.yaml:6:21
      × no stage `korpus`
       ╭─[p.yaml:6:21]
     5 │     kind: command
     6 │     inputs: { data: korpus }
       ·                     ──────
     7 │     params: { run: "echo", outputs: { out: out }, cod: [a] }
       ╰────
      help: did you mean `corpus`?

    error: p.yaml:7:51
      × stage `sft`: unknown param `cod` of `command`
       ╭─[p.yaml:7:51]
     6 │     inputs: { data: korpus }
     7 │     params: { run: "echo", outputs: { out: out }, cod: [a] }
       ·                                                   ───
       ╰────
      help: did you mean `code`?

    p.yaml: 2 errors, 0 warnings
    "#);
    // The same for every command that reads a pipeline.
    for command in ["run", "plan", "graph"] {
        let other = space.flowgraph(&[command, "p.yaml"]);
        assert_eq!(
            (other.code, other.stderr.as_str()),
            (3, outcome.stderr.as_str()),
            "{command}"
        );
    }
}

#[test]
fn mistakes_of_newcomers_are_told_in_words_of_pipeline_files() {
    let with = |stage: &str| diagnostics(&format!("name: x\nstages:\n  s: {stage}\n"));
    let params = |kind: &str, params: &str| with(&format!("{{ kind: {kind}, params: {params} }}"));
    let command = |rest: &str| {
        with(&format!(
            "{{ kind: command, params: {{ run: x, outputs: {{ o: o }} }}{rest} }}"
        ))
    };
    for (said, expected) in [
        (
            params(
                "generate_world",
                "{ seed: 1, finetune_pairs: 1e3, reward_pairs: '10', rl_questions: true }",
            ),
            &[
                "`finetune_pairs`: expected a whole number of at least 0, found `1000.0`\n    write `1000`",
                "`reward_pairs`: expected a whole number of at least 0, found the text \"10\"\n    write `10`, without quotes",
                "`rl_questions`: expected a whole number of at least 0, found `true`\n    `rl_questions`: Questions for",
            ][..],
        ),
        (
            command(", timeout: 99999999999999999999"),
            // Tests show long runs of digits as digests.
            &["the whole number DIGEST needs more than 64 bits"],
        ),
        (
            with("!command { params: {} }"),
            &["YAML tags such as `!name` have no meaning here"],
        ),
        (
            diagnostics("name: x\nstages:\n  a: &a { kind: command }\n  s: { <<: *a }\n"),
            &["YAML merge keys (`<<`) are not supported"],
        ),
        (
            command(", retries: {{ a }}"),
            &["a reference to a param is `${name}`, not `{{ name }}`"],
        ),
        (
            with("command"),
            &["a stage must be a map, found a string\n    a stage has a `kind`"],
        ),
        (
            diagnostics(
                "name: x\nstages:\n  s: { kind: command, params: { run: \"echo ${HOME}\", outputs: { o: o } } }\n",
            ),
            &[
                "`${HOME}` is not defined in `params`\n    a variable of the shell is `$HOME`, and `$${HOME}` where",
            ],
        ),
        (
            diagnostics("name: x\nstages:\n  s: { kind: command, description: \"x }\n"),
            &["while scanning a quoted scalar that begins in line 3\n    a quote is not closed"],
        ),
        (
            diagnostics("name: x\nstages:\n  s: { description: \"a\u{1}b\" }\n"),
            &["3:23 error: control character \\u{1}"],
        ),
        (
            diagnostics("name: x\nstages:\n\u{a0}\u{a0}s: { kind: command }\n"),
            &[
                "3:1 error: unknown key `\u{a0}\u{a0}s`\n    its line begins with a space that is none",
            ],
        ),
        (
            diagnostics(
                "name: x\nstages:\n  s: { kind: a, params: { b: 1 } }\n  s: { kind: a, params: { b: 1 } }\n",
            ),
            &[
                "4:3 error: duplicate key `stages.s`\n    a key may be given once; remove or rename one of them",
            ],
        ),
    ] {
        for part in expected {
            assert!(said.contains(part), "{part}\n---\n{said}");
        }
        let count = said.matches("error: ").count();
        assert!(
            count <= 3,
            "what follows from a mistake is not reported: {said}"
        );
    }
}

#[test]
fn rows_runs_and_columns_that_a_table_cannot_have_are_found_before_anything_runs() {
    let said = diagnostics(
        r"name: claimed
stages:
  world: { kind: generate_world, params: { seed: 1, finetune_pairs: 10, reward_pairs: 10, rl_questions: 10 } }
  answers:
    matrix: { policy: [a, b, c], seed: [1, 2], exclude: [{ policy: c, seed: 2 }] }
    kind: enumerate_answers
    inputs: { prompts: world.evaluation }
    params: { n: 2 }
  scored:
    matrix: { policy: [a, b, c], seed: [1, 2], exclude: [{ policy: c, seed: 2 }] }
    kind: score_world
    inputs: { completions: answers }
    params: { reward: exact }
  claims:
    kind: claims
    inputs: { scores: 'scored[*]' }
    params:
      claims:
        - { id: right, text: '', test: { kind: difference, a: a, b: b, direction: greater }, gates: { coherent: { at_least: 0.9 } } }
        - { id: row, text: '', test: { kind: difference, a: a, b: d, direction: greater } }
        - { id: runs, text: '', test: { kind: difference, a: a, b: c, direction: greater } }
        - { id: gate, text: '', test: { kind: difference, a: a, b: b, direction: greater }, gates: { kl: { at_most: 6 } } }
        - { id: column, text: '', test: { kind: difference, a: a, b: b, column: kl, direction: greater } }
        - { id: training, text: '', test: { kind: diverges, a: a } }
  table: { kind: metric_table, inputs: { scores: 'scored[*]' }, params: { top_k: 2, extra: [kl], entropy: [mode] } }
  profiles: { kind: plot_profiles, inputs: { scores: 'scored[*]' }, params: { column: entropy } }
  choice: { kind: choose, inputs: { scores: 'scored[policy=*,seed=1]' }, params: { candidate: policy, column: score, within: { kl: { at_most: 6 } } } }
  right: { kind: metric_table, inputs: { scores: 'scored[*]' }, params: { columns: [mean], extra: [exact_reward] } }
  known: { kind: frontier, inputs: { points: right.per_seed }, params: { along: seed, aggregate: n, values: [Mean], at: [exact_reward] } }
  value: { kind: frontier, inputs: { points: right.per_seed }, params: { along: seed, aggregate: n, values: [Maen] } }
  axis: { kind: frontier, inputs: { points: right.per_seed }, params: { along: strength, values: [Mean] } }
  series: { kind: frontier, inputs: { points: right.per_seed }, params: { series: method, along: seed, aggregate: n, values: [Mean] } }
",
    );
    let columns = "its columns are: coherent, completion, exact_reward, log_prob, mode, prompt, prompt_ids, question, question_id, reward, rude_words, sample, slot_errors, token_ids, tokens, truncated";
    for expected in [
        "claim `row`: no input is the row `d`\n    the rows are: a, b, c",
        "claim `runs`: the runs of `a` and `c` do not pair: the first has `seed` 1, 2, the second `seed` 1\n    a claim compares run by run: give both rows the same values of `seed`",
        "claim `gate`: its gate needs the column `kl`, but `scored` writes none of that name",
        "claim `column`: `mean` of `a` needs the column `kl`, but `scored` writes none of that name",
        "claim `column`: `mean` of `b` needs the column `kl`, but `scored` writes none of that name",
        "claim `training`: no input of `curves` is the training of `a`\n    connect the port `curves`",
        "`extra` asks for the column `kl`, but `scored` writes none of that name",
        "`column` asks for the column `entropy`, but `scored` writes none of that name",
        columns,
        "`column` asks for the column `score`, but `scored` writes none of that name",
        "`within` asks for the column `kl`, but `scored` writes none of that name",
        "no table of `points` has a column `Maen`\n    did you mean `Mean`?",
        "no table of `points` has rows with all of policy, strength, seed\n    `right.per_seed` lacks strength",
        "the table of `right.per_seed` has no column `method`",
    ] {
        assert!(said.contains(expected), "{expected}\n---\n{said}");
    }
    assert_eq!(said.matches("error: ").count(), 13, "{said}");
}

#[test]
fn names_of_other_programs_lead_to_params() {
    let said = diagnostics(
        r"name: other
stages:
  world: { kind: generate_world, params: { seed: 1, finetune_pairs: 10, reward_pairs: 10, rl_questions: 10 } }
  tokenizer: { kind: train_tokenizer, inputs: { data: [world.finetune] }, params: { algorithm: bpe, vocab_size: 300 } }
  model: { kind: init_model, inputs: { tokenizer: tokenizer }, params: { hidden_size: 8, num_layers: 1, num_heads: 1, intermediate_size: 8, max_position_embeddings: 64, seed: 1 } }
  sft: { kind: train_sft, inputs: { model: model, data: world.finetune }, params: { epochs: 3, learning_rate: 1e-4, lora_r: 8, warmup_steps: 2, steps: 1, batch_size: 1, optimizer: { lr: 1, adam_beta2: 2 }, seed: 1 } }
",
    );
    for expected in [
        "unknown param `epochs` of `train_sft`\n    it is called `steps` here",
        "unknown param `learning_rate` of `train_sft`\n    it is called `optimizer.lr` here",
        "unknown param `lora_r` of `train_sft`\n    it is called `adapter.rank` here",
        "unknown param `warmup_steps` of `train_sft`\n    it is called `optimizer.warmup_steps` here",
        "unknown key `adam_beta2`\n    it is called `beta2` here",
    ] {
        assert!(said.contains(expected), "{expected}\n---\n{said}");
    }
}

#[test]
fn special_tokens_that_nothing_names_are_refused() {
    let found = diagnostics(
        "name: own\nstages:\n  own: { kind: load_completions, params: { source: own.jsonl, special_tokens: refuse } }\n",
    );
    assert!(
        found.contains("without the port `model` nobody says which tokens are special"),
        "{found}"
    );
}

#[test]
fn params_and_ports_of_a_stage_are_found_together() {
    insta::assert_snapshot!(diagnostics(
        "name: n\nstages:\n  s: { kind: sample, inputs: { polcy: s }, params: { n: many, strategy: greedy, max_new_tokens: 4 } }\n"
    ), @r#"
    3:30 error: stage `s`: port `policy` of `sample` has no input
        add `policy: STAGE` to its `inputs`: the model that completes
    3:30 error: stage `s`: port `prompts` of `sample` has no input
        add `prompts: STAGE` to its `inputs`: its distinct prompts are completed, in order
    3:32 error: stage `s`: `sample` has no port `polcy`
        did you mean `policy`?
    3:57 error: stage `s`: `n`: expected a whole number of at least 0, found the text "many"
        `n`: Completions in all.
    "#);
}

#[test]
fn what_a_setting_gave_is_named_as_that() {
    insta::assert_snapshot!(diagnostics_with(
        "name: n\nparams: { n: 1 }\nstages:\n  s: { kind: sample, inputs: { policy: s, prompts: s }, params: { n: \"${n}\", strategy: greedy, max_new_tokens: 4 } }\n",
        &["--set", "n=many", "--set", "s.max_new_tokens=-1"],
    ), @r#"
    4:70 error: stage `s`: `n`: expected a whole number of at least 0, found the text "many" (given by `--set n=many`)
        `n`: Completions in all.
    4:112 error: stage `s`: `max_new_tokens`: expected a whole number of at least 0, found `-1` (given by `--set s.max_new_tokens=-1`)
        `max_new_tokens`: The horizon.
    "#);
}

#[test]
fn a_reference_within_brackets_is_told_to_need_quotes() {
    insta::assert_snapshot!(diagnostics(
        "name: n\nparams: { n: 1 }\nstages:\n  s: { kind: sample, params: { n: ${n} } }\n"
    ), @r#"
    4:36 error: did not find expected ',' or '}', while parsing a flow mapping that begins in line 4
        within brackets a reference needs quotes: `{ n: "${n}" }`
    "#);
}
