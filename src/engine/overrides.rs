//! Profiles and `--set`: what changes a pipeline file before it is read.

use super::diagnostic::{Diagnostic, Path, Segment, Target, did_you_mean};
use super::document::{Document, without_positions};
use super::profiles;
use super::value::{Map, Value};

/// What the command line changes in a pipeline.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Profiles to apply, later ones winning.
    pub profiles: Vec<String>,
    /// `KEY=VALUE` settings, later ones winning.
    pub set: Vec<String>,
}

/// Applies profiles and settings to the root of a pipeline.
pub fn apply(root: &mut Map, overrides: &Overrides, errors: &mut Vec<Diagnostic>) {
    let profiles = match root.get("profiles") {
        Some(Value::Map(profiles)) => (**profiles).clone(),
        Some(other) => {
            errors.push(Diagnostic::error(
                Path::of(["profiles"]),
                format!(
                    "`profiles` must be a map of patches, found {}",
                    other.type_name()
                ),
            ));
            return;
        }
        None => Map::new(),
    };
    for (name, patch) in &profiles {
        check_patch(name, patch, errors);
    }
    profiles::check(&profiles, errors);
    for name in &overrides.profiles {
        if !profiles.contains_key(name) {
            errors.push(profiles::unknown(Path::default(), name, &profiles));
        }
    }
    for name in profiles::in_order(Some(&profiles), &overrides.profiles) {
        if let Some(Value::Map(patch)) = profiles.get(&name) {
            apply_patch(root, patch);
        }
    }
    for setting in &overrides.set {
        if let Err(diagnostic) = apply_setting(root, setting) {
            errors.push(diagnostic);
        }
    }
}

fn check_patch(name: &str, patch: &Value, errors: &mut Vec<Diagnostic>) {
    let path = Path::of(["profiles", name]);
    let Value::Map(patch) = patch else {
        if *patch != Value::Null {
            errors.push(
                Diagnostic::error(
                    path,
                    format!(
                        "profile `{name}` must be a map, found {}",
                        patch.type_name()
                    ),
                )
                .naming_profile()
                .hint("a profile may hold `extends`, `params`, `stages` and `description`"),
            );
        }
        return;
    };
    for (key, value) in &**patch {
        if !["extends", "params", "stages", "description"].contains(&key.as_str()) {
            errors.push(
                Diagnostic::error(
                    path.key(key),
                    format!("unknown key `{key}` in profile `{name}`"),
                )
                .at_key()
                .naming_profile()
                .hint("a profile may hold `extends`, `params`, `stages` and `description`"),
            );
        } else if ["params", "stages"].contains(&key.as_str()) && value.as_map().is_none() {
            let message = format!(
                "`{key}` of profile `{name}` must be a map, found {}",
                value.type_name()
            );
            errors.push(Diagnostic::error(path.key(key), message).naming_profile());
        }
    }
}

fn apply_patch(root: &mut Map, patch: &Map) {
    // What the pipeline says of itself need not be true of the profile.
    if let Some(description) = patch.get("description") {
        root.insert("description".to_owned(), description.clone());
    }
    if let Some(params) = patch.get("params") {
        root.entry("params".to_owned())
            .or_insert_with(|| Value::Map(Box::default()))
            .merge(params);
    }
    let Some(Value::Map(patches)) = patch.get("stages") else {
        return;
    };
    let stages = root
        .entry("stages".to_owned())
        .or_insert_with(|| Value::Map(Box::default()));
    let Value::Map(stages) = stages else { return };
    for (name, patch) in &**patches {
        let kind = patch.get(["kind"]);
        match stages.get_mut(name) {
            _ if *patch == Value::Null => {
                stages.shift_remove(name);
            }
            // Another kind has other params and ports: the patch is the whole stage.
            Some(stage) if kind.is_none_or(|kind| stage.get(["kind"]) == Some(kind)) => {
                stage.merge(patch);
            }
            _ => {
                stages.insert(name.clone(), patch.clone());
            }
        }
    }
}

/// Returns where a key of `--set` is in the file: `lr` is `params.lr`, and `ppo.lr` of a stage whose settings are no params
/// of the pipeline is `stages.ppo.params.lr`.
fn target_of<'a>(root: &Map, key: &'a str) -> Option<Vec<&'a str>> {
    let mut keys: Vec<&str> = key.trim().split('.').collect();
    let has = |section: &str, name: &str| {
        let section = root.get(section).and_then(Value::as_map);
        section.is_some_and(|section| section.contains_key(name))
    };
    if matches!(keys[0], "params" | "stages") {
        return Some(keys);
    }
    if has("params", keys[0]) {
        keys.insert(0, "params");
    } else if keys.len() > 1 && has("stages", keys[0]) {
        keys.splice(0..1, ["stages", keys[0], "params"]);
    } else {
        return None;
    }
    Some(keys)
}

