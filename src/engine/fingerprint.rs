//! What determines a stage's bytes, in a form that can be both hashed and read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::artifact::Digest;
use super::context::Labels;

/// Raised when the meaning of a manifest changes; every fingerprint changes with it.
pub const MANIFEST_FORMAT: u32 = 2;

/// Everything that determines the bytes of a stage's outputs.
///
/// Digests of outputs that are not made yet, and of sources that were never fetched, are open (`None`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// See [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The stage kind.
    pub kind: String,
    /// The kind's version.
    pub version: u32,
    /// Typed params; those at their default are left out.
    pub params: Json,
    /// For each port, the artifacts by content.
    pub inputs: BTreeMap<String, Vec<ManifestInput>>,
    /// For each source, the digest of its bytes, as `blake3:...` or `sha256:...`.
    pub sources: BTreeMap<String, Option<String>>,
    /// What the environment adds, as digests.
    pub environment: Vec<String>,
}

/// One artifact in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestInput {
    /// Digest of the artifact.
    pub digest: Option<Digest>,
    /// Labels, as pairs because their order is the order of the axes; empty unless the port is labelled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
}

impl ManifestInput {
    /// Makes an input of a manifest.
    pub fn new(digest: Option<Digest>, labels: &Labels) -> Self {
        Self {
            digest,
            labels: labels.clone().into_iter().collect(),
        }
    }
}

/// One component in which two manifests differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The component, such as `params.lr` or `inputs.model`.
    pub key: String,
    /// Its value in the older manifest.
    pub old: Option<Json>,
    /// Its value in the newer manifest.
    pub new: Option<Json>,
}

impl Manifest {
    /// Returns the fingerprint, unless a digest is open.
    pub fn fingerprint(&self) -> Option<Digest> {
        self.is_known().then(|| {
            let mut hasher = blake3::Hasher::new_derive_key("flowgraph stage fingerprint v1");
            hasher.update(self.canonical().as_bytes());
            hasher.finalize().into()
        })
    }

    fn is_known(&self) -> bool {
        let mut inputs = self.inputs.values().flatten();
        inputs.all(|input| input.digest.is_some()) && self.sources.values().all(Option::is_some)
    }

    /// Returns what trainings share that differ only in how long they are: the digest of the numerics class that they
    /// are computed in and of the manifest without the params `steps` and `checkpoints`; `None` if a digest is open.
    pub fn continuation_key(&self, class: &str) -> Option<Digest> {
        if !self.is_known() {
            return None;
        }
        let mut shared = self.clone();
        if let Json::Object(params) = &mut shared.params {
            params.remove("steps");
            params.remove("checkpoints");
        }
        let mut hasher = blake3::Hasher::new_derive_key("flowgraph training continuation v2");
        hasher.update(&(class.len() as u64).to_le_bytes());
        hasher.update(class.as_bytes());
        hasher.update(shared.canonical().as_bytes());
        Some(hasher.finalize().into())
    }

    /// Writes the manifest as JSON with sorted keys and no spaces.
    pub fn canonical(&self) -> String {
        // Only the params can be of any shape; the fields are written here in the order of their names, and
        // `BTreeMap`s are sorted already.
        let mut text = Vec::with_capacity(512);
        let mut part = |key: &str, part: &dyn Fn(&mut Vec<u8>)| {
            text.push(if text.is_empty() { b'{' } else { b',' });
            write_json(key, &mut text);
            text.push(b':');
            part(&mut text);
        };
        part("environment", &|text| write_json(&self.environment, text));
        part("format", &|text| write_json(&self.format, text));
        part("inputs", &|text| write_json(&self.inputs, text));
        part("kind", &|text| write_json(&self.kind, text));
        part("params", &|text| write_canonical(&self.params, text));
        part("sources", &|text| write_json(&self.sources, text));
        part("version", &|text| write_json(&self.version, text));
        text.push(b'}');
        as_text(text)
    }

