//! What a token and a pod prove: pure decisions.

use std::collections::BTreeMap;

use k8s_openapi::api::{authentication::v1::TokenReviewStatus, core::v1::Pod};
use remoteprocess_api::{RemoteProcess, names};

/// Extra claims of a token that is bound to a pod (Kubernetes documents both).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Kind of the object that owns the pods.
const KIND: &str = "RemoteProcess";

/// One attempt of one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub process_uid: String,
    pub number: u32,
}

/// The pod to which the kubelet bound a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
}

/// Reads the API server's answer about the token of an agent. The error is for the log.
pub(crate) fn read_review(status: TokenReviewStatus) -> Result<Bound, String> {
    let name = check_review(&status, names::ENROLL_AUDIENCE)?;
    let namespace = namespace(&name).ok_or_else(|| format!("{name:?} is no ServiceAccount"))?;
    let extra = status.user.unwrap_or_default().extra.unwrap_or_default();
    Ok(Bound {
        namespace,
        pod_name: claim(&extra, POD_NAME)?,
        pod_uid: claim(&extra, POD_UID)?,
    })
}

/// The user name of a token that the API server accepts for `audience`. The error is for the log.
pub(super) fn check_review(status: &TokenReviewStatus, audience: &str) -> Result<String, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.clone().unwrap_or_else(|| "not authenticated".to_owned()));
    }
    // An authenticator that does not know audiences leaves them out: then the token may be for anything.
    if !status.audiences.iter().flatten().any(|known| known == audience) {
        return Err("it is of another audience".to_owned());
    }
    let user = status.user.as_ref();
    Ok(user.and_then(|user| user.username.clone()).unwrap_or_default())
}

/// Namespace of a ServiceAccount.
pub(super) fn namespace(user: &str) -> Option<String> {
    let (namespace, account) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !account.is_empty()).then(|| namespace.to_owned())
}

fn claim(extra: &BTreeMap<String, Vec<String>>, name: &str) -> Result<String, String> {
    match extra.get(name).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(format!("it is bound to no pod: {name} is missing")),
    }
}

/// Name of the process to which the pod claims to belong. It proves nothing: the creator of a pod can write any name.
pub(crate) fn claimed_owner(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let group = format!("{}/", names::GROUP);
    owners
        .iter()
        .find(|owner| owner.controller == Some(true) && owner.kind == KIND && owner.api_version.starts_with(&group))
        .map(|owner| owner.name.as_str())
}

/// Whether the token is bound to this pod, and the pod has not ended. The error is for the peer.
pub(crate) fn check_pod(pod: &Pod, bound: &Bound) -> Result<(), &'static str> {
    if pod.metadata.uid.as_deref() != Some(&bound.pod_uid) {
        return Err("it was replaced by another one of the same name");
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        Some("Succeeded" | "Failed") => Err("it has ended"),
        _ => Ok(()),
    }
}

/// Whether the process in the pod's own namespace names this pod for this attempt. Only the operator writes the status,
/// and it names the pod before it creates it; so every replica gives the same answer, before and after a restart. The
/// error is for the peer.
pub(crate) fn check_process(process: &RemoteProcess, bound: &Bound, attempt: &Attempt) -> Result<(), &'static str> {
    let is_of_namespace = process.metadata.namespace.as_deref() == Some(&bound.namespace);
    if !is_of_namespace || process.metadata.uid.as_deref() != Some(&attempt.process_uid) {
        return Err("the process is not one of its namespace");
    }
    let status = process.status.as_ref();
    let Some(record) = status.and_then(|status| status.attempt(attempt.number)) else {
        return Err("the process has no such attempt");
    };
    let is_named = record.pod_name.as_deref() == Some(&bound.pod_name);
    if !is_named || record.pod_uid.as_ref().is_some_and(|uid| *uid != bound.pod_uid) {
        return Err("the process names another pod for this attempt");
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
            "audiences": ["remoteprocess.dev/enroll"],
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
                "ownerReferences": [{
                    "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "hello",
                    "uid": "process-uid-1", "controller": true,
                }],
            },
            "status": {"phase": "Pending"},
        })
    }

    pub(in super::super) fn process() -> Value {
        json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "hello", "namespace": "default", "uid": "process-uid-1"},
            "spec": {"image": "busybox", "command": ["true"]},
            "status": {"attempt": 2, "attempts": [
                {"number": 1, "podName": "hello-0", "podUid": "pod-uid-0"},
                {"number": 2, "podName": "hello-1"},
            ]},
        })
    }

    fn bound() -> Bound {
        Bound {
            namespace: "default".into(),
            pod_name: "hello-1".into(),
            pod_uid: "pod-uid-1".into(),
        }
    }

    fn check(process: Value) -> Result<(), &'static str> {
        let attempt = Attempt {
            process_uid: "process-uid-1".into(),
            number: 2,
        };
        check_process(&serde_json::from_value(process).expect("a process"), &bound(), &attempt)
    }

    fn check_phase(pod: Value) -> Result<(), &'static str> {
        check_pod(&serde_json::from_value(pod).expect("a pod"), &bound())
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
        assert_eq!(check_phase(pod()), Ok(()));
        let mut ending = pod();
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(
            check_phase(ending),
            Ok(()),
            "an agent that ends still has output to hand over"
        );
        assert_eq!(check(process()), Ok(()), "its uid is not in the status yet");
        let mut seen = process();
        seen["status"]["attempts"][1]["podUid"] = "pod-uid-1".into();
        assert_eq!(check(seen), Ok(()));
    }

    #[rstest]
    #[case::replaced("/metadata/uid", json!("pod-uid-2"))]
    #[case::ended("/status/phase", json!("Failed"))]
    fn a_pod_that_is_over_is_not(#[case] pointer: &str, #[case] value: Value) {
        let mut pod = pod();
        *pod.pointer_mut(pointer).expect("a field") = value;
        assert!(check_phase(pod).is_err());
    }

    #[rstest]
    #[case::orphan("/metadata/ownerReferences", Value::Null)]
    #[case::of_a_job("/metadata/ownerReferences/0/kind", json!("Job"))]
    #[case::of_a_namesake("/metadata/ownerReferences/0/apiVersion", json!("remoteprocess.dev.evil/v1"))]
    #[case::not_controlled("/metadata/ownerReferences/0/controller", json!(false))]
    fn other_pods_name_no_process(#[case] pointer: &str, #[case] value: Value) {
        let mut pod = pod();
        *pod.pointer_mut(pointer).expect("a field") = value;
        assert_eq!(claimed_owner(&serde_json::from_value(pod).expect("a pod")), None);
    }

    #[rstest]
    #[case::elsewhere("/metadata/namespace", json!("victim"))]
    #[case::another_process("/metadata/uid", json!("process-uid-2"))]
    #[case::before_the_operator_saw_it("/status", Value::Null)]
    #[case::before_the_attempt("/status/attempts", json!([]))]
    #[case::no_pod_named("/status/attempts/1/podName", Value::Null)]
    #[case::another_pod("/status/attempts/1/podName", json!("hello-7"))]
    #[case::another_pod_of_the_name("/status/attempts/1", json!({"number": 2, "podName": "hello-1", "podUid": "x"}))]
    fn only_what_the_status_names_is_bound(#[case] pointer: &str, #[case] value: Value) {
        let mut process = process();
        match process.pointer_mut(pointer) {
            Some(field) => *field = value,
            None => panic!("no field {pointer}"),
        }
        assert!(check(process).is_err());
    }
}
