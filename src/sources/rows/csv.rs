//! Rows of CSV files (RFC 4180), with the names of columns in the first line.

use std::io::Read;
use std::ops::ControlFlow;

use csv::{ByteRecord, ReaderBuilder};

use super::cell::Cell;
use super::meter::Metered;
use super::{Reading, RowsError};

impl<T: Cell> Reading<'_, T> {
    pub(super) fn csv(&mut self, reader: Metered<impl Read>) -> Result<ControlFlow<()>, RowsError> {
        let meter = reader.meter();
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(reader);
        let header = reader
            .byte_headers()
            .map_err(|error| self.damaged(format!("its first line cannot be read: {error}")))?;
        let names: Vec<&str> = header
            .iter()
            .map(std::str::from_utf8)
            .collect::<Result<_, _>>()
            .map_err(|_| self.damaged("its first line is not UTF-8".to_owned()))?;
        let mut places = Vec::with_capacity(self.columns.len());
        for column in self.columns {
            let place = names.iter().position(|name| name == column);
            places.push(place.ok_or_else(|| self.no_column(column, &names))?);
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
            if record.len() > width {
                let reason = format!("{} values under {width} names", record.len());
                return Err(self.fault(number, reason));
            }
            let values = places.iter().map(|place| match record.get(*place) {
                None | Some([]) => Ok(None),
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

    pub(super) fn damaged(&self, reason: String) -> RowsError {
        RowsError::Damaged {
            file: self.file.clone(),
            reason,
        }
    }
}
