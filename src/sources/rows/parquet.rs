//! Rows of parquet files, some row groups at a time, each looked at before it is unpacked.
//!
//! polars asks for whatever memory a file tells it to. So the headers of pages, which say what their pages unpack to, are
//! read first, and nothing is unpacked that claims more than its file may hold.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use polars::prelude::{
    ArrowDataType, ArrowSchema, DataFrame, FileMetadata, ParallelStrategy, ParquetReader,
    PlSmallStr, SerReader,
};
use polars_parquet::parquet::metadata::SchemaDescriptor;
use polars_parquet::parquet::schema::types::{
    IntegerType, ParquetType, PrimitiveConvertedType, PrimitiveLogicalType,
};
use polars_parquet_format::thrift::protocol::TCompactInputProtocol;
use polars_parquet_format::{Encoding, PageHeader, PageType};

use super::cell::Cell;
use super::{Reading, RowsError, classes, note};
use crate::hint::Hint;
use crate::quiet::catch_quietly;

/// What a value takes beside its bytes: a view, offsets, and whether it is there.
const VALUE_BYTES: u64 = 48;
/// What row groups that are read together may unpack to.
const BATCH_BYTES: u64 = 16 << 20;
/// No header of a page is longer.
const HEADER_BYTES: usize = 1 << 20;

/// The pages of a column chunk, by their headers.
#[derive(Debug, Default)]
struct Pages {
    unpacked: u64,
    values: u64,
}

/// Row groups that are read together.
#[derive(Debug, Default)]
struct Batch {
    groups: usize,
    rows: usize,
    unpacked: u64,
    /// Bytes of the file that they take.
    packed: u64,
    /// Rows of the row groups before them.
    before: usize,
}

impl Batch {
    /// Begins behind another one.
    fn after(other: &Self) -> Self {
        Self {
            before: other.before.saturating_add(other.rows),
            ..Self::default()
        }
    }
}

