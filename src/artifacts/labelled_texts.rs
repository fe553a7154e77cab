//! Texts with a class each.

use std::path::Path;

use super::table::{Table, TableError};

/// The artifact kind.
pub const LABELLED_TEXTS: &str = "labelled_texts";

/// A text and its class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelledText {
    /// The text.
    pub text: String,
    /// The name of its class.
    pub label: String,
}

/// Writes texts into a folder.
pub fn write(folder: &Path, title: &str, texts: &[LabelledText]) -> Result<(), TableError> {
    let mut table = Table::new(title);
    table.text_column("text", texts.iter().map(|row| Some(row.text.clone())));
    table.text_column("label", texts.iter().map(|row| Some(row.label.clone())));
    table.write_data(folder)
}

/// Reads texts from a folder.
pub fn read(folder: &Path) -> Result<Vec<LabelledText>, TableError> {
    let table = Table::read(folder)?;
    let texts = table.all_texts("text")?.into_iter();
    let rows = texts.zip(table.all_texts("label")?);
    Ok(rows
        .map(|(text, label)| LabelledText { text, label })
        .collect())
}
