//! The values of a column in a record batch, each in its place in a buffer.

use std::collections::BTreeMap;

use polars_arrow_format::ipc::planus::Error as Malformed;
use polars_arrow_format::ipc::{MessageHeaderRef, RecordBatchRef};
use serde_json::{Number, Value};

use super::Message;
use super::types::{Column, Offsets, Shape, Width};
use crate::sources::rows::MAXIMUM_ROW;
use crate::sources::rows::cell::Fault;

/// Why a value could not be read.
pub(super) enum Wrong {
    /// It is not what it should be.
    Value(Fault),
    /// The file is not.
    Damaged(&'static str),
    Malformed(Malformed),
    /// Nobody reads such files here.
    Unsupported(&'static str),
}

impl From<Malformed> for Wrong {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

const BEYOND: Wrong = Wrong::Damaged("a value lies beyond its buffer");

/// What a batch is made of, taken one by one.
pub(super) struct Parts<'a> {
    pub(super) rows: usize,
    lengths: std::vec::IntoIter<usize>,
    buffers: std::vec::IntoIter<&'a [u8]>,
    views: std::vec::IntoIter<usize>,
}

/// Dictionaries by their numbers.
pub(super) struct Dictionaries<'a> {
    messages: &'a BTreeMap<i64, Message>,
}

impl<'a> Dictionaries<'a> {
    pub(super) fn of(messages: &'a BTreeMap<i64, Message>) -> Self {
        Self { messages }
    }

    /// The values of a dictionary, which are those of `column`.
    fn values(&self, id: i64, column: &'a Column) -> Result<Array<'a>, Wrong> {
        let missing = Wrong::Damaged("a dictionary is missing");
        let Some(message) = self.messages.get(&id) else {
            return Err(missing);
        };
        let Some(MessageHeaderRef::DictionaryBatch(batch)) = message.root()?.header()? else {
            return Err(missing);
        };
        let batch = batch.data()?.ok_or(missing)?;
        let mut parts = Parts::of(batch, &message.body)?;
        Array::of_values(column, &mut parts, self)
    }
}

impl<'a> Parts<'a> {
    pub(super) fn of(batch: RecordBatchRef<'_>, body: &'a [u8]) -> Result<Self, Wrong> {
        if batch.compression()?.is_some() {
            return Err(Wrong::Unsupported("packed buffers"));
        }
        let whole = |number: i64| usize::try_from(number).map_err(|_| BEYOND);
        let lengths = batch.nodes()?.into_iter().flatten();
        let lengths = lengths.map(|node| whole(node.length()));
        let buffers = batch.buffers()?.into_iter().flatten();
        let buffers = buffers.map(|buffer| {
            let start = whole(buffer.offset())?;
            let end = start.checked_add(whole(buffer.length())?).ok_or(BEYOND)?;
            body.get(start..end).ok_or(BEYOND)
        });
        let views = batch.variadic_buffer_counts()?.into_iter().flatten();
        Ok(Self {
            rows: whole(batch.length()?)?,
            lengths: lengths.collect::<Result<Vec<_>, _>>()?.into_iter(),
            buffers: buffers.collect::<Result<Vec<_>, _>>()?.into_iter(),
            views: views.map(whole).collect::<Result<Vec<_>, _>>()?.into_iter(),
        })
    }

    fn buffer(&mut self) -> Result<&'a [u8], Wrong> {
        self.buffers
            .next()
            .ok_or(Wrong::Damaged("a batch lacks a buffer"))
    }

    fn view_buffers(&mut self) -> Result<Vec<&'a [u8]>, Wrong> {
        let count = self.views.next();
        let count = count.ok_or(Wrong::Damaged("a batch lacks a buffer"))?;
        if count > self.buffers.len() {
            return Err(Wrong::Damaged("a batch lacks a buffer"));
        }
        Ok(self.buffers.by_ref().take(count).collect())
    }
}

/// The values of a column.
pub(super) struct Array<'a> {
    length: usize,
    /// A bit for each value that is there; none if all are.
    validity: Option<&'a [u8]>,
    values: Values<'a>,
}

