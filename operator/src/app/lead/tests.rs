use std::sync::{Arc, Mutex};

use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::fake_api::{client, refusal};

/// A server with the ConfigMap. Before the first `conflicts` writes, another client writes.
fn server(conflicts: u32) -> (Client, Arc<Mutex<Value>>) {
    let map = json!({"metadata": {"name": names::CONNECT_CONFIG_MAP, "resourceVersion": "1"}});
    let map = Arc::new(Mutex::new(map));
    let (stored, mut left, mut version) = (map.clone(), conflicts, 1);
    let client = client(move |call| {
        let mut map = stored.lock().unwrap();
        if call.method == Method::GET {
            return (200, map.clone());
        }
        if left > 0 {
            left -= 1;
            version += 1;
            map["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        let wanted = &call.body["metadata"];
        if wanted["resourceVersion"] != map["metadata"]["resourceVersion"] {
            return refusal(409, "Conflict");
        }
        version += 1;
        map["metadata"]["resourceVersion"] = json!(version.to_string());
        map["metadata"]["annotations"] = wanted["annotations"].clone();
        (200, map.clone())
    });
    (client, map)
}

#[tokio::test]
async fn of_all_that_ever_lead_one_is_the_first() {
    let (client, map) = server(1);
    let first = || is_first(client.clone(), "system".into());
    let both = tokio::join!(first(), first());
    assert!(both.0 != both.1, "{both:?}");
    assert!(!first().await);
    assert_eq!(
        map.lock().unwrap()["metadata"]["annotations"],
        json!({ANNOTATION_LED: "true"})
    );
}

#[tokio::test]
async fn who_cannot_note_it_is_not_the_first() {
    let (busy, _) = server(u32::MAX);
    assert!(!is_first(busy, "system".into()).await);
    let refuses = client(|_| refusal(403, "Forbidden"));
    assert!(!is_first(refuses, "system".into()).await);
}

/// Versions before this one made it without labels, and held it under the names of their pods.
#[test]
fn the_lease_has_the_labels_of_what_the_operator_makes() {
    let Mark::Labels(labels) = mark() else { panic!("labels") };
    assert_eq!(
        labels,
        [
            ("app.kubernetes.io/name".to_owned(), "remoteprocess-operator".to_owned()),
            (
                "app.kubernetes.io/managed-by".to_owned(),
                "remoteprocess-operator".to_owned()
            )
        ]
    );
}
