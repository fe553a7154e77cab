//! Columns that a table gets, kind by kind.

use super::Table;
use super::column::{Column, Place, Stored, Values, label_of};

impl Table {
    /// Adds a column of text.
    pub fn text_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<String>>,
    ) {
        let values = Values::Text(values.into_iter().collect());
        self.add(name, values, Some(0), Stored::default());
    }

    /// Adds a column of labels, such as axis values: numbers if all of them are.
    pub fn label_column(
        &mut self,
        name: impl Into<String>,
        labels: impl IntoIterator<Item = Option<String>>,
    ) {
        let labels: Vec<Option<String>> = labels.into_iter().collect();
        let number = |label: &Option<String>| match label {
            Some(label) => {
                let number = label
                    .parse()
                    .ok()
                    .filter(|number| label_of(*number) == *label);
                number.map(Some)
            }
            None => Some(None),
        };
        let numbers: Option<Vec<Option<f64>>> = labels.iter().map(number).collect();
        match numbers {
            Some(numbers) if numbers.iter().any(Option::is_some) => {
                let whole = numbers
                    .iter()
                    .flatten()
                    .all(|number| number.trunc() == *number);
                let stored = if whole { Stored::Whole } else { Stored::Float };
                self.add(name, Values::Numbers(numbers), None, stored);
            }
            _ => self.text_column(name, labels),
        }
    }

    /// Adds a column of whole numbers.
    pub fn whole_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<f64>>,
    ) {
        let values = Values::Numbers(values.into_iter().collect());
        self.add(name, values, Some(0), Stored::Whole);
    }

    /// Adds a column of truth values.
    pub fn truth_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = bool>,
    ) {
        self.truths_column(name, values.into_iter().map(Some));
    }

    /// Adds a column of truth values, some of which may be unknown.
    pub fn truths_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<bool>>,
    ) {
        let number = |value: bool| f64::from(u8::from(value));
        let numbers = values.into_iter().map(|value| value.map(number));
        let values = Values::Numbers(numbers.collect());
        self.add(name, values, Some(0), Stored::Truth);
    }

    /// Adds a column of token ids.
    pub fn ids_column(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = Option<Vec<u32>>>,
    ) {
        let values = Values::Ids(values.into_iter().collect());
        self.add(name, values, Some(0), Stored::default());
    }

    /// Adds a column of numbers, shown with `decimals` digits.
    pub fn number_column(
        &mut self,
        name: impl Into<String>,
        decimals: usize,
        values: impl IntoIterator<Item = Option<f64>>,
    ) {
        let values = Values::Numbers(values.into_iter().collect());
        self.add(name, values, Some(decimals), Stored::default());
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        values: Values,
        decimals: Option<usize>,
        stored: Stored,
    ) {
        self.columns.push(Column {
            name: name.into(),
            values,
            decimals,
            stored,
            place: Place::Own,
        });
    }

    /// Adds the spread of the last column: people see `value ± spread`.
    pub fn spread_of_last(&mut self, name: &str, values: impl IntoIterator<Item = Option<f64>>) {
        self.add_to_last(name, Place::Spread, values.into_iter().collect());
    }

    /// Adds bounds of the last column: people see `value [low, high]`.
    pub fn interval_of_last(
        &mut self,
        bounds: impl IntoIterator<Item = (Option<f64>, Option<f64>)>,
    ) {
        let (low, high) = bounds.into_iter().unzip();
        self.add_to_last("low", Place::Low, low);
        self.add_to_last("high", Place::High, high);
    }

    fn add_to_last(&mut self, name: &str, place: Place, values: Vec<Option<f64>>) {
        let last = self
            .columns
            .iter()
            .rfind(|column| column.place == Place::Own);
        let (heading, decimals) = last.map_or((String::new(), Some(0)), |last| {
            (format!("{} {name}", last.name), last.decimals)
        });
        self.columns.push(Column {
            name: heading,
            values: Values::Numbers(values),
            decimals,
            stored: Stored::default(),
            place,
        });
    }
}
