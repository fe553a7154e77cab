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
            "description": "A name with settings that it takes, which may also stand beside it.",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stage::StageKind;
    use crate::stages::train::train_gflownet::TrainGflownet;
    use crate::stages::train::train_policy_gradient::TrainPolicyGradient;

    fn gflownet(changes: Json) -> Json {
        let mut params = json!({
            "steps": 1, "prompts_per_step": 1, "completions_per_prompt": 4, "optimizer": { "lr": 1e-3 },
            "reward_scale": 1, "on_policy": 1, "max_new_tokens": 4, "seed": 1
        });
        let changes: Map<String, Json> = serde_json::from_value(changes).unwrap();
        params.as_object_mut().unwrap().extend(changes);
        params
    }

    fn parsed(params: &Json) -> Result<String, Vec<(String, String)>> {
        let found = (StageKind::of::<TrainGflownet>().parse)(params);
        found
            .map(|stage| stage.params().to_string())
            .map_err(|problems| {
                let told = problems.into_iter();
                told.map(|problem| (problem.path.to_string(), problem.message))
                    .collect()
            })
    }

    #[test]
    fn settings_under_the_objective_and_beside_it_are_the_same_params() {
        let flat = gflownet(json!({ "objective": "flowrl", "log_z": "network", "log_z_lr": 0.01 }));
        let tagged = json!({ "objective": { "flowrl": { "log_z": "network", "log_z_lr": 0.01 } } });
        assert_eq!(parsed(&gflownet(tagged)).unwrap(), parsed(&flat).unwrap());
        // By another name, and without settings.
        let long = parsed(&gflownet(json!({ "objective": "trajectory_balance" }))).unwrap();
        for spelled in [json!("tb"), json!({ "tb": {} }), json!({ "tb": null })] {
            assert_eq!(
                parsed(&gflownet(json!({ "objective": spelled }))).unwrap(),
                long
            );
        }
        // As older files have it, settings of other objectives may stand there, too.
        let others = json!({ "objective": "vargrad", "flow_lr": 0.5, "log_z_lr": 0.2 });
        assert!(parsed(&gflownet(others)).is_ok());
    }

    #[test]
    fn faults_are_told_where_they_stand() {
        for (objective, others, path, message) in [
            (
                json!({ "flowrl": { "lambda": 1 } }),
                json!({}),
                "objective.flowrl.lambda",
                "`flowrl` has no setting `lambda`",
            ),
            (
                json!({ "flowrl": { "log_z_lr": 1 } }),
                json!({ "log_z_lr": 2 }),
                "objective.flowrl.log_z_lr",
                "`log_z_lr` is there twice: under `objective` and beside it",
            ),
            (
                json!({ "flowrl": { "log_z_lr": 1e-45 } }),
                json!({}),
                "objective.flowrl.log_z_lr",
                "`log_z_lr` must be",
            ),
            (
                json!({ "flowrl": { "log_z": "nowhere" } }),
                json!({}),
                "objective.flowrl.log_z",
                "unknown",
            ),
            (
                json!({ "flowrl": 3 }),
                json!({}),
                "objective.flowrl",
                "must be a map",
            ),
            (json!({}), json!({}), "objective", "must be a name"),
            (
                json!({ "tb": {}, "db": {} }),
                json!({}),
                "objective",
                "must be a name",
            ),
            (json!({ "tbx": {} }), json!({}), "objective", "tbx"),
            (json!("tbx"), json!({}), "objective", "tbx"),
            (json!(7), json!({}), "objective", "objective"),
        ] {
            let mut changes = json!({ "objective": objective });
            let others: Map<String, Json> = serde_json::from_value(others).unwrap();
            changes.as_object_mut().unwrap().extend(others);
            let problems = parsed(&gflownet(changes)).unwrap_err();
            assert!(
                problems
                    .iter()
                    .any(|(at, text)| at == path && text.contains(message)),
                "{path}, {message}: {problems:?}"
            );
        }
    }

    #[test]
    fn each_objective_takes_what_its_kind_has() {
        fn check<S: Settings>(schema: &schemars::Schema) {
            let properties = schema.get("properties").and_then(Json::as_object).unwrap();
            for kind in S::KINDS {
                for setting in kind.takes {
                    assert!(
                        properties.contains_key(*setting),
                        "{}: {setting}",
                        kind.name
                    );
                }
            }
        }
        check::<crate::ml::trainer::policy::objectives::GflownetSettings>(&schemars::schema_for!(
            TrainGflownet
        ));
        check::<crate::ml::trainer::policy::objectives::PolicyGradientSettings>(
            &schemars::schema_for!(TrainPolicyGradient),
        );
    }
}
