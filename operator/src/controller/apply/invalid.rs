//! Decides who is at fault for an invalid pod.
//!
//! The API server validates a pod after admission has changed it: a LimitRange fills in requests and limits, a webhook
//! can change anything. A field that we sent stays invalid, because the spec cannot change. What others added may be
//! valid tomorrow.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::core::Status;
use kube::core::response::StatusCause;
use serde_json::Value;

/// Messages about a relation between a request and a limit (Kubernetes, `validateResourceRequirements`).
const RELATIONS: [&str; 2] = ["must be less than or equal to ", "must be equal to "];

/// Whether the API server rejects a field of the pod as it was sent, so that no retry can succeed.
pub(super) fn is_in(sent: &Pod, status: &Status) -> bool {
    // Neither a ValidatingAdmissionPolicy nor a webhook uses these words.
    let is_validation = status.reason == "Invalid" && status.message.starts_with("Pod \"");
    let value = serde_json::to_value(sent).unwrap_or_default();
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    is_validation && causes.any(|cause| is_sent(&value, cause) && is_of_sender(sent, cause))
}

/// Whether we sent the field, or the object in which it is missing.
fn is_sent(pod: &Value, cause: &StatusCause) -> bool {
    let mut steps = steps(&cause.field);
    let Some(last) = steps.pop() else { return false };
    let Some(parent) = steps.iter().try_fold(pod, |at, step| step.of(at)) else {
        return false;
    };
    match (last.of(parent), refused_value(&cause.message)) {
        // A webhook may have replaced the value.
        (Some(Value::String(sent)), Some(refused)) => *sent == refused,
        (sent, _) => sent.is_some() || cause.reason == "FieldValueRequired",
    }
}

/// The rejected text, if the message contains one: `Invalid value: "x": …`, `Unsupported value: "x": …`.
fn refused_value(message: &str) -> Option<String> {
    let (_, rest) = message.split_once(" value: ")?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    values.next()?.ok()
}

/// Whether the fault is ours: it is no relation between a request and a limit, or we sent both.
fn is_of_sender(sent: &Pod, cause: &StatusCause) -> bool {
    let relation = RELATIONS.iter().find_map(|words| cause.message.split_once(words));
    let Some((_, rest)) = relation.filter(|_| cause.field.contains(".resources.")) else {
        return true;
    };
    let resource = rest.split_once(" limit").map_or(rest, |(name, _)| name);
    let Some(resources) = container_of(sent, &cause.field).and_then(|container| container.resources.as_ref()) else {
        return false;
    };
    let [requests, limits] = [&resources.requests, &resources.limits];
    [requests, limits]
        .into_iter()
        .all(|list| list.as_ref().is_some_and(|list| list.contains_key(resource)))
}

/// The container to which a path such as `spec.containers[0].resources.requests` belongs.
fn container_of<'a>(pod: &'a Pod, field: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let (list, rest) = field.strip_prefix("spec.")?.split_once('[')?;
    let index: usize = rest.split_once(']')?.0.parse().ok()?;
    match list {
        "containers" => spec.containers.get(index),
        "initContainers" => spec.init_containers.as_ref()?.get(index),
        _ => None,
    }
}

/// One step of the path of a field: `.name`, `[0]` or `[key]`.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a>(&'a str);

impl Step<'_> {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match value {
            Value::Array(list) => list.get(self.0.parse::<usize>().ok()?),
            value => value.get(self.0),
        }
    }
}

/// The steps of a path (Kubernetes, `field.Path`). A key in brackets may contain dots.
fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let (step, after) = match rest.strip_prefix('[') {
            Some(inside) => inside.split_once(']').unwrap_or((inside, "")),
            None => {
                let rest = rest.strip_prefix('.').unwrap_or(rest);
                rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()))
            }
        };
        steps.push(Step(step));
        rest = after;
    }
    steps
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn sent() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "x", "labels": {"a.b/c": "?"}},
            "spec": {
                "tolerations": [{"effect": "Never"}],
                "initContainers": [{"name": "rproc-agent", "resources": {"requests": {"memory": "64Mi"}}}],
                "containers": [{
                    "name": "main",
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": ""}}}],
                    "resources": {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "1"}},
                }],
            },
        }))
        .unwrap()
    }

    fn invalid(message: &str, causes: &[(&str, &str, &str)]) -> Status {
        let cause = |(reason, field, message): &(&str, &str, &str)| json!({"reason": reason, "field": field, "message": message});
        let causes: Vec<_> = causes.iter().map(cause).collect();
        serde_json::from_value(json!({
            "status": "Failure", "reason": "Invalid", "code": 422, "message": message, "details": {"causes": causes},
        }))
        .unwrap()
    }

    #[rstest]
    #[case::a_value("FieldValueNotSupported", "spec.tolerations[0].effect", "Unsupported value", true)]
    #[case::a_key("FieldValueInvalid", "metadata.labels[a.b/c]", "Invalid value", true)]
    #[case::a_missing_field(
        "FieldValueRequired",
        "spec.containers[0].env[0].valueFrom.secretKeyRef.key",
        "Required value",
        true
    )]
    #[case::both_sides(
        "FieldValueInvalid",
        "spec.containers[0].resources.requests",
        "Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        true
    )]
    #[case::a_default_limit(
        "FieldValueInvalid",
        "spec.containers[0].resources.requests",
        "Invalid value: \"1Gi\": must be less than or equal to memory limit of 256Mi",
        false
    )]
    #[case::a_default_limit_of_the_agent(
        "FieldValueInvalid",
        "spec.initContainers[0].resources.requests",
        "Invalid value: \"64Mi\": must be less than or equal to memory limit of 32Mi",
        false
    )]
    #[case::a_value_of_a_webhook(
        "FieldValueNotSupported",
        "spec.tolerations[0].effect",
        "Unsupported value: \"Sometimes\": supported values: \"NoSchedule\"",
        false
    )]
    #[case::a_value_that_was_sent(
        "FieldValueNotSupported",
        "spec.tolerations[0].effect",
        "Unsupported value: \"Never\": supported values: \"NoSchedule\"",
        true
    )]
    #[case::a_container_of_a_webhook("FieldValueRequired", "spec.containers[1].image", "Required value", false)]
    #[case::a_volume_of_a_webhook("FieldValueInvalid", "spec.volumes[7].name", "Invalid value", false)]
    #[case::a_field_of_a_webhook("FieldValueInvalid", "spec.priority", "Invalid value", false)]
    fn a_limit_range_or_a_webhook_makes_no_specification_invalid(
        #[case] reason: &str,
        #[case] field: &str,
        #[case] message: &str,
        #[case] expected: bool,
    ) {
        let status = invalid(
            &format!("Pod \"x\" is invalid: {field}: {message}"),
            &[(reason, field, message)],
        );
        assert_eq!(is_in(&sent(), &status), expected);
    }

    #[test]
    fn a_policy_that_answers_422_is_no_validation() {
        let cause = ("FieldValueInvalid", "spec.tolerations[0].effect", "no");
        for message in [
            "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            "admission webhook \"a.b\" denied the request: no",
        ] {
            assert!(!is_in(&sent(), &invalid(message, &[cause])), "{message}");
        }
    }

    #[test]
    fn a_path_is_read_as_the_api_server_writes_it() {
        let words = |path| steps(path).iter().map(|step| step.0.to_owned()).collect::<Vec<_>>();
        assert_eq!(words("spec.containers[0].env"), ["spec", "containers", "0", "env"]);
        assert_eq!(words("metadata.labels[a.b/c].x"), ["metadata", "labels", "a.b/c", "x"]);
        assert!(words("").is_empty());
    }
}
