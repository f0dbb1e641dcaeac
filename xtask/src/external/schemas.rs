//! JSON schemas of the kinds of Kubernetes, from the API description in the module that pins the API server.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{exec, paths};

const DEFINITIONS: &str = "#/definitions/";

/// Writes a file `GROUP_VERSION_KIND.json` for each kind. An object with a field that its kind does not have is invalid.
pub(super) fn write(folder: &Path) -> Result<()> {
    let description = fs::read_to_string(module()?.join("api/openapi-spec/swagger.json"))?;
    let description: Value = serde_json::from_str(&description)?;
    let definitions = description["definitions"].as_object().context("no definitions")?;
    let strict: Map<String, Value> = definitions
        .iter()
        .map(|(name, definition)| (name.clone(), strict(name, definition)))
        .collect();
    fs::create_dir_all(folder)?;
    for (name, definition) in definitions {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        for kind in kinds.into_iter().flatten() {
            let part = |part: &str| kind[part].as_str().unwrap_or_default();
            // kubeconform takes the version for the group of the kinds that have none.
            let group = [part("group"), part("version")]
                .into_iter()
                .find(|part| !part.is_empty());
            let (group, kind) = (group.unwrap_or_default(), part("kind").to_lowercase());
            let file = format!("{group}_{}_{kind}.json", part("version"));
            let mut used = BTreeMap::new();
            collect(name, &strict, &mut used);
            let schema = json!({"$ref": format!("{DEFINITIONS}{name}"), "definitions": used});
            fs::write(folder.join(file), schema.to_string())?;
        }
    }
    Ok(())
}

/// The folder of the module `k8s.io/kubernetes`.
fn module() -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.current_dir(paths::repository().join("dev/cluster/kubernetes"))
        .args(["mod", "download", "-json", "k8s.io/kubernetes"]);
    let module: Value = serde_json::from_str(&exec::output(&mut go)?)?;
    let folder = module["Dir"]
        .as_str()
        .context("go has no folder of k8s.io/kubernetes")?;
    Ok(folder.into())
}

/// The definition, which allows no other fields; and with the types that numbers and quantities can have.
fn strict(name: &str, definition: &Value) -> Value {
    let mut definition = definition.clone();
    if name.ends_with(".IntOrString") {
        definition["type"] = json!(["string", "integer"]);
    } else if name.ends_with(".Quantity") {
        definition["type"] = json!(["string", "number"]);
    } else if definition.get("properties").is_some() {
        definition["additionalProperties"] = json!(false);
    }
    definition
}

/// Adds a definition, and all that it refers to.
fn collect<'a>(name: &str, all: &'a Map<String, Value>, used: &mut BTreeMap<String, &'a Value>) {
    let Some(definition) = all.get(name).filter(|_| !used.contains_key(name)) else {
        return;
    };
    used.insert(name.to_owned(), definition);
    collect_from(definition, all, used);
}

fn collect_from<'a>(value: &Value, all: &'a Map<String, Value>, used: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields
                .get("$ref")
                .and_then(|name| name.as_str()?.strip_prefix(DEFINITIONS))
            {
                collect(name, all, used);
            }
            fields.values().for_each(|field| collect_from(field, all, used));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_from(item, all, used)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_has_what_it_refers_to_and_allows_no_other_fields() {
        let all: Map<String, Value> = serde_json::from_value(json!({
            "a.Pod": {"properties": {"spec": {"items": {"$ref": "#/definitions/a.Spec"}}}},
            "a.Spec": {"properties": {"port": {"$ref": "#/definitions/b.IntOrString"}, "of": {"$ref": "#/definitions/a.Pod"}}},
            "b.IntOrString": {"type": "string"},
            "c.Other": {},
        }))
        .unwrap();
        let all: Map<String, Value> = all.iter().map(|(name, it)| (name.clone(), strict(name, it))).collect();
        let mut used = BTreeMap::new();
        collect("a.Pod", &all, &mut used);
        assert_eq!(used.keys().collect::<Vec<_>>(), ["a.Pod", "a.Spec", "b.IntOrString"]);
        assert_eq!(used["a.Spec"]["additionalProperties"], json!(false));
        assert_eq!(used["b.IntOrString"]["type"], json!(["string", "integer"]));
    }
}
