//! Profiles that build on others: what a profile names under `extends` comes before it.

use std::collections::HashSet;

use super::diagnostic::{Diagnostic, Path, did_you_mean};
use super::graph::Graph;
use super::value::{Map, Value};

const EXTENDS: &str = "extends";

/// Returns the profiles named, in their order, each right after those that it extends.
pub(super) fn in_order(profiles: Option<&Map>, names: &[String]) -> Vec<String> {
    let mut ordered = Vec::new();
    for name in names {
        let mut seen = HashSet::new();
        let mut ahead = vec![(name.as_str(), false)];
        while let Some((name, is_extended)) = ahead.pop() {
            if is_extended {
                ordered.push(name.to_owned());
            } else if seen.insert(name) {
                ahead.push((name, true));
                let patch = profiles.and_then(|profiles| profiles.get(name));
                let extended = patch.map(extended_by).unwrap_or_default();
                ahead.extend(extended.into_iter().rev().map(|other| (other, false)));
            }
        }
    }
    ordered
}

/// Says of every `extends` what is wrong with it.
pub(super) fn check(profiles: &Map, errors: &mut Vec<Diagnostic>) {
    let mut edges = Vec::new();
    for (at, (name, patch)) in profiles.iter().enumerate() {
        let path = || Path::of(["profiles", name, EXTENDS]);
        let is_name = |value: &Value| value.as_str().is_some();
        match patch.get([EXTENDS]) {
            Some(Value::List(names)) if names.iter().all(is_name) => {}
            Some(value) if !is_name(value) => {
                let message = format!(
                    "`{EXTENDS}` of profile `{name}` must be the name of a profile or a list of names"
                );
                errors.push(Diagnostic::error(path(), message).naming_profile());
            }
            _ => {}
        }
        for other in extended_by(patch) {
            match profiles.get_index_of(other) {
                Some(other) => edges.push((other, at)),
                None => errors.push(unknown(path(), other, profiles)),
            }
        }
    }
    if let Err(ring) = Graph::new(profiles.len(), edges).order() {
        let names: Vec<&str> = ring
            .iter()
            .filter_map(|at| Some(profiles.get_index(*at)?.0.as_str()))
            .collect();
        let first = names.first().copied().unwrap_or_default();
        let message = format!(
            "profiles extend each other in a ring: {} -> {first}",
            names.join(" -> ")
        );
        let path = Path::of(["profiles", first, EXTENDS]);
        errors.push(
            Diagnostic::error(path, message)
                .naming_profile()
                .hint("an arrow points from a profile to one that extends it; remove one of them"),
        );
    }
}

/// Says that there is no such profile.
pub(super) fn unknown(at: Path, name: &str, profiles: &Map) -> Diagnostic {
    let wrong = Diagnostic::error(at, format!("unknown profile `{name}`")).naming_profile();
    if profiles.is_empty() {
        wrong.hint("this pipeline has no profiles")
    } else {
        wrong.maybe_hint(did_you_mean(name, profiles.keys().map(String::as_str)))
    }
}

/// Returns what a profile names under `extends`: one name, or a list of them.
fn extended_by(profile: &Value) -> Vec<&str> {
    match profile.get([EXTENDS]) {
        Some(Value::List(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(name) => name.as_str().into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::overrides::{self, Overrides};

    /// Returns the params that profiles leave, and what is said of them.
    fn applied(profiles: &str, named: &[&str]) -> (Option<Value>, Vec<String>) {
        let mut root = Map::new();
        root.insert(
            "profiles".to_owned(),
            serde_yaml::from_str(profiles).unwrap(),
        );
        let overrides = Overrides {
            profiles: named.iter().map(ToString::to_string).collect(),
            set: Vec::new(),
        };
        let mut errors = Vec::new();
        overrides::apply(&mut root, &overrides, &mut errors);
        let said = errors.into_iter().map(|error| error.message).collect();
        (root.get("params").cloned(), said)
    }

    #[test]
    fn a_profile_comes_after_those_that_it_extends() {
        let profiles = "
most: { extends: [more, base], params: { z: 3 } }
more: { extends: base, params: { y: 2 } }
base: { params: { x: 1, y: 1 } }
";
        let params: Value = serde_yaml::from_str("{ x: 1, y: 2, z: 3 }").unwrap();
        assert_eq!(
            applied(profiles, &["most"]),
            (Some(params.clone()), Vec::new())
        );
        assert_eq!(
            applied(profiles, &["base", "most"]),
            (Some(params), Vec::new())
        );
        // What is named last wins.
        let params: Value = serde_yaml::from_str("{ x: 1, y: 1, z: 3 }").unwrap();
        assert_eq!(
            applied(profiles, &["most", "base"]),
            (Some(params), Vec::new())
        );
    }

    #[test]
    fn what_is_not_there_or_comes_before_itself_is_an_error() {
        let profiles = "
a: { extends: b }
b: { extends: [c] }
c: { extends: a }
d: { extends: dd }
e: { extends: 1 }
f: { extends: [d, { x: 1 }] }
";
        let (_, said) = applied(profiles, &["a"]);
        assert_eq!(
            said,
            [
                "unknown profile `dd`",
                "`extends` of profile `e` must be the name of a profile or a list of names",
                "`extends` of profile `f` must be the name of a profile or a list of names",
                "profiles extend each other in a ring: a -> c -> b -> a",
            ]
        );
        assert_eq!(
            applied("a: { extends: a }", &[]).1,
            ["profiles extend each other in a ring: a -> a"]
        );
    }

    #[test]
    fn a_long_row_of_profiles_is_followed_to_its_end() {
        let row = (0..20_000).map(|at| format!("p{at}: {{ extends: p{} }}\n", at + 1));
        let profiles = row.collect::<String>() + "p20000: { params: { x: 1 } }";
        let params: Value = serde_yaml::from_str("{ x: 1 }").unwrap();
        assert_eq!(applied(&profiles, &["p0"]), (Some(params), Vec::new()));
    }
}
