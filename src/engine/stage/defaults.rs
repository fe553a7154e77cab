//! Params at their default are left out of manifests, so that a new param changes no key of what does not set it.
//!
//! A default is what the kind's JSON schema says it is. One that changes changes the meaning of keys: then the kind's
//! `VERSION` has to rise.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value as Json;

use super::Kind;

/// Schemas of kinds by name: making one takes longer than all else.
static SCHEMAS: RwLock<Option<HashMap<&'static str, Arc<Json>>>> = RwLock::new(None);

pub(super) fn schema_of<K: Kind>() -> Arc<Json> {
    let known = SCHEMAS.read().unwrap_or_else(PoisonError::into_inner);
    let found = known.as_ref().and_then(|schemas| schemas.get(K::NAME));
    if let Some(schema) = found {
        return Arc::clone(schema);
    }
    drop(known);
    let schema = Arc::new(super::schema::<K>().to_value());
    let mut known = SCHEMAS.write().unwrap_or_else(PoisonError::into_inner);
    let schemas = known.get_or_insert_with(HashMap::new);
    Arc::clone(schemas.entry(K::NAME).or_insert(schema))
}

/// Takes everything out of a kind's params that is at its default.
pub(super) fn leave_out<K: Kind>(mut params: Json) -> Json {
    let schema = schema_of::<K>();
    strip(&mut params, &schema, &schema);
    params
}

/// Returns the defaults in a kind's schema, by path.
pub(super) fn of<K: Kind>() -> Vec<(String, Json)> {
    let schema = schema_of::<K>();
    let mut found = Vec::new();
    collect("", &schema, &schema, 0, &mut found);
    found.sort_by(|(first, _), (second, _)| first.cmp(second));
    found.dedup();
    found
}

/// Follows a reference of a JSON schema into the definitions of `root`.
pub fn resolved<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let target = schema.get("$ref").and_then(Json::as_str);
    let target = target.and_then(|target| target.strip_prefix('#'));
    target
        .and_then(|pointer| root.pointer(pointer))
        .unwrap_or(schema)
}

/// Returns the schemas of which a value must fit one.
pub fn variants(schema: &Json) -> impl Iterator<Item = &Json> {
    let lists = ["oneOf", "anyOf"].into_iter();
    lists
        .filter_map(|key| schema.get(key)?.as_array())
        .flatten()
}

fn strip(value: &mut Json, schema: &Json, root: &Json) {
    let schema = resolved(schema, root);
    match value {
        Json::Object(map) => {
            if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
                map.retain(|key, value| {
                    let default = properties.get(key).and_then(|of| of.get("default"));
                    default != Some(value)
                });
            }
            let others = schema.get("additionalProperties");
            for (key, value) in map.iter_mut() {
                let own = schema.get("properties").and_then(|of| of.get(key));
                if let Some(schema) = own.or(others) {
                    strip(value, schema, root);
                }
            }
            if let Some(variant) = variant_of(value, schema, root) {
                strip(value, variant, root);
            }
        }
        Json::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for item in items {
                    strip(item, schema, root);
                }
            }
        }
        _ => {}
    }
}

/// Returns the variant that an object is of: that whose tag it has, or the only one that is an object.
fn variant_of<'a>(value: &Json, schema: &'a Json, root: &'a Json) -> Option<&'a Json> {
    let objects: Vec<&Json> = variants(schema)
        .map(|variant| resolved(variant, root))
        .filter(|variant| variant.get("properties").is_some())
        .collect();
    let tagged = objects.iter().find(|variant| {
        let tags = variant.get("properties").and_then(Json::as_object);
        let tags = tags.into_iter().flatten();
        let mut tags = tags.filter_map(|(key, of)| Some((key, of.get("const")?)));
        let mut any = false;
        let all = tags.all(|(key, tag)| {
            any = true;
            value.get(key) == Some(tag)
        });
        any && all
    });
    match (tagged, objects.as_slice()) {
        (Some(variant), _) => Some(variant),
        (None, [only]) => Some(only),
        _ => None,
    }
}

fn collect(path: &str, schema: &Json, root: &Json, depth: usize, found: &mut Vec<(String, Json)>) {
    // Deeper than any params; a schema may refer to itself.
    if depth > 8 {
        return;
    }
    let schema = resolved(schema, root);
    let properties = schema.get("properties").and_then(Json::as_object);
    for (key, of) in properties.into_iter().flatten() {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        if let Some(default) = of.get("default") {
            found.push((path.clone(), default.clone()));
        }
        collect(&path, of, root, depth + 1, found);
    }
    let inner = ["items", "additionalProperties"];
    for schema in inner.into_iter().filter_map(|key| schema.get(key)) {
        collect(&format!("{path}.*"), schema, root, depth + 1, found);
    }
    for variant in variants(schema) {
        let of = resolved(variant, root);
        let tag = of.get("properties").and_then(Json::as_object);
        let tag = tag.and_then(|of| of.values().find_map(|of| of.get("const")?.as_str()));
        let path = match tag {
            Some(tag) => format!("{path}({tag})"),
            None => path.to_owned(),
        };
        collect(&path, of, root, depth + 1, found);
    }
}
