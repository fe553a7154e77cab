//! How far two artifacts are apart: tensor by tensor, column by column.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

use super::table::{Table, Values};
use crate::engine::artifact::Artifact;
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::ml::formats::safetensors::load_safetensors;

/// Tensors may differ by this share of the tensor's largest magnitude.
pub const TENSOR_TOLERANCE: f64 = 1e-4;
/// Numbers of tables may differ by this share of the column's largest magnitude.
pub const NUMBER_TOLERANCE: f64 = 1e-4;

/// A part of an artifact that differs.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The part: a file, a tensor, a column.
    pub part: String,
    /// Largest absolute difference of its numbers, if it has numbers.
    pub absolute: Option<f64>,
    /// The same as a share of the largest magnitude in the part.
    pub relative: Option<f64>,
    /// Largest difference in units in the last place of `f32`, for tensors.
    pub ulp: Option<u64>,
    /// Whether it is small enough to be rounding.
    pub within_tolerance: bool,
}

impl Difference {
    /// A part that differs as a whole.
    pub fn whole(part: String) -> Self {
        Self {
            part,
            absolute: None,
            relative: None,
            ulp: None,
            within_tolerance: false,
        }
    }
}

/// Compares an artifact with one that was made again; both lie in stores.
///
/// # Errors
/// A file that cannot be read as what its name says.
pub fn compare(
    stores: (&Store, &Store),
    artifacts: (&Artifact, &Artifact),
) -> Result<Vec<Difference>, StageError> {
    let (first, second) = artifacts;
    let mut differences = Vec::new();
    let names: BTreeSet<&str> = first
        .files
        .iter()
        .chain(&second.files)
        .map(|file| file.path.as_str())
        .collect();
    for name in names {
        let find = |artifact: &Artifact| {
            let file = artifact.files.iter().find(|file| file.path == name);
            file.map(|file| file.digest)
        };
        let (Some(a), Some(b)) = (find(first), find(second)) else {
            differences.push(Difference::whole(format!("{name} is in one of them only")));
            continue;
        };
        if a == b {
            continue;
        }
        let found = if name.ends_with(".safetensors") {
            tensors(name, &stores.0.object_path(&a), &stores.1.object_path(&b))?
        } else if name == "table.parquet" {
            columns(
                &Table::of_artifact(stores.0, first)?,
                &Table::of_artifact(stores.1, second)?,
            )
        } else if Path::new(name)
            .extension()
            .is_some_and(|ending| ending == "json")
        {
            let read = |path| Ok::<_, StageError>(fs_err::read(path)?);
            let pair = (
                read(stores.0.object_path(&a))?,
                read(stores.1.object_path(&b))?,
            );
            documents(name, &pair.0, &pair.1)
        } else {
            vec![Difference::whole(name.to_owned())]
        };
        // A file of other bytes whose values are all equal still has other bytes.
        let equal = found.is_empty();
        differences.extend(found);
        if equal {
            differences.push(Difference {
                within_tolerance: true,
                ..Difference::whole(format!("{name}, in its encoding alone"))
            });
        }
    }
    // Markdown is a rendering of the table beside it: what counts is there.
    if first.kind == "table" && differences.len() > 1 {
        differences.retain(|difference| difference.part != "table.md");
    }
    Ok(differences)
}

fn tensors(name: &str, a: &Path, b: &Path) -> Result<Vec<Difference>, StageError> {
    let (a, b) = (load_safetensors(a)?, load_safetensors(b)?);
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut differences = Vec::new();
    for key in keys {
        let part = format!("{name}: {key}");
        let (Some(x), Some(y)) = (a.get(key), b.get(key)) else {
            differences.push(Difference::whole(part));
            continue;
        };
        if x.dims() != y.dims() {
            differences.push(Difference::whole(part));
            continue;
        }
        let flat = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (x, y) = (flat(x)?, flat(y)?);
        let pairs = || x.iter().zip(&y).filter(|(x, y)| x.to_bits() != y.to_bits());
        let Some(ulp) = pairs().map(|(x, y)| ulps(*x, *y)).max() else {
            continue;
        };
        let values = pairs().map(|(x, y)| (f64::from(*x), f64::from(*y)));
        let largest = x.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
        differences.push(Difference {
            ulp: Some(ulp),
            ..numbers(part, values, largest, TENSOR_TOLERANCE)
        });
    }
    Ok(differences)
}