/// Says of errors about values which of them `--set` gave: what stands in the file at their place is something else.
pub(super) fn name_settings(document: &Document, overrides: &Overrides, errors: &mut [Diagnostic]) {
    if overrides.set.is_empty() || errors.is_empty() {
        return;
    }
    let Ok(Value::Map(root)) = document.parse() else {
        return;
    };
    let settings = overrides.set.iter().rev().filter_map(|setting| {
        let keys = target_of(&root, setting.split_once('=')?.0)?;
        Some((setting, keys))
    });
    let settings: Vec<(&String, Vec<&str>)> = settings.collect();
    for error in errors {
        let in_file = value_at(&root, &error.path).and_then(Value::as_str);
        let gives = |(_, keys): &&(&String, Vec<&str>)| {
            let refers = || {
                let reference = format!("${{{}", keys[1..].join("."));
                // That a key is wrong has nothing to do with its value.
                error.target == Target::Value
                    && in_file.is_some_and(|text| {
                        let ends = text
                            .match_indices(&reference)
                            .map(|(at, _)| at + reference.len());
                        ends.into_iter()
                            .any(|end| text[end..].starts_with(['}', '.']))
                    })
            };
            let path = Path::of(keys.iter().copied());
            error.path.0.starts_with(&path.0) || (keys[0] == "params" && refers())
        };
        if let Some((setting, _)) = settings.iter().find(gives) {
            error
                .message
                .push_str(&format!(" (given by `--set {setting}`)"));
        }
    }
}

/// Returns what is at a place of the file.
fn value_at<'a>(root: &'a Map, path: &Path) -> Option<&'a Value> {
    let (Segment::Key(first), rest) = path.0.split_first()? else {
        return None;
    };
    rest.iter().try_fold(root.get(&**first)?, step)
}

/// Returns what is one segment further.
fn step<'a>(value: &'a Value, segment: &Segment) -> Option<&'a Value> {
    match (value, segment) {
        (Value::Map(map), Segment::Key(key)) => map.get(&**key),
        (Value::List(list), Segment::Index(index)) => list.get(*index),
        _ => None,
    }
}

fn apply_setting(root: &mut Map, setting: &str) -> Result<(), Diagnostic> {
    let fail = |message: String| Diagnostic::error(Path::default(), message);
    let Some((key, text)) = setting.split_once('=') else {
        return Err(fail(format!("`--set {setting}`: expected KEY=VALUE"))
            .hint("for example `--set ppo.lr=2e-5` or `--set stages.sft.params.steps=10`"));
    };
    let value: Value =
        serde_yaml::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
            let error = without_positions(&error);
            fail(format!("`--set {setting}`: the value is not YAML: {error}"))
        })?;
    let stage_names: Vec<String> = root
        .get("stages")
        .and_then(Value::as_map)
        .map(|stages| stages.keys().cloned().collect())
        .unwrap_or_default();
    let Some(keys) = target_of(root, key) else {
        let first = key.trim().split('.').next().unwrap_or_default();
        let params = root.get("params").and_then(Value::as_map);
        let known = params
            .into_iter()
            .flat_map(|p| p.keys())
            .chain(&stage_names);
        return Err(
            fail(format!("`--set {setting}`: no param or stage `{first}`"))
                .maybe_hint(did_you_mean(first, known.map(String::as_str))),
        );
    };
    if keys[0] == "params" && keys.len() > 1 {
        // New params would have no effect: a typing error must not pass silently.
        let present = root
            .get("params")
            .and_then(|p| p.get(keys[1..].iter().copied()));
        if present.is_none() {
            let parent = root
                .get("params")
                .and_then(|p| p.get(keys[1..keys.len() - 1].iter().copied()));
            let known = parent
                .and_then(Value::as_map)
                .into_iter()
                .flat_map(|map| map.keys());
            let last = keys[keys.len() - 1];
            return Err(fail(format!(
                "`--set {setting}`: the pipeline has no param `{}`",
                keys[1..].join(".")
            ))
            .maybe_hint(did_you_mean(last, known.map(String::as_str))));
        }
    } else if keys[0] == "stages"
        && !stage_names
            .iter()
            .any(|name| keys.get(1) == Some(&name.as_str()))
    {
        let found = keys.get(1).copied().unwrap_or_default();
        return Err(fail(format!("`--set {setting}`: no stage `{found}`"))
            .maybe_hint(did_you_mean(found, stage_names.iter().map(String::as_str))));
    }
    let mut target = root;
    for key in &keys[..keys.len() - 1] {
        let next = target
            .entry((*key).to_owned())
            .or_insert_with(|| Value::Map(Box::default()));
        let type_name = next.type_name();
        let Value::Map(map) = next else {
            return Err(fail(format!(
                "`--set {setting}`: `{key}` is {type_name}, not a map"
            )));
        };
        target = map;
    }
    target.insert(keys[keys.len() - 1].to_owned(), value);
    Ok(())
}

