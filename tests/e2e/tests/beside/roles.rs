//! Kubernetes roles × methods: the relay allows each user exactly what `kubectl auth can-i` says, through both faces. On
//! a cluster, because a controller aggregates the roles of the chart to those of Kubernetes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{Request, StatusCode};
use remoteprocess_e2e::{Namespace, until, with_temp_ns};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as AttachAsked;
use remoteprocess_proto::v1::exec_request::Request as ExecAsked;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, ExecOpen, ExecRequest, GetStateRequest, ListRequest, ProcessKey, SignalRequest,
    StopRequest, WatchOutputRequest,
};
use remoteprocess_tls::{Role, User};
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::peers::relay::{Relay, Target};

/// Has the generated table of methods.
const DOCS: &str = include_str!("../../../../docs/threat-model.md");
/// Before that table.
const BEGIN: &str = "<!-- methods: generated";
/// A process that does not exist: a stop of it ends nothing, and is authorized before anything else.
const ABSENT: &str = "absent";
/// The process of the other calls.
const TARGET: &str = "target";

/// The roles of Kubernetes, to which those of the chart are aggregated, and those of the chart.
const SHIPPED: [&str; 8] = [
    "view",
    "edit",
    "admin",
    "cluster-admin",
    "remoteprocess-view",
    "remoteprocess-edit",
    "remoteprocess-admin",
    "remoteprocess-connect",
];
/// Narrow roles: name, verb, and resource.
const NARROW: [(&str, &str, &str); 5] = [
    ("log-reader", "get", "remoteprocesses/log"),
    ("signaler", "create", "remoteprocesses/signal"),
    ("writer", "create", "remoteprocesses/attach"),
    ("executor", "create", "remoteprocesses/exec"),
    // Deletes what it cannot see.
    ("remover", "delete", "remoteprocesses"),
];

/// Verb and subresource, empty for the object.
type Right = (&'static str, &'static str);

/// A row of the table.
struct Method {
    name: &'static str,
    is_for_users: bool,
    /// What a user needs; `None`: nothing but a certificate.
    right: Option<Right>,
}

impl Method {
    /// All of them, as the table has them.
    fn all() -> Result<Vec<Self>> {
        let (_, table) = DOCS.split_once(BEGIN).context("a table of methods")?;
        let rows = table.lines().skip(3).take_while(|line| line.starts_with('|'));
        rows.map(Self::read).collect()
    }

    fn read(row: &'static str) -> Result<Self> {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, name, callers, permission, _] = cells[..] else {
            bail!("a row of another form: {row}");
        };
        let right = permission.split_once(" remoteprocesses");
        let right = right.map(|(verb, subresource)| (verb, subresource.trim_start_matches('/')));
        ensure!(right.is_some() || permission == "–", "another permission: {row}");
        Ok(Self {
            name,
            is_for_users: callers.contains("users"),
            right,
        })
    }

    /// The service and the name, for gRPC.
    fn path(&self) -> String {
        match self.name.split_once('/') {
            Some((service, method)) => format!("/{service}/{method}"),
            None => format!("/remoteprocess.v1.Relay/{}", self.name),
        }
    }
}

/// A user of one role, and what the API server lets this user do.
struct Subject {
    role: &'static str,
    name: String,
    rights: BTreeMap<Right, bool>,
}

impl Subject {
    fn of(namespace: &Namespace, role: &'static str) -> Self {
        Self {
            role,
            name: format!("{}:{role}", namespace.name),
            rights: BTreeMap::new(),
        }
    }

    /// Asks the API server.
    fn may(&self, namespace: &Namespace, (verb, subresource): Right) -> Result<bool> {
        let user = format!("--as={}", self.name);
        let subresource = format!("--subresource={subresource}");
        let ask = [
            "auth",
            "can-i",
            verb,
            "remoteprocesses.remoteprocess.dev",
            &user,
            &subresource,
        ];
        let answer = namespace.kubectl(&ask).finish()?;
        // A reason may follow.
        match answer.out().split_whitespace().next() {
            Some("yes") => Ok(true),
            Some("no") => Ok(false),
            _ => bail!("{answer}"),
        }
    }

    fn learn(&mut self, namespace: &Namespace, rights: &[Right]) -> Result<()> {
        for right in rights {
            self.rights.insert(*right, self.may(namespace, *right)?);
        }
        Ok(())
    }

    fn expects(&self, method: &Method) -> bool {
        method.is_for_users && method.right.is_none_or(|right| self.rights[&right])
    }