    /// Whether `other` agrees in everything that is known here.
    pub fn matches_known_part(&self, other: &Manifest) -> bool {
        self.kind == other.kind
            && self.version == other.version
            && self.format == other.format
            && self.params == other.params
            && self.environment == other.environment
            && self.sources.len() == other.sources.len()
            && self.inputs.len() == other.inputs.len()
            && self.sources.iter().all(|(key, digest)| {
                other
                    .sources
                    .get(key)
                    .is_some_and(|theirs| digest.is_none() || digest == theirs)
            })
            && self.inputs.iter().all(|(port, items)| {
                other.inputs.get(port).is_some_and(|theirs| {
                    items.len() == theirs.len()
                        && items.iter().zip(theirs).all(|(ours, theirs)| {
                            ours.labels == theirs.labels
                                && (ours.digest.is_none() || ours.digest == theirs.digest)
                        })
                })
            })
    }

    /// Lists the components in which `newer` differs from this manifest. An open digest may turn out to be any, so
    /// it differs only from what is not there at all.
    pub fn differences(&self, newer: &Manifest) -> Vec<Difference> {
        let (old, new) = (self.components(), newer.components());
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        keys.into_iter()
            .filter(|key| {
                let open = |side: &BTreeMap<String, Json>| {
                    side.get(*key).is_some_and(|value| *value == open_digest())
                };
                let (before, after) = (old.get(*key), new.get(*key));
                let both = before.is_some() && after.is_some();
                before != after && !(both && (open(&old) || open(&new)))
            })
            .map(|key| {
                let shown = |value: Option<&Json>| match value {
                    Some(value) if *value == open_digest() => Some(Json::from("not known yet")),
                    value => value.cloned(),
                };
                Difference {
                    key: key.clone(),
                    old: shown(old.get(key)),
                    new: shown(new.get(key)),
                }
            })
            .collect()
    }

    /// Names an input among the components.
    pub(super) fn input_key(port: &str, index: usize, count: usize) -> String {
        if count == 1 {
            format!("inputs.{port}")
        } else {
            format!("inputs.{port}[{index}]")
        }
    }

    /// Returns the manifest in parts that can be compared and named.
    pub fn components(&self) -> BTreeMap<String, Json> {
        let mut components = BTreeMap::new();
        components.insert("version".to_owned(), Json::from(self.version));
        components.insert("manifest format".to_owned(), Json::from(self.format));
        flatten("params", &self.params, &mut components);
        for (port, items) in &self.inputs {
            for (index, item) in items.iter().enumerate() {
                let key = Self::input_key(port, index, items.len());
                let digest = item
                    .digest
                    .map_or_else(open_digest, |digest| Json::from(digest.to_string()));
                components.insert(key.clone(), digest);
                for (label, value) in &item.labels {
                    components.insert(format!("{key}.{label}"), Json::from(value.as_str()));
                }
            }
        }
        for (key, digest) in &self.sources {
            let digest = digest.as_deref().map_or_else(open_digest, Json::from);
            components.insert(format!("sources.{key}"), digest);
        }
        for entry in &self.environment {
            let (name, digest) = entry.split_once('=').unwrap_or((entry, ""));
            components.insert(format!("env.{name}"), Json::from(digest));
        }
        components
    }
}

fn open_digest() -> Json {
    Json::Null
}

/// Adds the leaves of a JSON value, each under its path.
pub fn flatten(prefix: &str, value: &Json, components: &mut BTreeMap<String, Json>) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                flatten(&format!("{prefix}.{key}"), value, components);
            }
        }
        // An absent optional param and a null one are the same component.
        Json::Null => {}
        leaf => {
            components.insert(prefix.to_owned(), leaf.clone());
        }
    }
}

/// Writes JSON with keys sorted and no spaces, whatever features serde_json was built with.
pub fn canonical_json(value: &Json) -> String {
    let mut text = Vec::new();
    write_canonical(value, &mut text);
    as_text(text)
}

fn write_canonical(value: &Json, text: &mut Vec<u8>) {
    match value {
        Json::Object(map) => {
            let mut entries: Vec<(&String, &Json)> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            text.push(b'{');
            for (position, (key, value)) in entries.into_iter().enumerate() {
                if position > 0 {
                    text.push(b',');
                }
                write_json(key, text);
                text.push(b':');
                write_canonical(value, text);
            }
            text.push(b'}');
        }
        Json::Array(list) => {
            text.push(b'[');
            for (position, item) in list.iter().enumerate() {
                if position > 0 {
                    text.push(b',');
                }
                write_canonical(item, text);
            }
            text.push(b']');
        }
        leaf => write_json(leaf, text),
    }
}

