//! `reward_command`: rewards that a program of the user's gives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::artifacts::reward_program::{
    OWN_COLUMNS, ProgramDescription, REWARD_PROGRAM, RewardProgram, Running, told,
};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::excerpt::{NAME, excerpt, listed};
use crate::stages::command::{paths, variables};
use crate::stages::ranges;

/// Makes a reward of a program: any language that reads and writes lines of JSON.
///
/// It goes wherever a reward model goes. Each stage that takes it starts the program once and sends it lines such as
/// `{"prompts": ["a b"], "completions": ["c"], "finished": [true]}`, `finished` saying whether the end token came; it
/// answers each, in order, with `{"rewards": [0.5]}`, and writes nothing else to standard output. With `columns` the lines
/// hold `"columns": {"answer": ["c"]}`, too: the values of the prompt's row in `data`. With `prefixes: true` objectives that
/// need rewards of unfinished completions ask for them in lines with `"prefixes": true`.
///
/// Its working directory is an empty scratch folder with copies of the `code`; its environment holds PATH, what `env` and
/// `secret_env` name, an empty HOME and PYTHONUNBUFFERED, and shows no GPU. A line of an answer has at most 1 MiB. It is asked about the same
/// once in a stage, and ends when its input does, within 10 seconds. Columns are texts (what was none in the file is JSON) or
/// null. A training tells it whole prompts, `score` and `judge` what the policy read. Without `deterministic: true` the
/// rewards are kept with the result (`received.jsonl`): a training that is resumed and an audit take them from there.
///
/// All of it counts, for every stage that takes it, but the values of `secret_env`, `parallel` and `timeout`: with others of
/// these nothing runs again.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardCommand {
    /// Shell text, run by `sh -e`.
    run: String,
    /// Files and folders that the program needs; copied into its working directory under their relative path.
    #[serde(default, deserialize_with = "paths::in_list")]
    code: Vec<String>,
    /// Environment variables passed on; their values count (as digests).
    #[serde(default)]
    env: Vec<String>,
    /// Environment variables passed on whose values do not count and are stored nowhere, such as the key of a server: only
    /// their names count, and they must be set where the program is started. Logs and messages mask them as those of
    /// `command`.
    #[serde(default, skip_serializing)]
    secret_env: Vec<String>,
    /// Columns of `data` that it is told with each prompt, such as an answer key: those that the loader was told to `keep`,
    /// or `question`, `chosen` or `rejected`.
    #[serde(default)]
    columns: Vec<String>,
    /// Whether it values completions that go on, as `forward_looking` needs it.
    #[serde(default)]
    prefixes: bool,
    /// Whether it gives a completion the same reward whenever it is asked, whatever else is in the request; the first request
    /// of a stage is made twice, the second time in other parts and another order.
    #[serde(default)]
    deterministic: bool,
    /// Whether several copies of it may run at once: as many as the stage that asks has `cpus`. It does not count.
    #[serde(default, skip_serializing)]
    parallel: bool,
    /// Completions in a request, at most.
    #[serde(default = "thirty_two")]
    batch_size: usize,
    /// Seconds that it has for a request, its start included; 300 if absent. They do not count, and the environment
    /// variable FLOWGRAPH_REWARD_TIMEOUT goes before them.
    #[serde(default = "five_minutes", skip_serializing)]
    timeout: f64,
}

fn thirty_two() -> usize {
    32
}

fn five_minutes() -> f64 {
    Running::default().timeout
}

impl Kind for RewardCommand {
    const NAME: &'static str = "reward_command";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str =
        r#"{ run: "python3 reward.py", code: [reward.py], deterministic: true }"#;

