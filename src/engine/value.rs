//! Values of a pipeline file: what YAML can say, with the order of its maps kept.

use std::fmt;

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::de::{Deserialize, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

/// A map of the pipeline file, in file order.
pub(super) type Map = IndexMap<String, Value>;

/// A value of the pipeline file.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// `null`, `~` or nothing.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that fits 64 bits.
    Integer(i64),
    /// A whole number above `i64::MAX`.
    Unsigned(u64),
    /// A finite number with a fraction or an exponent.
    Float(f64),
    /// Text.
    String(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping with text keys; boxed, since it is three times as large as any other value.
    Map(Box<Map>),
}

impl Value {
    /// Names the type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Unsigned(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Returns the text, if the value is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the map, if the value is one.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// Follows `keys` through maps.
    pub fn get<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Option<&Value> {
        keys.into_iter()
            .try_fold(self, |value, key| value.as_map()?.get(key))
    }

    /// Converts to JSON (whose maps are sorted by key).
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::from(*value),
            Self::Integer(value) => Json::from(*value),
            Self::Unsigned(value) => Json::from(*value),
            Self::Float(value) => Json::from(*value),
            Self::String(value) => Json::from(value.as_str()),
            Self::List(values) => values.iter().map(Self::to_json).collect(),
            Self::Map(map) => json_of(map),
        }
    }

    /// Merges `patch` into the value: maps key by key, anything else replaced; `null` removes a key.
    pub fn merge(&mut self, patch: &Value) {
        let (Self::Map(target), Self::Map(patch)) = (&mut *self, patch) else {
            *self = patch.clone();
            return;
        };
        for (key, value) in &**patch {
            if *value == Self::Null {
                target.shift_remove(key);
            } else if let Some(present) = target.get_mut(key) {
                present.merge(value);
            } else {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Converts a map to JSON.
pub(super) fn json_of(map: &Map) -> Json {
    map.iter()
        .map(|(key, value)| (key.clone(), value.to_json()))
        .collect()
}

impl FromIterator<(String, Value)> for Value {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(entries: I) -> Self {
        Self::Map(Box::new(entries.into_iter().collect()))
    }
}

impl fmt::Display for Value {
    /// Writes the value as it would appear inside a string: text bare, everything else as JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            other => write!(f, "{}", other.to_json()),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

fn beyond_64_bits(number: impl fmt::Display) -> String {
    format!("the whole number {number} needs more than 64 bits; quote it if it is meant as text")
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    /// An empty document.
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Unsigned(value), Value::Integer))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Value, E> {
        Err(E::custom(beyond_64_bits(value)))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Value, E> {
        Err(E::custom(beyond_64_bits(value)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        let message =
            "YAML tags such as `!name` have no meaning here; quote a text that begins with `!`";
        Err(A::Error::custom(message))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if value.is_finite() {
            Ok(Value::Float(value))
        } else {
            Err(E::custom("expected a finite number, found NaN or infinity"))
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, value)) = entries.next_entry::<Key, Value>()? {
            if key.0 == "<<" {
                let message = "YAML merge keys (`<<`) are not supported; a matrix, a profile or `params` share what stages have in common";
                return Err(A::Error::custom(message));
            }
            match map.entry(key.0) {
                Entry::Vacant(free) => free.insert(value),
                Entry::Occupied(taken) => {
                    let message = format!("duplicate key `{}`", taken.key());
                    return Err(A::Error::custom(message));
                }
            };
        }
        Ok(Value::Map(Box::new(map)))
    }
}

/// A map key; numbers and booleans are taken by their spelling in canonical form.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Map(_) => Err(D::Error::custom(
                "expected a text key, found a map; a reference to a param is `${name}`, not `{{ name }}`",
            )),
            other @ (Value::List(_) | Value::Null) => Err(D::Error::custom(format!(
                "expected a text key, found {}; quote it if it is meant as text",
                other.type_name()
            ))),
            scalar => Ok(Self(scalar.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn maps_keep_file_order_and_numbers_their_type() {
        let value = parse("b: 1\na: 1e-4\nc: 18446744073709551615\n");
        let map = value.as_map().unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(map["a"], Value::Float(1e-4));
        assert_eq!(map["c"], Value::Unsigned(u64::MAX));
    }

    #[test]
    fn duplicate_keys_and_not_a_number_are_refused() {
        let duplicate = serde_yaml::from_str::<Value>("a: 1\na: 2\n").unwrap_err();
        assert!(
            duplicate.to_string().contains("duplicate key `a`"),
            "{duplicate}"
        );
        assert!(serde_yaml::from_str::<Value>("a: .nan").is_err());
        assert!(serde_yaml::from_str::<Value>("a: !tag 1").is_err());
    }

    #[test]
    fn merging_replaces_leaves_and_null_removes() {
        let mut base = parse("a: {x: 1, y: 2}\nb: [1, 2]\nc: 3\n");
        base.merge(&parse("a: {y: 5, z: 6}\nb: [9]\nc: null\n"));
        assert_eq!(base, parse("a: {x: 1, y: 5, z: 6}\nb: [9]\n"));
    }
}