impl<T: Cell> Reading<'_, T> {
    pub(super) fn parquet(&mut self, file: File) -> Result<ControlFlow<()>, RowsError> {
        let name = Arc::clone(self.file);
        // polars panics on some of the files that are not what they should be.
        let read = catch_quietly(AssertUnwindSafe(|| self.row_groups(&file)));
        read.unwrap_or_else(|| {
            Err(RowsError::Damaged {
                file: name,
                reason: "expected a whole parquet file".to_owned(),
            })
        })
    }

    fn row_groups(&mut self, file: &File) -> Result<ControlFlow<()>, RowsError> {
        let frame = |name: &Arc<str>, source| RowsError::Frame {
            file: Arc::clone(name),
            source,
        };
        let mut reader = ParquetReader::new(file.try_clone()?);
        let mut schema = reader.schema().map_err(|e| frame(self.file, e))?;
        let metadata = reader.get_metadata().map_err(|e| frame(self.file, e))?;
        let said = metadata.key_value_metadata.iter().flatten();
        let mut said = said.filter(|pair| pair.key == classes::KEY);
        if let Some(said) = said.next().and_then(|pair| pair.value.as_deref()) {
            self.take_classes(said)?;
        }
        let is_read_in = |schema: &ArrowSchema, column: &str| {
            schema.get(column).is_none_or(|field| is_read(&field.dtype))
        };
        if !self
            .columns
            .iter()
            .all(|column| is_read_in(&schema, column))
        {
            let metadata = reader.get_metadata().map_err(|e| frame(self.file, e))?;
            let stored = Arc::new(as_stored(metadata));
            reader = ParquetReader::new(file.try_clone()?);
            reader.set_metadata(stored);
            schema = reader.schema().map_err(|e| frame(self.file, e))?;
        }
        let known: Vec<&str> = schema.iter_names().map(PlSmallStr::as_str).collect();
        if let Some(names) = self.names {
            known.iter().for_each(|name| note(names, name));
            return Ok(ControlFlow::Continue(()));
        }
        for column in self.columns {
            let Some(field) = schema.get(column) else {
                return Err(self.no_column(column, &known));
            };
            if !is_read(&field.dtype) {
                return Err(RowsError::Unsupported {
                    file: Arc::clone(self.file),
                    what: format!("`{column}` holds {:?}, which is not read", field.dtype),
                    hint: Hint::new(
                        "write the column as text, numbers, lists or structures of these",
                    ),
                });
            }
        }
        let metadata = reader.get_metadata().map_err(|e| frame(self.file, e))?;
        let metadata = Arc::clone(metadata);
        // Each reading goes through the whole directory of the file: twice as many row groups each time, the first alone.
        let mut batch = Batch::default();
        let mut width = 1usize;
        for (index, group) in metadata.row_groups.iter().enumerate() {
            let rows = group.num_rows();
            if rows == 0 {
                continue;
            }
            let mut unpacked = 0u64;
            for column in self.columns {
                for chunk in group.columns_under_root_iter(column).into_iter().flatten() {
                    let repeats = chunk.descriptor().descriptor.max_rep_level > 0;
                    let pages = self.pages(file, index, chunk.byte_range())?;
                    let is_whole = chunk.num_values() as u64 == pages.values
                        && if repeats {
                            rows as u64 <= pages.values
                        } else {
                            rows as u64 == pages.values
                        };
                    if !is_whole {
                        return Err(self.damaged(format!(
                            "row group {index} has {} values of `{column}` for {rows} rows",
                            pages.values
                        )));
                    }
                    unpacked = unpacked
                        .saturating_add(pages.unpacked)
                        .saturating_add(pages.values.saturating_mul(VALUE_BYTES));
                }
            }
            if unpacked > self.most_unpacked {
                return Err(RowsError::TooLarge {
                    file: Arc::clone(self.file),
                    what: "a row group of it unpacks to",
                    limit: self.most_unpacked,
                    hint: Hint::new("write it with smaller row groups, or raise `max_text_mb`"),
                });
            }
            if batch.groups == width || batch.unpacked.saturating_add(unpacked) > BATCH_BYTES {
                if self.batch(file, &metadata, &batch)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                width = width.saturating_mul(2);
                batch = Batch::after(&batch);
            }
            batch.groups += 1;
            batch.rows = batch.rows.saturating_add(rows);
            let packed = group.compressed_size() as u64;
            batch.packed = batch.packed.saturating_add(packed);
            batch.unpacked = batch.unpacked.saturating_add(unpacked);
        }
        self.batch(file, &metadata, &batch)
    }

    /// Reads some row groups and passes their rows on.
    fn batch(
        &mut self,
        file: &File,
        metadata: &Arc<FileMetadata>,
        batch: &Batch,
    ) -> Result<ControlFlow<()>, RowsError> {
        if batch.rows == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let mut reader = ParquetReader::new(file.try_clone()?);
        reader.set_metadata(Arc::clone(metadata));
        let wanted = self.columns.iter().map(|column| (*column).to_owned());
        let read = reader
            .with_columns(Some(wanted.collect()))
            .with_slice(Some((batch.before, batch.rows)))
            .read_parallel(ParallelStrategy::None)
            .finish();
        let frame = read.map_err(|source| RowsError::Frame {
            file: Arc::clone(self.file),
            source,
        })?;
        let passed = self.passed.get().saturating_add(batch.packed);
        self.passed.set(passed);
        self.frame(&frame, batch.before)
    }

    /// Passes rows on, of which there are so many before them.
    fn frame(&mut self, group: &DataFrame, before: usize) -> Result<ControlFlow<()>, RowsError> {
        let file = self.file;
        let wrap = |source| RowsError::Frame {
            file: Arc::clone(file),
            source,
        };
        let columns: Vec<T::Values> = self
            .columns
            .iter()
            .map(|column| T::values(group.column(column).map_err(wrap)?).map_err(wrap))
            .collect::<Result<_, _>>()?;
        for row in 0..group.height() {
            let values = columns.iter().map(|values| T::at(values, row));
            if self.row(before + row + 1, values)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads the headers of the pages in a range of the file.
    fn pages(
        &self,
        file: &File,
        group: usize,
        range: std::ops::Range<u64>,
    ) -> Result<Pages, RowsError> {
        let damaged = |reason: String| self.damaged(format!("row group {group}: {reason}"));
        let mut pages = Pages::default();
        let mut at = range.start;
        while at < range.end {
            let mut reader = BufReader::with_capacity(1024, Place { file, at });
            let mut protocol = TCompactInputProtocol::new(&mut reader, HEADER_BYTES);
            let header = PageHeader::read_from_in_protocol(&mut protocol)
                .map_err(|error| damaged(format!("a page cannot be read: {error}")))?;
            let size = |size: i32| {
                u64::try_from(size).map_err(|_| damaged("a page has a negative size".to_owned()))
            };
            let left = reader.buffer().len() as u64;
            at = reader.into_inner().at - left + size(header.compressed_page_size)?;
            pages.unpacked = pages
                .unpacked
                .saturating_add(size(header.uncompressed_page_size)?);
            let (values, encoding) = match header.type_ {
                PageType::DATA_PAGE => header
                    .data_page_header
                    .map_or((0, Encoding::PLAIN), |page| {
                        (page.num_values, page.encoding)
                    }),
                PageType::DATA_PAGE_V2 => header
                    .data_page_header_v2
                    .map_or((0, Encoding::PLAIN), |page| {
                        (page.num_values, page.encoding)
                    }),
                _ => continue,
            };
            // Each value repeats any part of the one before: what that unpacks to, no header says.
            if encoding == Encoding::DELTA_BYTE_ARRAY {
                return Err(RowsError::Unsupported {
                    file: Arc::clone(self.file),
                    what: "it has pages in the encoding DELTA_BYTE_ARRAY, which is not read"
                        .to_owned(),
                    hint: Hint::new("write it with the default encodings"),
                });
            }
            pages.values = pages.values.saturating_add(size(values)?);
        }
        if at > range.end {
            return Err(damaged("a page goes beyond its column".to_owned()));
        }
        Ok(pages)
    }
}

/// What a file stores, whatever was made of it in memory before: values for dictionaries, and 32 bits for fewer.
fn as_stored(metadata: &FileMetadata) -> FileMetadata {
    let schema = &metadata.schema_descr;
    let fields = schema.fields().iter().cloned().map(stored).collect();
    FileMetadata {
        key_value_metadata: None,
        schema_descr: SchemaDescriptor::new(schema.name().into(), fields),
        ..metadata.clone()
    }
}

fn stored(field: ParquetType) -> ParquetType {
    match field {
        ParquetType::GroupType {
            field_info,
            logical_type,
            converted_type,
            fields,
        } => ParquetType::GroupType {
            field_info,
            logical_type,
            converted_type,
            fields: fields.into_iter().map(stored).collect(),
        },
        ParquetType::PrimitiveType(mut primitive) => {
            use PrimitiveConvertedType as C;
            let few = [C::Int8, C::Int16, C::Uint8, C::Uint16].map(Some);
            let whole = [
                IntegerType::Int8,
                IntegerType::Int16,
                IntegerType::UInt8,
                IntegerType::UInt16,
            ];
            let whole = whole.map(|whole| Some(PrimitiveLogicalType::Integer(whole)));
            if whole.contains(&primitive.logical_type) || few.contains(&primitive.converted_type) {
                (primitive.logical_type, primitive.converted_type) = (None, None);
            }
            ParquetType::PrimitiveType(primitive)
        }
    }
}

/// Whether polars reads a type as it is built here; it panics on others.
fn is_read(dtype: &ArrowDataType) -> bool {
    use ArrowDataType as D;
    match dtype {
        D::List(field) | D::LargeList(field) => is_read(&field.dtype),
        D::Struct(fields) => fields.iter().all(|field| is_read(&field.dtype)),
        other => matches!(
            other,
            D::Null
                | D::Boolean
                | D::Int32
                | D::Int64
                | D::UInt32
                | D::UInt64
                | D::Float32
                | D::Float64
                | D::Utf8
                | D::LargeUtf8
                | D::Utf8View
        ),
    }
}

/// A place in a file that others read as well.
struct Place<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Place<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        if read == 0 && !buffer.is_empty() {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        self.at += read as u64;
        Ok(read)
    }
}
