use std::pin::pin;

use futures::stream;
use http::Method;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use serde_json::Value;

use super::*;
use crate::fake_api::{self, Call, refusal};

fn trigger(source: &str) -> ProcessTrigger {
    serde_saphyr::from_str(&format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: ProcessTrigger\n\
         metadata: {{name: orders, namespace: team, uid: u, generation: 1}}\n\
         spec:\n  serviceAccountName: orders\n  source: {source}\n  template: {{spec: {{image: busybox, command: [id]}}}}\n"
    ))
    .unwrap()
}

fn sink(output: &str) -> ProcessSink {
    serde_saphyr::from_str(&format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: ProcessSink\n\
         metadata: {{name: orders, namespace: team, uid: u, generation: 1}}\n\
         spec:\n  serviceAccountName: orders\n  destination: {{http: {{url: 'https://events.example'}}}}\n{output}"
    ))
    .unwrap()
}

const NATS: &str = "{nats: {servers: ['nats://nats:4222'], stream: ORDERS}}";
const HTTP: &str = "{http: {secretName: key}}";

fn settings() -> BridgeSettings {
    BridgeSettings {
        image: "bridge:1".into(),
        image_pull_policy: None,
        image_pull_secrets: vec![],
        resources: serde_saphyr::from_str("{limits: {memory: 1024Mi}}").unwrap(),
        relay: RelaySettings::default(),
    }
}

/// A Deployment as the API server returns it, with a pod that is ready.
fn running(object: &impl Bridged) -> Deployment {
    let mut deployment = serde_json::to_value(build::build_deployment(object, &settings())).unwrap();
    deployment["metadata"]["uid"] = json!("d");
    deployment["metadata"]["generation"] = json!(1);
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["resources"]["limits"]["memory"] = json!("1Gi");
    container["terminationMessagePath"] = json!("/dev/termination-log");
    deployment["status"] = json!({"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1});
    serde_json::from_value(deployment).unwrap()
}

/// An API server: what it was asked, and a context whose caches the test fills.
struct Server<K: Bridged> {
    calls: Arc<Mutex<Vec<Call>>>,
    context: Context<K>,
    objects: Writer<K>,
    deployments: Writer<Deployment>,
    services: Writer<Service>,
}

impl Server<ProcessTrigger> {
    /// As [`Server::of`], with a trigger.
    fn start(there: Option<Value>, written: fn(&Call) -> (u16, Value)) -> Self {
        Self::of(&trigger(NATS), there, written)
    }
}

impl<K: Bridged> Server<K> {
    /// Answers a read of the Deployment with `there`, a write of it with `written`, and a write of a status with that of
    /// `object`.
    fn of(object: &K, there: Option<Value>, written: fn(&Call) -> (u16, Value)) -> Self {
        let object = serde_json::to_value(object).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let client = fake_api::client(move |call: Call| {
            seen.lock().unwrap().push(call.clone());
            match (&call.method, call.path.rsplit('/').next().unwrap()) {
                (&Method::GET, "pods") => (200, json!({"metadata": {}, "items": []})),
                (&Method::GET, _) => there
                    .clone()
                    .map_or_else(|| refusal(404, "NotFound"), |object| (200, object)),
                (&Method::PATCH, "orders-trigger" | "orders-sink") => written(&call),
                (&Method::PATCH, "status") => {
                    let mut object = object.clone();
                    object["status"] = call.body["status"].clone();
                    (200, object)
                }
                _ => (200, call.body),
            }
        });
        let ((objects, object_writer), (deployments, deployment_writer)) = (reflector::store(), reflector::store());
        let (services, service_writer) = reflector::store();
        Self {
            calls,
            context: Context {
                reporter: Reporter::new(client.clone()),
                client,
                settings: settings(),
                objects,
                deployments,
                services,
                waits: Mutex::default(),
            },
            objects: object_writer,
            deployments: deployment_writer,
            services: service_writer,
        }
    }

    /// Each call since the last time: method, and the last part of the path.
    fn calls(&self) -> Vec<(Method, String)> {
        let calls = self.calls.lock().unwrap();
        let part = |call: &Call| call.path.rsplit('/').next().unwrap().to_owned();
        calls.iter().map(|call| (call.method.clone(), part(call))).collect()
    }

    /// The condition that was written.
    fn condition(&self) -> Value {
        let calls = self.calls.lock().unwrap();
        let status = calls
            .iter()
            .find(|call| call.path.ends_with("/status"))
            .expect("a status");
        assert!(
            status.query.contains("fieldManager=remoteprocess-controller"),
            "{}",
            status.query
        );
        assert_eq!(status.body["metadata"]["uid"], "u", "only this one");
        status.body["status"]["conditions"][0].clone()
    }
}

fn stored(call: &Call) -> (u16, Value) {
    let mut object = call.body.clone();
    object["metadata"]["uid"] = json!("d");
    (200, object)
}

#[tokio::test]
async fn a_new_trigger_gets_its_objects_and_a_condition() {
    let server = Server::start(None, stored);
    assert!(!reconcile(&trigger(HTTP), &server.context).await.unwrap());
    let names = [
        "orders-trigger",
        "orders-trigger",
        "orders-trigger",
        "orders-trigger",
        "pods",
        "status",
    ];
    let methods = [
        Method::GET,
        Method::PATCH,
        Method::GET,
        Method::PATCH,
        Method::GET,
        Method::PATCH,
    ];
    let expected: Vec<_> = methods.into_iter().zip(names.map(str::to_owned)).collect();
    assert_eq!(server.calls(), expected, "a bridge that starts is no Event");
    let calls = server.calls.lock().unwrap().clone();
    assert!(
        calls[1].path.contains("/deployments/") && calls[3].path.contains("/services/"),
        "{calls:?}"
    );
    assert!(
        !calls[1].query.contains("force"),
        "what is not ours is not taken over: {}",
        calls[1].query
    );
    let condition = server.condition();
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("Deployed"), &json!("False"))
    );
}

