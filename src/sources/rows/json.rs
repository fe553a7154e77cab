//! Rows of JSON files: an object a line, or an array of objects.

use std::fmt;
use std::io::{BufRead, Read};
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::cell::{Cell, Checked};
use super::meter::{Meter, Metered};
use super::{Names, Reading, RowsError, note};

/// What an object has of some columns; the rest of it is skipped, and takes no memory. `None` of what is no object.
type Found = Option<Vec<Option<Box<RawValue>>>>;

impl<T: Cell> Reading<'_, T> {
    pub(super) fn json_lines(
        &mut self,
        reader: impl BufRead,
    ) -> Result<ControlFlow<()>, RowsError> {
        self.each_line(reader, |reading, number, line| {
            let line = line.trim_ascii_end();
            let mut parser = serde_json::Deserializer::from_slice(line);
            let found = reading.object_seed().deserialize(&mut parser);
            let found = found.and_then(|found| parser.end().map(|()| found));
            let found = found.map_err(|error| reading.fault(number, not_json(&error, line)))?;
            reading.object(number, &found)
        })
    }

    pub(super) fn json_array(
        &mut self,
        reader: Metered<impl Read>,
    ) -> Result<ControlFlow<()>, RowsError> {
        let meter = reader.meter();
        let mut elements = Elements {
            reading: self,
            meter,
            number: 0,
            end: None,
        };
        let mut parser = serde_json::Deserializer::from_reader(std::io::BufReader::new(reader));
        let whole = parser.deserialize_seq(&mut elements);
        let (number, end) = (elements.number, elements.end);
        match (end, whole.and_then(|()| parser.end())) {
            (Some(end), _) => end,
            (None, Ok(())) => Ok(ControlFlow::Continue(())),
            (None, Err(error)) => Err(self.fault(number, error.to_string())),
        }
    }

    fn object_seed(&self) -> Object<'_> {
        Object {
            columns: self.columns,
            names: self.names,
        }
    }

    fn object(&mut self, number: usize, found: &Found) -> Result<ControlFlow<()>, RowsError> {
        let Some(found) = found else {
            let values = self
                .columns
                .iter()
                .map(|_| Err("not there: the row is no object"));
            return self.row(number, values);
        };
        let value = |found: &Option<Box<RawValue>>| -> Checked<T> {
            found
                .as_ref()
                .map_or_else(T::missing, |value| T::of_json(value))
        };
        self.row(number, found.iter().map(value))
    }
}

/// Says why a line is no JSON; Python writes numbers that JSON has not.
fn not_json(error: &serde_json::Error, line: &[u8]) -> String {
    // The parser has seen one line of the file.
    let error = error
        .to_string()
        .replace(" at line 1 column ", " at column ");
    let Ok(line) = std::str::from_utf8(line) else {
        return format!("not UTF-8 ({error})");
    };
    let column = |word: &str| -> Option<String> {
        let before = line[..line.find(word)?].trim_end_matches(['-', ' ']);
        let key = before.strip_suffix(':')?.trim_end().strip_suffix('"')?;
        Some(key.rsplit('"').next()?.to_owned())
    };
    let found = ["NaN", "Infinity"].iter();
    let mut found = found.filter_map(|word| Some((*word, column(word)?)));
    match found.next() {
        Some((word, column)) => {
            format!("`{column}` is {word}, expected a finite number or null ({error})")
        }
        None => error,
    }
}

/// Takes some columns of an object.
#[derive(Clone, Copy)]
struct Object<'a> {
    columns: &'a [&'a str],
    /// Where the names of all that it has are noted, if anybody asks.
    names: Option<&'a Names>,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = vec![None; self.columns.len()];
        while let Some(column) = map.next_key_seed(Name(self))? {
            match column {
                Some(column) => found[column] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Some(found))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Found, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Found, E> {
        Ok(None)
    }
}

/// Tells which column a key names, if any.
struct Name<'a>(Object<'a>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(names) = self.0.names {
            note(names, name);
        }
        Ok(self.0.columns.iter().position(|column| *column == name))
    }
}

/// Passes the objects of an array on, one by one.
struct Elements<'a, 'r, T> {
    reading: &'a mut Reading<'r, T>,
    meter: Meter,
    number: usize,
    /// Why no further ones are wanted.
    end: Option<Result<ControlFlow<()>, RowsError>>,
}

impl<'de, T: Cell> Visitor<'de> for &mut Elements<'_, '_, T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        loop {
            self.number += 1;
            self.meter.set_back();
            let Some(found) = elements.next_element_seed(self.reading.object_seed())? else {
                return Ok(());
            };
            match self.reading.object(self.number, &found) {
                Ok(ControlFlow::Continue(())) => {}
                end => {
                    self.end = Some(end);
                    return Err(A::Error::custom("no more is wanted"));
                }
            }
        }
    }
}