    /// Calls each method; returns how many were allowed.
    async fn call_all(&self, relay: &Relay, namespace: &Namespace, methods: &[Method]) -> Result<usize> {
        let user = User {
            name: self.name.clone(),
            groups: vec!["system:authenticated".to_owned()],
            ..User::default()
        };
        let channel = relay.main(&relay.identity(&Role::User, Some(&user))?).await?;
        let mut allowed = 0;
        for method in methods {
            let is_allowed = call(&channel, namespace, method)
                .await
                .with_context(|| format!("{} by {}", method.name, self.role))?;
            ensure!(
                is_allowed == self.expects(method),
                "{} by {}: the API server says {}, the relay {is_allowed}",
                method.name,
                self.role,
                self.expects(method)
            );
            allowed += usize::from(is_allowed);
        }
        Ok(allowed)
    }
}

/// Whether the relay allows it.
async fn call(channel: &Channel, namespace: &Namespace, method: &Method) -> Result<bool> {
    match method.name.split_once(' ') {
        Some((verb, route)) => call_http(channel.clone(), namespace, verb, route).await,
        None => judge(method, call_grpc(channel, namespace, method).await),
    }
}

/// What an answer says about the permission. Every call here is valid otherwise, or fails only after it was allowed.
fn judge(method: &Method, answer: Result<(), Status>) -> Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(status) => match status.code() {
            Code::PermissionDenied => Ok(false),
            Code::NotFound | Code::FailedPrecondition => Ok(true),
            // Who may ask for health is told that it cannot be watched.
            Code::Unimplemented if method.right.is_none() => Ok(true),
            _ => bail!("{status}"),
        },
    }
}

async fn call_grpc(channel: &Channel, namespace: &Namespace, method: &Method) -> Result<(), Status> {
    let key = |name: &str| {
        Some(ProcessKey {
            namespace: namespace.name.clone(),
            name: name.to_owned(),
            uid: String::new(),
        })
    };
    let (protocol, mut client) = (PROTOCOL, RelayClient::new(channel.clone()));
    match method.name {
        "GetState" => {
            let process = key(TARGET);
            client.get_state(GetStateRequest { protocol, process }).await.map(drop)
        }
        "List" => {
            let namespace = namespace.name.clone();
            client.list(ListRequest { protocol, namespace }).await.map(drop)
        }
        "Signal" => {
            let request = SignalRequest {
                protocol,
                process: key(TARGET),
                number: 18,
                request_id: "roles".to_owned(),
                ..SignalRequest::default()
            };
            client.signal(request).await.map(drop)
        }
        "Stop" => {
            let request = StopRequest {
                protocol,
                process: key(ABSENT),
                ..StopRequest::default()
            };
            client.stop(request).await.map(drop)
        }
        "WatchOutput" | "Attach" | "Exec" => call_stream(client, method, key(TARGET)).await,
        // A method of agents, and the standard services: an empty message.
        _ => call_empty(channel.clone(), &method.path()).await,
    }
}

async fn call_stream(
    mut client: RelayClient<Channel>,
    method: &Method,
    process: Option<ProcessKey>,
) -> Result<(), Status> {
    let protocol = PROTOCOL;
    match method.name {
        "WatchOutput" => {
            let request = WatchOutputRequest {
                protocol,
                process,
                ..WatchOutputRequest::default()
            };
            client
                .watch_output(request)
                .await?
                .into_inner()
                .message()
                .await
                .map(drop)
        }
        "Attach" => {
            let open = AttachOpen {
                protocol,
                process,
                session: session(),
                ..AttachOpen::default()
            };
            let request = AttachRequest {
                request: Some(AttachAsked::Open(open)),
            };
            let mut answers = client.attach(tokio_stream::once(request)).await?.into_inner();
            answers.message().await.map(drop)
        }
        _ => {
            let open = ExecOpen {
                protocol,
                process,
                session: session(),
                command: vec!["true".into()],
                ..ExecOpen::default()
            };
            let request = ExecRequest {
                request: Some(ExecAsked::Open(open)),
            };
            let mut answers = client.exec(tokio_stream::once(request)).await?.into_inner();
            answers.message().await.map(drop)
        }
    }
}