#[tokio::test]
async fn a_reconcile_that_changes_nothing_makes_no_call() {
    let mut server = Server::start(None, |_| unreachable!("no write"));
    let mut trigger = trigger(NATS);
    server.deployments.apply_watcher_event(&Event::Apply(running(&trigger)));
    assert!(reconcile(&trigger, &server.context).await.unwrap());
    let condition = server.condition();
    assert_eq!(condition["status"], "True", "{condition}");
    assert_eq!(server.calls().last().unwrap().1, "events", "it is reported");
    server.calls.lock().unwrap().clear();
    trigger.status = Some(serde_json::from_value(json!({"conditions": [condition]})).unwrap());
    assert!(reconcile(&trigger, &server.context).await.unwrap());
    assert!(server.calls().is_empty(), "{:?}", server.calls());
}

#[tokio::test]
async fn what_an_administrator_changed_is_put_back() {
    let mut server = Server::start(None, stored);
    let trigger = trigger(NATS);
    let mut changed = running(&trigger);
    changed.spec.as_mut().unwrap().replicas = Some(2);
    server.deployments.apply_watcher_event(&Event::Apply(changed));
    reconcile(&trigger, &server.context).await.unwrap();
    let calls = server.calls.lock().unwrap().clone();
    assert!(calls[0].query.contains("force=true"), "{}", calls[0].query);
    assert_eq!(
        (&calls[0].body["spec"]["replicas"], &calls[0].body["metadata"]["uid"]),
        (&json!(1), &json!("d"))
    );
}

