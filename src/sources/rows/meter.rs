//! A limit on how much is read for one row.

use std::cell::Cell;
use std::io::{Error, Read, Result};
use std::rc::Rc;

/// A reader that fails when more than `most` bytes are taken from it before its meter is set back.
pub(super) struct Metered<R> {
    inner: R,
    meter: Meter,
}

/// Sets a reader back at the beginning of each row.
#[derive(Clone)]
pub(super) struct Meter {
    left: Rc<Cell<u64>>,
    most: u64,
}

impl<R: Read> Metered<R> {
    pub(super) fn new(inner: R, most: u64) -> Self {
        let left = Rc::new(Cell::new(most));
        let meter = Meter { left, most };
        Self { inner, meter }
    }

    pub(super) fn meter(&self) -> Meter {
        self.meter.clone()
    }
}

impl Meter {
    pub(super) fn set_back(&self) {
        self.left.set(self.most);
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.meter.left.get();
        if left == 0 && !buffer.is_empty() {
            let most = self.meter.most >> 20;
            return Err(Error::other(format!("the row is longer than {most} MiB")));
        }
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.inner.read(&mut buffer[..most])?;
        self.meter.left.set(left - read as u64);
        Ok(read)
    }
}
