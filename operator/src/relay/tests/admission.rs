//! Which peers are admitted where: every method of both listeners against every kind of peer, over real TLS.
//!
//! The methods are read from the .proto files, so a new one is covered from its first day.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use prost::Message;
use rcgen::ExtendedKeyUsagePurpose::{self, ClientAuth, ServerAuth};
use rcgen::{CertificateParams, Issuer, KeyPair, KeyUsagePurpose, SanType};
use remoteprocess_proto::{
    PROTOCOL,
    v1::{StartRequest, StartResponse},
};
use remoteprocess_tls::{Authority, Dialer, Identity, Limits, Role, TrustDomain, User, serve};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Code,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service, ServiceExt};

use crate::relay::{
    archive::Archive,
    attempt::Agent,
    core::Core,
    core::authorize::Authorizer,
    core::streams::Streams,
    enroll::EnrollmentService,
    faces::{Faces, Switches},
    grpc::agent::{Connect, ConnectError},
    grpc::peers::Peers,
    grpc::{
        caller::Callers,
        methods::{METHODS, Requests},
    },
    live::{Context, LiveAttempts},
    status::Recorder,
};
use crate::{
    authority::{self, AuthorityHandle},
    directory::Directory,
    fake_api::{self, refusal},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Longer than any call here takes.
const PATIENCE: Duration = Duration::from_secs(20);

const PROTOS: [&str; 2] = [
    include_str!("../../../../proto/remoteprocess/v1/relay.proto"),
    include_str!("../../../../proto/remoteprocess/v1/executor.proto"),
];

/// Paths of all methods of a service.
fn methods(service: &str) -> Vec<String> {
    let mut found = Vec::new();
    for proto in PROTOS {
        let Some((_, rest)) = proto.split_once(&format!("service {service} {{")) else {
            continue;
        };
        let body = rest.split("\n}").next().expect("a body");
        for line in body.lines() {
            if let Some(name) = line.trim().strip_prefix("rpc ").and_then(|rest| rest.split('(').next()) {
                found.push(format!("/remoteprocess.v1.{service}/{name}"));
            }
        }
    }
    assert!(!found.is_empty(), "{service} has methods");
    found
}

/// Both listeners of one replica.
struct Relay {
    handle: Arc<AuthorityHandle>,
    main: SocketAddr,
    enroll: SocketAddr,
    _archive: tempfile::TempDir,
    _shutdown: DropGuard,
}

/// No agent can be reached.
struct Unreachable;

impl Connect for Unreachable {
    fn connect<'a>(&'a self, _: &'a Agent) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        Box::pin(async { Err("unreachable".into()) })
    }
}

/// A process whose first attempt runs in a pod of its own.
fn process(name: &str) -> Value {
    json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "resourceVersion": "1"},
        "spec": {"image": "busybox:1.36", "command": ["true"]},
        "status": {"attempt": 1, "attempts": [{"number": 1, "podName": format!("{name}-1"), "podUid": format!("pod-of-{name}"), "node": "node-1"}]},
    })
}

/// An API server that allows everything to all users and knows two processes, so that every refusal is the relay's.
fn generous_api() -> kube::Client {
    fake_api::client(|call| match call.path.rsplit_once('/') {
        Some((_, "subjectaccessreviews")) => (201, json!({"spec": {}, "status": {"allowed": true}})),
        Some((_, "tokenreviews")) => (201, json!({"spec": {"token": ""}, "status": {"authenticated": false}})),
        Some((_, "pods")) => (
            200,
            json!({"metadata": {}, "items": [{
                "metadata": {"name": "mine-1", "uid": "pod-of-mine"}, "status": {"podIPs": [{"ip": "10.1.2.3"}]},
            }]}),
        ),
        Some((path, name)) if path.ends_with("/default/remoteprocesses") => (200, process(name)),
        Some((path, "status")) => {
            let name = path.rsplit('/').next().expect("a name");
            (200, process(name))
        }
        _ => refusal(404, "NotFound"),
    })
}