/// Writes what always has a JSON form: text, numbers, and lists and maps of them by text.
fn write_json<T: Serialize + ?Sized>(part: &T, text: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(text, part) {
        unreachable!("a manifest has a JSON form: {error}");
    }
}

fn as_text(json: Vec<u8>) -> String {
    String::from_utf8(json).unwrap_or_else(|error| unreachable!("JSON is UTF-8: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(lr: f64, digest: Option<Digest>) -> Manifest {
        Manifest {
            format: MANIFEST_FORMAT,
            kind: "train".to_owned(),
            version: 1,
            params: json!({ "lr": lr, "optimizer": { "beta": 0.9 }, "resume": null }),
            inputs: [(
                "model".to_owned(),
                vec![ManifestInput {
                    digest,
                    labels: Vec::new(),
                }],
            )]
            .into(),
            sources: BTreeMap::new(),
            environment: Vec::new(),
        }
    }

    #[test]
    fn fingerprints_need_every_digest_and_follow_every_component() {
        let base = manifest(0.1, Some(Digest::of(b"a")));
        assert_eq!(manifest(0.1, None).fingerprint(), None);
        assert_eq!(
            base.fingerprint(),
            manifest(0.1, Some(Digest::of(b"a"))).fingerprint()
        );
        assert_ne!(
            base.fingerprint(),
            manifest(0.2, Some(Digest::of(b"a"))).fingerprint()
        );
        assert_ne!(
            base.fingerprint(),
            manifest(0.1, Some(Digest::of(b"b"))).fingerprint()
        );
        let newer = Manifest {
            version: 2,
            ..base.clone()
        };
        assert_ne!(base.fingerprint(), newer.fingerprint());
    }

    #[test]
    fn the_canonical_form_is_that_of_the_whole_manifest_as_json() {
        let mut manifest = manifest(0.1, Some(Digest::of(b"a")));
        manifest.environment = vec!["STYLE=\"x\"".to_owned()];
        manifest.sources = [
            ("code".to_owned(), None),
            ("b\n".to_owned(), Some("c".to_owned())),
        ]
        .into();
        let labels = [("seed".to_owned(), "1".to_owned())].into_iter().collect();
        let labelled = ManifestInput::new(None, &labels);
        manifest.inputs.insert("a port".to_owned(), vec![labelled]);
        let whole = serde_json::to_value(&manifest).unwrap();
        assert_eq!(manifest.canonical(), canonical_json(&whole));
    }

    #[test]
    fn trainings_of_any_length_continue_each_other_within_a_numerics_class() {
        let key = |steps: u64, lr: f64, class: &str| {
            let mut manifest = manifest(lr, Some(Digest::of(b"a")));
            manifest.params["steps"] = json!(steps);
            manifest.continuation_key(class).unwrap()
        };
        assert_eq!(key(10, 0.1, "cpu/2"), key(20, 0.1, "cpu/2"));
        assert_ne!(key(10, 0.1, "cpu/2"), key(20, 0.2, "cpu/2"));
        assert_ne!(key(10, 0.1, "cpu/2"), key(20, 0.1, "cuda"));
    }

    #[test]
    fn fingerprints_are_pinned_because_stores_outlive_releases() {
        let fingerprint = manifest(0.1, Some(Digest::of(b"a"))).fingerprint().unwrap();
        assert_eq!(fingerprint.short(), "5d0bb9f34bc2");
    }

    #[test]
    fn differences_name_the_changed_keys_and_skip_open_digests() {
        let old = manifest(0.1, Some(Digest::of(b"a")));
        let found = old.differences(&manifest(0.2, None));
        assert_eq!(
            found,
            [Difference {
                key: "params.lr".to_owned(),
                old: Some(json!(0.1)),
                new: Some(json!(0.2))
            }]
        );
        assert!(manifest(0.1, None).matches_known_part(&old));
        assert!(!manifest(0.2, None).matches_known_part(&old));
    }
}