/// Counts the `f32` values between two.
fn ulps(x: f32, y: f32) -> u64 {
    // Ordered as the numbers are, with both zeros at 0.
    let place = |value: f32| {
        let bits = i64::from(value.to_bits() & 0x7fff_ffff);
        if value.is_sign_negative() {
            -bits
        } else {
            bits
        }
    };
    (place(x) - place(y)).unsigned_abs()
}

fn columns(a: &Table, b: &Table) -> Vec<Difference> {
    let mut differences = Vec::new();
    let names: BTreeSet<&str> = a
        .columns
        .iter()
        .chain(&b.columns)
        .map(|c| &*c.name)
        .collect();
    for name in names {
        let find = |table: &Table| {
            let column = table.columns.iter().find(|column| column.name == name);
            column.map(|column| column.values.clone())
        };
        let part = format!("column {name}");
        match (find(a), find(b)) {
            (Some(Values::Numbers(x)), Some(Values::Numbers(y))) if x.len() == y.len() => {
                if x.iter()
                    .map(Option::is_some)
                    .ne(y.iter().map(Option::is_some))
                {
                    differences.push(Difference::whole(part));
                    continue;
                }
                let pairs = x.iter().flatten().zip(y.iter().flatten());
                let other: Vec<(f64, f64)> = pairs
                    .map(|(x, y)| (*x, *y))
                    .filter(|(x, y)| x.to_bits() != y.to_bits())
                    .collect();
                if !other.is_empty() {
                    let largest = x.iter().flatten().fold(0f64, |most, x| most.max(x.abs()));
                    differences.push(numbers(part, other.into_iter(), largest, NUMBER_TOLERANCE));
                }
            }
            (x, y) if x == y => {}
            _ => differences.push(Difference::whole(part)),
        }
    }
    differences
}

/// Compares two documents: number by number where all else is the same.
fn documents(name: &str, a: &[u8], b: &[u8]) -> Vec<Difference> {
    let whole = || vec![Difference::whole(name.to_owned())];
    let (Ok(a), Ok(b)) = (serde_json::from_slice(a), serde_json::from_slice(b)) else {
        return whole();
    };
    let mut differences = Vec::new();
    if is_alike(name, &a, &b, &mut differences) {
        differences
    } else {
        whole()
    }
}

/// Whether two values are the same but for numbers; takes those that differ.
fn is_alike(part: &str, a: &Json, b: &Json, differences: &mut Vec<Difference>) -> bool {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, a)| {
                    let part = format!("{part}: {key}");
                    b.get(key)
                        .is_some_and(|b| is_alike(&part, a, b, differences))
                })
        }
        (Json::Array(a), Json::Array(b)) => {
            let mut pairs = a.iter().zip(b).enumerate();
            a.len() == b.len()
                && pairs
                    .all(|(place, (a, b))| is_alike(&format!("{part}: {place}"), a, b, differences))
        }
        (Json::Number(x), Json::Number(y)) if x != y => {
            let (Some(x), Some(y)) = (x.as_f64(), y.as_f64()) else {
                return false;
            };
            let pair = std::iter::once((x, y));
            differences.push(numbers(
                part.to_owned(),
                pair,
                x.abs().max(y.abs()),
                NUMBER_TOLERANCE,
            ));
            true
        }
        (a, b) => a == b,
    }
}

