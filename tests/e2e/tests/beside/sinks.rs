//! Sinks: events to an HTTP receiver, who may have a sink, and what the operator makes for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use remoteprocess_e2e::{
    Namespace, Program, Sink, User, is_development_cluster, kubectl, node_address, sha256, spec, until, with_temp_ns,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A user who may do everything with sinks, and these verbs with these resources.
fn limited(namespace: &Namespace, name: &str, more: &[(&[&str], &str)]) -> Result<User> {
    let user = namespace.user(name, None)?;
    let rule = |(verbs, resource): &(&[&str], &str)| json!({"apiGroups": ["remoteprocess.dev"], "resources": [resource], "verbs": verbs});
    let all: (&[&str], _) = (&["*"], "processsinks");
    let rules: Vec<Value> = more.iter().chain([&all]).map(rule).collect();
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": version, "kind": "Role", "metadata": {"name": name}, "rules": rules},
        {"apiVersion": version, "kind": "RoleBinding", "metadata": {"name": name},
         "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
         "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace.name}]},
    ]});
    let apply = namespace.kubectl(&["apply", "--filename=-"]);
    apply.input(objects.to_string()).succeed()?;
    until("their rights", Duration::from_secs(20), || {
        let may = ["auth", "can-i", "create", "processsinks.remoteprocess.dev"];
        Ok(user.kubectl(&may).finish()?.code == 0)
    })?;
    Ok(user)
}

fn denied(program: Program, why: &str) -> Result<()> {
    let finished = program.finish()?;
    ensure!(finished.code != 0, "it was allowed: {finished}");
    finished.expect_stderr(&[why])?;
    Ok(())
}

/// A sink that sends nothing.
fn object(sink: &Sink<'_>) -> Value {
    let destination = json!({"http": {"url": "https://events.example"}});
    sink.object(&destination, json!({"suspend": true, "output": {"as": "Lines"}}))
}

#[test]
fn a_user_who_may_not_read_output_gets_none_by_a_sink() {
    with_temp_ns("reader", |namespace| {
        let sink = Sink::prepare(namespace, "events")?;
        let object = object(&sink);
        let creator: (&[&str], _) = (&["create"], "remoteprocesses");
        let reader: (&[&str], _) = (&["get", "list", "watch"], "remoteprocesses");
        let blind = limited(namespace, "blind", &[])?;
        let log: (&[&str], _) = (&["get"], "remoteprocesses/log");
        let deaf = limited(namespace, "deaf", &[reader, creator])?;
        // A sink gives its author what is in the Secret that it names.
        let bound = limited(namespace, "bound", &[reader, log])?;
        let whole = limited(namespace, "whole", &[reader, creator, log])?;
        let create = |user: &User| {
            let create = ["create", "--dry-run=server", "--filename=-"];
            user.kubectl(&create).input(object.to_string())
        };
        let (running, reading) = (
            "permission to create remoteprocesses",
            "permission to list remoteprocesses",
        );
        for (user, why) in [(&blind, running), (&bound, running), (&deaf, reading)] {
            denied(create(user), why)?;
        }
        create(&whole).succeed()?;

        sink.apply(&object).succeed()?;
        let patch = |patch: Value| {
            let patch = patch.to_string();
            deaf.kubectl(&["patch", "processsink", "events", "--type=merge", "--patch", &patch])
        };
        let elsewhere = json!({"spec": {"destination": {"http": {"url": "https://elsewhere.example"}}}});
        denied(patch(elsewhere), reading)?;
        denied(patch(json!({"spec": {"suspend": null}})), reading)?;
        // As the garbage collector does, which may not read output either.
        patch(json!({"metadata": {"labels": {"team": "blue"}}})).succeed()?;
        deaf.kubectl(&["delete", "processsink", "events"]).succeed()?;

        let elsewhere = kubectl(["create", "--dry-run=server", "--namespace=kube-system", "--filename=-"]);
        denied(elsewhere.input(object.to_string()), "excludedNamespaces")
    });
}

/// As `a_stolen_operator_token_creates_only_bridges_of_our_form`.
#[test]
fn a_stolen_operator_token_gives_a_bridge_only_the_login_at_the_relay() {
    with_temp_ns("login", |namespace| {
        let sink = Sink::prepare(namespace, "events")?;
        sink.apply(&object(&sink)).succeed()?;
        sink.wait_for("Deployed", "True", "events-sink", 90)?;
        let get = ["get", "deployment", "events-sink", "--output=json"];
        let found = namespace.kubectl(&get).json()?;
        let metadata = &found["metadata"];
        let deployment = json!({
            "apiVersion": found["apiVersion"], "kind": found["kind"], "spec": found["spec"],
            "metadata": {"name": "stolen", "labels": metadata["labels"], "ownerReferences": metadata["ownerReferences"]},
        });
        let account = "--as=system:serviceaccount:remoteprocess-system:remoteprocess-operator";
        let create = |object: &Value| {
            let create = [account, "create", "--dry-run=server", "--filename=-"];
            namespace.kubectl(&create).input(object.to_string())
        };
        create(&deployment).succeed()?;
        let sources = "/spec/template/spec/volumes/0/projected/sources";
        let token = |audience: Value| json!([{"serviceAccountToken": {"audience": audience, "path": "token"}}]);
        for other in [
            token(json!("https://kubernetes.default.svc")),
            token(Value::Null),
            json!([{"secret": {"name": "other"}}]),
        ] {
            let mut object = deployment.clone();
            *object.pointer_mut(sources).context("a projected volume")? = other;
            denied(create(&object), "other volumes")?;
        }
        Ok(())
    });
}