async fn relay() -> Relay {
    let handle = authority::tests::handle().await;
    let (client, shutdown) = (generous_api(), CancellationToken::new());
    let archive_dir = tempfile::tempdir().expect("a directory");
    let archive = Archive::local(Path::new(archive_dir.path())).expect("an archive");
    let recorder = Recorder::new(client.clone(), "replica-1".into());
    let directory = Directory::default();
    for name in ["mine", "other"] {
        directory.apply(serde_json::from_value(process(name)).expect("a process"));
    }
    let context = Context {
        archive: archive.clone(),
        connect: Arc::new(Unreachable),
        record: Box::new(recorder.clone()),
        peers: Peers::by_name(Dialer::new(handle.identity()), None),
        memory: Arc::new(crate::relay::live::Budget::new(1 << 30)),
        shutdown: shutdown.clone(),
    };
    let core = Core {
        directory,
        live: LiveAttempts::new(Arc::new(context)),
        archive,
        authorizer: Authorizer::new(client.clone()),
        recorder,
        streams: Streams::default(),
        shutdown: shutdown.clone(),
    };
    let service = Faces::new(core, Switches::default());
    let enrollment = EnrollmentService::new(client, handle.clone(), |_, _| false);
    let (main, main_address) = listener().await;
    let (enroll, enroll_address) = listener().await;
    let limits = Limits {
        http1: true,
        ..Limits::default()
    };
    let (identity, stop, required) = (
        handle.identity(),
        shutdown.clone(),
        remoteprocess_tls::ClientAuth::Required,
    );
    tokio::spawn(serve(main, identity, required, service, limits, stop));
    let (identity, stop, limits) = (handle.identity(), shutdown.clone(), Limits::anonymous());
    let enrollment = enrollment.into_server();
    tokio::spawn(serve(
        enroll,
        identity,
        remoteprocess_tls::ClientAuth::None,
        enrollment,
        limits,
        stop,
    ));
    Relay {
        main: main_address,
        enroll: enroll_address,
        handle,
        _archive: archive_dir,
        _shutdown: shutdown.drop_guard(),
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Result of a call: a gRPC code and the first message, or no answer at all because there is no connection.
type Outcome = Result<(Code, Vec<u8>), String>;

async fn call(address: SocketAddr, dialer: &Dialer, path: &str, message: &[u8]) -> Outcome {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    frame.extend(message);
    timeout(PATIENCE, answer(address, dialer, path, Body::new(Full::from(frame))))
        .await
        .expect("an answer or a refusal in time")
}

async fn answer(address: SocketAddr, dialer: &Dialer, path: &str, body: Body) -> Outcome {
    let channel = dialer.connect(&address.to_string(), &Role::Operator).await;
    answer_on(channel.map_err(|error| error.to_string())?, path, body).await
}

async fn answer_on(mut channel: Channel, path: &str, body: Body) -> Outcome {
    let said = |error: &dyn std::error::Error| error.to_string();
    let request = http::Request::post(format!("http://relay{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .expect("a request");
    let response = channel
        .ready()
        .await
        .map_err(|e| said(&e))?
        .call(request)
        .await
        .map_err(|e| said(&e))?;
    let headers = response.headers().clone();
    let body = response.into_body().collect().await.map_err(|e| said(&e))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let code = headers
        .get("grpc-status")
        .or(trailers.get("grpc-status"))
        .ok_or("no gRPC status")?;
    let message = body.to_bytes().get(5..).unwrap_or_default().to_vec();
    Ok((Code::from_bytes(code.as_bytes()), message))
}

fn domain() -> TrustDomain {
    "test.local".parse().expect("a domain")
}

fn mine() -> Role {
    Role::Agent {
        namespace: "default".into(),
        pod_uid: "pod-of-mine".into(),
    }
}

/// A peer with a certificate of the relay's own CA.
fn member(relay: &Relay, role: &Role) -> Dialer {
    let key = remoteprocess_tls::KeyRequest::generate().expect("a request");
    let alice = User {
        name: "alice".into(),
        ..User::default()
    };
    let chain = match role {
        Role::Agent { namespace, pod_uid } => relay.handle.sign_agent(&key.csr_der, namespace, pod_uid),
        Role::User => relay.handle.sign_user(&key.csr_der, &alice, HOUR),
        Role::Operator => return Dialer::new(relay.handle.identity()),
    };
    let chain = chain.expect("signed");
    Dialer::new(Identity::new(&chain, &key.key_pem, &relay.handle.bundle_pem(), &domain()).expect("an identity"))
}

/// The chain and the key of a peer, or none.
type Own = Option<(String, String)>;

/// Peers that the relay must not trust with any method.
fn strangers(relay: &Relay) -> Vec<(&'static str, Own)> {
    let other = Authority::generate(&domain()).expect("an authority");
    let alice = User {
        name: "alice".into(),
        ..User::default()
    };
    let issued = |role, user| Some(other.issue(role, user, HOUR).expect("a leaf"));
    let (ours, hour, both) = (authority::tests::ca(&relay.handle), 3600, &[ClientAuth, ServerAuth][..]);
    let operator = Role::Operator.uri(&domain());
    let odd = |uris: &[&str], times, usages| Some(leaf(Some(&ours), uris, times, usages));
    vec![
        ("no certificate", None),
        ("a self-signed one", Some(leaf(None, &[&operator], (-60, hour), both))),
        ("a user's of another CA", issued(&Role::User, Some(&alice))),
        ("an agent's of another CA", issued(&mine(), None)),
        ("the operator's of another CA", issued(&Role::Operator, None)),
        ("an expired one", odd(&[&operator], (-120, -60), both)),
        ("one that is not yet valid", odd(&[&operator], (60, hour), both)),
        ("one for a server only", odd(&[&operator], (-60, hour), &[ServerAuth])),
        (
            "one of another domain",
            odd(&["spiffe://other.local/operator"], (-60, hour), both),
        ),
        ("one of no role", odd(&[], (-60, hour), both)),
        (
            "one of two roles",
            odd(&[&operator, &mine().uri(&domain())], (-60, hour), both),
        ),
    ]
}

/// A leaf for these URIs, signed by a CA or by itself. Times are in seconds from now.
fn leaf(
    ca: Option<&(String, String)>,
    uris: &[&str],
    (from, to): (i64, i64),
    usages: &[ExtendedKeyUsagePurpose],
) -> (String, String) {
    let at = |seconds: i64| {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        if seconds < 0 { now - distance } else { now + distance }.into()
    };
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.not_before = at(from);
    params.not_after = at(to);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("a URI")));
    params.subject_alt_names = uris.collect();
    let certificate = match ca {
        None => params.self_signed(&key),
        Some((certificate, ca_key)) => {
            let ca_key = KeyPair::from_pem(ca_key).expect("PEM");
            params.signed_by(&key, &Issuer::from_ca_cert_pem(certificate, ca_key).expect("a CA"))
        }
    };
    (certificate.expect("a certificate").pem(), key.serialize_pem())
}

/// A connection of a peer that follows none of our rules.
async fn connect_as(relay: &Relay, address: SocketAddr, own: Own) -> Result<Channel, String> {
    let mut roots = rustls::RootCertStore::empty();
    let ours = CertificateDer::from_pem_slice(authority::tests::ca(&relay.handle).0.as_bytes());
    roots.add(ours.expect("PEM")).expect("a CA");
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            let config = builder.with_client_auth_cert(chain.expect("PEM"), key);
            config.expect("a key that fits")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(Role::Operator.server_name(&domain()).expect("a name")).expect("a name");
    let stream = TcpStream::connect(address).await.expect("a connection");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream
            .take()
            .ok_or_else(|| std::io::Error::other("one connection only"));
        async move { stream }
    });
    let endpoint = Endpoint::from_static("http://relay");
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| error.to_string())
}

