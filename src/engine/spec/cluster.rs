//! How jobs of a cluster are submitted, as the key `cluster` says.

use crate::engine::diagnostic::{Diagnostic, Path};
use crate::engine::launch::ClusterSettings;
use crate::engine::value::Value;

const EXAMPLE: &str =
    "for example `cluster: { partition: gpu, time: 2:00:00, before: [module load cuda] }`";

/// Reads `cluster`.
pub(super) fn read(value: Option<&Value>, errors: &mut Vec<Diagnostic>) -> ClusterSettings {
    let Some(value) = value else {
        return ClusterSettings::default();
    };
    if value.as_map().is_none() {
        let message = format!("`cluster` must be a map, found {}", value.type_name());
        errors.push(Diagnostic::error(Path::of(["cluster"]), message).hint(EXAMPLE));
        return ClusterSettings::default();
    }
    let read = serde_path_to_error::deserialize(value.to_json());
    read.unwrap_or_else(|error| {
        let mut path = Path::of(["cluster"]);
        for segment in error.path() {
            path = match segment {
                serde_path_to_error::Segment::Seq { index } => path.index(*index),
                serde_path_to_error::Segment::Map { key } => path.key(key),
                _ => path,
            };
        }
        errors.push(
            Diagnostic::error(
                path,
                error.inner().to_string().replace("a sequence", "a list"),
            )
            .hint(EXAMPLE),
        );
        ClusterSettings::default()
    })
}
