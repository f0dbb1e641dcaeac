//! The CustomResourceDefinitions as they are installed: the derived ones, with bounds on everything for which the API server
//! estimates the cost of CEL rules ("Resource use by validation functions" in the Kubernetes documentation).

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::json;

use crate::{ConditionType, ProcessSink, ProcessTrigger, Reason, RemoteProcess};

/// Maximum length of a string in bytes, unless the type sets one: an argument or a value of the environment.
const MAX_STRING: i64 = 64 * 1024;
/// Maximum length of a list, unless the type sets one.
const MAX_ITEMS: i64 = 64;
/// Maximum size of a map, unless the type sets one.
const MAX_PROPERTIES: i64 = 64;
/// Maximum length of a name or path: values that rules inspect are short, so that the rules stay within their budget.
const MAX_NAME: i64 = 4096;

/// The definition of RemoteProcess.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = RemoteProcess::crd();
    for properties in all_properties(&mut crd) {
        if let Some(status) = properties.get_mut("status") {
            // The API server fills in a default only where null is not allowed.
            status.nullable = None;
            status.default = Some(unseen());
        }
    }
    crd
}

/// The definition of ProcessTrigger.
pub fn trigger_crd() -> CustomResourceDefinition {
    let mut crd = ProcessTrigger::crd();
    for properties in all_properties(&mut crd) {
        properties.values_mut().for_each(drop_transitions);
    }
    crd
}

/// The definition of ProcessSink.
pub fn sink_crd() -> CustomResourceDefinition {
    let mut crd = ProcessSink::crd();
    all_properties(&mut crd).for_each(drop);
    crd
}

/// The definitions to install.
pub fn crds() -> [CustomResourceDefinition; 3] {
    [crd(), trigger_crd(), sink_crd()]
}

