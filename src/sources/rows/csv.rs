//! Rows of CSV files (RFC 4180), with the names of columns in the first line.

use std::cell::Cell as Shared;
use std::io::Read;
use std::ops::ControlFlow;
use std::rc::Rc;

use csv::{ByteRecord, ReaderBuilder};

use super::cell::Cell;
use super::meter::Metered;
use super::{Reading, RowsError, note};

const UNCLOSED: &str = "opens a quote that is not closed before the end of the file";

/// Where the bytes read so far have come to.
enum Place {
    Start,
    Bare,
    Quoted,
    /// Behind a quote within quotes: their end, or the first half of a quote that belongs to the value.
    Quote,
}

/// A reader that tells whether its end is within quotes: the parser takes that for the end of the last value.
struct Quotes<R> {
    inner: R,
    place: Place,
    is_unclosed: Rc<Shared<bool>>,
}

impl<R: Read> Quotes<R> {
    fn of(inner: R) -> Self {
        Self {
            inner,
            place: Place::Start,
            is_unclosed: Rc::default(),
        }
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        for byte in &buffer[..read] {
            self.place = match (&self.place, byte) {
                (Place::Quoted, b'"') => Place::Quote,
                (Place::Start | Place::Quote, b'"') | (Place::Quoted, _) => Place::Quoted,
                (_, b',' | b'\n' | b'\r') => Place::Start,
                _ => Place::Bare,
            };
        }
        if read == 0 && !buffer.is_empty() && matches!(self.place, Place::Quoted) {
            self.is_unclosed.set(true);
        }
        Ok(read)
    }
}

impl<T: Cell> Reading<'_, T> {
    pub(super) fn csv(&mut self, reader: Metered<impl Read>) -> Result<ControlFlow<()>, RowsError> {
        let meter = reader.meter();
        let quotes = Quotes::of(reader);
        let is_unclosed = Rc::clone(&quotes.is_unclosed);
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(quotes);
        let header = reader
            .byte_headers()
            .map_err(|error| self.damaged(format!("its first line cannot be read: {error}")))?;
        let names: Vec<&str> = header
            .iter()
            .map(std::str::from_utf8)
            .collect::<Result<_, _>>()
            .map_err(|_| self.damaged("its first line is not UTF-8".to_owned()))?;
        if is_unclosed.get() {
            return Err(self.damaged(format!("its first line {UNCLOSED}")));
        }
        if let Some(all) = self.names {
            names.iter().for_each(|name| note(all, name));
            return Ok(ControlFlow::Continue(()));
        }
        let mut places = Vec::with_capacity(self.columns.len());
        for column in self.columns {
            let place = names.iter().position(|name| name == column);
            places.push(place.ok_or_else(|| self.no_column(column, &names))?);
            if names.iter().filter(|name| *name == column).count() > 1 {
                return Err(self.damaged(format!("several columns are named `{column}`")));
            }
        }
        let width = names.len();
        let mut record = ByteRecord::new();
        for number in 1.. {
            meter.set_back();
            let more = reader
                .read_byte_record(&mut record)
                .map_err(|error| self.fault(number, format!("cannot be read: {error}")))?;
            if !more {
                break;
            }
            if is_unclosed.get() {
                return Err(self.fault(number, UNCLOSED));
            }
            if record.len() > width {
                let reason = format!("{} values under {width} names", record.len());
                return Err(self.fault(number, reason));
            }
            let values = places.iter().map(|place| match record.get(*place) {
                None | Some([]) => Ok(T::nothing()),
                Some(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(Some(T::of_text(text))),
                    Err(_) => Err("not UTF-8"),
                },
            });
            if self.row(number, values)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
