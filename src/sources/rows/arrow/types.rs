//! The types of columns, as a schema says them.

use polars_arrow_format::ipc::planus::Error as Malformed;
use polars_arrow_format::ipc::{FieldRef, IntRef, Precision, TypeRef, UnionMode};

/// No column of a public layout is nested deeper.
const DEEPEST: usize = 16;
/// No table has more fields.
const MOST: usize = 10_000;

/// A column, or what lists and structures are of.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) children: Vec<Self>,
    /// The number of a dictionary, and the type of the keys that stand for its values.
    pub(super) dictionary: Option<(i64, Width)>,
}

/// How many bytes a whole number has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Width {
    pub(super) bytes: usize,
    pub(super) is_signed: bool,
}

/// How values lie in buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Null,
    Truth,
    Whole(Width),
    Float,
    Double,
    Text(Offsets),
    TextView,
    List(Offsets),
    FixedList(usize),
    Struct,
    /// Values that are not read: what they are, and what of them is passed over.
    Other {
        what: &'static str,
        has_validity: bool,
        buffers: usize,
        is_view: bool,
    },
    /// Nested more deeply than anything that is read: not even passed over.
    TooDeep,
}

/// How places in other buffers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offsets {
    Small,
    Large,
}

impl Width {
    fn of(whole: IntRef<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            bytes: match whole.bit_width()? {
                8 => 1,
                16 => 2,
                32 => 4,
                // Others there are none.
                _ => 8,
            },
            is_signed: whole.is_signed()?,
        })
    }
}

/// Takes the fields of a schema, no more of them than any table has: a forged schema may name one field again and again.
#[derive(Default)]
pub(super) struct Fields {
    taken: usize,
    /// How deep the one that is taken lies.
    depth: usize,
}

impl Fields {
    pub(super) fn are_too_many(&self) -> bool {
        self.taken > MOST
    }

    /// Takes a field.
    pub(super) fn column(&mut self, field: FieldRef<'_>) -> Result<Column, Malformed> {
        self.taken += 1;
        let mut shape = match field.type_()? {
            Some(type_) => Shape::of(type_)?,
            None => Shape::Null,
        };
        let mut children = Vec::new();
        for child in field.children()?.into_iter().flatten() {
            if self.depth == DEEPEST || self.are_too_many() {
                shape = Shape::TooDeep;
                break;
            }
            self.depth += 1;
            let child = self.column(child?);
            self.depth -= 1;
            children.push(child?);
        }
        let is_list = matches!(shape, Shape::List(_) | Shape::FixedList(_));
        if is_list && children.len() != 1
            || children.iter().any(|child| child.shape == Shape::TooDeep)
        {
            shape = Shape::TooDeep;
        }
        let dictionary = match field.dictionary()? {
            None => None,
            Some(dictionary) => {
                let keys = match dictionary.index_type()? {
                    Some(keys) => Width::of(keys)?,
                    None => Width {
                        bytes: 4,
                        is_signed: true,
                    },
                };
                Some((dictionary.id()?, keys))
            }
        };
        Ok(Column {
            name: field.name()?.unwrap_or_default().to_owned(),
            shape,
            children,
            dictionary,
        })
    }
}

impl Column {
    /// What it holds that is not read, if it does.
    pub(super) fn not_read(&self) -> Option<&'static str> {
        match self.shape {
            Shape::Other { what, .. } => Some(what),
            Shape::TooDeep => Some("values nested too deeply"),
            _ => self.children.iter().find_map(Self::not_read),
        }
    }
}

impl Shape {
    fn of(type_: TypeRef<'_>) -> Result<Self, Malformed> {
        let other = |what, buffers| Self::Other {
            what,
            has_validity: true,
            buffers,
            is_view: false,
        };
        Ok(match type_ {
            TypeRef::Null(_) => Self::Null,
            TypeRef::Bool(_) => Self::Truth,
            TypeRef::Int(whole) => Self::Whole(Width::of(whole)?),
            TypeRef::FloatingPoint(number) => match number.precision()? {
                Precision::Half => other("half-precision numbers", 1),
                Precision::Single => Self::Float,
                Precision::Double => Self::Double,
            },
            TypeRef::Utf8(_) => Self::Text(Offsets::Small),
            TypeRef::LargeUtf8(_) => Self::Text(Offsets::Large),
            TypeRef::Utf8View(_) => Self::TextView,
            TypeRef::List(_) => Self::List(Offsets::Small),
            TypeRef::LargeList(_) => Self::List(Offsets::Large),
            TypeRef::FixedSizeList(list) => {
                Self::FixedList(usize::try_from(list.list_size()?).unwrap_or(0))
            }
            TypeRef::Struct(_) => Self::Struct,
            TypeRef::Binary(_) | TypeRef::LargeBinary(_) => other("bytes", 2),
            TypeRef::FixedSizeBinary(_) => other("bytes", 1),
            TypeRef::BinaryView(_) => Self::Other {
                what: "bytes",
                has_validity: true,
                buffers: 1,
                is_view: true,
            },
            TypeRef::Decimal(_) => other("decimal numbers", 1),
            TypeRef::Date(_) => other("dates", 1),
            TypeRef::Time(_) | TypeRef::Timestamp(_) => other("times", 1),
            TypeRef::Interval(_) | TypeRef::Duration(_) => other("durations", 1),
            TypeRef::Map(_) => other("maps", 1),
            TypeRef::ListView(_) | TypeRef::LargeListView(_) => other("views of lists", 2),
            TypeRef::RunEndEncoded(_) => Self::Other {
                what: "runs",
                has_validity: false,
                buffers: 0,
                is_view: false,
            },
            TypeRef::Union(union) => Self::Other {
                what: "values of several types",
                has_validity: false,
                buffers: match union.mode()? {
                    UnionMode::Sparse => 1,
                    UnionMode::Dense => 2,
                },
                is_view: false,
            },
        })
    }
}
