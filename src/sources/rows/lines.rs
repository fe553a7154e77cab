//! Rows of plain text, a line each.

use std::io::{BufRead, Read};
use std::ops::ControlFlow;

use super::cell::Cell;
use super::{MAXIMUM_ROW, Reading, RowsError};

impl<T: Cell> Reading<'_, T> {
    /// Passes on the lines that are not blank, each as the one value of a row.
    pub(super) fn lines(&mut self, reader: impl BufRead) -> Result<ControlFlow<()>, RowsError> {
        self.each_line(reader, |reading, number, line| {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let value = match std::str::from_utf8(line) {
                Ok(text) => Ok(Some(T::of_text(text))),
                Err(_) => Err("not UTF-8"),
            };
            reading.row(number, std::iter::once(value))
        })
    }

    /// Passes on lines that are not blank, with their numbers.
    pub(super) fn each_line(
        &mut self,
        mut reader: impl BufRead,
        mut take: impl FnMut(&mut Self, usize, &[u8]) -> Result<ControlFlow<()>, RowsError>,
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
            if take(self, number, &line)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
