//! Names of classes, of which files hold the numbers: `datasets` of Hugging Face writes them beside the columns.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::cell::Fault;

/// The key of a schema's metadata under which `datasets` says what columns are.
pub(super) const KEY: &str = "huggingface";

const NO_CLASS: Fault = "a number of no class: its column names fewer";

/// Where in a value numbers stand for classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Classes {
    /// The value is the place of a name.
    Names(Vec<String>),
    /// Each value of a list; or of each list of a structure.
    Each(Box<Self>),
    /// Some fields of a structure.
    Fields(BTreeMap<String, Self>),
}

impl Classes {
    /// Reads what `datasets` says of a column, if there are classes in it.
    fn of(feature: &Value) -> Option<Self> {
        let each = |inner: &Value| Some(Self::Each(Box::new(Self::of(inner)?)));
        match feature {
            Value::Array(inner) => each(inner.first()?),
            Value::Object(fields) => match fields.get("_type").and_then(Value::as_str) {
                Some("ClassLabel") => {
                    let names = fields.get("names")?.as_array()?.iter();
                    let names = names.map(|name| name.as_str().map(str::to_owned));
                    Some(Self::Names(names.collect::<Option<_>>()?))
                }
                Some(_) => each(fields.get("feature")?),
                None => {
                    let fields = named(fields);
                    (!fields.is_empty()).then_some(Self::Fields(fields))
                }
            },
            _ => None,
        }
    }

    /// The name of a class; `None` where the column has none of its own.
    pub(super) fn name(&self, number: i64) -> Option<Result<&str, Fault>> {
        let Self::Names(names) = self else {
            return None;
        };
        let name = usize::try_from(number).ok();
        let name = name.and_then(|place| names.get(place));
        Some(name.map(String::as_str).ok_or(NO_CLASS))
    }

    /// Puts names in the place of numbers.
    pub(super) fn put_into(&self, value: Value) -> Result<Value, Fault> {
        Ok(match (self, value) {
            (Self::Names(_), value) => match value.as_i64().and_then(|number| self.name(number)) {
                Some(name) => Value::from(name?),
                None => value,
            },
            (Self::Each(inner), Value::Array(values)) => {
                let values = values.into_iter().map(|value| inner.put_into(value));
                Value::Array(values.collect::<Result<_, _>>()?)
            }
            // A list of structures is kept as a structure of lists.
            (Self::Each(inner), Value::Object(mut fields)) => {
                if let Self::Fields(classes) = &**inner {
                    for (name, classes) in classes {
                        put(&mut fields, name, &Self::Each(Box::new(classes.clone())))?;
                    }
                }
                Value::Object(fields)
            }
            (Self::Fields(classes), Value::Object(mut fields)) => {
                for (name, classes) in classes {
                    put(&mut fields, name, classes)?;
                }
                Value::Object(fields)
            }
            (_, value) => value,
        })
    }
}

fn put(fields: &mut Map<String, Value>, name: &str, classes: &Classes) -> Result<(), Fault> {
    if let Some(value) = fields.get_mut(name) {
        *value = classes.put_into(value.take())?;
    }
    Ok(())
}

fn named(features: &Map<String, Value>) -> BTreeMap<String, Classes> {
    let features = features.iter();
    let found = features.filter_map(|(name, feature)| Some((name.clone(), Classes::of(feature)?)));
    found.collect()
}

/// The columns of a file that have classes.
#[derive(Debug, Clone, Default)]
pub(super) struct ClassColumns(BTreeMap<String, Classes>);

impl ClassColumns {
    /// Reads what stands under [`KEY`] in a schema, or in `dataset_info.json`.
    pub(super) fn read(text: &str) -> Result<Self, serde_json::Error> {
        let said: Value = serde_json::from_str(text)?;
        let features = match &said["features"] {
            Value::Null => &said["info"]["features"],
            features => features,
        };
        Ok(Self(features.as_object().map(named).unwrap_or_default()))
    }

