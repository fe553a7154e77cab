//! The axes whose values are the rows of a table.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::stages::defaults;

/// One axis, written as its name, or several, written as a list; `policy` by default.
///
/// A list of one is the same as the name, in the fingerprint as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Axes(Vec<String>);

impl Axes {
    /// The names, at least one.
    pub(super) fn names(&self) -> &[String] {
        &self.0
    }
}

impl Default for Axes {
    fn default() -> Self {
        Self(vec![defaults::policy()])
    }
}

impl Serialize for Axes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Axes;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("the name of an axis, or a list of different names")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Axes, E> {
                Ok(Axes(vec![name.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Axes, A::Error> {
                let mut axes: Vec<String> = Vec::new();
                while let Some(name) = names.next_element::<String>()? {
                    if axes.contains(&name) {
                        return Err(A::Error::custom(format!(
                            "the axis `{name}` is there twice"
                        )));
                    }
                    axes.push(name);
                }
                if axes.is_empty() {
                    return Err(A::Error::invalid_length(0, &self));
                }
                Ok(Axes(axes))
            }
        }

        deserializer.deserialize_any(Names)
    }
}

impl JsonSchema for Axes {
    fn schema_name() -> Cow<'static, str> {
        "Axes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_axis_is_its_name_and_several_are_a_list() {
        let read = |value: serde_json::Value| serde_json::from_value::<Axes>(value);
        assert_eq!(read(json!(["policy"])).unwrap(), Axes::default());
        assert_eq!(
            serde_json::to_value(Axes::default()).unwrap(),
            json!("policy")
        );
        let two = json!(["policy", "temperature"]);
        assert_eq!(
            serde_json::to_value(read(two.clone()).unwrap()).unwrap(),
            two
        );
        for wrong in [json!([]), json!(3), json!(["a", "a"]), json!(["a", 1])] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
