//! The container: metadata and the table of tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::super::FormatError;
use super::super::bytes::Bytes;
use super::super::tensors::TensorSource;
use super::names::stored_name;
use super::quantisation::Encoding;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;

/// A metadata value. Numbers keep their file type only as far as signs and fractions go.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(&'a str),
    Texts(Vec<&'a str>),
    /// An array of numbers, still encoded.
    Numbers(NumberType, &'a [u8]),
}

/// The type of a number or flag in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Flag,
    U64,
    I64,
    F64,
}

impl NumberType {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Flag,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Flag => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Decodes one number of exactly `size` bytes.
    fn decode<'a>(self, bytes: &[u8]) -> Value<'a> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(bits),
            Self::I8 => Value::Signed(i64::from(bits as u8 as i8)),
            Self::I16 => Value::Signed(i64::from(bits as u16 as i16)),
            Self::I32 => Value::Signed(i64::from(bits as u32 as i32)),
            Self::I64 => Value::Signed(bits as i64),
            Self::F32 => Value::Float(shortest(f32::from_bits(bits as u32))),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Flag => Value::Flag(bits != 0),
        }
    }
}

/// Widens to the `f64` of the same shortest decimal: 1e-5 rather than 9.99999974738e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

impl Value<'_> {
    /// Describes the value in few words.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Flag(value) => value.to_string(),
            Self::Text(value) => format!("\"{value}\""),
            Self::Texts(values) => format!("a list of {} texts", values.len()),
            Self::Numbers(kind, bytes) => {
                let count = bytes.len() as u64 / kind.size();
                format!("a list of {count} numbers")
            }
        }
    }

    /// Decodes an array of numbers as `f64`, which holds every number that occurs in practice.
    pub(super) fn numbers(&self) -> Option<Vec<f64>> {
        let Value::Numbers(kind, bytes) = self else {
            return None;
        };
        let values =
            bytes
                .chunks_exact(kind.size() as usize)
                .map(|chunk| match kind.decode(chunk) {
                    Value::Unsigned(value) => value as f64,
                    Value::Signed(value) => value as f64,
                    Value::Float(value) => value,
                    _ => f64::NAN,
                });
        Some(values.collect())
    }
}

/// A tensor in the file.
#[derive(Debug)]
pub(super) struct TensorEntry {
    pub(super) encoding: Encoding,
    /// Outermost dimension first, as everywhere in this crate (the file has them the other way round).
    pub(super) shape: Vec<usize>,
    range: Range<usize>,
}

/// A parsed file; strings and tensor data are borrowed from its bytes.
#[derive(Debug)]
pub(super) struct GgufFile<'a> {
    path: &'a Path,
    data: &'a [u8],
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, TensorEntry>,
}

impl<'a> GgufFile<'a> {
    pub(super) fn parse(path: &'a Path, data: &'a [u8]) -> Result<Self, FormatError> {
        let mut bytes = Bytes::new(path, data);
        if bytes.take(4, "the magic number")? != MAGIC {
            return Err(bytes.malformed("not a GGUF file"));
        }
        let version = bytes.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(FormatError::unsupported(
                path,
                format!("GGUF version {version}"),
                "versions 2 and 3, little-endian, are",
            ));
        }
        // A tensor takes at least its name's length, dimensions, type and offset; a pair at least a key's
        // length, a type and a byte.
        let tensor_count = bytes.count(8 + 4 + 4 + 8, "tensors")?;
        let pair_count = bytes.count(8 + 4 + 1, "metadata pairs")?;

