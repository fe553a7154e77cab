//! The objective of a stage: a name of a table, by itself or with the settings that it takes.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use crate::engine::diagnostic::did_you_mean;
use crate::engine::stage::{Moved, Problem};
use crate::ml::trainer::policy::objective::{Objective, ObjectiveKind};

/// Settings of objectives, and the table of those that are made of them.
pub(super) trait Settings: Sized + 'static {
    const KINDS: &'static [ObjectiveKind<Self>];
}

/// An objective, by one of its names.
pub(super) struct Named<S: Settings>(pub(super) &'static ObjectiveKind<S>);

impl<S: Settings> Clone for Named<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Settings> Copy for Named<S> {}

impl<S: Settings> fmt::Debug for Named<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.name)
    }
}

impl<S: Settings> Named<S> {
    /// Whether the objective takes a setting.
    pub(super) fn takes(self, setting: &str) -> bool {
        self.0.takes.contains(&setting)
    }

    /// Makes the objective.
    pub(super) fn make(self, settings: &S) -> Box<dyn Objective> {
        (self.0.make)(settings)
    }
}

impl<S: Settings> Serialize for Named<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de, S: Settings> Deserialize<'de> for Named<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = ObjectiveKind::find(S::KINDS, &name);
        found.map(Self).ok_or_else(|| {
            let names: Vec<&str> = S::KINDS.iter().map(|kind| kind.name).collect();
            let names = names.join("`, `");
            serde::de::Error::custom(format!(
                "unknown variant `{name}`, expected one of `{names}`"
            ))
        })
    }
}

impl<S: Settings> JsonSchema for Named<S> {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Objective")
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut choices = Vec::new();
        let mut tagged = Map::new();
        for kind in S::KINDS {
            let spellings: Vec<&str> = std::iter::once(&kind.name)
                .chain(kind.aliases)
                .copied()
                .collect();
            choices.push(json!({ "type": "string", "enum": spellings, "description": kind.about }));
            let own = json!({
                "type": "object",
                "propertyNames": { "enum": kind.takes },
                "description": kind.about,
            });
            tagged.extend(
                spellings
                    .iter()
                    .map(|name| ((*name).to_owned(), own.clone())),
            );
        }
        choices.push(json!({
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": false,
            "properties": tagged,
        }));
        json_schema!({ "oneOf": choices })
    }
}

/// Spreads `objective: { NAME: { SETTING: VALUE } }` over the params: `objective: NAME`, `SETTING: VALUE`.
pub(super) fn spread<S: Settings>(
    params: &mut Map<String, Json>,
) -> Result<Vec<Moved>, Vec<Problem>> {
    const KEY: &str = "objective";
    let Some(Json::Object(choice)) = params.get(KEY) else {
        return Ok(Vec::new());
    };
    let choice = choice.clone();
    let [(name, settings)] = choice.iter().collect::<Vec<_>>()[..] else {
        return Err(vec![Problem::new(
            KEY,
            "`objective` must be a name, or one name with its settings, such as `{ trajectory_balance: { log_z: scalar } }`",
        )]);
    };
    let at = |key: &str| format!("{KEY}.{name}.{key}");
    let settings = match settings {
        Json::Object(settings) => settings.clone(),
        Json::Null => Map::new(),
        _ => {
            let text = format!("`objective.{name}` must be a map of settings");
            return Err(vec![Problem::new(&format!("{KEY}.{name}"), text)]);
        }
    };
    params.insert(KEY.to_owned(), json!(name));
    let Some(kind) = ObjectiveKind::find(S::KINDS, name) else {
        // Reading the name tells which there are.
        return Ok(Vec::new());
    };
    let (mut moved, mut problems) = (Vec::new(), Vec::new());
    for (key, value) in settings {
        if !kind.takes.contains(&key.as_str()) {
            let takes = match kind.takes {
                [] => "no settings".to_owned(),
                takes => format!("`{}`", takes.join("`, `")),
            };
            let hint = did_you_mean(&key, kind.takes.iter().copied());
            let problem = Problem::new(&at(&key), format!("`{name}` has no setting `{key}`"));
            problems.push(problem.hint(hint.unwrap_or(format!("it takes {takes}"))));
        } else if params.contains_key(&key) {
            let text = format!("`{key}` is there twice: under `objective` and beside it");
            problems.push(Problem::new(&at(&key), text).hint("leave one of them out"));
        } else {
            moved.push(Moved {
                to: key.clone(),
                from: at(&key),
            });
            params.insert(key, value);
        }
    }
    if problems.is_empty() {
        Ok(moved)
    } else {
        Err(problems)
    }
}