/// What a stranger gets.
async fn call_as(relay: &Relay, address: SocketAddr, own: Own, path: &str) -> Outcome {
    let asked = async {
        let body = Body::new(Full::from(vec![0; 5]));
        answer_on(connect_as(relay, address, own).await?, path, body).await
    };
    timeout(PATIENCE, asked).await.expect("an answer or a refusal in time")
}

fn start(process: &str, attempt: u32) -> Vec<u8> {
    start_at("127.0.0.1:1", process, attempt)
}

fn start_at(address: &str, process: &str, attempt: u32) -> Vec<u8> {
    StartRequest {
        protocol: PROTOCOL,
        process_uid: format!("uid-of-{process}"),
        attempt,
        address: address.into(),
        launched: false,
        ..StartRequest::default()
    }
    .encode_to_vec()
}

const START: &str = "/remoteprocess.v1.Relay/Start";

#[tokio::test]
async fn an_agent_names_no_address_but_its_own() {
    let relay = relay().await;
    let agent = member(&relay, &mine());
    for address in [
        "169.254.169.254:80",
        "10.1.2.4:20443",
        "[::1]:20443",
        "metadata.google.internal:80",
        "",
    ] {
        let message = start_at(address, "mine", 1);
        let (code, _) = call(relay.main, &agent, START, &message).await.expect("an answer");
        let refusals = [Code::PermissionDenied, Code::InvalidArgument];
        assert!(refusals.contains(&code), "{address}: {code:?}");
    }
    for address in ["127.0.0.1:1", "10.1.2.3:20443"] {
        let message = start_at(address, "mine", 1);
        let (code, _) = call(relay.main, &agent, START, &message).await.expect("an answer");
        assert_eq!(code, Code::Ok, "{address}");
    }
}

