//! What a stage kind is: typed params, typed ports and outputs, and a function that runs it.
//!
//! A kind is one struct: its fields are its params. Help, JSON schema, completions and did-you-mean all
//! derive from that struct and from the table of kinds ([`StageKind`]) that the engine is given.

mod defaults;
mod explain;
pub mod forms;
mod lists;
mod meant;
mod port;
mod wires;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use defaults::{resolved, variants};
pub use meant::kind_meant;
pub use port::{Arity, Output, Port};
pub use wires::{Wires, wires};

pub use super::problem::Problem;
pub use super::stage_error::StageError;

use super::context::RunContext;
use super::diagnostic::{Path, Segment};
use super::facts::Known;
use crate::sources::{Sha256, Source};

/// Bytes from outside the graph that a stage reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceParam {
    /// Its name within the stage, and the key of the param that gives it.
    pub key: String,
    /// Where the bytes come from.
    pub source: Source,
    /// The SHA-256 of the bytes, if the pipeline pins it.
    pub sha256: Option<Sha256>,
}

/// What a stage needs while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Worker threads.
    pub cpus: usize,
    /// Bytes of memory; 0 if unstated.
    pub memory: u64,
    /// GPUs; given to kinds that can use them ([`Kind::gpu_use`]), as far as the machine has any.
    pub gpus: usize,
    /// Bytes of memory that each of them must have; 0 if any will do.
    pub gpu_memory: u64,
    /// Of each token by name, how many: of a licence, or of a service that bears so many clients.
    pub tokens: BTreeMap<String, usize>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 0,
            gpus: 0,
            gpu_memory: 0,
            tokens: BTreeMap::new(),
        }
    }
}

/// What a stage does with GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuUse {
    /// Nothing: it has no tensors, or too few of them to be worth the way.
    None,
    /// A program that it starts may compute on those that it was given.
    Program,
    /// Its tensors lie on one.
    Tensors,
}

/// What a stage will cost, as far as its params tell.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// Wall-clock seconds.
    pub seconds: Option<f64>,
    /// Peak memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Floating-point operations.
    pub flops: Option<f64>,
}

/// How a training may continue from the end of a shorter one that is equal but for the params `steps` and
/// `checkpoints`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Steps in all.
    pub steps: u64,
    /// Steps after which something is kept, under [`RunContext::kept_at`].
    pub kept_steps: BTreeSet<u64>,
}

/// A stage kind; the implementing struct holds its params.
///
/// Params that cannot change the result are marked `#[serde(skip_serializing)]`, which keeps them out of
/// the fingerprint; a test must show that the bytes are equal.
pub trait Kind: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in `kind:`, verb_object.
    const NAME: &'static str;
    /// Raised whenever the same params and inputs give other bytes than before.
    const VERSION: u32;
    /// Params of a typical use, as YAML; shown by `flowgraph kinds` and tested.
    const EXAMPLE: &'static str;

    /// Rewrites params that may be spelled in several ways into the fields of this type, and tells what it moved.
    fn respell(_params: &mut serde_json::Map<String, Json>) -> Result<Vec<Moved>, Vec<Problem>> {
        Ok(Vec::new())
    }
    /// Returns the inputs, which may depend on the params.
    fn ports(&self) -> Vec<Port>;
    /// Returns the outputs, which may depend on the params; the first is the default.
    fn outputs(&self) -> Vec<Output>;
    /// Whether `inputs` may name further ports of any kind (a command's).
    fn has_free_ports(&self) -> bool {
        false
    }
    /// Returns what the stage reads from outside the graph.
    fn sources(&self) -> Vec<SourceParam> {
        Vec::new()
    }
    /// Returns the local files and folders that the stage works on copies of (a command's `code`), by relative path.
    /// What a program can see of them counts; [`RunContext::lay_out_code`] makes the copies.
    fn code(&self) -> Vec<String> {
        Vec::new()
    }
    /// Returns what the environment adds to the manifest (a command's `env`), as digests.
    fn environment(&self) -> Vec<String> {
        Vec::new()
    }
    /// Names the environment variables whose values must not be written anywhere: they are masked in the stage's log
    /// and messages.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
    /// Names the variables whose values the stages that take its outputs are given: these mask them, too.
    fn secrets_handed_on(&self) -> Vec<String> {
        Vec::new()
    }
    /// Returns what the stages that take its outputs are told beside them ([`Input::handed_on`](super::context::Input)); it
    /// must change no result.
    fn handed_on(&self) -> Json {
        Json::Null
    }
    /// Checks values that types alone cannot check.
    fn validate(&self) -> Vec<Problem> {
        Vec::new()
    }
    /// Says what is known of the outputs before anything runs, and refuses params that what is known of the inputs
    /// makes impossible; see [`Known`].
    fn facts(&self, _known: &mut Known<'_>) {}
    /// Returns what the stage needs unless the pipeline says otherwise.
    fn resources(&self) -> Resources {
        Resources::default()
    }
    /// Says what the stage does with the GPUs that `resources` or `--device cuda` asks for.
    fn gpu_use(&self) -> GpuUse {
        GpuUse::None
    }
    /// Estimates the cost from the params alone.
    fn estimate(&self) -> Estimate {
        Estimate::default()
    }
    /// Says that a run may continue from where a shorter one ended; the bytes must be those of one go.
    fn continuation(&self) -> Option<Continuation> {
        None
    }
    /// Does the work.
    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError>;
}

