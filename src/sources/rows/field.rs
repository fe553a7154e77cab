//! A value of a column, or that there is none, and what it can be read as.

use polars::prelude::{Column, PolarsResult, Series};
use serde_json::value::RawValue;

use super::cell::{Cell, Checked, Nested};
use super::classes::Classes;

/// The greatest whole number that is told apart from its neighbours where it is read as a floating-point number.
pub const GREATEST_WHOLE: u64 = 1 << 53;

/// A value, or that there is none: no row is left out for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// Null, or not there.
    Empty,
    /// A value with a type, as JSON.
    Typed(Nested),
    /// Text of a CSV file, whatever it stands for.
    Written(String),
}

impl Field {
    /// Returns how many bytes of the file it is.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Typed(value) => value.as_json().len(),
            Self::Written(text) => text.len(),
        }
    }

    /// Returns the value as text: what is no text as JSON, and nothing for what is empty.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::Empty => None,
            Self::Typed(value) => {
                let text = value.parse::<String>();
                Some(text.unwrap_or_else(|_| value.as_json().to_owned()))
            }
            Self::Written(text) => (!text.is_empty()).then(|| text.clone()),
        }
    }

    /// Returns a text.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Written(text) => Some(text.clone()),
            Self::Typed(value) => value.parse().ok(),
            Self::Empty => None,
        }
    }

    /// Returns a finite number.
    pub fn number(&self) -> Option<f64> {
        let number: f64 = match self {
            Self::Written(text) => text.trim().parse().ok()?,
            // `parse` of a JSON text takes numbers alone: none of its other values reads as one.
            Self::Typed(value) => value.as_json().parse().ok()?,
            Self::Empty => return None,
        };
        number.is_finite().then_some(number)
    }

    /// Returns a whole number that is not negative, and not above [`GREATEST_WHOLE`].
    pub fn whole(&self) -> Option<f64> {
        let text = match self {
            Self::Written(text) => text.trim(),
            Self::Typed(value) => value.as_json(),
            Self::Empty => return None,
        };
        // Made a floating-point number first, one that is too great would be rounded to the greatest.
        if let Ok(number) = text.parse::<u64>() {
            return (number <= GREATEST_WHOLE).then_some(number as f64);
        }
        self.number().filter(|number| {
            number.trunc() == *number && (0.0..GREATEST_WHOLE as f64).contains(number)
        })
    }

    /// Returns a truth.
    pub fn truth(&self) -> Option<bool> {
        match self {
            // CSV has no truths: tables that are written as CSV have 0 and 1.
            Self::Written(text) => match text.as_str() {
                "1" => Some(true),
                "0" => Some(false),
                text => text.to_ascii_lowercase().parse().ok(),
            },
            Self::Typed(value) => value.parse().ok(),
            Self::Empty => None,
        }
    }

    /// Returns a list of token ids, in CSV as JSON or with spaces between them.
    pub fn ids(&self) -> Option<Vec<u32>> {
        match self {
            Self::Written(text) => match serde_json::from_str(text) {
                Ok(ids) => Some(ids),
                Err(_) => text.split_whitespace().map(|id| id.parse().ok()).collect(),
            },
            Self::Typed(value) => value.parse().ok(),
            Self::Empty => None,
        }
    }

    /// Returns a list of finite numbers.
    pub fn vector(&self) -> Option<Vec<f32>> {
        let values: Vec<f32> = match self {
            Self::Written(text) => serde_json::from_str(text).ok()?,
            Self::Typed(value) => value.parse().ok()?,
            Self::Empty => return None,
        };
        values
            .iter()
            .all(|value| value.is_finite())
            .then_some(values)
    }
}

impl From<Nested> for Field {
    fn from(value: Nested) -> Self {
        if value.as_json() == "null" {
            Self::Empty
        } else {
            Self::Typed(value)
        }
    }
}

impl Cell for Field {
    type Values = Series;

    fn of_json(value: &RawValue) -> Checked<Self> {
        Ok(Nested::of_json(value)?.map(Self::Typed))
    }

    fn of_text(text: &str) -> Self {
        Self::Written(text.to_owned())
    }

    fn missing() -> Checked<Self> {
        Ok(None)
    }

    fn nothing() -> Option<Self> {
        Some(Self::Written(String::new()))
    }

    fn named(self, classes: &Classes) -> Checked<Self> {
        match self {
            Self::Typed(value) => Ok(value.named(classes)?.map(Self::from)),
            Self::Written(text) => Ok(text.named(classes)?.map(Self::Written)),
            Self::Empty => Ok(Some(self)),
        }
    }

    fn values(column: &Column) -> PolarsResult<Series> {
        Nested::values(column)
    }

    fn at(values: &Series, row: usize) -> Checked<Self> {
        Ok(Nested::at(values, row)?.map(Self::Typed))
    }
}