/// A name that no other call has: a session belongs to the user who has opened it.
fn session() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("roles-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Sends one empty message, and returns the status that begins the answer, if one does.
async fn call_empty(mut channel: Channel, path: &str) -> Result<(), Status> {
    let request = Request::post(format!("http://relay{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(http_body_util::Full::new(vec![0_u8; 5].into())))
        .map_err(|error| Status::internal(error.to_string()))?;
    let ready = channel
        .ready()
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let answer = ready
        .call(request)
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}

async fn call_http(mut channel: Channel, namespace: &Namespace, verb: &str, route: &str) -> Result<bool> {
    let name = if route.ends_with("/stop") { ABSENT } else { TARGET };
    let path = route
        .replace("{namespace}", &namespace.name)
        .replace("{name}", name)
        .replace("{attempt}", "1");
    ensure!(!path.contains('{'), "nothing is known about a part of {route}");
    // Raw output is that of one stream.
    let query = if route.ends_with("/output") {
        "?stream=stdout"
    } else {
        ""
    };
    let body = match route.rsplit('/').next() {
        Some("signal") => json!({"signal": "SIGCONT"}).to_string(),
        Some("stop") => json!({}).to_string(),
        _ => String::new(),
    };
    let request = Request::builder()
        .method(verb)
        .uri(format!("http://relay{path}{query}"))
        .header("content-type", "application/json")
        .body(Body::new(http_body_util::Full::new(body.into_bytes().into())))?;
    let answer = channel.ready().await?.call(request).await?;
    match answer.status() {
        StatusCode::FORBIDDEN => Ok(false),
        status if status.is_success() || [StatusCode::NOT_FOUND, StatusCode::CONFLICT].contains(&status) => Ok(true),
        status => bail!("{status}"),
    }
}

/// Binds each role to the user of its name.
fn bind(namespace: &Namespace, subjects: &[Subject]) -> Result<()> {
    let group = "rbac.authorization.k8s.io";
    let own = NARROW.iter().map(|(name, verb, resource)| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
            "rules": [{"apiGroups": ["remoteprocess.dev"], "resources": [resource], "verbs": [verb]}],
        })
    });
    let bindings = subjects.iter().map(|subject| {
        let kind = if SHIPPED.contains(&subject.role) {
            "ClusterRole"
        } else {
            "Role"
        };
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": subject.role},
            "roleRef": {"apiGroup": group, "kind": kind, "name": subject.role},
            "subjects": [{"apiGroup": group, "kind": "User", "name": subject.name}],
        })
    });
    let objects: Vec<Value> = own.chain(bindings).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    namespace.kubectl(&["create", "--filename=-"]).input(list).succeed()?;
    Ok(())
}

/// Fills in what the API server says about each user.
fn learn(namespace: &Namespace, subjects: &mut [Subject], rights: &[Right]) -> Result<()> {
    // The last binding that was created: the API server has seen the others before.
    let (last, (_, verb, _)) = (subjects.last().context("subjects")?, NARROW[NARROW.len() - 1]);
    until("the last binding", Duration::from_secs(20), || {
        last.may(namespace, (verb, ""))
    })?;
    thread::scope(|scope| {
        let parts = subjects
            .chunks_mut(4)
            .map(|part| scope.spawn(move || part.iter_mut().try_for_each(|subject| subject.learn(namespace, rights))));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().try_for_each(|part| part.join().expect("no panic"))
    })
}

#[test]
fn each_role_may_call_what_kubectl_auth_can_i_says() {
    with_temp_ns("roles", |namespace| {
        let methods = Method::all()?;
        ensure!(methods.len() > 15, "{} methods", methods.len());
        let mut rights: Vec<Right> = methods.iter().filter_map(|method| method.right).collect();
        rights.sort_unstable();
        rights.dedup();
        let roles = SHIPPED.into_iter().chain(NARROW.map(|(name, ..)| name));
        let mut subjects: Vec<Subject> = roles.map(|role| Subject::of(namespace, role)).collect();
        bind(namespace, &subjects)?;
        Target::start(namespace, TARGET)?;
        learn(namespace, &mut subjects, &rights)?;
        let relay = Relay::reach()?;
        let mut allowed = BTreeMap::new();
        crate::peers::block_on(async {
            for subject in &subjects {
                allowed.insert(subject.role, subject.call_all(&relay, namespace, &methods).await?);
            }
            Ok(())
        })?;
        println!("{} methods, allowed: {allowed:?}", methods.len());
        let free = methods
            .iter()
            .filter(|method| method.is_for_users && method.right.is_none())
            .count();
        let all = methods.iter().filter(|method| method.is_for_users).count();
        for (role, expected) in [
            ("admin", all),
            ("edit", all),
            ("remoteprocess-admin", all),
            ("remoteprocess-connect", free),
            ("remover", free),
        ] {
            ensure!(allowed[role] == expected, "{role}: {} of {all}", allowed[role]);
        }
        ensure!(
            allowed["view"] > free && allowed["view"] < all,
            "view: {}",
            allowed["view"]
        );
        ensure!(allowed["view"] == allowed["remoteprocess-view"], "{allowed:?}");
        Ok(())
    });
}