#[tokio::test]
async fn a_deployment_of_another_owner_is_left_alone() {
    let mut foreign = serde_json::to_value(running(&trigger(NATS))).unwrap();
    foreign["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    let server = Server::start(Some(foreign), |_| unreachable!("no write"));
    assert!(!reconcile(&trigger(NATS), &server.context).await.unwrap());
    let condition = server.condition();
    assert_eq!(condition["reason"], "Refused");
    assert!(
        condition["message"].as_str().unwrap().contains("does not control"),
        "{condition}"
    );
    assert_eq!(server.calls().last().unwrap(), &(Method::POST, "events".to_owned()));
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_api_server() {
    let server = Server::start(None, |_| refusal(403, "exceeded quota: small"));
    assert!(!reconcile(&trigger(NATS), &server.context).await.unwrap());
    let condition = server.condition();
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Refused"))
    );
    assert!(
        condition["message"]
            .as_str()
            .unwrap()
            .ends_with("exceeded quota: small"),
        "{condition}"
    );
    let server = Server::start(None, |_| refusal(503, "Unavailable"));
    let error = reconcile(&trigger(NATS), &server.context).await.unwrap_err();
    assert_eq!(error.category(), "apply", "nobody has decided");
}

#[tokio::test]
async fn a_service_ends_with_the_webhook_and_nothing_is_made_for_a_trigger_that_ends() {
    let mut server = Server::start(None, stored);
    let mut nats = trigger(NATS);
    server.deployments.apply_watcher_event(&Event::Apply(running(&nats)));
    let service = build::build_service(&trigger(HTTP)).unwrap();
    let mut foreign = service.clone();
    foreign.metadata.owner_references = None;
    server.services.apply_watcher_event(&Event::Apply(foreign));
    reconcile(&nats, &server.context).await.unwrap();
    assert!(
        !server.calls().iter().any(|(method, _)| *method == Method::DELETE),
        "it is not the trigger's"
    );
    server.services.apply_watcher_event(&Event::Apply(service));
    reconcile(&nats, &server.context).await.unwrap();
    assert!(
        server.calls().contains(&(Method::DELETE, "orders-trigger".to_owned())),
        "{:?}",
        server.calls()
    );

    server.calls.lock().unwrap().clear();
    nats.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
    assert!(reconcile(&nats, &server.context).await.unwrap());
    assert!(server.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_operator_waits_for_a_definition_that_is_not_installed() {
    let count = Arc::new(Mutex::new(0));
    let asked = count.clone();
    let client = fake_api::client(move |call| {
        assert!(call.query.contains("limit=1"), "{}", call.query);
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        match *asked {
            1 | 2 => refusal(404, "NotFound"),
            _ => (200, json!({"metadata": {}, "items": []})),
        }
    });
    let begin = tokio::time::Instant::now();
    installed::<ProcessTrigger>(&client, &Scope::All).await;
    assert_eq!((*count.lock().unwrap(), begin.elapsed()), (3, NOT_INSTALLED * 2));
}

#[tokio::test]
async fn a_bridge_that_does_not_run_is_looked_at_less_and_less_often() {
    let mut server = Server::start(None, stored);
    server.objects.apply_watcher_event(&Event::Apply(trigger(NATS)));
    let reference = ObjectRef::new("orders").within("team");
    let seconds: Vec<_> = (0..6)
        .map(|_| server.context.requeue(&reference, false).unwrap().as_secs())
        .collect();
    assert_eq!(seconds, [2, 4, 8, 16, 30, 30]);
    server.context.requeue(&ObjectRef::new("gone").within("team"), false);
    server.context.requeue(&reference, false);
    assert_eq!(server.context.waits().len(), 1, "triggers that are gone are forgotten");
    assert_eq!(server.context.requeue(&reference, true), None);
    assert!(server.context.waits().is_empty());
}

#[tokio::test]
async fn a_sink_gets_a_deployment_of_its_own_and_no_service() {
    let server = Server::of(&sink(""), None, stored);
    assert!(!reconcile(&sink(""), &server.context).await.unwrap());
    let calls = server.calls.lock().unwrap().clone();
    let deployment = &calls[1].body;
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["kind"], "ProcessSink");
    assert!(!calls.iter().any(|call| call.path.contains("/services/")), "{calls:?}");
    let pods = calls.iter().find(|call| call.path.ends_with("/pods")).unwrap();
    assert!(pods.query.contains("sink-uid"), "{}", pods.query);
    let status = calls.last().unwrap();
    assert!(status.path.ends_with("/processsinks/orders/status"), "{}", status.path);
    assert_eq!(server.condition()["type"], "Deployed");
}

#[tokio::test]
async fn a_deployment_of_a_trigger_is_not_taken_over_by_a_sink() {
    let mut of_trigger = serde_json::to_value(running(&trigger(NATS))).unwrap();
    of_trigger["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    let server = Server::of(&sink(""), Some(of_trigger), |_| unreachable!("no write"));
    assert!(!reconcile(&sink(""), &server.context).await.unwrap());
    let message = server.condition()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("Deployment orders-sink that this sink does not control"),
        "{message}"
    );
}

/// A trigger that was created while nobody led is in the first list.
#[tokio::test]
async fn an_object_is_named_when_the_cache_has_it() {
    let (objects, writer) = reflector::store();
    let events = [Event::Init, Event::InitApply(trigger(NATS)), Event::InitDone].map(Ok);
    let mut named = pin!(watch::references(objects.clone(), writer, stream::iter(events)));
    let reference = named.next().await.unwrap();
    assert!(objects.get(&reference).is_some());
    assert!(named.next().await.is_none());
}
