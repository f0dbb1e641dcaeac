//! The relay allows each user exactly what the API server says, for each method and kind of binding.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use remoteprocess_api::names;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as AttachAsked;
use remoteprocess_proto::v1::exec_request::Request as ExecAsked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, ExecOpen, ExecRequest, GetStateRequest, ListRequest, ProcessKey, SignalRequest,
    StopRequest, WatchOutputRequest,
};
use remoteprocess_tls::Role;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::canaries::CANARY;
use super::target::Target;

/// How long the API server may take to know a binding that it has stored.
const KNOWN: Duration = Duration::from_secs(30);

const PROTO: &str = include_str!("../../../../proto/remoteprocess/v1/relay.proto");

/// Methods of users: name, verb and subresource.
const METHODS: [(&str, &str, &str); 7] = [
    ("GetState", "get", ""),
    ("List", "list", ""),
    ("WatchOutput", "get", "log"),
    ("Signal", "create", "signal"),
    ("Stop", "create", "signal"),
    ("Attach", "create", "attach"),
    ("Exec", "create", "exec"),
];

/// Where a role is bound.
#[derive(Clone, Copy)]
enum Bound {
    /// In the namespace of the process, to the user.
    Here,
    /// In it, to a group of the user.
    Group,
    /// In another namespace.
    Elsewhere,
    /// In all namespaces.
    Everywhere,
    /// Nowhere.
    Nowhere,
}

/// A kind of user: name, verbs, resources, the one name of a process or empty for all, and where that is bound.
type Kind = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
    Bound,
);

const KINDS: [Kind; 14] = [
    ("viewer", &["get", "list", "watch"], &[""], "", Bound::Here),
    ("log-reader", &["get"], &["/log"], "", Bound::Here),
    ("signaler", &["create"], &["/signal"], "", Bound::Here),
    ("writer", &["create"], &["/attach"], "", Bound::Here),
    ("executor", &["create"], &["/exec"], "", Bound::Here),
    (
        "editor",
        &["get", "list", "create"],
        &["", "/log", "/signal", "/attach", "/exec"],
        "",
        Bound::Here,
    ),
    ("wildcard", &["*"], &["*"], "", Bound::Here),
    (
        "wrong-verb",
        &["update", "patch", "delete"],
        &["", "/log", "/signal", "/attach", "/exec"],
        "",
        Bound::Here,
    ),
    (
        "of-one",
        &["get", "list", "create"],
        &["", "/log", "/exec"],
        "target",
        Bound::Here,
    ),
    (
        "of-another",
        &["get", "list", "create"],
        &["", "/log", "/exec"],
        "other",
        Bound::Here,
    ),
    ("member", &["get", "create"], &["/log", "/exec"], "", Bound::Group),
    ("neighbor", &["*"], &["*"], "", Bound::Elsewhere),
    ("cluster-viewer", &["get", "list"], &["", "/log"], "", Bound::Everywhere),
    ("nobody", &[], &[], "", Bound::Nowhere),
];

/// Compares the relay with the API server.
pub(super) async fn check(target: &Target) -> Result<()> {
    for (name, ..) in METHODS {
        ensure!(PROTO.contains(&format!("rpc {name}(")), "there is no method {name}");
    }
    let known = PROTO
        .split("service Enrollment")
        .next()
        .unwrap_or_default()
        .matches("  rpc ")
        .count();
    ensure!(
        known == METHODS.len() + 1,
        "not every method of a user is tried: there are {known} with Start"
    );
    create(
        target,
        "RemoteProcess",
        Some("good"),
        json!({
            "metadata": {"name": "target"}, "spec": {"image": "busybox", "command": ["true", CANARY], "env": [{"name": "SECRET", "value": CANARY}]},
        }),
    )
    .await?;
    let checked = join_all(KINDS.iter().map(|kind| check_kind(target, kind))).await;
    let allowed: usize = checked.into_iter().sum::<Result<usize>>()?;
    let all = KINDS.len() * METHODS.len();
    println!(
        "    {} kinds of users × {} methods: {allowed} of {all} allowed, as by the API server",
        KINDS.len(),
        METHODS.len()
    );
    Ok(())
}

/// The number of methods that a user may call.
async fn check_kind(target: &Target, kind: &Kind) -> Result<usize> {
    let (name, ..) = kind;
    bind(target, kind).await?;
    let groups = [format!("group-of-{name}")];
    let groups: Vec<_> = groups.iter().map(String::as_str).collect();
    let known = timeout(KNOWN, until_known(target, kind, &groups)).await;
    known.with_context(|| format!("the API server does not know the binding of {name}"))??;
    let channel = target
        .user(name, &groups)
        .connect(&target.main.to_string(), &Role::Operator)
        .await?;
    let client = RelayClient::new(channel);
    let mut allowed = 0;
    for (method, verb, subresource) in METHODS {
        let process = if method == "List" { "" } else { "target" };
        let expected = may(target, name, &groups, (verb, subresource), ("good", process)).await?;
        let answered = call(client.clone(), method).await;
        let got = match &answered {
            Err(status) if status.code() == Code::PermissionDenied => false,
            Err(status)
                if [Code::Unauthenticated, Code::Unimplemented, Code::ResourceExhausted].contains(&status.code()) =>
            {
                bail!("{method} by {name}: {status}")
            }
            _ => true,
        };
        ensure!(
            got == expected,
            "{method} by {name}: the API server says {expected}, the relay {answered:?}"
        );
        allowed += usize::from(got);
    }
    Ok(allowed)
}

