//! The files that TensorBoard reads: records of the protocol buffer `Event`.
//!
//! A record is a length of 8 bytes, the masked CRC-32C of these, the bytes and their masked CRC-32C, integers with the
//! least byte first (`tensorflow/core/lib/io/record_writer.h`). Fields are those of `event.proto`, `summary.proto` and
//! `tensor.proto`.

use std::io::Write;
use std::path::Path;

/// A file of events. Every event is written at once and whole, so that who reads beside it misses nothing.
pub(super) struct EventFile {
    file: fs_err::File,
}

impl EventFile {
    /// Makes a file in `folder`, which is made, too; `seconds` since 1970 and `host` tell it from others there.
    pub(super) fn create(folder: &Path, seconds: f64, host: &str) -> std::io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        let id = std::process::id();
        let name = format!("events.out.tfevents.{:010}.{host}.{id}", seconds as u64);
        let file = fs_err::File::options()
            .write(true)
            .create_new(true)
            .open(folder.join(name))?;
        let mut events = Self { file };
        // Of this version, steps may come in any order.
        events.write(seconds, None, &bytes_field(3, b"brain.Event:2"))?;
        Ok(events)
    }

    /// Says that the steps begin anew: readers forget those that they had.
    pub(super) fn restart(&mut self, seconds: f64) -> std::io::Result<()> {
        const START: u64 = 1;
        self.write(seconds, Some(0), &bytes_field(7, &varint_field(1, START)))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether nobody took it away.
    pub(super) fn is_there(&self) -> bool {
        self.path().exists()
    }

    /// Writes numbers of a step.
    pub(super) fn scalars<'a>(
        &mut self,
        seconds: f64,
        step: u64,
        values: impl IntoIterator<Item = (&'a String, &'a f64)>,
    ) -> std::io::Result<()> {
        let values = values.into_iter().flat_map(|(tag, value)| {
            let mut summary = bytes_field(1, tag.as_bytes());
            summary.push(key(2, FIXED_32));
            summary.extend((*value as f32).to_le_bytes());
            bytes_field(1, &summary)
        });
        let summary: Vec<u8> = values.collect();
        self.write(seconds, Some(step), &bytes_field(5, &summary))
    }

    /// Writes a text in Markdown.
    pub(super) fn text(&mut self, seconds: f64, tag: &str, text: &str) -> std::io::Result<()> {
        // Shown by the plugin of this name.
        let plugin = bytes_field(1, &bytes_field(1, b"text"));
        // One string, in a tensor of one dimension of length 1.
        let string = varint_field(1, 7);
        let shape = bytes_field(2, &bytes_field(2, &varint_field(1, 1)));
        let tensor = [string, shape, bytes_field(8, text.as_bytes())].concat();
        let value = [
            bytes_field(1, tag.as_bytes()),
            bytes_field(9, &plugin),
            bytes_field(8, &tensor),
        ];
        let summary = bytes_field(1, &value.concat());
        self.write(seconds, Some(0), &bytes_field(5, &summary))
    }

    fn write(&mut self, seconds: f64, step: Option<u64>, what: &[u8]) -> std::io::Result<()> {
        let mut event = vec![key(1, FIXED_64)];
        event.extend(seconds.to_le_bytes());
        event.extend(step.map_or_else(Vec::new, |step| varint_field(2, step)));
        event.extend(what);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// How a field is written (`protobuf.dev/programming-guides/encoding`).
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

fn key(number: u8, form: u8) -> u8 {
    number << 3 | form
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    [vec![key(number, VARINT)], varint(value)].concat()
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [
        vec![key(number, BYTES)],
        varint(bytes.len() as u64),
        bytes.to_vec(),
    ]
    .concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_lengths_and_checksums() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(&folder.path().join("a/b"), 7.5, "host").unwrap();
        let (tag, value) = ("loss".to_owned(), 0.5);
        file.scalars(8.0, 300, [(&tag, &value)]).unwrap();
        let written = fs_err::read_dir(folder.path().join("a/b"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let name = written.file_name().into_string().unwrap();
        assert!(
            name.starts_with("events.out.tfevents.0000000007.host."),
            "{name}"
        );
        let bytes = fs_err::read(written.path()).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let sum = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(sum(8), masked_crc(&rest[..8]));
            assert_eq!(sum(12 + length), masked_crc(&rest[12..12 + length]));
            events.push(&rest[12..12 + length]);
            rest = &rest[16 + length..];
        }
        let version = [
            &[0x09],
            7.5f64.to_le_bytes().as_slice(),
            b"\x1a\x0dbrain.Event:2",
        ]
        .concat();
        // Step 300 is ac 02; the summary holds a value, which holds a tag and a float.
        let scalar = [
            &[0x09],
            8.0f64.to_le_bytes().as_slice(),
            b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15",
            0.5f32.to_le_bytes().as_slice(),
        ]
        .concat();
        assert_eq!(events, [version, scalar]);
        // Of "123456789", by RFC 3720 and before it is masked.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
