//! SHA-256 digests, by which the outside world pins files.

use std::{fmt, io::Read, path::Path, str::FromStr};

use fs_err as fs;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest;

use super::SourceError;

/// A SHA-256 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest and length of a file; `stop` is asked now and then whether to give up.
    pub fn of_file(path: &Path, stop: &dyn Fn() -> bool) -> Result<(Self, u64), SourceError> {
        let mut file = fs::File::open(path)?;
        let mut hasher = sha2::Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut bytes = 0;
        loop {
            if stop() {
                return Err(SourceError::Cancelled);
            }
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok((Self(hasher.finalize().into()), bytes));
            }
            hasher.update(&buffer[..read]);
            bytes += read as u64;
        }
    }
}

impl FromStr for Sha256 {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
        if digits.len() == 64 {
            for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                match (nibble(pair[0]), nibble(pair[1])) {
                    (Some(high), Some(low)) => *byte = high << 4 | low,
                    _ => return Err(SourceError::DigestSyntax(text.to_owned())),
                }
            }
            return Ok(Self(bytes));
        }
        Err(SourceError::DigestSyntax(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "Sha256({self})")
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Sha256 {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sha256".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-fA-F]{64}$",
            "description": "SHA-256 digest of a file, 64 hexadecimal digits",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard_and_round_trip() {
        // FIPS 180-2, appendix B.1.
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Sha256::of(b"abc").to_string(), text);
        assert_eq!(
            text.to_uppercase().parse::<Sha256>().unwrap(),
            Sha256::of(b"abc")
        );
        let json = serde_json::to_string(&Sha256::of(b"abc")).unwrap();
        assert_eq!(
            serde_json::from_str::<Sha256>(&json).unwrap(),
            Sha256::of(b"abc")
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(
            Sha256::of_file(&path, &|| false).unwrap(),
            (Sha256::of(b"abc"), 3)
        );
        assert!(matches!(
            Sha256::of_file(&path, &|| true),
            Err(SourceError::Cancelled)
        ));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ba78",
            &"g".repeat(64),
            &"a".repeat(65),
            &"é".repeat(32),
        ] {
            assert!(text.parse::<Sha256>().is_err(), "{text}");
        }
    }
}
