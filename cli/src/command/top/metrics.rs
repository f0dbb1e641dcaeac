//! CPU and memory, as the metrics API of Kubernetes has them.

use std::collections::HashMap;

use remoteprocess_api::names;
use remoteprocess_client::Cluster;
use serde::Deserialize;

/// Millicores and bytes of the program's container, by namespace and name of the pod.
pub(super) type Pods = HashMap<(String, String), (Option<u64>, Option<u64>)>;

#[derive(Deserialize)]
struct PodMetricsList {
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: kube::core::ObjectMeta,
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: HashMap<String, String>,
}

/// Asks the metrics API; the error is a sentence.
pub(super) async fn metrics(cluster: &Cluster, is_everywhere: bool) -> Result<Pods, String> {
    let place = match is_everywhere {
        true => String::new(),
        false => format!("namespaces/{}/", cluster.namespace),
    };
    let label = names::LABEL_UID.replace('/', "%2F");
    let url = format!("/apis/metrics.k8s.io/v1beta1/{place}pods?labelSelector={label}");
    let request = http::Request::get(url)
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    let found: Result<PodMetricsList, _> = cluster.client.request(request).await;
    found.map(|found| usages(found.items)).map_err(|error| match error {
        kube::Error::Api(status) if status.code == 404 => {
            "this cluster has no metrics API (metrics.k8s.io); install metrics-server".to_owned()
        }
        other => remoteprocess_client::retry::refusal(&other),
    })
}

fn usages(items: Vec<PodMetrics>) -> Pods {
    let mut found = HashMap::new();
    for PodMetrics { metadata, containers } in items {
        let key = (
            metadata.namespace.unwrap_or_default(),
            metadata.name.unwrap_or_default(),
        );
        if let Some(main) = containers.iter().find(|each| each.name == names::CONTAINER_MAIN) {
            let amount = |resource| main.usage.get(resource).and_then(|text| quantity(text));
            let cpu = amount("cpu").map(|cores| (cores * 1000.0).ceil() as u64);
            found.insert(key, (cpu, amount("memory").map(|bytes| bytes as u64)));
        }
    }
    found
}

/// A Kubernetes quantity as a number: `250m`, `12345678n`, `34Mi`, `1e3`.
fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|character: char| !character.is_ascii_digit() && !".+-".contains(character));
    let (number, suffix) = match text.parse::<f64>() {
        Ok(number) => (number, ""),
        Err(_) => (text.get(..end?)?.parse().ok()?, text.get(end?..)?),
    };
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number = number * scale;
    (number >= 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_the_metrics_api() {
        for (text, expected) in [
            ("250m", Some(0.25)),
            ("12345678n", Some(0.012_345_678)),
            ("34Mi", Some(34.0 * 1024.0 * 1024.0)),
            ("2", Some(2.0)),
            ("1e3", Some(1000.0)),
            ("", None),
            ("Mi", None),
            ("3Xi", None),
            ("-1", None),
        ] {
            let found = quantity(text);
            let is_equal = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
                (found, expected) => found == expected,
            };
            assert!(is_equal, "{text}: {found:?}");
        }
    }

    #[test]
    fn the_container_of_the_program_counts() {
        let metrics: PodMetricsList = serde_json::from_value(serde_json::json!({"items": [{
            "metadata": {"namespace": "a", "name": "build-7"},
            "containers": [
                {"name": "rproc-agent", "usage": {"cpu": "9", "memory": "9Gi"}},
                {"name": "main", "usage": {"cpu": "1500001n", "memory": "34816Ki"}},
            ],
        }]}))
        .unwrap();
        let key = ("a".to_owned(), "build-7".to_owned());
        assert_eq!(usages(metrics.items), HashMap::from([(key, (Some(2), Some(34 << 20)))]));
    }
}
