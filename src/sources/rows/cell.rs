//! What a row holds in a column: text, or a nested value.

use polars::prelude::{AnyValue, Column, DataType, PolarsResult};
use serde_json::{Map, Number, Value};

/// What is wrong with a value, in words.
type Fault = &'static str;

const NOT_TEXT: Fault = "neither text nor a number";
/// No value of a public layout is nested deeper.
const DEEPEST: usize = 16;

/// A value of a column.
pub(super) trait Cell: Sized {
    /// Takes a value of a JSON object.
    fn of_json(value: &Value) -> Result<Self, Fault>;

    /// Takes the values of a column, nulls as `None`.
    fn of_column(column: &Column) -> PolarsResult<Vec<Result<Option<Self>, Fault>>>;
}

impl Cell for String {
    fn of_json(value: &Value) -> Result<Self, Fault> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(NOT_TEXT),
        }
    }

    fn of_column(column: &Column) -> PolarsResult<Vec<Result<Option<Self>, Fault>>> {
        if column.dtype().is_nested() {
            return Ok(vec![Err(NOT_TEXT); column.len()]);
        }
        let values = column.cast(&DataType::String)?;
        let values = values.str()?.iter();
        Ok(values
            .map(|value| Ok(value.map(ToOwned::to_owned)))
            .collect())
    }
}

impl Cell for Value {
    fn of_json(value: &Value) -> Result<Self, Fault> {
        Ok(value.clone())
    }

    fn of_column(column: &Column) -> PolarsResult<Vec<Result<Option<Self>, Fault>>> {
        let series = column.as_materialized_series();
        let values = series.iter().map(|value| {
            let value = nested(value, DEEPEST)?;
            Ok((value != Value::Null).then_some(value))
        });
        Ok(values.collect())
    }
}

/// Turns a value into JSON, at most `depth` levels of it.
fn nested(value: AnyValue, depth: usize) -> Result<Value, Fault> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err("nested too deeply");
    };
    Ok(match value.into_static() {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => Value::Bool(value),
        AnyValue::String(text) => Value::String(text.to_owned()),
        AnyValue::StringOwned(text) => Value::String(text.to_string()),
        AnyValue::List(series) => {
            let values = series.iter().map(|value| nested(value, depth));
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        AnyValue::StructOwned(parts) => {
            let (values, fields) = *parts;
            let mut object = Map::new();
            for (value, field) in values.into_iter().zip(fields) {
                object.insert(field.name.to_string(), nested(value, depth)?);
            }
            Value::Object(object)
        }
        other => {
            let whole = other.extract::<i64>().filter(|_| other.is_integer());
            let number = other.extract::<f64>().and_then(Number::from_f64);
            let number = whole.map(Number::from).or(number);
            Value::Number(number.ok_or("neither text, a number, a list nor a structure")?)
        }
    })
}
