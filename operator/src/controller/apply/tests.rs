use std::sync::{Arc, Mutex};

use rstest::rstest;
use serde_json::{Value, json};

use super::super::validate::validate;
use super::*;
use crate::fake_api::{self, Call};

const UID: &str = "6e2c";

fn process() -> RemoteProcess {
    serde_saphyr::from_str(&format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
         metadata: {{name: hello, namespace: team, uid: {UID}}}\nspec: {{image: busybox, command: [id]}}\n"
    ))
    .unwrap()
}

fn settings() -> AgentSettings {
    AgentSettings {
        image: "agent".into(),
        image_pull_policy: None,
        image_pull_secrets: vec![],
        relay: "relay:8443".into(),
        relay_enroll: "relay:8444".into(),
        ca_bundle: String::new(),
        trust_domain: "remoteprocess.local".into(),
        drain_seconds: 30,
        listen_port: 20443,
        resources: k8s_openapi::api::core::v1::ResourceRequirements::default(),
        handover: crate::controller::Handover::default(),
        request_ephemeral_storage: false,
        traceparent: None,
    }
}

fn failure(code: u16, reason: &str, message: &str, cause: Option<&str>) -> (u16, Value) {
    let causes: Vec<Value> = cause.into_iter().map(|reason| json!({"reason": reason})).collect();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code, "details": {"causes": causes},
    });
    (code, status)
}

/// Applies with an API server that gives these answers, and returns the calls that it received.
async fn applied(answers: Vec<(u16, Value)>) -> (Result<Applied, Error>, Vec<Call>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut answers) = (calls.clone(), answers.into_iter());
    let client = fake_api::client(move |call: Call| {
        let answer = answers.next().unwrap_or_else(|| panic!("not expected: {call:?}"));
        seen.lock().unwrap().push(call);
        answer
    });
    let process = process();
    let outcome = apply(&client, &process, &validate(&process).unwrap(), 1, &settings()).await;
    let calls = calls.lock().unwrap().clone();
    (outcome, calls)
}

fn pod_of(uid: &str) -> (u16, Value) {
    let owner = json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "hello",
        "uid": uid, "controller": true});
    (
        200,
        json!({"metadata": {"name": "hello-x", "uid": "p", "ownerReferences": [owner]}}),
    )
}

#[tokio::test]
async fn adopts_its_own_pod_and_no_other() {
    let exists = || failure(409, "AlreadyExists", "pods \"hello-x\" already exists", None);
    let (own, _) = applied(vec![exists(), pod_of(UID)]).await;
    assert!(matches!(own, Ok(Applied::Pod(_))), "{own:?}");
    let (foreign, calls) = applied(vec![exists(), pod_of("another")]).await;
    assert!(matches!(foreign, Ok(Applied::Foreign(_))), "{foreign:?}");
    assert_eq!(calls.len(), 2, "a foreign pod is not changed");
}

#[tokio::test]
async fn answers_pod_security_once_with_the_restricted_profile() {
    let refusal = || {
        failure(
            403,
            "Forbidden",
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"",
            None,
        )
    };
    let (outcome, calls) = applied(vec![refusal(), refusal()]).await;
    let Ok(Applied::Refused(refused)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((refused.reason, refused.is_final), (Reason::Admission, false));
    let context = |call: &Call| call.body["spec"]["containers"][0]["securityContext"].clone();
    assert_eq!(context(&calls[0])["runAsNonRoot"], Value::Null);
    assert_eq!(context(&calls[1])["runAsNonRoot"], json!(true));
    assert_eq!(context(&calls[1])["capabilities"], json!({"drop": ["ALL"]}));
}

#[rstest]
#[case::quota(
    403,
    "Forbidden",
    "pods \"x\" is forbidden: exceeded quota: pods, requested: pods=1",
    Reason::Quota,
    false
)]
#[case::limit(
    403,
    "Forbidden",
    "pods \"x\" is forbidden: maximum memory usage per Container is 1Gi",
    Reason::Admission,
    false
)]
#[case::webhook(
    400,
    "BadRequest",
    "admission webhook \"a.b\" denied the request: no",
    Reason::Admission,
    false
)]
#[case::quantity(
    400,
    "BadRequest",
    "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression",
    Reason::InvalidSpec,
    true
)]
#[case::policy(
    422,
    "Invalid",
    "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
    Reason::Admission,
    false
)]
#[case::webhook_down(
    500,
    "InternalError",
    "Internal error occurred: failed calling webhook \"a.b\": failed to call webhook: connection refused",
    Reason::Admission,
    false
)]
#[tokio::test]
async fn keeps_the_api_servers_sentence(
    #[case] code: u16,
    #[case] reason: &str,
    #[case] message: &str,
    #[case] expected: Reason,
    #[case] is_final: bool,
) {
    let (outcome, _) = applied(vec![failure(code, reason, message, None)]).await;
    let Ok(Applied::Refused(refused)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        refused,
        Refusal {
            reason: expected,
            message: message.into(),
            is_final
        }
    );
}

/// A refusal by the API server's validation of one field.
fn invalid(field: &str, message: &str) -> (u16, Value) {
    let cause = json!({"reason": "FieldValueInvalid", "field": field, "message": message});
    let (code, mut status) = failure(
        422,
        "Invalid",
        &format!("Pod \"x\" is invalid: {field}: {message}"),
        None,
    );
    status["details"]["causes"] = json!([cause]);
    (code, status)
}

#[tokio::test]
async fn only_what_was_sent_makes_the_specification_invalid() {
    let own = invalid("spec.containers[0].image", "Invalid value: \"busybox\": no");
    let limit = "Invalid value: \"64Mi\": must be less than or equal to memory limit of 32Mi";
    let limit = invalid("spec.initContainers[0].resources.requests", limit);
    for (answer, expected) in [(own, (Reason::InvalidSpec, true)), (limit, (Reason::Admission, false))] {
        let (outcome, _) = applied(vec![answer]).await;
        let Ok(Applied::Refused(refused)) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((refused.reason, refused.is_final), expected, "{}", refused.message);
        assert_eq!(
            refused.message.contains("LimitRange"),
            !refused.is_final,
            "{}",
            refused.message
        );
    }
}

#[tokio::test]
async fn leaves_a_namespace_that_is_going_in_peace() {
    let (outcome, _) = applied(vec![failure(
        403,
        "Forbidden",
        "terminated",
        Some("NamespaceTerminating"),
    )])
    .await;
    assert_eq!(outcome.unwrap(), Applied::Leaving);
}

#[tokio::test]
async fn an_api_server_in_trouble_has_decided_nothing() {
    for (code, reason) in [(500, "InternalError"), (429, "TooManyRequests"), (409, "Conflict")] {
        let (outcome, _) = applied(vec![failure(code, reason, "later", None)]).await;
        assert!(matches!(outcome, Err(Error::Apply(_))), "{code}: {outcome:?}");
    }
}
