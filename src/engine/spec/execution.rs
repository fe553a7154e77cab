//! How a stage is to be run: `resources`, `retries`, `timeout`. None of it changes a result.

use super::Builder;
use crate::engine::diagnostic::{Diagnostic, Path, did_you_mean};
use crate::engine::stage::Resources;
use crate::engine::value::Value;

impl Builder<'_> {
    pub(super) fn resources(
        &mut self,
        given: Option<(Value, Path)>,
        default: Resources,
    ) -> Resources {
        let mut resources = default;
        let Some((value, path)) = given else {
            return resources;
        };
        let Some(map) = value.as_map() else {
            self.errors.push(
                Diagnostic::error(
                    path,
                    format!("`resources` must be a map, found {}", value.type_name()),
                )
                .hint("for example `resources: { cpus: 2, memory: 4GB, gpus: 1 }`"),
            );
            return resources;
        };
        for (key, value) in map {
            let path = path.key(key);
            let count = match value {
                Value::Integer(count) => usize::try_from(*count).ok(),
                _ => None,
            };
            match (key.as_str(), count) {
                ("cpus", Some(count)) if count > 0 => resources.cpus = count,
                ("gpus", Some(count)) => resources.gpus = count,
                ("memory" | "gpu_memory", _) => match parse_bytes(value) {
                    Some(bytes) if key == "memory" => resources.memory = bytes,
                    Some(bytes) => resources.gpu_memory = bytes,
                    None => self.errors.push(Diagnostic::error(
                        path,
                        format!(
                            "expected an amount of memory such as `4GB` or `512MB`, found `{value}`"
                        ),
                    )),
                },
                ("tokens", _) => {
                    for (name, count) in value.as_map().into_iter().flatten() {
                        match count {
                            Value::Integer(count) if *count > 0 => {
                                resources.tokens.insert(name.clone(), *count as usize);
                            }
                            _ => self.errors.push(Diagnostic::error(
                                path.key(name),
                                format!("a count of tokens must be a whole number above 0, found `{count}`"),
                            )),
                        }
                    }
                    if value.as_map().is_none() {
                        self.errors.push(
                            Diagnostic::error(
                                path,
                                format!("`tokens` must be a map, found {}", value.type_name()),
                            )
                            .hint("for example `tokens: { license: 1 }`"),
                        );
                    }
                }
                ("cpus" | "gpus", _) => self.errors.push(Diagnostic::error(
                    path,
                    format!(
                        "`{key}` must be a whole number{}, found `{value}`",
                        if key == "cpus" { " above 0" } else { "" }
                    ),
                )),
                _ => self.errors.push(
                    Diagnostic::error(path, format!("unknown resource `{key}`"))
                        .at_key()
                        .maybe_hint(did_you_mean(
                            key,
                            ["cpus", "memory", "gpus", "gpu_memory", "tokens"],
                        )),
                ),
            }
        }
        resources
    }

    pub(super) fn retries(&mut self, given: Option<(Value, Path)>) -> u32 {
        let Some((value, path)) = given else { return 0 };
        let retries = match &value {
            Value::Integer(number) => u32::try_from(*number).ok(),
            _ => None,
        };
        retries.unwrap_or_else(|| {
            let message = format!("`retries` must be a whole number, found `{value}`");
            self.errors.push(Diagnostic::error(path, message));
            0
        })
    }

    pub(super) fn timeout(&mut self, given: Option<(Value, Path)>) -> Option<f64> {
        let (value, path) = given?;
        let seconds = match &value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            _ => 0.0,
        };
        if seconds <= 0.0 {
            let message = format!("`timeout` must be a number of seconds above 0, found `{value}`");
            self.errors.push(Diagnostic::error(path, message));
        }
        Some(seconds)
    }
}

/// Reads an amount of memory: a number of bytes, or a number with KB, MB, GB or TB (powers of 1000) or KiB, MiB,
/// GiB, TiB (powers of 1024).
fn parse_bytes(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Integer(bytes) => return u64::try_from(*bytes).ok(),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.trim().parse().ok()?;
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "TiB" => 1_099_511_627_776.0,
        _ => return None,
    };
    (number >= 0.0 && number.is_finite()).then_some((number * factor) as u64)
}