/// Paths of all methods of all services.
fn all_methods() -> Vec<String> {
    [methods("Relay"), methods("Enrollment"), methods("Executor")].concat()
}

#[tokio::test]
async fn strangers_reach_no_method_of_the_main_listener() {
    let relay = relay().await;
    for (what, own) in strangers(&relay) {
        for path in all_methods() {
            let outcome = call_as(&relay, relay.main, own.clone(), &path).await;
            assert!(outcome.is_err(), "{path} answered a peer with {what}: {outcome:?}");
        }
    }
    let ca = authority::tests::ca(&relay.handle);
    let own = leaf(Some(&ca), &[&Role::Operator.uri(&domain())], (-60, 60), &[ClientAuth]);
    let answered = call_as(&relay, relay.main, Some(own), START).await;
    assert_eq!(
        answered.expect("an answer").0,
        Code::PermissionDenied,
        "the peer is known"
    );
}

/// This listener asks for no certificate: a token decides.
#[tokio::test]
async fn strangers_get_nothing_without_a_token_at_the_enroll_listener() {
    let relay = relay().await;
    for (what, own) in strangers(&relay) {
        for path in all_methods() {
            let answered = call_as(&relay, relay.enroll, own.clone(), &path).await;
            let code = answered.expect("an answer").0;
            let expected = match path.contains("Enrollment") {
                // Version 0 of the protocol, one away from ours, is served.
                true => Code::Unauthenticated,
                false => Code::Unimplemented,
            };
            assert_eq!(code, expected, "{path} for a peer with {what}");
        }
    }
}

#[tokio::test]
async fn each_method_serves_the_callers_of_its_table_and_no_others() {
    let names: Vec<_> = METHODS.iter().map(|method| method.name).collect();
    let paths = methods("Relay");
    let listed: Vec<_> = paths.iter().filter_map(|path| path.rsplit('/').next()).collect();
    assert_eq!(names, listed, "the table has every method");
    let relay = relay().await;
    for role in [mine(), Role::Operator, Role::User] {
        let dialer = member(&relay, &role);
        for (method, path) in METHODS.iter().zip(&paths) {
            let (code, _) = call(relay.main, &dialer, path, &[]).await.expect("an answer");
            let is_served = match method.callers {
                Callers::Agents => role == mine(),
                Callers::Users => role == Role::User,
                Callers::UsersAndReplicas => role != mine(),
            };
            let is_refused = matches!(code, Code::PermissionDenied | Code::Unauthenticated);
            assert_eq!(is_refused, !is_served, "{path} by {role}: {code}");
        }
    }
}

