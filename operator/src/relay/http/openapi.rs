//! The description of the routes (OpenAPI 3.0). Processes have the schema of the CustomResourceDefinition.

use std::sync::LazyLock;

use axum::response::Response;
use kube::CustomResourceExt;
use remoteprocess_api::RemoteProcess;
use serde_json::{Value, json};

use super::problem::Problem;
use super::process::json;

/// Everything but the schemas of processes.
const DOCUMENT: &str = include_str!("openapi.json");

static OPENAPI: LazyLock<Value> = LazyLock::new(document);

/// `GET /openapi.json`
pub(super) async fn openapi() -> Result<Response, Problem> {
    json(&*OPENAPI)
}

fn document() -> Value {
    // A test reads it.
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    let crd = RemoteProcess::crd();
    let schema = crd
        .spec
        .versions
        .into_iter()
        .find_map(|version| version.schema?.open_api_v3_schema);
    let mut process = serde_json::to_value(schema).unwrap_or_default();
    let attempt = process["properties"]["status"]["properties"]["attempts"]["items"].clone();
    process["properties"]["apiVersion"] = json!({"type": "string"});
    process["properties"]["kind"] = json!({"type": "string"});
    process["properties"]["metadata"] = json!({"type": "object"});
    document["components"]["schemas"]["RemoteProcess"] = process;
    document["components"]["schemas"]["Attempt"] = attempt;
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::routes::ROUTES;
    use super::*;

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let described: BTreeSet<(String, String)> = OPENAPI["paths"]
            .as_object()
            .expect("JSON")
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                methods.map(|method| (method.to_ascii_uppercase(), path.clone()))
            })
            .filter(|(method, _)| ["GET", "POST", "PUT", "DELETE", "HEAD"].contains(&method.as_str()))
            .collect();
        let routes = ROUTES
            .iter()
            .map(|route| (route.method.to_owned(), route.path.to_owned()));
        let heads = [(
            "HEAD".to_owned(),
            "/v1/namespaces/{namespace}/processes/{name}/output".to_owned(),
        )];
        assert_eq!(described, routes.chain(heads).collect());
        for (name, schema) in [("RemoteProcess", "spec"), ("Attempt", "number")] {
            let schemas = &OPENAPI["components"]["schemas"];
            assert!(schemas[name]["properties"][schema].is_object(), "{name}");
        }
    }
}
