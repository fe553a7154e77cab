//! The choice that a pipeline's reported trainings use.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::axis_value::AxisValue;

/// A value of each axis.
pub(super) type Choice = BTreeMap<String, AxisValue>;

/// What stands under one key: the value of an axis, or of a method the values of its axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Frozen {
    /// The value of the axis that the key names.
    Value(AxisValue),
    /// The choice for the method that the key names.
    Method(Choice),
}

impl Serialize for Frozen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Method(choice) => choice.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Frozen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        fn value<E: Error>(value: impl Into<serde_json::Value>) -> Result<Frozen, E> {
            let value = AxisValue::deserialize(value.into()).map_err(E::custom)?;
            Ok(Frozen::Value(value))
        }

        impl<'de> Visitor<'de> for Either {
            type Value = Frozen;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("the value of an axis, or a map from axes to values")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Frozen, E> {
                value(text)
            }

            fn visit_bool<E: Error>(self, truth: bool) -> Result<Frozen, E> {
                value(truth)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Frozen, E> {
                value(number)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Frozen, E> {
                value(number)
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Frozen, E> {
                value(number)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Frozen, A::Error> {
                let choice = Choice::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Frozen::Method(choice))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Frozen {
    fn schema_name() -> Cow<'static, str> {
        "Frozen".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let scalar = json_schema!({ "type": ["string", "number", "boolean"] });
        json_schema!({
            "anyOf": [scalar, { "type": "object", "additionalProperties": scalar }]
        })
    }
}