/// Waits until the API server, which authorizes from a cache, knows what was bound.
async fn until_known(target: &Target, (name, verbs, resources, process, bound): &Kind, groups: &[&str]) -> Result<()> {
    let (Some(verb), Some(resource)) = (verbs.first(), resources.first()) else {
        return Ok(());
    };
    let verb = if *verb == "*" { "get" } else { verb };
    let asked = (verb, resource.trim_start_matches(['/', '*']));
    let namespace = match bound {
        Bound::Elsewhere => "bad",
        _ => "good",
    };
    while !may(target, name, groups, asked, (namespace, process)).await? {
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What the API server says.
async fn may(
    target: &Target,
    user: &str,
    groups: &[&str],
    (verb, subresource): (&str, &str),
    (namespace, name): (&str, &str),
) -> Result<bool> {
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": user, "groups": groups,
        "resourceAttributes": {
            "group": names::GROUP, "resource": "remoteprocesses", "subresource": subresource, "verb": verb,
            "namespace": namespace, "name": name,
        },
    }}))?;
    let answer = Api::all(target.client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn call(mut client: RelayClient<Channel>, method: &str) -> Result<(), Status> {
    let process = || {
        Some(ProcessKey {
            namespace: "good".to_owned(),
            name: "target".to_owned(),
            ..ProcessKey::default()
        })
    };
    let protocol = PROTOCOL;
    match method {
        "GetState" => client
            .get_state(GetStateRequest {
                protocol,
                process: process(),
            })
            .await
            .map(drop),
        "List" => client
            .list(ListRequest {
                protocol,
                namespace: "good".to_owned(),
            })
            .await
            .map(drop),
        "WatchOutput" => {
            let request = WatchOutputRequest {
                protocol,
                process: process(),
                ..WatchOutputRequest::default()
            };
            client.watch_output(request).await.map(drop)
        }
        "Signal" => {
            let request = SignalRequest {
                protocol,
                process: process(),
                number: 10,
                request_id: CANARY.to_owned(),
                ..SignalRequest::default()
            };
            client.signal(request).await.map(drop)
        }
        // Not a valid one: it would end the process.
        "Stop" => {
            let request = StopRequest {
                protocol,
                process: process(),
                signal: Some(1000),
                message: CANARY.to_owned(),
                ..StopRequest::default()
            };
            client.stop(request).await.map(drop)
        }
        _ => call_stream(client, method, process()).await,
    }
}

async fn call_stream(
    mut client: RelayClient<Channel>,
    method: &str,
    process: Option<ProcessKey>,
) -> Result<(), Status> {
    let (protocol, session) = (PROTOCOL, CANARY.to_owned());
    if method == "Attach" {
        let open = AttachOpen {
            protocol,
            process,
            session,
            ..AttachOpen::default()
        };
        let request = AttachRequest {
            request: Some(AttachAsked::Open(open)),
        };
        return client.attach(futures::stream::iter([request])).await.map(drop);
    }
    let command = vec![CANARY.into(), CANARY.into()];
    let open = ExecOpen {
        protocol,
        process,
        session,
        command,
        ..ExecOpen::default()
    };
    let request = ExecRequest {
        request: Some(ExecAsked::Open(open)),
    };
    client.exec(futures::stream::iter([request])).await.map(drop)
}

/// Creates the role and its binding.
async fn bind(target: &Target, (name, verbs, resources, process, bound): &Kind) -> Result<()> {
    let resources: Vec<_> = resources
        .iter()
        .map(|resource| {
            if *resource == "*" {
                "*".to_owned()
            } else {
                format!("remoteprocesses{resource}")
            }
        })
        .collect();
    let mut rule = json!({"apiGroups": [names::GROUP], "resources": resources, "verbs": verbs});
    if !process.is_empty() {
        rule["resourceNames"] = json!([process]);
    }
    let subject = match bound {
        Bound::Group => json!({"kind": "Group", "name": format!("group-of-{name}")}),
        _ => json!({"kind": "User", "name": name}),
    };
    let (kind, namespace) = match bound {
        Bound::Here | Bound::Group => ("Role", Some("good")),
        Bound::Elsewhere => ("Role", Some("bad")),
        Bound::Everywhere => ("ClusterRole", None),
        Bound::Nowhere => return Ok(()),
    };
    create(
        target,
        kind,
        namespace,
        json!({"metadata": {"name": name}, "rules": [rule]}),
    )
    .await?;
    let binding = json!({
        "metadata": {"name": name}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
    });
    create(target, &format!("{kind}Binding"), namespace, binding).await
}

/// Creates an object of this kind.
async fn create(target: &Target, kind: &str, namespace: Option<&str>, mut object: Value) -> Result<()> {
    let (group, version) = match kind {
        "RemoteProcess" => (names::GROUP, names::VERSION),
        _ => ("rbac.authorization.k8s.io", "v1"),
    };
    let plural = match kind {
        "RemoteProcess" => "remoteprocesses".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    object["apiVersion"] = json!(format!("{group}/{version}"));
    object["kind"] = json!(kind);
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(target.client.clone(), namespace, &resource),
        None => Api::all_with(target.client.clone(), &resource),
    };
    api.create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}
