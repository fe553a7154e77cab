//! What a row holds in a column: text, or a nested value.

use polars::prelude::{AnyValue, Column, DataType, PolarsResult, Series, StringChunked};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use super::MAXIMUM_ROW;
use super::classes::Classes;

/// What is wrong with a value, in words.
pub(super) type Fault = &'static str;

/// A value, none where a cell is empty, or what is wrong with it.
pub type Checked<T> = Result<Option<T>, &'static str>;

const NOT_TEXT: Fault = "neither text nor a number";
const HALF: Fault =
    "text with one half of a surrogate pair (`\\ud83d` without its `\\ude00`), which is no letter";
/// No value of a public layout is nested deeper.
const DEEPEST: usize = 16;

/// A value of a column.
pub(super) trait Cell: Sized {
    /// The values of a column of a data frame.
    type Values;

    /// Takes a value of a JSON object; `None` for null.
    fn of_json(value: &RawValue) -> Checked<Self>;

    /// Takes a value of a CSV file.
    fn of_text(text: &str) -> Self;

    /// Takes what a JSON object does not have.
    fn missing() -> Checked<Self> {
        Err("missing")
    }

    /// Takes nothing where a CSV file could have a value.
    fn nothing() -> Option<Self> {
        None
    }

    /// Puts the names of classes where their numbers stand; `None` for null.
    fn named(self, classes: &Classes) -> Checked<Self>;

    /// Takes a column.
    fn values(column: &Column) -> PolarsResult<Self::Values>;

    /// Takes a value of a column; `None` for null.
    fn at(values: &Self::Values, row: usize) -> Checked<Self>;
}

impl Cell for String {
    /// None of a nested column.
    type Values = Option<StringChunked>;

    fn of_json(value: &RawValue) -> Checked<Self> {
        let text = value.get();
        // What is nested is not unpacked: it may be large.
        if text.starts_with(['[', '{']) {
            return Err(NOT_TEXT);
        }
        match serde_json::from_str(text) {
            Ok(Value::String(text)) => Ok(Some(text)),
            // A whole number of any length keeps its digits.
            Ok(Value::Number(_)) if !text.contains(['.', 'e', 'E']) => Ok(Some(text.to_owned())),
            Ok(Value::Number(number)) => Ok(Some(number.to_string())),
            Ok(Value::Null) => Ok(None),
            Err(_) if has_half_a_letter(text) => Err(HALF),
            _ => Err(NOT_TEXT),
        }
    }

    fn of_text(text: &str) -> Self {
        text.to_owned()
    }

    fn named(self, classes: &Classes) -> Checked<Self> {
        let name = self.parse().ok().and_then(|number| classes.name(number));
        name.map_or(Ok(self), |name| name.map(str::to_owned))
            .map(Some)
    }

    fn values(column: &Column) -> PolarsResult<Self::Values> {
        if column.dtype().is_nested() {
            return Ok(None);
        }
        Ok(Some(column.cast(&DataType::String)?.str()?.clone()))
    }

    fn at(values: &Self::Values, row: usize) -> Checked<Self> {
        let values = values.as_ref().ok_or(NOT_TEXT)?;
        Ok(values.get(row).map(ToOwned::to_owned))
    }
}

/// A value of any depth, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested(String);

impl Nested {
    /// Returns the value as JSON.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Returns the values of a list.
    pub fn elements(&self) -> Option<Vec<Self>> {
        let elements: Vec<&RawValue> = serde_json::from_str(&self.0).ok()?;
        let elements = elements.into_iter();
        Some(elements.map(|value| Self(value.get().to_owned())).collect())
    }

    /// Reads the value as a type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }
}

impl Cell for Nested {
    type Values = Series;

    fn of_json(value: &RawValue) -> Checked<Self> {
        let text = value.get();
        if has_half_a_letter(text) {
            return Err(HALF);
        }
        Ok((text != "null").then(|| Self(text.to_owned())))
    }

    fn of_text(text: &str) -> Self {
        Self(Value::from(text).to_string())
    }

    fn named(self, classes: &Classes) -> Checked<Self> {
        let value = self.parse().map_err(|_| "nested too deeply")?;
        let value = classes.put_into(value)?;
        Ok((!value.is_null()).then(|| Self(value.to_string())))
    }

    fn values(column: &Column) -> PolarsResult<Series> {
        Ok(column.as_materialized_series().clone())
    }

    fn at(values: &Series, row: usize) -> Checked<Self> {
        let value = values.get(row).map_err(|_| "not there")?;
        if value.is_null() {
            return Ok(None);
        }
        let mut text = String::new();
        write(value, DEEPEST, &mut text)?;
        Ok(Some(Self(text)))
    }
}

/// Whether JSON spells one half of a surrogate pair without the other, which only reading the text would tell.
fn has_half_a_letter(json: &str) -> bool {
    let mut parts = json.split('\\').skip(1);
    let mut is_open = false;
    while let Some(part) = parts.next() {
        let unit = part.get(1..5).filter(|_| part.starts_with('u'));
        let unit = unit.and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match unit {
            Some(0xd800..0xdc00) if !is_open && part.len() == 5 => is_open = true,
            Some(0xdc00..0xe000) if is_open => is_open = false,
            Some(0xd800..0xe000) => return true,
            _ if is_open => return true,
            _ => {}
        }
        // An escaped backslash: what follows is text.
        if part.is_empty() {
            parts.next();
        }
    }
    is_open
}

/// Writes a value as JSON, at most `depth` levels of it.
fn write(value: AnyValue, depth: usize, text: &mut String) -> Result<(), Fault> {
    let depth = depth.checked_sub(1).ok_or("nested too deeply")?;
    if text.len() as u64 > MAXIMUM_ROW {
        return Err("too large");
    }
    let scalar = match value.into_static() {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => Value::Bool(value),
        AnyValue::String(text) => Value::String(text.to_owned()),
        AnyValue::StringOwned(text) => Value::String(text.to_string()),
        AnyValue::List(series) => {
            text.push('[');
            for (index, value) in series.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write(value, depth, text)?;
            }
            text.push(']');
            return Ok(());
        }
        AnyValue::StructOwned(parts) => {
            let (values, fields) = *parts;
            text.push('{');
            for (index, (value, field)) in values.into_iter().zip(fields).enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(field.name.as_str()).to_string());
                text.push(':');
                write(value, depth, text)?;
            }
            text.push('}');
            return Ok(());
        }
        other => {
            if other
                .extract::<f64>()
                .is_some_and(|number| !number.is_finite())
            {
                return Err("NaN or infinite, expected a finite number");
            }
            let whole = other.extract::<i128>().filter(|_| other.is_integer());
            let whole = whole.and_then(Number::from_i128);
            let number = other.extract::<f64>().and_then(Number::from_f64);
            let number = whole.or(number);
            Value::Number(number.ok_or("neither text, a number, a list nor a structure")?)
        }
    };
    text.push_str(&scalar.to_string());
    Ok(())
}
