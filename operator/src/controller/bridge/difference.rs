//! Whether an object that is there contains all that is wanted. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

/// Whether `found` has each field of `wanted`, with the same value. It may have more: what the API server, other controllers
/// and administrators fill in. An annotation of ours changes with everything that is wanted, so a field that is wanted no
/// longer is noticed by it.
pub(super) fn is_contained<K: Serialize>(wanted: &K, found: &K) -> bool {
    let values = (serde_json::to_value(wanted), serde_json::to_value(found));
    matches!(values, (Ok(wanted), Ok(found)) if contains(&wanted, &found))
}

fn contains(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => contains_fields(wanted, found),
        (Value::Array(wanted), Value::Array(found)) if wanted.iter().all(Value::is_object) => wanted
            .iter()
            .all(|wanted| found.iter().any(|found| contains(wanted, found))),
        (wanted, found) => wanted == found,
    }
}

fn contains_fields(wanted: &Map<String, Value>, found: &Map<String, Value>) -> bool {
    wanted.iter().all(|(name, wanted)| match found.get(name) {
        // The API server writes a quantity in its own way: 1024Mi as 1Gi. A change of ours changes the annotation.
        Some(_) if name == "resources" => true,
        Some(found) => contains(wanted, found),
        None => is_empty(wanted),
    })
}

/// The API server leaves out what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::the_same(json!({"a": 1}), json!({"a": 1}), true)]
    #[case::filled_in(json!({"a": {"b": [1, 2]}}), json!({"a": {"b": [1, 2], "c": 0}, "d": 1}), true)]
    #[case::changed(json!({"a": {"b": 1}}), json!({"a": {"b": 2}}), false)]
    #[case::missing(json!({"a": 1}), json!({}), false)]
    #[case::empty(json!({"a": {}, "b": []}), json!({}), true)]
    #[case::another_list(json!({"drop": ["ALL"]}), json!({"drop": ["ALL", "KILL"]}), false)]
    #[case::one_more_container(
        json!({"containers": [{"name": "bridge"}]}),
        json!({"containers": [{"name": "proxy"}, {"name": "bridge", "image": "i"}]}), true
    )]
    #[case::no_such_container(json!({"containers": [{"name": "bridge"}]}), json!({"containers": [{"name": "x"}]}), false)]
    #[case::quantities(
        json!({"resources": {"limits": {"memory": "1024Mi"}}}), json!({"resources": {"limits": {"memory": "1Gi"}}}), true
    )]
    fn an_object_contains_what_is_wanted(#[case] wanted: Value, #[case] found: Value, #[case] expected: bool) {
        assert_eq!(is_contained(&wanted, &found), expected, "{wanted} in {found}");
    }
}