fn numbers(
    part: String,
    pairs: impl Iterator<Item = (f64, f64)>,
    largest: f64,
    tolerance: f64,
) -> Difference {
    let absolute = pairs.map(|(x, y)| (x - y).abs()).fold(0f64, |most, gap| {
        if gap.is_nan() {
            f64::INFINITY
        } else {
            most.max(gap)
        }
    });
    let relative = if absolute == 0.0 {
        0.0
    } else {
        absolute / largest
    };
    Difference {
        part,
        absolute: Some(absolute),
        relative: Some(relative),
        ulp: None,
        within_tolerance: relative <= tolerance,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::engine::artifact::{ArtifactFile, Digest};
    use crate::engine::store::publish;
    use crate::ml::formats::safetensors::save_safetensors;
    use crate::ml::parameters::Weights;

    fn stored(store: &Store, kind: &str, folder: &Path) -> Artifact {
        let files = fs_err::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let bytes = fs_err::read(entry.path()).unwrap();
            let digest = Digest::of(&bytes);
            publish(&store.object_path(&digest), &bytes).unwrap();
            let path = entry.file_name().into_string().unwrap();
            ArtifactFile {
                path,
                size: bytes.len() as u64,
                digest,
                executable: false,
            }
        });
        Artifact::new(kind, files.collect())
    }

    fn weights(values: &[f32]) -> Weights {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        [("w".to_owned(), tensor)].into_iter().collect()
    }

    #[test]
    fn documents_are_compared_number_by_number() {
        let of = |a: &str, b: &str| documents("d.json", a.as_bytes(), b.as_bytes());
        let found = of(
            r#"{"scale": 1.0, "rows": [1, 2.5], "name": "x"}"#,
            r#"{"scale": 1.00001, "rows": [1, 2.0], "name": "x"}"#,
        );
        let parts: Vec<(&str, bool)> = found
            .iter()
            .map(|difference| (&*difference.part, difference.within_tolerance))
            .collect();
        assert_eq!(parts, [("d.json: rows: 1", false), ("d.json: scale", true)]);
        assert!((found[1].relative.unwrap() - 1e-5).abs() < 1e-9);
        for (a, b) in [
            (r#"{"a": 1}"#, r#"{"b": 1}"#),
            (r#"{"a": 1, "n": "x"}"#, r#"{"a": 2, "n": "y"}"#),
            ("[1]", "[1, 2]"),
            ("[1]", "no document"),
        ] {
            assert_eq!(of(a, b), [Difference::whole("d.json".to_owned())]);
        }
    }

    #[test]
    fn tensors_differ_by_a_rounding_or_by_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let made = |values: &[f32]| {
            let output = tempfile::tempdir().unwrap();
            save_safetensors(&output.path().join("a.safetensors"), &weights(values)).unwrap();
            stored(&store, "language_model", output.path())
        };
        let base = made(&[1.0, -2.0, 0.0]);
        let compare = |other: &Artifact| compare((&store, &store), (&base, other)).unwrap();
        assert_eq!(compare(&base), []);
        let rounded = compare(&made(&[1.0, f32::from_bits((-2.0f32).to_bits() + 3), 0.0]));
        assert_eq!(rounded[0].part, "a.safetensors: w");
        assert_eq!(
            (rounded[0].ulp, rounded[0].within_tolerance),
            (Some(3), true)
        );
        let other = compare(&made(&[1.0, -2.0, 0.01]));
        assert!((other[0].relative.unwrap() - 0.005).abs() < 1e-6 && !other[0].within_tolerance);
        assert!(!compare(&made(&[1.0, f32::NAN, 0.0]))[0].within_tolerance);
        assert!(!compare(&made(&[1.0]))[0].within_tolerance);
    }

    #[test]
    fn tables_differ_in_numbers_or_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let made = |number: f64, word: &str| {
            let mut table = Table::new("t");
            table.text_column("word", [Some(word.to_owned())]);
            table.number_column("number", 3, [Some(number)]);
            let output = tempfile::tempdir().unwrap();
            table.write(output.path()).unwrap();
            stored(&store, "table", output.path())
        };
        let base = made(1.0, "a");
        let verdict = |other: &Artifact| -> Vec<(String, bool)> {
            let found = compare((&store, &store), (&base, other)).unwrap();
            found
                .into_iter()
                .map(|one| (one.part, one.within_tolerance))
                .collect()
        };
        assert_eq!(verdict(&base), []);
        assert_eq!(
            verdict(&made(1.0 + 1e-9, "a")),
            [("column number".to_owned(), true)]
        );
        assert_eq!(
            verdict(&made(1.1, "a")),
            [("column number".to_owned(), false)]
        );
        assert_eq!(
            verdict(&made(1.0, "b")),
            [("column word".to_owned(), false)]
        );
    }

    #[test]
    fn units_in_the_last_place_are_counted_across_zero() {
        assert_eq!(ulps(1.0, 1.0 + f32::EPSILON), 1);
        assert_eq!(ulps(0.0, -0.0), 0);
        assert_eq!(ulps(f32::from_bits(2), -f32::from_bits(3)), 5);
    }
}
