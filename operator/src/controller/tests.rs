mod budget;
mod lives;
mod pauses;
mod stage;
mod traces;

use std::sync::Mutex;

use http::Method;
use kube::runtime::reflector;
use serde_json::{Value, json};

use super::*;
use crate::fake_api::{self, Call, refusal};

fn process() -> RemoteProcess {
    serde_saphyr::from_str(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
         metadata: {name: hello, namespace: team, uid: u, resourceVersion: '7', generation: 1}\n\
         spec: {image: busybox, command: [id]}\n",
    )
    .unwrap()
}

pub(super) fn agent() -> AgentSettings {
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
        handover: Handover::default(),
        request_ephemeral_storage: false,
        traceparent: None,
    }
}

/// An API server that stores the status that it is given, and answers a new pod with `created`.
struct Server {
    calls: Arc<Mutex<Vec<Call>>>,
    context: Arc<Context>,
}

impl Server {
    fn start(status: Option<u16>, created: fn(&Call) -> (u16, Value)) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let mut version = 7;
        let client = fake_api::client(move |call: Call| {
            seen.lock().unwrap().push(call.clone());
            match (&call.method, status) {
                (&Method::GET, _) if call.path.ends_with("/hello") => {
                    let mut object = serde_json::to_value(process()).unwrap();
                    object["metadata"]["resourceVersion"] = json!(version.to_string());
                    (200, object)
                }
                (&Method::PUT, Some(code)) => refusal(code, "Conflict"),
                (&Method::PUT, None) => {
                    version += 1;
                    let mut object = serde_json::to_value(process()).unwrap();
                    object["metadata"]["resourceVersion"] = json!(version.to_string());
                    object["status"] = call.body["status"].clone();
                    (200, object)
                }
                _ if call.path.ends_with("/pods") => created(&call),
                _ => (201, call.body),
            }
        });
        let (pods, _writer) = reflector::store();
        let config = Config {
            agent: agent(),
            ca_bundle: Arc::new(|| "CA".into()),
            namespaces: vec![],
            traces: false,
        };
        let reporter = Reporter::new(client.clone());
        let context = Context {
            client,
            config,
            pods,
            in_memory: InMemory::default(),
            reporter,
            detected: handover::Detected::default(),
            clock: Arc::new(Timestamp::now),
        };
        Self {
            calls,
            context: Arc::new(context),
        }
    }

    async fn reconcile(&self, process: &RemoteProcess) -> Result<Option<Duration>, Error> {
        reconcile(Arc::new(process.clone()), self.context.clone()).await
    }

    fn calls(&self) -> Vec<(Method, String)> {
        let calls = self.calls.lock().unwrap();
        calls
            .iter()
            .map(|call| (call.method.clone(), call.path.rsplit('/').next().unwrap().to_owned()))
            .collect()
    }

    fn body(&self, index: usize) -> Value {
        self.calls.lock().unwrap()[index].body.clone()
    }
}

fn stored(call: &Call) -> (u16, Value) {
    let mut pod = call.body.clone();
    pod["metadata"]["uid"] = json!("p");
    (201, pod)
}

