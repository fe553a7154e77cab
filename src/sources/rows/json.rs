//! Rows of JSON files: an object a line, or an array of objects.

use std::fmt;
use std::io::{BufRead, Read};
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::cell::{Cell, Fault};
use super::meter::{Meter, Metered};
use super::{MAXIMUM_ROW, Reading, RowsError};

/// What an object has of some columns; the rest of it is skipped, and takes no memory.
type Found = Vec<Option<Box<RawValue>>>;

impl<T: Cell> Reading<'_, T> {
    pub(super) fn json_lines(
        &mut self,
        mut reader: impl BufRead,
    ) -> Result<ControlFlow<()>, RowsError> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = reader
                .by_ref()
                .take(MAXIMUM_ROW)
                .read_until(b'\n', &mut line)
                .map_err(|error| self.unreadable(number, &error))?;
            if read == 0 {
                break;
            }
            if read as u64 == MAXIMUM_ROW {
                let most = MAXIMUM_ROW >> 20;
                return Err(self.fault(number, format!("the line is longer than {most} MiB")));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let mut parser = serde_json::Deserializer::from_slice(&line);
            let found = Object(self.columns).deserialize(&mut parser);
            let found = found.and_then(|found| parser.end().map(|()| found));
            let found = found.map_err(|error| self.fault(number, error.to_string()))?;
            if self.object(number, &found)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
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

    fn object(&mut self, number: usize, found: &Found) -> Result<ControlFlow<()>, RowsError> {
        let value = |found: &Option<Box<RawValue>>| -> Result<Option<T>, Fault> {
            T::of_json(found.as_ref().ok_or("missing")?)
        };
        self.row(number, found.iter().map(value))
    }
}

/// Takes some columns of an object.
struct Object<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found: Found = vec![None; self.0.len()];
        while let Some(column) = map.next_key_seed(Name(self.0))? {
            match column {
                Some(column) => found[column] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// Tells which column a key names, if any.
struct Name<'a>(&'a [&'a str]);

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
        Ok(self.0.iter().position(|column| *column == name))
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
            let columns = self.reading.columns;
            let Some(found) = elements.next_element_seed(Object(columns))? else {
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
