//! Rows of Arrow streams and files, as `datasets` of Hugging Face saves them, a record batch at a time.
//!
//! polars reads them too, but asks for whatever memory a file tells it to, and unpacks dictionaries. So only the headers
//! of messages are read by the library; every length in them is checked before it is believed, and values are taken out
//! of their buffers one by one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use polars_arrow_format::ipc::planus::{Error as Malformed, ReadAsRoot};
use polars_arrow_format::ipc::{
    FooterRef, MessageHeaderRef, MessageRef, RecordBatchRef, SchemaRef,
};
use serde_json::value::RawValue;

use self::array::{Array, Dictionaries, Parts, Wrong};
use self::types::{Column, Fields};
use super::cell::{Cell, Checked};
use super::{Passing, Reading, RowsError, classes, note};
use crate::hint::Hint;

mod array;
mod types;

/// What begins a file, where a stream follows.
pub(super) const FILE: [u8; 8] = *b"ARROW1\0\0";
/// What begins a message, and so a stream.
pub(super) const MESSAGE: [u8; 4] = [0xff; 4];
/// What ends a file, behind the length of its footer.
const FILE_END: [u8; 6] = *b"ARROW1";
/// No header is longer: that of a schema may have the names of all classes.
const HEADER_BYTES: u64 = 64 << 20;
/// Rows that a batch may have which holds hardly any byte.
const EMPTY_ROWS: u64 = 1 << 20;

/// A header with the bytes that it describes.
struct Message {
    header: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    fn root(&self) -> Result<MessageRef<'_>, Malformed> {
        MessageRef::read_as_root(&self.header)
    }
}

/// Messages of a file, one after the other.
struct Messages<R> {
    reader: R,
    /// Bytes that are left of the file.
    left: u64,
    /// Whether it was said that there is no further one.
    is_ended: bool,
}

impl<R: Read> Messages<R> {
    fn word(&mut self) -> std::io::Result<[u8; 4]> {
        let mut word = [0; 4];
        self.reader.read_exact(&mut word)?;
        self.left = self.left.saturating_sub(4);
        Ok(word)
    }

    /// Takes so many bytes, of which no place is made before they are known to be there.
    fn take(&mut self, bytes: u64) -> std::io::Result<Vec<u8>> {
        let end = || std::io::Error::from(ErrorKind::UnexpectedEof);
        self.left = self.left.checked_sub(bytes).ok_or_else(end)?;
        let mut taken = vec![0; usize::try_from(bytes).map_err(|_| end())?];
        self.reader.read_exact(&mut taken)?;
        Ok(taken)
    }
}