#[tokio::test]
async fn the_attempt_is_recorded_before_its_pod_is_created() {
    let server = Server::start(None, stored);
    server.reconcile(&process()).await.unwrap();
    assert_eq!(
        server.calls(),
        [(Method::PUT, "status".into()), (Method::POST, "pods".into())]
    );
    assert_eq!(server.body(0)["status"]["attempt"], 1);
    assert_eq!(
        server.body(0)["status"]["attempts"][0]["podName"],
        server.body(1)["metadata"]["name"]
    );
    let env = server.body(1)["spec"]["initContainers"][0]["env"].to_string();
    assert!(
        env.contains(r#"{"name":"RPROC_CA_BUNDLE","value":"CA"}"#),
        "the bundle of this moment: {env}"
    );
}

#[tokio::test]
async fn an_attempt_that_another_operator_began_gets_its_pod_only_where_the_cache_is_not_behind() {
    let server = Server::start(None, stored);
    server.reconcile(&process()).await.unwrap();
    let mut begun = process();
    begun.status = serde_json::from_value(server.body(0)["status"].clone()).unwrap();
    for (version, is_created) in [("6", false), ("7", true)] {
        let server = Server::start(None, stored);
        begun.metadata.resource_version = Some(version.into());
        let outcome = server.reconcile(&begun).await;
        assert_eq!(outcome.is_ok(), is_created, "{outcome:?}");
        let calls = server.calls();
        assert_eq!(calls[0], (Method::GET, "hello".into()));
        assert_eq!(calls.contains(&(Method::POST, "pods".into())), is_created, "{calls:?}");
    }
}

#[tokio::test]
async fn without_the_record_there_is_no_pod() {
    let server = Server::start(Some(409), stored);
    let outcome = server.reconcile(&process()).await;
    assert!(matches!(outcome, Err(Error::Conflict(_))), "{outcome:?}");
    assert_eq!(server.calls(), [(Method::PUT, "status".into())]);
}

#[tokio::test]
async fn an_api_server_that_keeps_failing_is_reported_in_the_status() {
    let server = Server::start(None, |_| refusal(500, "etcdserver: request is too large"));
    let process = process();
    for _ in 0..DISTRUST {
        let outcome = server.reconcile(&process).await;
        assert!(matches!(outcome, Err(Error::Apply(_))), "{outcome:?}");
        server.context.in_memory.count_failure(&process);
    }
    server.reconcile(&process).await.unwrap();
    let status = server.body(server.calls().len() - 1)["status"].clone();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Pending"), &json!("Admission"))
    );
    assert!(status["message"].to_string().contains("code 500"), "{status}");
}

#[tokio::test]
async fn a_refusal_is_written_on_top_of_the_record() {
    let server = Server::start(None, |_| {
        let (code, mut status) = refusal(403, "Forbidden");
        status["message"] = json!("pods \"x\" is forbidden: exceeded quota: q");
        (code, status)
    });
    server.reconcile(&process()).await.unwrap();
    let calls = server.calls();
    assert_eq!(
        calls.iter().map(|(method, _)| method).collect::<Vec<_>>(),
        ["PUT", "POST", "PUT"]
    );
    let last = server.body(2);
    assert_eq!(
        last["metadata"]["resourceVersion"], "8",
        "the version of the first write"
    );
    assert_eq!(
        (&last["status"]["phase"], &last["status"]["reason"]),
        (&json!("Pending"), &json!("Quota"))
    );
}

#[tokio::test]
async fn a_cache_that_is_behind_decides_nothing() {
    let server = Server::start(None, stored);
    server.reconcile(&process()).await.unwrap();
    let outcome = server.reconcile(&process()).await;
    assert!(matches!(outcome, Err(Error::Conflict(_))), "{outcome:?}");
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn a_process_at_rest_costs_nothing() {
    let mut ended = process();
    ended.status = Some(serde_saphyr::from_str("{phase: Succeeded, observedGeneration: 1, attempt: 1, attempts: [{number: 1, podUid: p, grantedAt: '2026-01-01T00:00:00Z', exit: {code: 0, source: Entrypoint}}]}").unwrap());
    let server = Server::start(None, stored);
    let action = server.reconcile(&ended).await.unwrap();
    assert_eq!((server.calls().len(), action), (0, None));
}

#[tokio::test]
async fn a_phase_is_reported_once() {
    let mut invalid = process();
    invalid.spec.volume_mounts = serde_saphyr::from_str("[{name: x, mountPath: /.rproc}]").unwrap();
    let server = Server::start(None, stored);
    server.reconcile(&invalid).await.unwrap();
    assert_eq!(
        server.calls(),
        [(Method::PUT, "status".into()), (Method::POST, "events".into())]
    );
    assert_eq!(
        (&server.body(1)["reason"], &server.body(1)["type"]),
        (&json!("InvalidSpec"), &json!("Warning"))
    );
}

#[test]
fn failures_are_retried_ever_more_slowly() {
    let error = Error::Apply(kube::Error::LinesCodecMaxLineLengthExceeded);
    let waits: Vec<_> = (1..=20).map(|failures| error.retry(failures)).collect();
    assert!(waits.is_sorted());
    assert_eq!(
        (waits[0], waits[19]),
        (Duration::from_millis(200), Duration::from_secs(20))
    );
}
