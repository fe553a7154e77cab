//! Which modules of a model the patterns and names of `adapter_config.json` mean.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;

use super::super::super::FormatError;
use super::stated::{Stated, is_off, refusal};
use crate::ml::adapter::is_named;
use crate::ml::models::causal::architecture::{Role, Slot};

/// A regular expression in a key of the file, as Python's `re` has it.
struct Pattern<'a> {
    path: &'a Path,
    key: &'a str,
    text: String,
    regex: fancy_regex::Regex,
}

impl<'a> Pattern<'a> {
    /// Compiles what must match at the begin of a name: the text of the file between other parts.
    fn new(
        path: &'a Path,
        key: &'a str,
        [before, text, after]: [&str; 3],
    ) -> Result<Self, FormatError> {
        let regex = fancy_regex::RegexBuilder::new(&format!("^(?:{before}{text}{after})"))
            .backtrack_limit(100_000)
            .build();
        let regex = regex.map_err(|error| {
            FormatError::unsupported(
                path,
                format!("`{key}` with {text:?}"),
                &format!("it is no pattern: {error}"),
            )
        })?;
        Ok(Self {
            path,
            key,
            text: text.to_owned(),
            regex,
        })
    }

    fn captures<'t>(
        &self,
        name: &'t str,
    ) -> Result<Option<fancy_regex::Captures<'t>>, FormatError> {
        self.regex.captures(name).map_err(|error| {
            let what = format!("`{}` with {:?}", self.key, self.text);
            FormatError::unsupported(self.path, what, &error.to_string())
        })
    }

    fn matches(&self, name: &str) -> Result<bool, FormatError> {
        Ok(self.captures(name)?.is_some())
    }
}

/// `rank_pattern` or `alpha_pattern`: the first that matches the end of a name counts (`get_pattern_key` of PEFT).
pub(super) struct Patterns<'a, T>(Vec<(Pattern<'a>, T)>);

