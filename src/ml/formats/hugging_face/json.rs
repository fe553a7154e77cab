//! The JSON files of a folder.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::FormatError;
use crate::ml::documents::read_configuration;

/// Reads a JSON object from a file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, FormatError> {
    parse_object(path, &read_configuration(path)?)
}

pub(super) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, FormatError> {
    serde_json::from_slice(bytes).map_err(|error| FormatError::malformed(path, error.to_string()))
}

/// Writes a JSON document for people to read too.
pub(super) fn write_json(path: &Path, document: &Value) -> Result<(), FormatError> {
    let mut text = format!("{document:#}");
    text.push('\n');
    fs_err::write(path, text)?;
    Ok(())
}
