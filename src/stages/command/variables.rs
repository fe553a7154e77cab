//! The environment variables that programs of the user's are given.

use std::ffi::OsString;

use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::mask::SHORTEST;
use crate::engine::stage::{Problem, StageError};

/// Passed on whatever its value: without it no program is found.
pub(super) const PATH: &str = "PATH";
/// Names the GPUs that the stage was given.
pub(super) const GPUS: &str = "CUDA_VISIBLE_DEVICES";
/// What the stage has of its own unless `env` names it.
const OWN: [&str; 2] = ["HOME", "LANG"];

/// Returns the variables that count: of those that are `counted` the values, of `secret` ones the names.
pub(in crate::stages) fn in_manifest(counted: &[String], secret: &[String]) -> Vec<String> {
    let counted = counted.iter().map(|name| match digest(name) {
        Some(digest) => format!("{name}={digest}"),
        None => format!("{name}=unset"),
    });
    let secret = secret.iter().map(|name| format!("{name}=secret"));
    counted.chain(secret).collect()
}

/// Returns the value of a secret variable, which must be set: what a program gives without it is not what it gives with
/// it, and only its name is in the key.
pub(in crate::stages) fn secret(name: &str, ctx: &mut RunContext) -> Result<OsString, StageError> {
    let value = std::env::var_os(name).ok_or_else(|| {
        StageError::new(format!(
            "the environment variable `{name}`, which `secret_env` names, is not set"
        ))
        .hint(format!("set `{name}`, or leave it out of `secret_env`"))
    })?;
    if (1..SHORTEST).contains(&value.len()) {
        ctx.warn(&format!(
            "warning: the value of `{name}` has fewer than {SHORTEST} bytes: it is not masked in the log"
        ));
    }
    Ok(value)
}

/// Returns the digest of a variable's value, if it is set.
pub(in crate::stages) fn digest(name: &str) -> Option<Digest> {
    std::env::var_os(name).map(|value| Digest::of(value.as_encoded_bytes()))
}

/// Checks the names that params list; those of `secret_env` are secrets.
pub(in crate::stages) fn check(lists: &[(&str, &Vec<String>)], problems: &mut Vec<Problem>) {
    let mut seen: Vec<&str> = Vec::new();
    let all = lists
        .iter()
        .flat_map(|(param, names)| names.iter().map(move |name| (*param, name.as_str())));
    for (param, name) in all {
        let problem = |message: String| Problem::new(param, message);
        let is_own = name == PATH || OWN.contains(&name);
        if name.is_empty() || name.contains(['=', '\0']) || name.starts_with("LD_") {
            problems.push(problem(format!("`{name}` cannot be passed on")));
        } else if name == GPUS {
            problems.push(
                problem(format!("`{name}` cannot be passed on")).hint(
                    "it names the GPUs that the stage is given: ask for them with `resources: { gpus: 1 }`",
                ),
            );
        } else if is_own && param == "secret_env" {
            problems.push(
                problem(format!("`{name}` is no secret"))
                    .hint("`env` passes it on, and its value counts"),
            );
        } else if seen.contains(&name) {
            problems.push(problem(format!("`{name}` is named twice")));
        }
        seen.push(name);
    }
}