enum Values<'a> {
    Null,
    Truth(&'a [u8]),
    Whole(&'a [u8], Width),
    Float(&'a [u8]),
    Double(&'a [u8]),
    Text(Places<'a>, &'a [u8]),
    View(&'a [u8], Vec<&'a [u8]>),
    List(Places<'a>, Box<Array<'a>>),
    FixedList(usize, Box<Array<'a>>),
    Struct(Vec<(&'a str, Array<'a>)>),
    Dictionary(&'a [u8], Width, Box<Array<'a>>),
    NotRead,
}

/// Where each value begins and ends.
#[derive(Clone, Copy)]
struct Places<'a> {
    bytes: &'a [u8],
    offsets: Offsets,
}

impl<'a> Places<'a> {
    /// Takes places of `length` values among `total`; none of these belongs to two.
    fn of(bytes: &'a [u8], offsets: Offsets, length: usize, total: usize) -> Result<Self, Wrong> {
        let places = Self { bytes, offsets };
        let mut last = 0;
        for index in 0..length {
            let (start, end) = places.at(index)?;
            if (index > 0 && start != last) || end < start || end > total {
                return Err(Wrong::Damaged("places of values are out of order"));
            }
            last = end;
        }
        Ok(places)
    }

    fn at(self, index: usize) -> Result<(usize, usize), Wrong> {
        let bytes = match self.offsets {
            Offsets::Small => 4,
            Offsets::Large => 8,
        };
        let width = Width {
            bytes,
            is_signed: true,
        };
        let place = |index| {
            let place = whole(self.bytes, index, width)?;
            usize::try_from(place).map_err(|_| BEYOND)
        };
        Ok((place(index)?, place(index + 1)?))
    }
}

/// Takes `count` bytes of the value number `index`.
fn bytes(all: &[u8], index: usize, count: usize) -> Result<&[u8], Wrong> {
    let start = index.checked_mul(count).ok_or(BEYOND)?;
    let end = start.checked_add(count).ok_or(BEYOND)?;
    all.get(start..end).ok_or(BEYOND)
}

fn whole(all: &[u8], index: usize, width: Width) -> Result<i128, Wrong> {
    let bytes = bytes(all, index, width.bytes)?;
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    if !width.is_signed {
        return Ok(i128::from(unsigned));
    }
    let above = 64 - 8 * width.bytes as u32;
    Ok(i128::from((unsigned << above).cast_signed() >> above))
}

fn bit(all: &[u8], index: usize) -> Result<bool, Wrong> {
    let byte = all.get(index / 8).ok_or(BEYOND)?;
    Ok(byte >> (index % 8) & 1 == 1)
}

impl<'a> Array<'a> {
    /// Takes the parts of a column.
    pub(super) fn of(
        column: &'a Column,
        parts: &mut Parts<'a>,
        dictionaries: &Dictionaries<'a>,
    ) -> Result<Self, Wrong> {
        let Some((id, width)) = column.dictionary else {
            return Self::of_values(column, parts, dictionaries);
        };
        let (length, validity) = Self::beginning(parts, true)?;
        let keys = parts.buffer()?;
        let values = Box::new(dictionaries.values(id, column)?);
        Ok(Self {
            length,
            validity,
            values: Values::Dictionary(keys, width, values),
        })
    }

    fn beginning(
        parts: &mut Parts<'a>,
        has_validity: bool,
    ) -> Result<(usize, Option<&'a [u8]>), Wrong> {
        let length = parts.lengths.next();
        let length = length.ok_or(Wrong::Damaged("a batch lacks the length of a column"))?;
        let validity = if has_validity {
            Some(parts.buffer()?)
        } else {
            None
        };
        // An empty buffer says that all values are there.
        Ok((length, validity.filter(|bits| !bits.is_empty())))
    }

    fn of_values(
        column: &'a Column,
        parts: &mut Parts<'a>,
        dictionaries: &Dictionaries<'a>,
    ) -> Result<Self, Wrong> {
        let has_validity = match column.shape {
            Shape::Null => false,
            Shape::Other { has_validity, .. } => has_validity,
            Shape::TooDeep => return Err(Wrong::Unsupported("values nested too deeply")),
            _ => true,
        };
        let (length, validity) = Self::beginning(parts, has_validity)?;
        let values = match column.shape {
            Shape::Null => Values::Null,
            Shape::Truth => Values::Truth(parts.buffer()?),
            Shape::Whole(width) => Values::Whole(parts.buffer()?, width),
            Shape::Float => Values::Float(parts.buffer()?),
            Shape::Double => Values::Double(parts.buffer()?),
            Shape::Text(offsets) => {
                let (places, text) = (parts.buffer()?, parts.buffer()?);
                Values::Text(Places::of(places, offsets, length, text.len())?, text)
            }
            Shape::TextView => {
                let views = parts.buffer()?;
                Values::View(views, parts.view_buffers()?)
            }
            Shape::List(offsets) => {
                let places = parts.buffer()?;
                let child = Self::of(&column.children[0], parts, dictionaries)?;
                let places = Places::of(places, offsets, length, child.length)?;
                Values::List(places, Box::new(child))
            }
            Shape::FixedList(size) => {
                let child = Self::of(&column.children[0], parts, dictionaries)?;
                if length
                    .checked_mul(size)
                    .is_none_or(|all| all > child.length)
                {
                    return Err(BEYOND);
                }
                Values::FixedList(size, Box::new(child))
            }
            Shape::Struct => {
                let mut fields = Vec::with_capacity(column.children.len());
                for child in &column.children {
                    let array = Self::of(child, parts, dictionaries)?;
                    if array.length < length {
                        return Err(BEYOND);
                    }
                    fields.push((child.name.as_str(), array));
                }
                Values::Struct(fields)
            }
            Shape::Other {
                buffers, is_view, ..
            } => {
                for _ in 0..buffers {
                    parts.buffer()?;
                }
                if is_view {
                    parts.view_buffers()?;
                }
                for child in &column.children {
                    Self::of(child, parts, dictionaries)?;
                }
                Values::NotRead
            }
            Shape::TooDeep => Values::NotRead,
        };
        Ok(Self {
            length,
            validity,
            values,
        })
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Writes a value as JSON.
    pub(super) fn write(&self, row: usize, text: &mut String) -> Result<(), Wrong> {
        if row >= self.length {
            return Err(BEYOND);
        }
        if text.len() as u64 > MAXIMUM_ROW {
            return Err(Wrong::Damaged("a value of it is too large"));
        }
        if let Some(bits) = self.validity
            && !bit(bits, row)?
        {
            text.push_str("null");
            return Ok(());
        }
        let scalar = match &self.values {
            Values::Null => Value::Null,
            Values::Truth(bits) => Value::Bool(bit(bits, row)?),
            Values::Whole(all, width) => {
                text.push_str(&whole(all, row, *width)?.to_string());
                return Ok(());
            }
            Values::Float(all) => {
                let mut wide = [0; 4];
                wide.copy_from_slice(bytes(all, row, 4)?);
                number(f64::from(f32::from_le_bytes(wide)))?
            }
            Values::Double(all) => {
                let mut wide = [0; 8];
                wide.copy_from_slice(bytes(all, row, 8)?);
                number(f64::from_le_bytes(wide))?
            }
            Values::Text(places, all) => {
                let (start, end) = places.at(row)?;
                in_text(all.get(start..end).ok_or(BEYOND)?)?
            }
            Values::View(views, buffers) => in_text(viewed(views, buffers, row)?)?,
            Values::List(places, child) => {
                let (start, end) = places.at(row)?;
                return child.write_list(start..end, text);
            }
            Values::FixedList(size, child) => {
                let start = row.checked_mul(*size).ok_or(BEYOND)?;
                return child.write_list(start..start + size, text);
            }
            Values::Struct(fields) => {
                text.push('{');
                for (index, (name, field)) in fields.iter().enumerate() {
                    if index > 0 {
                        text.push(',');
                    }
                    text.push_str(&Value::from(*name).to_string());
                    text.push(':');
                    field.write(row, text)?;
                }
                text.push('}');
                return Ok(());
            }
            Values::Dictionary(keys, width, values) => {
                let key = whole(keys, row, *width)?;
                return values.write(usize::try_from(key).map_err(|_| BEYOND)?, text);
            }
            Values::NotRead => return Err(Wrong::Unsupported("values of another type")),
        };
        text.push_str(&scalar.to_string());
        Ok(())
    }

    fn write_list(&self, rows: std::ops::Range<usize>, text: &mut String) -> Result<(), Wrong> {
        text.push('[');
        for row in rows.clone() {
            if row > rows.start {
                text.push(',');
            }
            self.write(row, text)?;
        }
        text.push(']');
        Ok(())
    }
}

fn number(number: f64) -> Result<Value, Wrong> {
    let fault = Wrong::Value("NaN or infinite, expected a finite number");
    Number::from_f64(number).map(Value::Number).ok_or(fault)
}

fn in_text(bytes: &[u8]) -> Result<Value, Wrong> {
    if bytes.len() as u64 > MAXIMUM_ROW {
        return Err(Wrong::Damaged("a value of it is too large"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Wrong::Value("not UTF-8"))?;
    Ok(Value::from(text))
}

/// The text of a view: up to 12 bytes of its own, or a place in a buffer.
fn viewed<'a>(views: &'a [u8], buffers: &[&'a [u8]], row: usize) -> Result<&'a [u8], Wrong> {
    const OWN: usize = 12;
    let view = bytes(views, row, 16)?;
    let word = |index| {
        let width = Width {
            bytes: 4,
            is_signed: true,
        };
        usize::try_from(whole(view, index, width)?).map_err(|_| BEYOND)
    };
    let length = word(0)?;
    if length <= OWN {
        return view.get(4..4 + length).ok_or(BEYOND);
    }
    let (buffer, start) = (word(2)?, word(3)?);
    let buffer = buffers.get(buffer).ok_or(BEYOND)?;
    let end = start.checked_add(length).ok_or(BEYOND)?;
    buffer.get(start..end).ok_or(BEYOND)
}
