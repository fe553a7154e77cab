//! Pages of results: written from a finished store, and held against the pipeline beside them.

use std::path::Path;

use flowgraph::engine::outline;
use flowgraph::engine::overrides::Overrides;
use flowgraph::engine::spec::Pipeline;
use flowgraph::registry::REGISTRY;

use crate::space::Space;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines");

/// What the header of a page says under a key, without backticks.
fn told(page: &str, key: &str) -> Option<String> {
    let start = format!("| {key} | ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(line.trim_end_matches(" |").replace('`', ""))
}

/// Returns the plan in a page, and that of the pipeline beside it under the profiles that the page names.
fn plans(page: &Path) -> Option<(String, String)> {
    let text = std::fs::read_to_string(page).unwrap();
    let written = told(&text, "plan")?;
    let list = |key: &str| {
        let told = told(&text, key).unwrap_or_default();
        let parts = told.split(", ").filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<String>>()
    };
    let overrides = Overrides {
        profiles: list("profiles"),
        set: list("set"),
    };
    // `gdpo.strengths.md` is of a profile of `gdpo.yaml`.
    let name = page.file_name().unwrap().to_str().unwrap();
    let file = page.with_file_name(name.split('.').next().unwrap().to_owned() + ".yaml");
    let pipeline = Pipeline::load(&file, &overrides, REGISTRY).unwrap();
    let stages = outline::making(&pipeline, "table");
    Some((written, outline::of(&pipeline, &stages).to_string()))
}

#[test]
fn a_page_belongs_to_the_pipeline_beside_it() {
    for entry in std::fs::read_dir(FOLDER).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md")
            && let Some((written, planned)) = plans(&path)
        {
            assert_eq!(
                written,
                planned,
                "{}: write it again from a finished store",
                path.display()
            );
        }
    }
}

const MEASURED: &str = "
name: p
description: Two runs.
stages:
  runs:
    matrix: { seed: [1, 2] }
    kind: command
    params: { run: \"printf 'policy,reward\\na,${matrix.seed}\\n' > t.csv\", outputs: { t: { path: t.csv, kind: table } } }
  more: { kind: command, inputs: { x: 'runs[*]' }, params: { run: \"printf 'n\\n2\\n' > t.csv\", outputs: { t: { path: t.csv, kind: table } } } }
";

#[test]
fn a_page_shows_every_table_and_the_plan_that_made_them() {
    const REPORT: [&str; 4] = ["report", "p.yaml", "--format", "markdown"];
    let space = Space::new(MEASURED);
    let write = |args: &[&str]| space.flowgraph(&[&REPORT[..], &["--out", "p.md"], args].concat());
    let over = space.flowgraph(&[&REPORT[..], &["--out", "p.yaml", "--force"]].concat());
    assert_eq!(over.code, 2, "{}", over.stderr);
    assert!(over.stderr.contains("must end in `.md`"), "{}", over.stderr);
    let early = write(&[]);
    assert_eq!(early.code, 1, "{}", early.stderr);
    assert!(
        early.stderr.contains("stage `runs[seed=1]` has no result"),
        "{}",
        early.stderr
    );
    assert_eq!(space.flowgraph(&["run", "p.yaml", "-q"]).code, 0);
    let written = write(&[]);
    assert_eq!(written.code, 0, "{}", written.stderr);
    let page = std::fs::read_to_string(space.path("p.md")).unwrap();
    for part in [
        "# p\n\nTwo runs.\n\nWritten by `flowgraph report --format markdown` from the results of the pipeline whose digest is `plan`.",
        "| seeds | 1, 2 |",
        "| stages | 3 |",
        "## runs[seed=2]",
        "| a | 2 |",
        "## more",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let (written, planned) = plans(&space.path("p.md")).unwrap();
    assert_eq!(written, planned);
    // Another command, upstream of one table and under another: the page is not of this pipeline any more.
    space.write("p.yaml", &MEASURED.replace("policy,reward", "policy,score"));
    let (written, planned) = plans(&space.path("p.md")).unwrap();
    assert_ne!(written, planned);
    // What changes no result changes no plan.
    space.write(
        "p.yaml",
        &MEASURED.replace("description: Two runs.", "description: Runs."),
    );
    let (written, planned) = plans(&space.path("p.md")).unwrap();
    assert_eq!(written, planned);
    let there = write(&[]);
    assert_eq!(there.code, 2, "it is there already");
    assert!(
        there
            .stderr
            .contains("choose another file, or give `--force`"),
        "{}",
        there.stderr
    );
    assert_eq!(write(&["--force"]).code, 0);
}