const BEARER: &str = "Bearer a-token-of-the-receiver";

/// Events as they arrived, and the statuses that they got.
type Arrivals = Arc<Mutex<Vec<(Value, StatusCode)>>>;

/// Takes each event, but says at each second one that it could not.
async fn take(State(arrivals): State<Arrivals>, headers: HeaderMap, body: String) -> StatusCode {
    let is = |name, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    let event = serde_json::from_str(&body).unwrap_or(Value::String(body));
    let status = match arrivals.len() % 2 {
        _ if !is(AUTHORIZATION, BEARER) => StatusCode::UNAUTHORIZED,
        _ if !is(CONTENT_TYPE, "application/cloudevents+json") => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        0 => StatusCode::NO_CONTENT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    arrivals.push((event, status));
    status
}

/// A receiver on the node, at `/events` of the URL.
fn receive(runtime: &Runtime) -> Result<(String, Arrivals)> {
    let arrivals = Arrivals::default();
    let router = Router::new().route("/events", post(take)).with_state(arrivals.clone());
    let listener = runtime.block_on(TcpListener::bind((node_address()?, 0)))?;
    let url = format!("http://{}/events", listener.local_addr()?);
    runtime.spawn(async move { axum::serve(listener, router).await });
    Ok((url, arrivals))
}

#[test]
fn an_http_receiver_gets_each_event_again_until_it_has_taken_it() {
    if !is_development_cluster("a receiver on the node") {
        return;
    }
    with_temp_ns("receiver", |namespace| {
        let runtime = Runtime::new()?;
        let (url, arrivals) = receive(&runtime)?;
        let token = format!("--from-literal=token={}", BEARER.trim_start_matches("Bearer "));
        let secret = ["create", "secret", "generic", "receiver", &token];
        namespace.kubectl(&secret).succeed()?;
        let sink = Sink::prepare(namespace, "events")?;
        let destination = json!({"http": {"url": url, "credentialsSecretName": "receiver"}});
        sink.apply(&sink.object(&destination, json!({"output": {"as": "Lines"}})))
            .succeed()?;
        namespace
            .apply("job", spec("echo one; echo two; exit 3", json!({})))
            .succeed()?;
        let arrived = || arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let taken = || -> Vec<Value> {
            let arrived = arrived().into_iter();
            let taken = arrived.filter(|(_, status)| status.is_success());
            taken.map(|(event, _)| event).collect()
        };
        let last = |events: &[Value]| events.last().is_some_and(|event| kind(event) == "finished");
        until("the last event", Duration::from_secs(120), || Ok(last(&taken())))
            .with_context(|| format!("{:#?}", arrived()))?;

        let events = taken();
        let kinds: Vec<&str> = events.iter().map(kind).collect();
        let wanted = [
            "created",
            "starting",
            "started",
            "output",
            "output",
            "attempt-ended",
            "finished",
        ];
        ensure!(kinds == wanted, "{events:#?}");
        let output: String = events
            .iter()
            .filter_map(|event| event["data"]["text"].as_str())
            .collect();
        let end = &events[events.len() - 1]["data"];
        ensure!(
            output == "one\ntwo\n" && end["stdout"]["sha256"] == sha256(output.as_bytes()),
            "{end:#}"
        );
        ensure!(end["outcome"] == "Failed" && end["exitCode"] == 3, "{end:#}");
        // What it could not take came again, the same in each byte, before anything else.
        for pair in arrived().windows(2).filter(|pair| !pair[0].1.is_success()) {
            ensure!(pair[0].1 == StatusCode::SERVICE_UNAVAILABLE, "{:#?}", pair[0]);
            ensure!(pair[0].0 == pair[1].0, "{pair:#?}");
        }
        until("a status that says so", Duration::from_secs(20), || {
            let listed = namespace.editor.rproc(&["sink", "ls"]).succeed()?;
            let row: Vec<&str> = listed.lines().nth(1).unwrap_or_default().split_whitespace().collect();
            Ok(row.starts_with(&["events", "HTTP", "True", "7", "0"]))
        })
    });
}

/// The type of an event without what all types have in common.
fn kind(event: &Value) -> &str {
    let kind = event["type"].as_str().unwrap_or_default();
    let kind = kind.strip_prefix("dev.remoteprocess.process.");
    kind.and_then(|kind| kind.strip_suffix(".v1")).unwrap_or_default()
}
