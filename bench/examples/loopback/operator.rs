//! The relay, real except for the API server and the enrollment.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use kube::client::Body;
use remoteprocess_operator::authority::metrics::main_limits;
use remoteprocess_operator::directory::Directory;
use remoteprocess_operator::relay::archive::Archive;
use remoteprocess_operator::relay::attempt::Agent;
use remoteprocess_operator::relay::core::Core;
use remoteprocess_operator::relay::core::authorize::Authorizer;
use remoteprocess_operator::relay::core::streams::Streams;
use remoteprocess_operator::relay::faces::{Faces, Switches};
use remoteprocess_operator::relay::grpc::agent::{Connect, ConnectError};
use remoteprocess_operator::relay::grpc::peers::Peers;
use remoteprocess_operator::relay::live::{Budget, Context, LiveAttempts};
use remoteprocess_operator::relay::status::Recorder;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use remoteprocess_proto::v1::{EnrollRequest, EnrollResponse, LoginRequest, LoginResponse};
use remoteprocess_tls::{Authority, ClientAuth, Dialer, Identity, Limits, Role, TrustDomain, User, serve};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tower::service_fn;

pub(crate) const NAMESPACE: &str = "default";
pub(crate) const NAME: &str = "measured";
pub(crate) const UID: &str = "0c1d";
pub(crate) const POD_UID: &str = "pod-1";
pub(crate) const TOKEN: &str = "a-projected-token";
pub(crate) const TRUST_DOMAIN: &str = "measured.local";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the other processes must know about it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Hello {
    pub relay: String,
    pub enroll: String,
    pub certificate: String,
    pub key: String,
}

struct Agents(Dialer);

impl Connect for Agents {
    fn connect<'a>(&'a self, agent: &'a Agent) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        let role = agent_role();
        Box::pin(async move { Ok(self.0.connect(&agent.address, &role).await?) })
    }
}

struct Enrolls(Authority);

#[tonic::async_trait]
impl Enrollment for Enrolls {
    async fn enroll(&self, request: tonic::Request<EnrollRequest>) -> Result<tonic::Response<EnrollResponse>, Status> {
        let chain = self.0.sign_csr_der(&request.into_inner().csr, &agent_role(), None, DAY);
        Ok(tonic::Response::new(EnrollResponse {
            protocol: PROTOCOL,
            certificate_chain: chain.map_err(|error| Status::invalid_argument(error.to_string()))?,
            bundle: self.0.cert_pem().to_owned(),
        }))
    }

    async fn login(&self, _: tonic::Request<LoginRequest>) -> Result<tonic::Response<LoginResponse>, Status> {
        Err(Status::unimplemented("no machine logs in here"))
    }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TRUST_DOMAIN.parse().unwrap()
}

fn agent_role() -> Role {
    Role::Agent {
        namespace: NAMESPACE.to_owned(),
        pod_uid: POD_UID.to_owned(),
    }
}

/// A certificate of `role`.
pub(crate) fn identity(authority: &Authority, role: &Role) -> Arc<Identity> {
    let (chain, key) = certificate(authority, role);
    Identity::new(&chain, &key, authority.cert_pem(), authority.trust_domain()).unwrap()
}

/// The same as texts: the chain and the key.
pub(crate) fn certificate(authority: &Authority, role: &Role) -> (String, String) {
    let user = (*role == Role::User).then(|| User {
        name: "alice".to_owned(),
        groups: Vec::new(),
        uid: String::new(),
        extra: BTreeMap::new(),
    });
    authority.issue(role, user.as_ref(), DAY).unwrap()
}

/// Serves until it is killed.
pub(crate) fn run(folder: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(serve_all(folder));
}

async fn serve_all(folder: &Path) {
    let authority = Authority::generate(&trust_domain()).unwrap();
    let operator = identity(&authority, &Role::Operator);
    let archive = Archive::local(folder).unwrap();
    let directory = Directory::default();
    let client = api_server(&directory);
    let recorder = Recorder::new(client.clone(), "operator-0".to_owned());
    let shutdown = CancellationToken::new();
    let context = Context {
        archive: archive.clone(),
        connect: Arc::new(Agents(Dialer::new(operator.clone()))),
        peers: Peers::by_name(Dialer::new(operator.clone()), None),
        record: Box::new(recorder.clone()),
        memory: Arc::new(Budget::new(160 << 20)),
        shutdown: shutdown.clone(),
    };
    let core = Core {
        directory,
        live: LiveAttempts::new(Arc::new(context)),
        archive,
        authorizer: Authorizer::new(client),
        recorder,
        streams: Streams::default(),
        shutdown: shutdown.clone(),
    };
    let [relay, enroll] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let hello = Hello {
        relay: relay.local_addr().unwrap().to_string(),
        enroll: enroll.local_addr().unwrap().to_string(),
        certificate: authority.cert_pem().to_owned(),
        key: authority.key_pem().to_owned(),
    };
    let [relay, enroll] = [relay, enroll].map(|listener| {
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    });
    println!("{}", serde_json::to_string(&hello).unwrap());
    tokio::join!(
        serve(
            relay,
            operator.clone(),
            ClientAuth::Required,
            Faces::new(core, Switches::default()),
            main_limits(true),
            shutdown.clone()
        ),
        serve(
            enroll,
            operator,
            ClientAuth::None,
            EnrollmentServer::new(Enrolls(authority)),
            Limits::anonymous(),
            shutdown
        ),
    );
}

/// An API server with one object: it stores what the relay writes and allows every request.
fn api_server(directory: &Directory) -> kube::Client {
    let object = json!({
        "apiVersion": "remoteprocess.dev/v1alpha1",
        "kind": "RemoteProcess",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": 1, "resourceVersion": "1"},
        "spec": {"image": "measured", "command": ["bench-writer"], "output": {"echo": "None"}},
        "status": {
            "phase": "Pending",
            "attempt": 1,
            "attempts": [{"number": 1, "podName": "measured-1", "podUid": POD_UID, "node": "node-1"}],
        },
    });
    directory.apply(serde_json::from_value(object.clone()).unwrap());
    let (object, directory) = (Arc::new(Mutex::new(object)), directory.clone());
    let service = service_fn(move |request: Request<Body>| {
        let (object, directory) = (object.clone(), directory.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap_or_default();
            let mut body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let answer = if parts.uri.path().ends_with("/subjectaccessreviews") {
                body["status"] = json!({"allowed": true});
                body
            } else if parts.uri.path().contains("/pods/") {
                json!({"metadata": {"name": "measured-1", "uid": POD_UID}, "status": {"phase": "Running"}})
            } else {
                let mut object = object.lock().unwrap();
                if parts.method == Method::PUT {
                    object["status"] = body["status"].take();
                    directory.apply(serde_json::from_value(object.clone()).unwrap());
                }
                object.clone()
            };
            Ok::<_, Infallible>(Response::new(Body::from(answer.to_string().into_bytes())))
        }
    });
    kube::Client::new(service, "default")
}