/// What a profile gives is shown where the profile gives it.
pub(super) fn relocate_to_profiles(
    document: &Document,
    profiles: &[String],
    mut diagnostics: Vec<Diagnostic>,
) -> Vec<Diagnostic> {
    if profiles.is_empty() || diagnostics.is_empty() {
        return diagnostics;
    }
    let Ok(root) = document.parse() else {
        return diagnostics;
    };
    let profiles = profiles::in_order(root.get(["profiles"]).and_then(Value::as_map), profiles);
    for diagnostic in &mut diagnostics {
        let path = &diagnostic.path;
        let in_file = depth(&root, path);
        let found = profiles.iter().rev().find_map(|profile| {
            let prefix = Path::of(["profiles", profile]);
            let in_profile = depth(&root, &prefix.join(path)).checked_sub(prefix.0.len())?;
            let deeper = in_profile > in_file || in_profile == path.0.len();
            (in_profile > 0 && (deeper || is_replaced(&root, profile, path)))
                .then(|| prefix.join(path))
        });
        if let Some(found) = found {
            diagnostic.path = found;
        }
    }
    diagnostics
}

/// Whether a profile gives the stage that `path` is in another kind: nothing of it is in the file's stage.
fn is_replaced(root: &Value, profile: &str, path: &Path) -> bool {
    let [Segment::Key(stages), Segment::Key(stage), ..] = path.0.as_slice() else {
        return false;
    };
    let kind = root.get(["profiles", profile, stages, stage, "kind"]);
    &**stages == "stages" && kind.is_some() && kind != root.get([&**stages, &**stage, "kind"])
}

/// Returns how many segments of `path` exist.
fn depth(root: &Value, path: &Path) -> usize {
    let mut value = root;
    for (depth, segment) in path.0.iter().enumerate() {
        let Some(next) = step(value, segment) else {
            return depth;
        };
        value = next;
    }
    path.0.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: &str = "
description: small
params: { lr: 1, data: { source: a, n: 2 } }
profiles:
  big:
    description: large
    params: { data: { n: 9 } }
    stages:
      a: { kind: other, params: { z: 1 } }
      b: { params: { y: 3 } }
      c: null
stages:
  a: { kind: one, params: { x: 1 } }
  b: { kind: two, params: { x: 1 } }
  c: { kind: three }
";

    fn with(profiles: &[&str], set: &[&str]) -> (Value, Vec<Diagnostic>) {
        let Value::Map(mut root) = serde_yaml::from_str(PIPELINE).unwrap() else {
            panic!()
        };
        let overrides = Overrides {
            profiles: profiles.iter().map(ToString::to_string).collect(),
            set: set.iter().map(ToString::to_string).collect(),
        };
        let mut errors = Vec::new();
        apply(&mut root, &overrides, &mut errors);
        (Value::Map(root), errors)
    }

    #[test]
    fn profiles_merge_replace_on_another_kind_and_remove_on_null() {
        let (root, errors) = with(&["big"], &[]);
        assert_eq!(errors, []);
        let stages: Value = serde_yaml::from_str(
            "a: {kind: other, params: {z: 1}}\nb: {kind: two, params: {x: 1, y: 3}}",
        )
        .unwrap();
        assert_eq!(root.get(["stages"]), Some(&stages));
        assert_eq!(root.get(["params", "data", "n"]), Some(&Value::Integer(9)));
        assert_eq!(
            root.get(["description"]).and_then(Value::as_str),
            Some("large")
        );
        assert_eq!(
            root.get(["params", "data", "source"]),
            Some(&Value::String("a".into()))
        );
    }

    #[test]
    fn settings_reach_params_and_stages_and_win_over_profiles() {
        let (root, errors) = with(&["big"], &["data.n=5", "stages.b.params.x=1e-3", "b.y=[1]"]);
        assert_eq!(errors, []);
        assert_eq!(root.get(["params", "data", "n"]), Some(&Value::Integer(5)));
        assert_eq!(
            root.get(["stages", "b", "params", "x"]),
            Some(&Value::Float(1e-3))
        );
        assert_eq!(
            root.get(["stages", "b", "params", "y"]),
            Some(&Value::List(vec![Value::Integer(1)]))
        );
    }

    #[test]
    fn misspelled_profiles_and_settings_are_errors_with_hints() {
        let (_, errors) = with(
            &["bigg"],
            &["data.m=5", "lrr=1", "stages.d.params.x=1", "lr"],
        );
        let found: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(
            found,
            [
                "unknown profile `bigg`",
                "`--set data.m=5`: the pipeline has no param `data.m`",
                "`--set lrr=1`: no param or stage `lrr`",
                "`--set stages.d.params.x=1`: no stage `d`",
                "`--set lr`: expected KEY=VALUE",
            ]
        );
        assert_eq!(errors[2].hint.as_deref(), Some("did you mean `lr`?"));
    }
}
