//! A value of an axis, as params name it.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Text, a number or a truth value; a number is the same however it is spelled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct AxisValue(String);

impl AxisValue {
    /// Whether the label of an artifact says this value.
    pub(super) fn is(&self, label: &str) -> bool {
        let numbers = (self.0.parse::<f64>(), label.parse::<f64>());
        match numbers {
            (Ok(own), Ok(other)) => own == other,
            _ => self.0 == label,
        }
    }
}

impl fmt::Display for AxisValue {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AxisValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = AxisValue;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a value of an axis: text, a number or a boolean")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<AxisValue, E> {
                Ok(AxisValue(value.to_owned()))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<AxisValue, E> {
                Ok(AxisValue(value.to_string()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<AxisValue, E> {
                Ok(AxisValue(value.to_string()))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<AxisValue, E> {
                Ok(AxisValue(value.to_string()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<AxisValue, E> {
                let number = serde_json::Number::from_f64(value);
                let number = number.ok_or_else(|| E::custom("a number must be finite"))?;
                Ok(AxisValue(number.to_string()))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

impl JsonSchema for AxisValue {
    fn schema_name() -> Cow<'static, str> {
        "AxisValue".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_the_label_that_a_matrix_makes_of_it() {
        let read = |value| serde_json::from_value::<AxisValue>(value).unwrap();
        for (value, label, same) in [
            (json!(3e-4), "0.0003", true),
            (json!("3e-4"), "0.0003", true),
            (json!(1), "1", true),
            (json!(1.0), "1", true),
            (json!(101), "102", false),
            (json!(true), "true", true),
            (json!("ppo"), "ppo", true),
            (json!("ppo"), "tb", false),
        ] {
            assert_eq!(read(value.clone()).is(label), same, "{value} {label}");
        }
        for wrong in [json!([1]), json!({}), json!(null)] {
            assert!(serde_json::from_value::<AxisValue>(wrong).is_err());
        }
    }
}