        let mut metadata = BTreeMap::new();
        for _ in 0..pair_count {
            let key = read_text(&mut bytes, "a metadata key")?;
            let value = read_value(path, &mut bytes, key)?;
            if metadata.insert(key, value).is_some() {
                return Err(bytes.malformed(format!("metadata key `{key}` occurs twice")));
            }
        }
        let mut file = Self {
            path,
            data,
            metadata,
            tensors: BTreeMap::new(),
        };
        let alignment = match file.metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= 1 << 20 => *value,
            Some(value) => {
                return Err(bytes.malformed(format!(
                    "metadata `general.alignment` is {}, expected a power of two",
                    value.describe()
                )));
            }
        };
        let mut headers = Vec::new();
        for _ in 0..tensor_count {
            headers.push(read_tensor_header(path, &mut bytes)?);
        }
        let data_start = (bytes.position() as u64).next_multiple_of(alignment);
        file.add_tensors(headers, data_start, alignment)?;
        Ok(file)
    }

    fn add_tensors(
        &mut self,
        mut headers: Vec<TensorHeader<'a>>,
        data_start: u64,
        alignment: u64,
    ) -> Result<(), FormatError> {
        let malformed = |reason: String| Err(FormatError::malformed(self.path, reason));
        // In the order of their data: tensors that overlap could claim more memory than the file has.
        headers.sort_by_key(|header| header.offset);
        let mut free_from = data_start;
        for header in headers {
            let name = header.name;
            let start = data_start.checked_add(header.offset);
            let end = start.and_then(|start| start.checked_add(header.byte_count));
            let (Some(start), Some(end)) = (start, end) else {
                return malformed(format!("tensor `{name}` has a forged offset or size"));
            };
            if end > self.data.len() as u64 {
                return malformed(format!(
                    "truncated or forged: tensor `{name}` ends at byte {end}, the file at {}",
                    self.data.len()
                ));
            }
            if start < free_from || header.offset % alignment != 0 {
                return malformed(format!(
                    "tensor `{name}` at byte {start} overlaps another or is not aligned to {alignment}"
                ));
            }
            free_from = end;
            let entry = TensorEntry {
                encoding: header.encoding,
                shape: header.shape,
                range: start as usize..end as usize,
            };
            if self.tensors.insert(name, entry).is_some() {
                return malformed(format!("tensor `{name}` occurs twice"));
            }
        }
        Ok(())
    }

    /// Makes an error of this file.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> FormatError {
        FormatError::malformed(self.path, reason)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().copied()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> FormatError {
        match self.get(key) {
            Some(value) => self.malformed(format!(
                "metadata `{key}` is {}, expected {expected}",
                value.describe()
            )),
            None => self.malformed(format!("metadata `{key}` ({expected}) is missing")),
        }
    }

    /// Returns a count or id, if the key is there.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(_) => Err(self.wrong(key, "a number not below 0")),
        }
    }

    /// Returns a size.
    pub(super) fn size(&self, key: &str) -> Result<usize, FormatError> {
        self.unsigned(key)?
            .and_then(|value| usize::try_from(value).ok())
            .ok_or_else(|| self.wrong(key, "a size"))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Flag(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Result<&[&'a str], FormatError> {
        match self.get(key) {
            Some(Value::Texts(values)) => Ok(values),
            _ => Err(self.wrong(key, "a list of texts")),
        }
    }
}

impl TensorSource for GgufFile<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().copied()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| self.malformed(format!("tensor `{name}` is missing")))?;
        entry
            .encoding
            .decode(&self.data[entry.range.clone()])
            .map_err(FormatError::tensor(self.path))
    }

    fn stored_name(&self, name: &str) -> String {
        stored_name(name)
    }
}

struct TensorHeader<'a> {
    name: &'a str,
    encoding: Encoding,
    shape: Vec<usize>,
    offset: u64,
    byte_count: u64,
}

fn read_text<'a>(bytes: &mut Bytes<'a>, what: &str) -> Result<&'a str, FormatError> {
    let length = bytes.u64(what)?;
    bytes.text(length, what)
}

fn read_value<'a>(path: &Path, bytes: &mut Bytes<'a>, key: &str) -> Result<Value<'a>, FormatError> {
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let what = format!("metadata `{key}`");
    let unknown = |code: u32| {
        FormatError::unsupported(path, format!("value type {code} of metadata `{key}`"), "")
    };
    let code = bytes.u32(&what)?;
    if code == TEXT {
        return read_text(bytes, &what).map(Value::Text);
    }
    if code != ARRAY {
        let kind = NumberType::from_code(code).ok_or_else(|| unknown(code))?;
        return Ok(kind.decode(bytes.take(kind.size(), &what)?));
    }
    let element = bytes.u32(&what)?;
    if element == TEXT {
        let count = bytes.count(8, &what)?;
        let texts = (0..count).map(|_| read_text(bytes, &what));
        return texts.collect::<Result<_, _>>().map(Value::Texts);
    }
    let kind = NumberType::from_code(element).ok_or_else(|| unknown(element))?;
    let count = bytes.count(kind.size(), &what)?;
    let numbers = bytes.take(count as u64 * kind.size(), &what)?;
    Ok(Value::Numbers(kind, numbers))
}

fn read_tensor_header<'a>(
    path: &Path,
    bytes: &mut Bytes<'a>,
) -> Result<TensorHeader<'a>, FormatError> {
    let name = read_text(bytes, "a tensor's name")?;
    let dimensions = bytes.u32(name)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(bytes.malformed(format!(
            "tensor `{name}` has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
        )));
    }
    let sizes = (0..dimensions)
        .map(|_| bytes.u64(name))
        .collect::<Result<Vec<_>, _>>()?;
    let code = bytes.u32(name)?;
    let offset = bytes.u64(name)?;
    let encoding = Encoding::from_code(code).ok_or_else(|| {
        FormatError::unsupported(
            path,
            format!("encoding {code} of tensor `{name}`"),
            &format!("{} are", Encoding::NAMES),
        )
    })?;
    let elements = sizes
        .iter()
        .try_fold(1u64, |product, size| product.checked_mul(*size));
    let byte_count = elements.and_then(|elements| encoding.byte_count(sizes[0], elements));
    let Some(byte_count) = byte_count else {
        return Err(bytes.malformed(format!(
            "tensor `{name}` of sizes {sizes:?} cannot be stored as {encoding:?}"
        )));
    };
    Ok(TensorHeader {
        name,
        encoding,
        shape: sizes.iter().rev().map(|size| *size as usize).collect(),
        offset,
        byte_count,
    })
}
