//! The figures of a report, each as a URL that holds it: as images they run no script and load nothing.

use serde::Serialize;

use super::super::Failure;
use super::super::results::Results;
use super::super::show::check_objects;
use super::embed::image_url;
use crate::artifacts::figure::FIGURE;
use crate::engine::spec::Pipeline;
use crate::engine::store::Store;

/// Bytes of all figures together, as URLs.
const MOST_BYTES: usize = 1_000_000;
/// The artifact kind of what a program wrote, figures among it.
const FILE: &str = "file";
/// Images, by the end of their names.
const MEDIA_TYPES: [(&str, &str); 2] = [(".svg", "image/svg+xml"), (".png", "image/png")];

/// One figure.
#[derive(Debug, Serialize)]
pub(super) struct FigureView {
    /// `stage.output/file`.
    name: String,
    /// The figure; `None` if it is too large.
    url: Option<String>,
}

/// Reads the figures of the results, in the order of the file, as long as there is room.
pub(super) fn read(
    pipeline: &Pipeline,
    store: &Store,
    results: &Results,
) -> Result<Vec<FigureView>, Failure> {
    let mut figures = Vec::new();
    let mut left = MOST_BYTES;
    for found in &results.found {
        if ![FIGURE, FILE].contains(&found.artifact.kind.as_str()) {
            continue;
        }
        for file in &found.artifact.files {
            let end = |(end, _): &&(&str, &str)| file.path.ends_with(*end);
            let Some((_, media_type)) = MEDIA_TYPES.iter().find(end) else {
                continue;
            };
            // Four characters for three bytes.
            let url = if file.size / 3 * 4 < left as u64 {
                check_objects(store, &found.artifact)?;
                let bytes = fs_err::read(store.object_path(&file.digest))?;
                Some(image_url(media_type, &bytes))
            } else {
                None
            };
            left = left.saturating_sub(url.as_ref().map_or(0, String::len));
            figures.push(FigureView {
                name: format!(
                    "{}.{}/{}",
                    pipeline.stages[found.stage].name, found.output, file.path
                ),
                url,
            });
        }
    }
    Ok(figures)
}