/// The fields of the object in each version, with bounds.
fn all_properties(crd: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut BTreeMap<String, JSONSchemaProps>> {
    crd.spec.versions.iter_mut().filter_map(|version| {
        let schema = version.schema.as_mut()?.open_api_v3_schema.as_mut()?;
        let properties = schema.properties.as_mut()?;
        properties.iter_mut().for_each(|(name, schema)| bound(name, schema));
        Some(properties)
    })
}

/// A template can change where a process cannot: leaves out the rules that compare with the former value.
fn drop_transitions(schema: &mut JSONSchemaProps) {
    if let Some(rules) = &mut schema.x_kubernetes_validations {
        rules.retain(|rule| !rule.rule.contains("oldSelf"));
    }
    schema.x_kubernetes_validations.take_if(|rules| rules.is_empty());
    schema
        .properties
        .iter_mut()
        .flatten()
        .for_each(|(_, part)| drop_transitions(part));
}

/// The status of an object that no operator has seen yet. Without it, kstatus (`helm install --wait`, Flux) considers
/// such an object current. The first write of the controller replaces every field of it.
fn unseen() -> JSON {
    let ready = json!({
        "type": ConditionType::Ready.to_string(), "status": "Unknown", "reason": Reason::Waiting.to_string(),
        "message": "no operator has seen the object yet", "lastTransitionTime": "1970-01-01T00:00:00Z",
    });
    JSON(json!({"observedGeneration": -1, "conditions": [ready]}))
}

fn bound(name: &str, schema: &mut JSONSchemaProps) {
    // Kubernetes knows only int32 and int64 and warns about others; `minimum: 0` covers the rest.
    schema.format.take_if(|format| format.starts_with("uint"));
    match schema.type_.as_deref() {
        Some("string") if schema.enum_.is_none() && schema.format.is_none() => {
            let longest = if matches!(name, "name" | "mountPath" | "key") {
                MAX_NAME
            } else {
                MAX_STRING
            };
            schema.max_length.get_or_insert(longest);
        }
        Some("array") => {
            schema.max_items.get_or_insert(MAX_ITEMS);
        }
        Some("object") if schema.additional_properties.is_some() => {
            schema.max_properties.get_or_insert(MAX_PROPERTIES);
        }
        _ => {}
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        bound(name, property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        bound("", items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        bound("", values);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::RemoteProcessStatus;

    fn schema(path: &[&str]) -> JSONSchemaProps {
        let mut schema = crd().spec.versions[0]
            .schema
            .clone()
            .unwrap()
            .open_api_v3_schema
            .unwrap();
        for field in path {
            schema = schema.properties.unwrap().remove(*field).unwrap();
        }
        schema
    }

    #[test]
    fn fits_into_the_store() {
        let bytes = serde_json::to_vec(&crd()).unwrap().len();
        assert!(bytes < 256 * 1024, "{bytes} bytes");
    }

    #[test]
    fn each_field_of_ours_says_what_it_is() {
        for part in ["spec", "status"] {
            for (name, field) in schema(&[part]).properties.unwrap() {
                assert!(field.description.is_some_and(|text| text.len() > 10), "{part}.{name}");
            }
        }
    }

    #[test]
    fn each_choice_of_the_user_is_explained() {
        let spec = schema(&["spec"]).properties.unwrap();
        let output = schema(&["spec", "output"]).properties.unwrap();
        for (name, field) in spec.iter().chain(&output) {
            let choices = field.enum_.iter().flatten().filter_map(|choice| choice.0.as_str());
            let text = field.description.clone().unwrap_or_default();
            let unsaid: Vec<&str> = choices.filter(|choice| !text.contains(choice)).collect();
            assert!(unsaid.is_empty(), "{name} does not say what is {unsaid:?}: {text}");
        }
    }

    #[test]
    fn every_field_is_fixed_but_those_that_say_otherwise() {
        let spec = schema(&["spec"]);
        let rules = serde_json::to_string(&spec.x_kubernetes_validations).unwrap();
        for name in spec.properties.unwrap().keys() {
            if matches!(name.as_str(), "desiredState" | "ttl" | "deadlines") {
                continue;
            }
            assert!(
                rules.contains(&format!("self.{name} == oldSelf.{name}")),
                "{name} may change"
            );
        }
        for name in schema(&["spec", "deadlines"]).properties.unwrap().keys() {
            let is_fixed = rules.contains(&format!("self.deadlines.{name} == oldSelf.deadlines.{name}"));
            assert_eq!(is_fixed, name != "runSeconds", "{name}");
        }
    }

    /// A value in which every list has one item and every object has those of its parts that are objects or lists.
    fn skeleton(schema: &JSONSchemaProps) -> Option<Value> {
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            return Some(json!([skeleton(item)?]));
        }
        let properties = schema.properties.as_ref()?;
        let parts = properties.iter().filter(|(name, _)| *name != "conditions");
        Some(
            parts
                .filter_map(|(name, part)| Some((name.clone(), skeleton(part)?)))
                .collect(),
        )
    }

    #[test]
    fn what_is_absent_in_a_status_is_not_written_as_null() {
        let status = skeleton(&schema(&["status"])).unwrap();
        assert!(status["attempts"][0]["exit"]["stop"].is_object(), "{status}");
        let read: RemoteProcessStatus = serde_json::from_value(status).unwrap();
        let written = serde_json::to_string_pretty(&read).unwrap();
        assert!(!written.contains("null"), "{written}");
    }

    #[test]
    fn conditions_and_attempts_are_maps() {
        for (field, key) in [("conditions", "type"), ("attempts", "number")] {
            let list = schema(&["status", field]);
            assert_eq!(list.x_kubernetes_list_type.as_deref(), Some("map"));
            assert_eq!(list.x_kubernetes_list_map_keys, Some(vec![key.to_owned()]));
        }
    }

    #[test]
    fn an_object_that_no_operator_has_seen_is_not_taken_for_current() {
        let status = schema(&["status"]);
        assert_eq!(status.nullable, None, "null would stay null");
        let default = status.default.unwrap().0;
        let object: RemoteProcess = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "x"},
            "spec": {"image": "i", "command": ["x"]}, "status": default,
        }))
        .unwrap();
        let status = object.status.unwrap();
        // kstatus: an object is in progress if its generation is not the observed one, or if Ready is Unknown.
        assert_eq!(status.observed_generation, Some(-1));
        let types: Vec<_> = status
            .conditions
            .iter()
            .map(|condition| condition.type_.as_str())
            .collect();
        assert_eq!(types, ["Ready"], "the first write must replace every condition");
        assert_eq!(status.conditions[0].status, "Unknown");
        assert_eq!(status.phase, None, "nobody has looked");
    }

    #[test]
    fn lists_and_strings_have_bounds() {
        let command = schema(&["spec", "command"]);
        assert_eq!((command.min_items, command.max_items), (Some(1), Some(512)));
        let volumes = schema(&["spec", "pod", "volumes"]);
        assert_eq!(volumes.max_items, Some(32));
    }
}