impl<'a, T: Copy> Patterns<'a, T> {
    pub(super) fn new(
        path: &'a Path,
        key: &'a str,
        stated: Option<&IndexMap<String, T>>,
    ) -> Result<Self, FormatError> {
        let stated = stated.into_iter().flatten();
        let patterns = stated.map(|(text, value)| {
            let pattern = Pattern::new(path, key, [r"(.*\.)?(", text, ")$"])?;
            Ok((pattern, *value))
        });
        patterns.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn first(&self, module: &str) -> Result<Option<T>, FormatError> {
        for (pattern, value) in &self.0 {
            if pattern.matches(module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// Module names of a key: whole ones or last parts of them, or a pattern for whole ones.
enum Names<'a> {
    List(Vec<String>),
    Pattern(Pattern<'a>),
}

impl<'a> Names<'a> {
    /// Reads a list or a string.
    fn read(path: &'a Path, key: &'a str, value: &Value) -> Result<Option<Self>, FormatError> {
        match value {
            Value::Array(list) => {
                let names = list.iter().map(|name| name.as_str().map(str::to_owned));
                let names: Option<Vec<_>> = names.collect();
                let refuse = || refusal(path, key, value, "a list of module names is");
                names.map(Self::List).map(Some).ok_or_else(refuse)
            }
            Value::String(text) => {
                let pattern = Pattern::new(path, key, ["(?:", text, ")$"])?;
                Ok(Some(Self::Pattern(pattern)))
            }
            _ => Ok(None),
        }
    }

    fn contain(&self, module: &str) -> Result<bool, FormatError> {
        match self {
            Self::List(names) => Ok(names.iter().any(|name| is_named(module, name))),
            Self::Pattern(pattern) => pattern.matches(module),
        }
    }
}

/// Which modules an adapter has low-rank updates for (`check_target_module_exists` of PEFT).
pub(super) struct Targets<'a> {
    path: &'a Path,
    /// Every linear layer of the blocks if absent.
    names: Option<Names<'a>>,
    excluded: Option<Names<'a>>,
    /// What is trained whole.
    saved: Vec<Pattern<'a>>,
    /// Numbers of the only layers, and what comes before them in names.
    layers: Option<(Vec<i64>, Vec<Pattern<'a>>)>,
}

impl<'a> Targets<'a> {
    pub(super) fn read(path: &'a Path, stated: &Stated) -> Result<Self, FormatError> {
        const KEY: &str = "target_modules";
        let targets = &stated.target_modules;
        let is_all = targets
            .as_str()
            .is_some_and(|text| text.eq_ignore_ascii_case("all-linear"));
        let names = if is_all {
            None
        } else {
            let hint = "a list of module names, a pattern or \"all-linear\" is";
            let names = Names::read(path, KEY, targets)?;
            Some(names.ok_or_else(|| refusal(path, KEY, targets, hint))?)
        };
        let excluded = &stated.exclude_modules;
        let names_nothing = is_off(excluded) || excluded.as_str() == Some("");
        let excluded = if names_nothing {
            None
        } else {
            let hint = "a list of module names or a pattern is";
            let names = Names::read(path, "exclude_modules", excluded)?;
            Some(names.ok_or_else(|| refusal(path, "exclude_modules", excluded, hint))?)
        };
        let saved = stated.modules_to_save.iter().flatten();
        let saved = saved
            .map(|name| Pattern::new(path, "modules_to_save", [r"(^|.*\.)", name, r"($|\..*)"]));
        let layers = layers(path, stated)?;
        if layers.is_some() && targets.is_string() {
            return Err(FormatError::malformed(
                path,
                "`layers_to_transform` goes with a list of `target_modules` alone",
            ));
        }
        Ok(Self {
            path,
            names,
            excluded,
            saved: saved.collect::<Result<_, _>>()?,
            layers,
        })
    }

    /// Tells whether PEFT would adapt the module, if it is one that can be.
    fn contain(&self, module: &str) -> Result<bool, FormatError> {
        if let Some(excluded) = &self.excluded
            && excluded.contain(module)?
        {
            return Ok(false);
        }
        for saved in &self.saved {
            if saved.matches(module)? {
                return Ok(false);
            }
        }
        let Some(names) = &self.names else {
            return Ok(true);
        };
        if !names.contain(module)? {
            return Ok(false);
        }
        match (names, &self.layers) {
            // A whole name is in whatever layer it says.
            (Names::List(names), Some(_)) if names.iter().any(|name| name == module) => Ok(true),
            (_, Some((numbers, patterns))) => {
                for pattern in patterns {
                    if let Some(found) = pattern.captures(module)? {
                        let number = found.name("idx").and_then(|at| at.as_str().parse().ok());
                        return Ok(number.is_some_and(|number| numbers.contains(&number)));
                    }
                }
                Ok(false)
            }
            (_, None) => Ok(true),
        }
    }

    /// Returns the whole names of the model's modules.
    pub(super) fn modules(&self, slots: &[Slot]) -> Result<BTreeSet<String>, FormatError> {
        let mut modules = BTreeSet::new();
        for slot in slots {
            let Some(module) = slot.name.strip_suffix(".weight") else {
                continue;
            };
            let is_linear = matches!(slot.role, Role::Linear { .. });
            if (self.names.is_none() && !is_linear) || !self.contain(module)? {
                continue;
            }
            if !is_linear {
                return Err(FormatError::unsupported(
                    self.path,
                    format!("`target_modules` with `{module}`"),
                    "only the linear layers of the blocks are",
                ));
            }
            modules.insert(module.to_owned());
        }
        Ok(modules)
    }

    /// Returns names for modules: those of the file if they name these alone.
    pub(super) fn names(&self, slots: &[Slot], modules: BTreeSet<String>) -> Vec<String> {
        if let Some(Names::List(names)) = &self.names {
            let is_there = |name: &&String| modules.iter().any(|module| is_named(module, name));
            let names: Vec<String> = names.iter().filter(is_there).cloned().collect();
            let weights = slots
                .iter()
                .filter_map(|slot| slot.name.strip_suffix(".weight"));
            let mut others = weights.filter(|module| !modules.contains(*module));
            if !others.any(|module| names.iter().any(|name| is_named(module, name))) {
                return names;
            }
        }
        modules.into_iter().collect()
    }
}

/// Reads `layers_to_transform` and `layers_pattern`.
fn layers<'a>(
    path: &'a Path,
    stated: &Stated,
) -> Result<Option<(Vec<i64>, Vec<Pattern<'a>>)>, FormatError> {
    const KEY: &str = "layers_pattern";
    const NUMBER: &str = r"\.(?P<idx>\d+)\.";
    let (layers, patterns) = (&stated.layers_to_transform, &stated.layers_pattern);
    let refuse_layers = || {
        let hint = "a layer's number or a list of them is";
        refusal(path, "layers_to_transform", layers, hint)
    };
    let refuse_patterns = || {
        let hint = "a pattern or a list of them is";
        refusal(path, KEY, patterns, hint)
    };
    let texts: Vec<&str> = match patterns {
        Value::Null => Vec::new(),
        // As in PEFT, an empty one is none.
        Value::String(text) => Some(text.as_str())
            .filter(|text| !text.is_empty())
            .into_iter()
            .collect(),
        Value::Array(list) => {
            let texts: Option<_> = list.iter().map(Value::as_str).collect();
            texts.ok_or_else(refuse_patterns)?
        }
        _ => return Err(refuse_patterns()),
    };
    let numbers: Vec<i64> = match layers {
        Value::Null if texts.is_empty() => return Ok(None),
        Value::Null => {
            return Err(FormatError::malformed(
                path,
                "`layers_pattern` is given without `layers_to_transform`",
            ));
        }
        Value::Array(list) => {
            let numbers: Option<_> = list.iter().map(Value::as_i64).collect();
            numbers.ok_or_else(refuse_layers)?
        }
        number => vec![number.as_i64().ok_or_else(refuse_layers)?],
    };
    if numbers.is_empty() {
        return Ok(None);
    }
    let patterns: Result<Vec<_>, _> = if texts.is_empty() {
        let any = [r".*?\.", "[^.]*", NUMBER];
        Pattern::new(path, KEY, any).map(|any| vec![any])
    } else {
        let pattern = |text: &&str| Pattern::new(path, KEY, [r"(?:^|.*?\.)", text, NUMBER]);
        texts.iter().map(pattern).collect()
    };
    Ok(Some((numbers, patterns?)))
}
