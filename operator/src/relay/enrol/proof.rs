//! What a token and a pod prove: pure decisions.

use std::collections::BTreeMap;

use k8s_openapi::api::{authentication::v1::TokenReviewStatus, core::v1::Pod};
use remoteprocess_api::names;

/// Extra claims of a token that is bound to a pod (Kubernetes documents both).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Kind of the object that owns the pods.
const KIND: &str = "RemoteProcess";

/// One attempt of one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub process_uid: String,
    pub number: u32,
}

/// The pod to which the kubelet bound a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
}

/// Reads the API server's answer about a token. The error is for the log.
pub(super) fn read_review(status: TokenReviewStatus) -> Result<Bound, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.unwrap_or_else(|| "not authenticated".to_owned()));
    }
    // An authenticator that knows nothing of audiences leaves them out: then the token may be anybody's.
    if !status
        .audiences
        .unwrap_or_default()
        .iter()
        .any(|audience| audience == names::ENROL_AUDIENCE)
    {
        return Err("it is of another audience".to_owned());
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let namespace = namespace(&name).ok_or_else(|| format!("{name:?} is no ServiceAccount"))?;
    let extra = user.extra.unwrap_or_default();
    Ok(Bound {
        namespace,
        pod_name: claim(&extra, POD_NAME)?,
        pod_uid: claim(&extra, POD_UID)?,
    })
}

fn namespace(user: &str) -> Option<String> {
    let (namespace, account) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !account.is_empty()).then(|| namespace.to_owned())
}

fn claim(extra: &BTreeMap<String, Vec<String>>, name: &str) -> Result<String, String> {
    match extra.get(name).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(format!("it is bound to no pod: {name} is missing")),
    }
}

/// Whether the pod is the one that the token is bound to, and one of this attempt. The error is for the peer.
pub(super) fn check_pod(pod: &Pod, bound: &Bound, attempt: &Attempt) -> Result<(), &'static str> {
    if pod.metadata.uid.as_deref() != Some(&bound.pod_uid) {
        return Err("it was replaced by another one of the same name");
    }
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let group = format!("{}/", names::GROUP);
    let is_owned = owners.iter().any(|owner| {
        owner.controller == Some(true)
            && owner.kind == KIND
            && owner.api_version.starts_with(&group)
            && owner.uid == attempt.process_uid
    });
    if !is_owned {
        return Err("the process does not own it");
    }
    let labels = pod.metadata.labels.as_ref();
    let label = |name| labels.and_then(|labels| labels.get(name)).map(String::as_str);
    if label(names::LABEL_ATTEMPT) != Some(&attempt.number.to_string()) {
        return Err("it is of another attempt");
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err("it has ended");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    pub(in super::super) fn review() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["remoteprocess.dev/enrol"],
            "user": {
                "username": "system:serviceaccount:default:runner",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["hello-1"],
                    "authentication.kubernetes.io/pod-uid": ["pod-uid-1"],
                },
            },
        })
    }

    pub(in super::super) fn pod() -> Value {
        json!({
            "metadata": {
                "name": "hello-1", "namespace": "default", "uid": "pod-uid-1",
                "labels": {"remoteprocess.dev/attempt": "2"},
                "ownerReferences": [{
                    "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "hello",
                    "uid": "process-uid-1", "controller": true,
                }],
            },
            "status": {"phase": "Pending"},
        })
    }

    fn bound() -> Bound {
        Bound {
            namespace: "default".into(),
            pod_name: "hello-1".into(),
            pod_uid: "pod-uid-1".into(),
        }
    }

    fn check(pod: Value) -> Result<(), &'static str> {
        let attempt = Attempt {
            process_uid: "process-uid-1".into(),
            number: 2,
        };
        check_pod(&serde_json::from_value(pod).expect("a pod"), &bound(), &attempt)
    }

    #[test]
    fn a_bound_token_names_its_pod() {
        assert_eq!(
            read_review(serde_json::from_value(review()).expect("a review")),
            Ok(bound())
        );
    }

    #[rstest]
    #[case::refused("/authenticated", json!(false))]
    #[case::of_the_api_server("/audiences", json!(["https://kubernetes.default.svc"]))]
    #[case::of_no_audience("/audiences", Value::Null)]
    #[case::of_a_person("/user/username", json!("alice"))]
    #[case::of_no_namespace("/user/username", json!("system:serviceaccount::runner"))]
    #[case::bound_to_nothing("/user/extra", Value::Null)]
    #[case::bound_to_two("/user/extra/authentication.kubernetes.io~1pod-uid", json!(["a", "b"]))]
    fn other_tokens_prove_nothing(#[case] pointer: &str, #[case] value: Value) {
        let mut review = review();
        *review.pointer_mut(pointer).expect("a field") = value;
        assert!(read_review(serde_json::from_value(review).expect("a review")).is_err());
    }

    #[test]
    fn the_pod_of_the_attempt_is_taken() {
        assert_eq!(check(pod()), Ok(()));
        let mut ending = pod();
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(
            check(ending),
            Ok(()),
            "an agent that ends still has output to hand over"
        );
    }

    #[rstest]
    #[case::replaced("/metadata/uid", json!("pod-uid-2"))]
    #[case::orphan("/metadata/ownerReferences", Value::Null)]
    #[case::of_another_process("/metadata/ownerReferences/0/uid", json!("process-uid-2"))]
    #[case::of_a_job("/metadata/ownerReferences/0/kind", json!("Job"))]
    #[case::of_a_namesake("/metadata/ownerReferences/0/apiVersion", json!("remoteprocess.dev.evil/v1"))]
    #[case::not_controlled("/metadata/ownerReferences/0/controller", json!(false))]
    #[case::of_another_attempt("/metadata/labels/remoteprocess.dev~1attempt", json!("1"))]
    #[case::ended("/status/phase", json!("Failed"))]
    fn other_pods_are_not(#[case] pointer: &str, #[case] value: Value) {
        let mut pod = pod();
        *pod.pointer_mut(pointer).expect("a field") = value;
        assert!(check(pod).is_err());
    }
}