impl<T: Cell> Reading<'_, T> {
    pub(super) fn arrow(
        &mut self,
        file: File,
        is_file: bool,
    ) -> Result<ControlFlow<()>, RowsError> {
        let left = file.metadata()?.len();
        let batches = is_file.then(|| self.batches_of_footer(&file, left));
        let batches = batches.transpose()?;
        let passed = self.passed;
        let mut messages = Messages {
            reader: BufReader::new(Passing { file, passed }),
            left,
            is_ended: false,
        };
        if is_file {
            messages.take(FILE.len() as u64)?;
        }
        let Some(first) = self.message(&mut messages)? else {
            return Err(self.damaged("it has no schema".to_owned()));
        };
        let columns = self.schema(&first)?;
        if let Some(names) = self.names {
            columns.iter().for_each(|column| note(names, &column.name));
            return Ok(ControlFlow::Continue(()));
        }
        let known: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let mut places = Vec::with_capacity(self.columns.len());
        for name in self.columns {
            let place = known.iter().position(|known| known == name);
            let place = place.ok_or_else(|| self.no_column(name, &known))?;
            if let Some(what) = columns[place].not_read() {
                return Err(RowsError::Unsupported {
                    file: Arc::clone(self.file),
                    what: format!("`{name}` holds {what}, which is not read"),
                    hint: Hint::new(
                        "write the column as text, numbers, lists or structures of these",
                    ),
                });
            }
            places.push(place);
        }
        let mut dictionaries = BTreeMap::new();
        let (mut before, mut read) = (0, 0);
        while let Some(message) = self.message(&mut messages)? {
            let header = message.root().and_then(|root| root.header());
            match header.map_err(|error| self.malformed(&error))? {
                Some(MessageHeaderRef::DictionaryBatch(batch)) => {
                    let id = batch.id().map_err(|error| self.malformed(&error))?;
                    if batch.is_delta().map_err(|error| self.malformed(&error))? {
                        return Err(self.unsupported("a dictionary that grows"));
                    }
                    dictionaries.insert(id, message);
                    let bytes = dictionaries
                        .values()
                        .map(|message: &Message| message.body.len() as u64);
                    self.limit(bytes.sum())?;
                }
                Some(MessageHeaderRef::RecordBatch(batch)) => {
                    let (flow, rows) = self.record_batch(
                        batch,
                        &message.body,
                        &columns,
                        &places,
                        before,
                        &dictionaries,
                    )?;
                    if flow.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    before += rows;
                    read += 1;
                }
                _ => return Err(self.damaged("a message is no batch of rows".to_owned())),
            }
        }
        match batches {
            Some(batches) if batches != read => Err(self.damaged(format!(
                "it has {read} batches of rows, its footer names {batches}"
            ))),
            None if !messages.is_ended => Err(self.damaged(format!(
                "it is cut off behind row {before}: an Arrow stream ends with a mark of its end"
            ))),
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    /// Returns how many batches of rows the footer of a file names, which is there if the file is whole.
    fn batches_of_footer(&self, file: &File, bytes: u64) -> Result<usize, RowsError> {
        const TAIL: u64 = 4 + FILE_END.len() as u64;
        let cut = || self.damaged("it is cut off: an Arrow file ends with `ARROW1`".to_owned());
        let tail_at = bytes.checked_sub(TAIL).ok_or_else(cut)?;
        let mut tail = [0; TAIL as usize];
        file.read_exact_at(&mut tail, tail_at)?;
        let (length, end) = tail.split_at(4);
        if end != FILE_END {
            return Err(cut());
        }
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        let length = u64::from(length);
        let footer_at = tail_at.checked_sub(length);
        let footer_at = footer_at.filter(|at| *at >= FILE.len() as u64 && length <= HEADER_BYTES);
        let footer_at = footer_at
            .ok_or_else(|| self.damaged(format!("its footer would have {length} bytes")))?;
        let mut footer = vec![0; length as usize];
        file.read_exact_at(&mut footer, footer_at)?;
        let footer = FooterRef::read_as_root(&footer);
        let batches = footer.and_then(|footer| footer.record_batches());
        let batches = batches.map_err(|error| self.malformed(&error))?;
        Ok(batches.into_iter().flatten().count())
    }

    /// Reads a message, if there is a further one.
    fn message(&self, messages: &mut Messages<impl Read>) -> Result<Option<Message>, RowsError> {
        let cut = |error: std::io::Error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                self.damaged("it ends within a message".to_owned())
            } else {
                error.into()
            }
        };
        if messages.left == 0 {
            return Ok(None);
        }
        let mut length = messages.word().map_err(cut)?;
        if length == MESSAGE {
            length = messages.word().map_err(cut)?;
        }
        let length = u64::from(u32::from_le_bytes(length));
        if length == 0 {
            messages.is_ended = true;
            return Ok(None);
        }
        if length > HEADER_BYTES {
            return Err(self.damaged(format!("the header of a message has {length} bytes")));
        }
        let header = messages.take(length).map_err(cut)?;
        let root = MessageRef::read_as_root(&header);
        let body = root.and_then(|root| root.body_length());
        let body = body.map_err(|error| self.malformed(&error))?;
        let body = u64::try_from(body)
            .map_err(|_| self.damaged("a message has a negative length".to_owned()))?;
        self.limit(body)?;
        let body = messages.take(body).map_err(cut)?;
        Ok(Some(Message { header, body }))
    }

    fn schema(&mut self, message: &Message) -> Result<Vec<Column>, RowsError> {
        let header = message.root().and_then(|root| root.header());
        match header.map_err(|error| self.malformed(&error))? {
            Some(MessageHeaderRef::Schema(schema)) => self.columns_of(schema),
            _ => Err(self.damaged("its first message is no schema".to_owned())),
        }
    }

    fn columns_of(&mut self, schema: SchemaRef<'_>) -> Result<Vec<Column>, RowsError> {
        let metadata = schema.custom_metadata();
        let metadata = metadata.map_err(|error| self.malformed(&error))?;
        for pair in metadata.into_iter().flatten() {
            let read = pair.and_then(|pair| Ok((pair.key()?, pair.value()?)));
            let read = read.map_err(|error| self.malformed(&error))?;
            if let (Some(classes::KEY), Some(said)) = read {
                self.take_classes(said)?;
            }
        }
        let fields = schema.fields().map_err(|error| self.malformed(&error))?;
        let mut all = Fields::default();
        let columns = fields.into_iter().flatten().map(|field| all.column(field?));
        let columns = columns.collect::<Result<_, _>>();
        let columns = columns.map_err(|error| self.malformed(&error))?;
        if all.are_too_many() {
            return Err(self.unsupported("more columns than any table"));
        }
        Ok(columns)
    }

    /// Passes the rows of a batch on; returns how many it has.
    fn record_batch(
        &mut self,
        batch: RecordBatchRef<'_>,
        body: &[u8],
        columns: &[Column],
        places: &[usize],
        before: usize,
        dictionaries: &BTreeMap<i64, Message>,
    ) -> Result<(ControlFlow<()>, usize), RowsError> {
        let damaged = |wrong: Wrong| self.wrong(wrong);
        let dictionaries = Dictionaries::of(dictionaries);
        let mut parts = Parts::of(batch, body).map_err(damaged)?;
        let rows = parts.rows;
        if rows as u64
            > (body.len() as u64)
                .saturating_mul(8)
                .saturating_add(EMPTY_ROWS)
        {
            return Err(self.damaged(format!("a batch of {} bytes has {rows} rows", body.len())));
        }
        let mut arrays = Vec::with_capacity(columns.len());
        for column in columns {
            let array = Array::of(column, &mut parts, &dictionaries).map_err(damaged)?;
            if array.length() != rows {
                return Err(self.damaged(format!(
                    "`{}` has {} values for {rows} rows",
                    column.name,
                    array.length()
                )));
            }
            arrays.push(array);
        }
        for row in 0..rows {
            let mut values: Vec<Checked<T>> = Vec::with_capacity(places.len());
            for place in places {
                let mut text = String::new();
                let value = match arrays[*place].write(row, &mut text) {
                    Ok(()) => match RawValue::from_string(text) {
                        Ok(value) => T::of_json(&value),
                        Err(_) => Err("no value"),
                    },
                    Err(Wrong::Value(fault)) => Err(fault),
                    Err(wrong) => return Err(self.wrong(wrong)),
                };
                values.push(value);
            }
            if self.row(before + row + 1, values.into_iter())?.is_break() {
                return Ok((ControlFlow::Break(()), rows));
            }
        }
        Ok((ControlFlow::Continue(()), rows))
    }

    /// Refuses to unpack more than a file may hold.
    fn limit(&self, bytes: u64) -> Result<(), RowsError> {
        if bytes <= self.most_unpacked {
            return Ok(());
        }
        Err(RowsError::TooLarge {
            file: Arc::clone(self.file),
            what: "a batch of it has",
            limit: self.most_unpacked,
            hint: Hint::new("write it with smaller batches, or raise `max_text_mb`"),
        })
    }

    fn malformed(&self, error: &Malformed) -> RowsError {
        self.damaged(format!("a message cannot be read: {error}"))
    }

    fn unsupported(&self, what: &str) -> RowsError {
        RowsError::Unsupported {
            file: Arc::clone(self.file),
            what: format!("it has {what}, which is not read"),
            hint: Hint::new("write it as parquet or JSON lines"),
        }
    }

    fn wrong(&self, wrong: Wrong) -> RowsError {
        match wrong {
            Wrong::Value(fault) => self.damaged(fault.to_owned()),
            Wrong::Damaged(reason) => self.damaged(reason.to_owned()),
            Wrong::Malformed(error) => self.malformed(&error),
            Wrong::Unsupported(what) => self.unsupported(what),
        }
    }
}

#[cfg(test)]
mod tests;
