//! How many rows of a step go through a model at once.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of rows, or `auto`: all at first, and half as many each time that a GPU has no room for them.
///
/// Sums over fewer rows differ in rounding: with `auto` the last bits of a result depend on the memory of the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MicroBatch {
    /// So many.
    Rows(usize),
    /// As many as have room.
    Auto,
}

const AUTO: &str = "auto";

impl MicroBatch {
    /// Returns how many rows of `all` there are at first.
    pub(super) fn rows(this: Option<Self>, all: usize) -> usize {
        match this {
            Some(Self::Rows(rows)) => rows,
            Some(Self::Auto) | None => all,
        }
    }

    /// Whether there are fewer when there is no room.
    pub(super) fn halves(this: Option<Self>) -> bool {
        this == Some(Self::Auto)
    }
}

impl Serialize for MicroBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Rows(rows) => serializer.serialize_u64(*rows as u64),
            Self::Auto => serializer.serialize_str(AUTO),
        }
    }
}

impl<'de> Deserialize<'de> for MicroBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowsOrAuto;

        impl Visitor<'_> for RowsOrAuto {
            type Value = MicroBatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of at least 1, or `auto`")
            }

            fn visit_u64<E: Error>(self, rows: u64) -> Result<MicroBatch, E> {
                match usize::try_from(rows) {
                    Ok(rows) if rows > 0 => Ok(MicroBatch::Rows(rows)),
                    _ => Err(E::custom(format!(
                        "expected a whole number of at least 1, or `auto`, found {rows}"
                    ))),
                }
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<MicroBatch, E> {
                if word == AUTO {
                    return Ok(MicroBatch::Auto);
                }
                Err(E::custom(format!(
                    "expected a whole number of at least 1, or `auto`, found `{word}`"
                )))
            }
        }

        deserializer.deserialize_any(RowsOrAuto)
    }
}

impl JsonSchema for MicroBatch {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MicroBatch".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": AUTO }] })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn it_is_a_number_or_auto() {
        let read = |value: Value| serde_json::from_value::<MicroBatch>(value);
        for (value, expected) in [
            (json!(3), MicroBatch::Rows(3)),
            (json!("auto"), MicroBatch::Auto),
        ] {
            let found = read(value.clone()).unwrap();
            assert_eq!(
                (found, serde_json::to_value(found).unwrap()),
                (expected, value)
            );
        }
        for wrong in [json!(0), json!(-1), json!("Auto"), json!(1.5), json!([1])] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(
                error.contains("a whole number of at least 1, or `auto`"),
                "{error}"
            );
        }
    }
}