/// A [`Kind`] behind a pointer: one stage of a pipeline, its params typed and checked.
pub trait Stage: Send + Sync {
    /// Returns the params as they enter the fingerprint: what is at its default is left out.
    fn params(&self) -> Json;
    /// See [`Kind::ports`].
    fn ports(&self) -> Vec<Port>;
    /// See [`Kind::outputs`].
    fn outputs(&self) -> Vec<Output>;
    /// See [`Kind::has_free_ports`].
    fn has_free_ports(&self) -> bool;
    /// See [`Kind::sources`].
    fn sources(&self) -> Vec<SourceParam>;
    /// See [`Kind::code`].
    fn code(&self) -> Vec<String>;
    /// See [`Kind::environment`].
    fn environment(&self) -> Vec<String>;
    /// See [`Kind::facts`].
    fn facts(&self, known: &mut Known<'_>);
    /// See [`Kind::secrets`].
    fn secrets(&self) -> Vec<String>;
    /// See [`Kind::secrets_handed_on`].
    fn secrets_handed_on(&self) -> Vec<String>;
    /// See [`Kind::handed_on`].
    fn handed_on(&self) -> Json;
    /// See [`Kind::resources`].
    fn resources(&self) -> Resources;
    /// See [`Kind::gpu_use`].
    fn gpu_use(&self) -> GpuUse;
    /// See [`Kind::estimate`].
    fn estimate(&self) -> Estimate;
    /// See [`Kind::continuation`].
    fn continuation(&self) -> Option<Continuation>;
    /// See [`Kind::run`].
    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError>;
}

impl<K: Kind> Stage for K {
    fn params(&self) -> Json {
        // A map with text keys and finite numbers: parsing refused anything else.
        defaults::leave_out::<K>(serde_json::to_value(self).unwrap_or(Json::Null))
    }

    fn ports(&self) -> Vec<Port> {
        Kind::ports(self)
    }

    fn outputs(&self) -> Vec<Output> {
        Kind::outputs(self)
    }

    fn has_free_ports(&self) -> bool {
        Kind::has_free_ports(self)
    }

    fn sources(&self) -> Vec<SourceParam> {
        Kind::sources(self)
    }

    fn code(&self) -> Vec<String> {
        Kind::code(self)
    }

    fn environment(&self) -> Vec<String> {
        Kind::environment(self)
    }

    fn facts(&self, known: &mut Known<'_>) {
        Kind::facts(self, known);
    }

    fn secrets(&self) -> Vec<String> {
        Kind::secrets(self)
    }

    fn secrets_handed_on(&self) -> Vec<String> {
        Kind::secrets_handed_on(self)
    }

    fn handed_on(&self) -> Json {
        Kind::handed_on(self)
    }

    fn resources(&self) -> Resources {
        Kind::resources(self)
    }

    fn gpu_use(&self) -> GpuUse {
        Kind::gpu_use(self)
    }

    fn estimate(&self) -> Estimate {
        Kind::estimate(self)
    }

    fn continuation(&self) -> Option<Continuation> {
        Kind::continuation(self)
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        Kind::run(self, ctx)
    }
}

/// One row of the table of kinds.
#[derive(Debug, Clone, Copy)]
pub struct StageKind {
    /// See [`Kind::NAME`].
    pub name: &'static str,
    /// What it and the kinds after it are about, where that is not what those before it are.
    pub group: Option<&'static str>,
    /// See [`Kind::VERSION`].
    pub version: u32,
    /// See [`Kind::EXAMPLE`].
    pub example: &'static str,
    /// Types and checks params; all problems at once.
    pub parse: fn(&Json) -> Result<Box<dyn Stage>, Vec<Problem>>,
    /// The JSON schema of the params.
    pub schema: fn() -> schemars::Schema,
    /// The defaults of the params, by path.
    pub defaults: fn() -> Vec<(String, Json)>,
}

impl StageKind {
    /// Makes the row of a kind.
    pub const fn of<K: Kind>() -> Self {
        Self {
            name: K::NAME,
            group: None,
            version: K::VERSION,
            example: K::EXAMPLE,
            parse: parse::<K>,
            schema: schema::<K>,
            defaults: defaults::of::<K>,
        }
    }