    fn ports(&self) -> Vec<Port> {
        if self.columns.is_empty() {
            return Vec::new();
        }
        vec![Port::one(
            "data",
            &[DATASET],
            "whose `columns` it is told, by prompt",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("program", REWARD_PROGRAM).foreign()]
    }

    fn code(&self) -> Vec<String> {
        self.code.clone()
    }

    fn environment(&self) -> Vec<String> {
        variables::in_manifest(&self.env, &self.secret_env)
    }

    fn secrets_handed_on(&self) -> Vec<String> {
        self.secret_env.clone()
    }

    fn handed_on(&self) -> Json {
        json!(Running {
            parallel: self.parallel,
            timeout: self.timeout,
        })
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.run.trim().is_empty() {
            problems.push(Problem::new("run", "`run` is empty"));
        }
        paths::check(&[], &self.code, &mut problems);
        let both = [("env", &self.env), ("secret_env", &self.secret_env)];
        variables::check(&both, &mut problems);
        ranges::rows("batch_size", self.batch_size, &mut problems);
        ranges::factor("timeout", self.timeout, &mut problems);
        for (place, column) in self.columns.iter().enumerate() {
            if self.columns[..place].contains(column) {
                problems.push(Problem::new(
                    "columns",
                    format!("`{column}` is named twice"),
                ));
            }
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let folder = ctx.output("program")?;
        let data = match ctx.optional_input("data") {
            Some(input) => self.told(&Dataset::read(&input.path)?)?,
            None => Dataset::default(),
        };
        let digest = |name: &String| (name.clone(), variables::digest(name));
        let environment = self.env.iter().map(digest);
        let description = ProgramDescription {
            run: self.run.clone(),
            environment: environment.collect(),
            secrets: self.secret_env.clone(),
            columns: self.columns.clone(),
            prefixes: self.prefixes,
            deterministic: self.deterministic,
            batch_size: self.batch_size,
        };
        RewardProgram::save(&description, &data, &folder)?;
        if !self.code.is_empty() {
            let code = RewardProgram::code_in(&folder);
            ctx.lay_out_code(&code)?;
            follow_links(&code)?;
        }
        Ok(())
    }
}

/// Puts files in the place of links to them, which an artifact has no room for.
fn follow_links(folder: &Path) -> Result<(), StageError> {
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let kind = fs_err::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            follow_links(&path)?;
        } else if kind.is_symlink() {
            let target = fs_err::canonicalize(&path)?;
            if target.is_dir() {
                return Err(StageError::new(format!(
                    "{}: `code` holds a link to a folder",
                    path.display()
                ))
                .hint("put the folder itself there: a reward program is kept without links to folders"));
            }
            fs_err::remove_file(&path)?;
            fs_err::copy(target, &path)?;
        }
    }
    Ok(())
}

impl RewardCommand {
    /// Returns one row for each prompt, with the columns that the program is told.
    fn told(&self, data: &Dataset) -> Result<Dataset, StageError> {
        let kept: BTreeSet<&str> = data
            .examples
            .iter()
            .flat_map(|example| example.kept.keys().map(String::as_str))
            .collect();
        for column in &self.columns {
            if !kept.contains(column.as_str()) && !OWN_COLUMNS.contains(&column.as_str()) {
                let found = listed(kept.iter().chain(&OWN_COLUMNS).copied());
                return Err(StageError::new(format!(
                    "`data` has no column `{column}`; found: {found}"
                ))
                .hint(format!(
                    "the stage that loads it keeps it with `keep: [{column}]`"
                )));
            }
        }
        let mut rows: Vec<Example> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for (row, example) in data.examples.iter().enumerate() {
            let wants = |column: &str| self.columns.iter().any(|other| other == column);
            let kept = example
                .kept
                .iter()
                .filter(|(column, _)| self.columns.contains(column));
            let known = Example {
                question_id: example.question_id,
                question: example.question.clone(),
                prompt: example.prompt.clone(),
                chosen: example.chosen.clone().filter(|_| wants("chosen")),
                rejected: example.rejected.clone().filter(|_| wants("rejected")),
                kept: kept
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
            };
            match places.get(example.prompt.as_str()) {
                Some(place)
                    if told(&self.columns, &rows[*place]) == told(&self.columns, &known) => {}
                Some(_) => {
                    return Err(StageError::new(format!(
                        "the prompt {:?} has other values of `columns` in row {row} than before",
                        excerpt(&example.prompt, NAME)
                    ))
                    .hint("a program is told one value of each column with a prompt"));
                }
                None => {
                    places.insert(&example.prompt, rows.len());
                    rows.push(known);
                }
            }
        }
        Ok(Dataset {
            title: "What a reward program is told, by prompt".to_owned(),
            examples: rows,
        })
    }
}
