//! Fingerprints of the shipped kinds as they were released. A change means that nobody's results are found any more,
//! or worse, that old results are taken for new ones.

use std::collections::BTreeMap;

use flowgraph::engine::artifact::Digest;
use flowgraph::engine::fingerprint::{MANIFEST_FORMAT, Manifest, ManifestInput};
use flowgraph::registry::REGISTRY;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/fingerprints.txt");

/// The fingerprint of each kind's example, with made-up inputs and sources.
fn fingerprints() -> BTreeMap<String, (u32, String)> {
    REGISTRY
        .iter()
        .map(|kind| {
            let example = serde_yaml::from_str(kind.example).unwrap();
            let stage = (kind.parse)(&example).unwrap();
            let inputs = stage.ports().into_iter().map(|port| {
                let digest = Digest::of(port.name.as_bytes());
                let input = ManifestInput {
                    digest: Some(digest),
                    labels: Vec::new(),
                };
                (port.name.into_owned(), vec![input])
            });
            let sources = stage.sources().into_iter();
            let manifest = Manifest {
                format: MANIFEST_FORMAT,
                kind: kind.name.to_owned(),
                version: kind.version,
                params: stage.params(),
                inputs: inputs.collect(),
                sources: sources
                    .map(|source| (source.key, Some("sha256:0".to_owned())))
                    .collect(),
                environment: Vec::new(),
            };
            let fingerprint = manifest.fingerprint().unwrap().to_string();
            (kind.name.to_owned(), (kind.version, fingerprint))
        })
        .collect()
}

fn golden() -> BTreeMap<String, (u32, String)> {
    let text = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    // Another format changes the fingerprint of everything.
    let Some((_, kinds)) = text.split_once(&format_line()) else {
        return BTreeMap::new();
    };
    kinds
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let kind = words.next().unwrap().to_owned();
            let version = words.next().unwrap().parse().unwrap();
            (kind, (version, words.next().unwrap().to_owned()))
        })
        .collect()
}

fn format_line() -> String {
    format!("format {MANIFEST_FORMAT}\n")
}

/// `UPDATE_GOLDEN=1` writes new kinds and new versions, and nothing that changed without one.
#[test]
fn fingerprints_change_with_the_version_alone() {
    let (golden, found) = (golden(), fingerprints());
    let mut wrong = Vec::new();
    for (kind, (version, fingerprint)) in &found {
        if let Some((old_version, old)) = golden.get(kind)
            && version == old_version
            && fingerprint != old
        {
            wrong.push(format!(
                "{kind}: {old} -> {fingerprint}: params or ports changed: bump VERSION or restore them"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let lines = found
            .iter()
            .map(|(kind, (version, fingerprint))| format!("{kind} {version} {fingerprint}\n"));
        let lines = lines.collect::<String>();
        std::fs::write(GOLDEN, format_line() + &lines).unwrap();
        return;
    }
    assert_eq!(
        golden, found,
        "run this test with UPDATE_GOLDEN=1 after a VERSION was bumped"
    );
}

const DEFAULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/defaults.txt");

/// Params at their default are no part of a fingerprint: another default is another meaning of the same one.
#[test]
fn defaults_change_with_the_version_alone() {
    let mut found = BTreeMap::new();
    for kind in REGISTRY {
        for (path, default) in (kind.defaults)() {
            found.insert(
                format!("{} {path}", kind.name),
                (kind.version, default.to_string()),
            );
        }
    }
    let text = std::fs::read_to_string(DEFAULTS).unwrap_or_default();
    let golden: BTreeMap<String, (u32, String)> = text
        .lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut next = || words.next().unwrap();
            let (kind, version, path) = (next(), next(), next());
            (
                format!("{kind} {path}"),
                (version.parse().unwrap(), next().to_owned()),
            )
        })
        .collect();
    let wrong: Vec<String> = golden
        .iter()
        .filter_map(|(param, (version, old))| {
            let (now, new) = found.get(param)?;
            let changed = now == version && new != old;
            changed.then(|| format!("{param}: {old} -> {new}: bump VERSION or restore it"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let lines = found.iter().map(|(param, (version, default))| {
            let (kind, path) = param.split_once(' ').unwrap();
            format!("{kind} {version} {path} {default}\n")
        });
        std::fs::write(DEFAULTS, lines.collect::<String>()).unwrap();
        return;
    }
    assert_eq!(
        golden, found,
        "run this test with UPDATE_GOLDEN=1 for new params and versions"
    );
}