    /// Says that a group of kinds begins with this one.
    pub const fn first_of(mut self, group: &'static str) -> Self {
        self.group = Some(group);
        self
    }

    /// Returns the first paragraph of the kind's documentation.
    pub fn about(&self) -> String {
        let schema = (self.schema)();
        let text = schema
            .get("description")
            .and_then(Json::as_str)
            .unwrap_or_default();
        text.split("\n\n")
            .next()
            .unwrap_or_default()
            .replace('\n', " ")
    }
}

/// The kinds that a pipeline can use.
pub type Registry = [StageKind];

/// Finds a kind by name.
pub fn find_kind<'a>(registry: &'a Registry, name: &str) -> Option<&'a StageKind> {
    registry.iter().find(|kind| kind.name == name)
}

fn schema<K: Kind>() -> schemars::Schema {
    schemars::schema_for!(K)
}

/// A value of the params that stands elsewhere in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The field that it is.
    pub to: String,
    /// Where it stands, the segments separated by dots.
    pub from: String,
}

/// Makes a problem with a field one with what was moved into it.
fn where_it_stands(mut problem: Problem, moved: &[Moved]) -> Problem {
    let Some(Segment::Key(field)) = problem.path.0.first() else {
        return problem;
    };
    if let Some(moved) = moved.iter().find(|moved| **field == *moved.to) {
        let rest = Path(problem.path.0[1..].to_vec());
        problem.path = Path::of(moved.from.split('.')).join(&rest);
    }
    problem
}

fn parse<K: Kind>(params: &Json) -> Result<Box<dyn Stage>, Vec<Problem>> {
    let mut params = params.clone();
    let moved = match &mut params {
        Json::Object(params) => K::respell(params)?,
        _ => Vec::new(),
    };
    let problems = match serde_json::from_value::<K>(params.clone()) {
        Ok(kind) => {
            let mut problems = Vec::new();
            if lists::holds_list(&params) {
                problems = lists::find(&params, &defaults::schema_of::<K>());
            }
            problems.extend(kind.validate());
            if problems.is_empty() {
                return Ok(Box::new(kind));
            }
            problems
        }
        Err(_) => explain::explain::<K>(&params),
    };
    Err(problems
        .into_iter()
        .map(|problem| where_it_stands(problem, &moved))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Doubles a number.
    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Double {
        /// Learning rate.
        lr: f64,
        #[serde(default)]
        steps: u32,
        #[serde(default)]
        note: String,
    }

    impl Kind for Double {
        const NAME: &'static str = "double";
        const VERSION: u32 = 1;
        const EXAMPLE: &'static str = "{ lr: 1e-4 }";

        fn ports(&self) -> Vec<Port> {
            Vec::new()
        }

        fn outputs(&self) -> Vec<Output> {
            Vec::new()
        }

        fn validate(&self) -> Vec<Problem> {
            if self.lr > 0.0 {
                Vec::new()
            } else {
                vec![Problem::new("lr", "must be above 0")]
            }
        }

        fn run(&self, _: &mut RunContext) -> Result<(), StageError> {
            Ok(())
        }
    }

    fn messages(params: Json) -> Vec<String> {
        (StageKind::of::<Double>().parse)(&params)
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    }

    #[test]
    fn all_problems_of_the_params_are_found_at_once() {
        let found = messages(json!({ "stepz": 1, "steps": "x", "note": 3 }));
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "unknown param `stepz` of `double`");
        assert_eq!(found[1], "missing param `lr` of `double`");
        assert!(
            found[2].starts_with("`note`: expected a string"),
            "{found:?}"
        );
        assert!(
            found[3].starts_with("`steps`: expected a whole number"),
            "{found:?}"
        );
        assert_eq!(messages(json!({ "lr": 0 })), ["must be above 0"]);
    }

    #[test]
    fn respelled_numbers_and_spelled_out_defaults_are_the_same_params() {
        let parse = |params| {
            (StageKind::of::<Double>().parse)(&params)
                .unwrap()
                .params()
                .to_string()
        };
        let plain = parse(json!({ "lr": 0.0001 }));
        assert_eq!(parse(json!({ "lr": 1e-4, "steps": 0, "note": "" })), plain);
        assert_ne!(parse(json!({ "lr": 2e-4 })), plain);
    }
}
