//! Columns of a table: what they hold, how people see it, and what is in the file.

use polars::prelude::{Column as PolarsColumn, DataType, NamedFrom, PolarsError, Series};
use serde::{Deserialize, Serialize};

/// The values of one column; `None` is an empty cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Text.
    Text(Vec<Option<String>>),
    /// Numbers.
    Numbers(Vec<Option<f64>>),
    /// Token ids.
    Ids(Vec<Option<Vec<u32>>>),
}

/// What numbers of a column are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stored {
    /// Floating-point numbers.
    #[default]
    Float,
    /// Whole numbers: counts, ids and labels.
    Whole,
    /// Truth values: 1 is true.
    Truth,
}

/// How people see a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// As a column.
    #[default]
    Own,
    /// In the cells of the column before, after a `±`.
    Spread,
    /// In the cells of the column before, as the first of two bounds; [`Place::High`] follows.
    Low,
    /// The second bound.
    High,
}

/// One column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// Its values.
    pub values: Values,
    /// Digits after the decimal point, for numbers; `None` for labels, which are as short as they can be.
    pub decimals: Option<usize>,
    /// What its numbers are in the file.
    pub stored: Stored,
    /// Where people see it.
    pub place: Place,
}

impl Column {
    /// Whether it holds numbers.
    pub fn is_number(&self) -> bool {
        matches!(self.values, Values::Numbers(_))
    }

    /// Returns a cell by itself as people see it; `None` if it is empty.
    pub fn cell(&self, row: usize) -> Option<String> {
        match &self.values {
            Values::Text(values) => values[row].clone(),
            Values::Numbers(values) => values[row].map(|value| match self.decimals {
                None => label_of(value),
                // A tiny value must not look like zero.
                Some(decimals)
                    if value != 0.0 && value.abs() < 0.5 * 10f64.powi(-(decimals as i32)) =>
                {
                    format!("{value:.1e}")
                }
                Some(decimals) => format!("{value:.decimals$}"),
            }),
            Values::Ids(values) => values[row].as_ref().map(|ids| {
                let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                ids.join(" ")
            }),
        }
    }

    /// Converts to what is in the file.
    pub(super) fn to_series(&self) -> Series {
        let name = self.name.as_str().into();
        match (&self.values, self.stored) {
            (Values::Text(values), _) => Series::new(name, values),
            (Values::Numbers(values), Stored::Float) => {
                // Which NaN it is differs between processors.
                let one_nan =
                    |value: &Option<f64>| value.map(|v| if v.is_nan() { f64::NAN } else { v });
                Series::new(name, values.iter().map(one_nan).collect::<Vec<_>>())
            }
            (Values::Numbers(values), Stored::Whole) => {
                let whole = values.iter().map(|value| value.map(|value| value as i64));
                Series::new(name, whole.collect::<Vec<_>>())
            }
            (Values::Numbers(values), Stored::Truth) => {
                let truths = values.iter().map(|value| value.map(|value| value != 0.0));
                Series::new(name, truths.collect::<Vec<_>>())
            }
            (Values::Ids(values), _) => {
                let ids = values.iter().map(|ids| {
                    let ids = ids.as_ref()?;
                    Some(Series::new("".into(), ids))
                });
                Series::new(name, ids.collect::<Vec<Option<Series>>>())
            }
        }
    }
}

/// Reads a column of a file.
pub(super) fn values_of(column: &PolarsColumn) -> Result<(Values, Stored), PolarsError> {
    Ok(match column.dtype() {
        DataType::String => {
            let texts = column.str()?.iter();
            let texts = texts.map(|value| value.map(str::to_owned)).collect();
            (Values::Text(texts), Stored::Float)
        }
        DataType::List(_) => {
            let mut all = Vec::with_capacity(column.len());
            for row in column.list()?.amortized_iter() {
                let row = match row {
                    Some(ids) => {
                        let ids = ids.as_ref().cast(&DataType::UInt32)?;
                        Some(ids.u32()?.iter().flatten().collect())
                    }
                    None => None,
                };
                all.push(row);
            }
            (Values::Ids(all), Stored::Float)
        }
        dtype => {
            let stored = match dtype {
                DataType::Boolean => Stored::Truth,
                dtype if dtype.is_integer() => Stored::Whole,
                _ => Stored::Float,
            };
            let numbers = column.cast(&DataType::Float64)?;
            (Values::Numbers(numbers.f64()?.iter().collect()), stored)
        }
    })
}

/// Writes a number as the label of an axis value, as short as it can be.
pub(super) fn label_of(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    serde_json::Number::from_f64(value)
        .map_or_else(|| value.to_string(), |number| number.to_string())
}
