//! Figures: one or more SVG files.

use std::path::Path;

/// The artifact kind.
pub const FIGURE: &str = "figure";

/// Writes one figure as `NAME.svg`.
pub fn write(folder: &Path, name: &str, svg: &str) -> std::io::Result<()> {
    fs_err::write(folder.join(format!("{name}.svg")), svg)
}