/// Half-sent requests of peers without a right once filled the memory.
#[tokio::test]
async fn nothing_is_read_of_a_peer_that_may_not_call_and_little_of_one_that_may() {
    let relay = relay().await;
    let (agent, user) = (member(&relay, &mine()), member(&relay, &Role::User));
    let endless = || {
        Body::new(StreamBody::new(futures::stream::pending::<
            Result<Frame<Bytes>, Infallible>,
        >()))
    };
    for path in methods("Relay").iter().filter(|path| *path != START) {
        let refused = timeout(Duration::from_secs(5), answer(relay.main, &agent, path, endless())).await;
        let (code, _) = refused.expect("before the request is complete").expect("an answer");
        assert_eq!(code, Code::PermissionDenied, "{path}");
    }
    let is_unary = |path: &&String| {
        METHODS
            .iter()
            .any(|method| path.ends_with(method.name) && method.requests == Requests::One)
    };
    let large = vec![0; 17 << 10];
    for path in methods("Relay").iter().filter(|path| *path != START).filter(is_unary) {
        let (code, _) = call(relay.main, &user, path, &large).await.expect("an answer");
        assert!(matches!(code, Code::OutOfRange | Code::Cancelled), "{path}: {code}");
    }
}

#[tokio::test]
async fn only_the_agent_of_an_attempt_starts_it() {
    let relay = relay().await;
    let granted = async |role: &Role, message: &[u8]| {
        let (code, answer) = call(relay.main, &member(&relay, role), START, message)
            .await
            .expect("an answer");
        code == Code::Ok && StartResponse::decode(&*answer).expect("a response").granted
    };
    let elsewhere = Role::Agent {
        namespace: "other".into(),
        pod_uid: "pod-of-mine".into(),
    };
    assert!(!granted(&mine(), &start("other", 1)).await, "another process");
    assert!(!granted(&mine(), &start("mine", 2)).await, "another attempt");
    assert!(!granted(&mine(), &start("nobodys", 1)).await, "no process");
    assert!(!granted(&elsewhere, &start("mine", 1)).await, "another namespace");
    assert!(!granted(&Role::User, &start("mine", 1)).await, "a user");
    assert!(!granted(&Role::Operator, &start("mine", 1)).await, "the operator");
    assert!(granted(&mine(), &start("mine", 1)).await);
}

#[tokio::test]
async fn the_main_listener_serves_users_the_relay_and_nothing_else() {
    let relay = relay().await;
    let user = member(&relay, &Role::User);
    for path in methods("Relay").iter().filter(|path| *path != START) {
        let (code, _) = call(relay.main, &user, path, &[]).await.expect("an answer");
        assert!(
            !matches!(
                code,
                Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
            ),
            "{path}: {code}"
        );
    }
    for path in [
        methods("Enrollment"),
        methods("Executor"),
        vec!["/".into(), "/metrics".into()],
    ]
    .concat()
    {
        let (code, _) = call(relay.main, &user, &path, &[]).await.expect("an answer");
        assert_eq!(code, Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn the_enroll_listener_serves_its_own_methods_and_nothing_else() {
    let relay = relay().await;
    let anonymous = Dialer::anonymous(&relay.handle.bundle_pem(), &domain()).expect("a dialer");
    let user = member(&relay, &Role::User);
    for dialer in [&anonymous, &user] {
        for path in [
            methods("Relay"),
            methods("Executor"),
            vec!["/".into(), "/metrics".into()],
        ]
        .concat()
        {
            let (code, _) = call(relay.enroll, dialer, &path, &[]).await.expect("an answer");
            assert_eq!(code, Code::Unimplemented, "{path}");
        }
        for path in methods("Enrollment") {
            let (code, _) = call(relay.enroll, dialer, &path, &[8, 1]).await.expect("an answer");
            assert_eq!(
                code,
                Code::Unauthenticated,
                "{path} without a good token, whatever the certificate"
            );
        }
    }
    let large = [&[8, 1, 0x12, 0x80, 0x80, 0x02][..], &[b'x'; 32 << 10]].concat();
    for path in methods("Enrollment") {
        let (code, _) = call(relay.enroll, &anonymous, &path, &large).await.expect("an answer");
        assert_eq!(code, Code::OutOfRange, "{path} with more than 16 KiB");
    }
}
