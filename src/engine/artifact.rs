//! Artifacts: immutable file trees, named by the digest of their content.

use std::fmt;
use std::str::FromStr;

use indexmap::IndexMap;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A BLAKE3 digest of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digests bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Returns the first twelve hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        blake3::Hash::from_hex(text)
            .map(Self::from)
            .map_err(|_| format!("expected 64 hexadecimal digits, found `{text}`"))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Records hold many digests: none is copied to be read.
        deserializer.deserialize_str(DigestVisitor)
    }
}

struct DigestVisitor;

impl Visitor<'_> for DigestVisitor {
    type Value = Digest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hexadecimal digits")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
        text.parse().map_err(E::custom)
    }
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFile {
    /// Relative path with `/`, never leaving the tree.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// Digest of the content.
    pub digest: Digest,
    /// Whether a program wrote it as one that can be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// A typed, immutable file tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The artifact kind, such as `language_model`.
    pub kind: String,
    /// Digest of kind, paths, contents and executable bits.
    pub digest: Digest,
    /// The files, sorted by path.
    pub files: Vec<ArtifactFile>,
}

/// The artifacts that a stage made, by output name.
pub type Outputs = IndexMap<String, Artifact>;

impl Artifact {
    /// Makes the artifact of `files`.
    pub fn new(kind: &str, mut files: Vec<ArtifactFile>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut hasher = blake3::Hasher::new_derive_key("flowgraph artifact v1");
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        text(kind);
        for file in &files {
            text(&file.path);
            // A digest has one length, so that nothing else reads like an executable file's.
            let executable = if file.executable { " executable" } else { "" };
            text(&format!("{}{executable}", file.digest));
        }
        Self {
            kind: kind.to_owned(),
            digest: hasher.finalize().into(),
            files,
        }
    }

    /// Returns the sum of the files' lengths in bytes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Whether `path` is relative and stays within its tree.
pub fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\0', '\\'])
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &str) -> ArtifactFile {
        ArtifactFile {
            path: path.to_owned(),
            size: content.len() as u64,
            digest: Digest::of(content.as_bytes()),
            executable: false,
        }
    }

    #[test]
    fn the_digest_covers_kind_paths_and_contents_but_not_order() {
        let files = || vec![file("a", "1"), file("b", "2")];
        let digest = Artifact::new("table", files()).digest;
        let reversed = files().into_iter().rev().collect();
        assert_eq!(Artifact::new("table", reversed).digest, digest);
        assert_ne!(Artifact::new("figure", files()).digest, digest);
        assert_ne!(
            Artifact::new("table", vec![file("a", "1"), file("c", "2")]).digest,
            digest
        );
        assert_ne!(
            Artifact::new("table", vec![file("a", "1"), file("b", "3")]).digest,
            digest
        );
        let mut executable = files();
        executable[1].executable = true;
        assert_ne!(Artifact::new("table", executable).digest, digest);
    }

    #[test]
    fn paths_that_leave_the_tree_are_recognised() {
        for bad in ["", "/a", "a/../b", "..", "a//b", "./a", "a\\b"] {
            assert!(!is_inside(bad), "{bad}");
        }
        assert!(is_inside("model/weights.safetensors"));
    }
}