    pub(super) fn of(&self, column: &str) -> Option<&Classes> {
        self.0.get(column)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::{Path, PathBuf};

    use serde_json::json;

    use super::*;
    use crate::hint::in_one_line;
    use crate::sources::rows::{Field, RowFiles};

    const COLUMNS: [&str; 4] = ["label", "topic", "tags", "turns"];

    fn fixture(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rows");
        folder.join(name)
    }

    fn rows(path: &Path, columns: &[&str]) -> Result<Vec<Value>, String> {
        let files = RowFiles::find(path, "DATA", None, None);
        let mut rows = Vec::new();
        let read = files.map_err(|error| in_one_line(&error))?;
        let read = read.read_fields(columns, |row| {
            let values = row?.values.into_iter().map(|value| match value {
                Field::Typed(value) => value.parse().unwrap(),
                Field::Written(text) => Value::from(text),
                Field::Empty => Value::Null,
            });
            rows.push(values.collect());
            Ok(ControlFlow::Continue(()))
        });
        read.map_err(|error| in_one_line(&error))?;
        Ok(rows)
    }

    #[test]
    fn names_stand_where_numbers_of_classes_stood() {
        let turns = json!([{ "who": "assistant", "said": "a" }]);
        let expected = [
            json!(["good", "harmful", ["harmful", "helpful"], turns]),
            json!(["bad", "helpful", [], []]),
            json!([null, null, null, null]),
        ];
        for name in ["classes.arrow", "classes.parquet"] {
            assert_eq!(rows(&fixture(name), &COLUMNS).unwrap(), expected, "{name}");
            let files = RowFiles::find(&fixture(name), "DATA", None, None).unwrap();
            let mut texts = Vec::new();
            let read = files.read(&["topic"], |mut row| {
                texts.extend(row.values.remove(0).unwrap());
                Ok(ControlFlow::Continue(()))
            });
            read.unwrap();
            assert_eq!(texts, ["harmful", "helpful"], "{name}");
        }
    }

    #[test]
    fn what_is_said_beside_files_counts_for_those_that_do_not_say_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
        write("a.csv", "label,text\n1,x\n,y\nbad,z\n");
        write("b.jsonl", "{\"label\": 0, \"text\": 1}\n");
        let names = json!({ "names": ["bad", "good"], "_type": "ClassLabel" });
        let features = json!({ "label": names, "text": { "dtype": "string", "_type": "Value" } });
        let info = json!({ "features": features });
        write("dataset_info.json", &info.to_string());
        let expected = [
            json!(["good", "x"]),
            json!(["", "y"]),
            json!(["bad", "z"]),
            json!(["bad", 1]),
        ];
        assert_eq!(rows(folder.path(), &["label", "text"]).unwrap(), expected);
        write("b.jsonl", "{\"label\": -1}\n");
        let error = rows(folder.path(), &["label"]).unwrap_err();
        assert_eq!(
            error,
            "DATA/b.jsonl, row 1: `label` is a number of no class: its column names fewer"
        );
        write("dataset_info.json", "{");
        let error = rows(folder.path(), &["label"]).unwrap_err();
        assert!(
            error.starts_with("DATA: damaged: dataset_info.json cannot be read: "),
            "{error}"
        );
    }

    #[test]
    fn lists_of_structures_may_be_structures_of_lists() {
        let class = json!({ "names": ["x", "y"], "_type": "ClassLabel" });
        let nested = json!({ "_type": "Sequence", "feature": { "tag": class, "_type": [class] } });
        let classes = Classes::of(&nested).unwrap();
        let value = json!({ "tag": [1, 0, null], "other": [1], "_type": [[0]] });
        let expected = json!({ "tag": ["y", "x", null], "other": [1], "_type": [["x"]] });
        assert_eq!(classes.put_into(value).unwrap(), expected);
        assert_eq!(classes.put_into(json!({ "tag": [2] })), Err(NO_CLASS));
        for none in [
            json!({ "_type": "Value", "dtype": "int64" }),
            json!({ "_type": "ClassLabel" }),
            json!({}),
            json!(3),
        ] {
            assert_eq!(Classes::of(&none), None);
        }
    }
}
