//! An API server with the operator's signer, and a relay behind mutual TLS.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use remoteprocess_client::cluster::{Account, Connector};
use remoteprocess_client::{Cluster, Relay};
use remoteprocess_tls::{Authority, ClientAuth, Identity, Limits, Role, TrustDomain, User, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// An API server that includes the operator's signer.
pub(crate) struct Fake {
    pub(crate) authority: Authority,
    pub(crate) user: &'static str,
    /// The denial with which the next certificate requests are answered.
    pub(crate) denial: Option<&'static str>,
    pub(crate) forbidden: Option<&'static str>,
    /// Whether all credentials are refused.
    pub(crate) is_unknown: bool,
    /// How long the certificates of users are valid.
    pub(crate) lifetime: Duration,
    csr: Option<Value>,
    pub(crate) signed: usize,
    /// How many requests were [`Self::forbidden`].
    pub(crate) refused: usize,
}

impl Fake {
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        if self.is_unknown {
            let answer = json!({"code": 401, "message": "Unauthorized", "reason": "Unauthorized"});
            return (StatusCode::UNAUTHORIZED, answer);
        }
        if self.forbidden.is_some_and(|part| path.contains(part)) {
            self.refused += 1;
            let message = format!("{path} is forbidden: User \"alice\" cannot do this");
            return (
                StatusCode::FORBIDDEN,
                json!({"code": 403, "message": message, "reason": "Forbidden"}),
            );
        }
        match (method.as_str(), path.rsplit('/').next().unwrap()) {
            ("POST", "selfsubjectreviews") => (
                StatusCode::CREATED,
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {},
                       "status": {"userInfo": {"username": self.user, "groups": ["devs"]}}}),
            ),
            ("GET", "remoteprocess-connect") => (
                StatusCode::OK,
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {},
                       "data": {"ca.crt": self.authority.cert_pem(), "trustDomain": "remoteprocess.local"}}),
            ),
            ("POST", "certificatesigningrequests") => {
                let mut csr = body.clone();
                csr["metadata"]["name"] = "rproc-abcde".into();
                self.csr = Some(csr.clone());
                (StatusCode::CREATED, csr)
            }
            ("GET", "rproc-abcde") => (StatusCode::OK, self.signed_csr()),
            other => panic!("unexpected call {other:?} of {path}"),
        }
    }

    fn signed_csr(&mut self) -> Value {
        let mut csr = self.csr.clone().unwrap();
        if let Some(denial) = self.denial {
            csr["status"] = json!({"conditions": [{"type": "Denied", "status": "True", "message": denial}]});
            return csr;
        }
        let typed: k8s_openapi::api::certificates::v1::CertificateSigningRequest =
            serde_json::from_value(csr.clone()).unwrap();
        assert_eq!(typed.spec.signer_name, "remoteprocess.dev/client");
        let pem = String::from_utf8(typed.spec.request.0).unwrap();
        let user = User {
            name: self.user.into(),
            groups: vec!["devs".into()],
            uid: String::new(),
            extra: Default::default(),
        };
        let der = der(&pem);
        let chain = self
            .authority
            .sign_csr_der(&der, &Role::User, Some(&user), self.lifetime)
            .unwrap();
        self.signed += 1;
        csr["status"] = json!({"certificate": k8s_openapi::ByteString(chain.into_bytes())});
        csr
    }
}

/// The bytes of a PEM text, from a JSON byte string.
fn der(pem: &str) -> Vec<u8> {
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    serde_json::from_value::<k8s_openapi::ByteString>(text.into())
        .unwrap()
        .0
}

fn client(fake: &Arc<Mutex<Fake>>) -> Client {
    let fake = fake.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let fake = fake.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = fake.lock().unwrap().answer(&head.method, head.uri.path(), &body);
            let answer = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(answer).unwrap())
        }
    });
    Client::new(service, "default")
}

pub(crate) struct World {
    pub(crate) fake: Arc<Mutex<Fake>>,
    pub(crate) cluster: Cluster,
    pub(crate) folder: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A relay behind mutual TLS that serves nothing: for tests that only connect.
pub(crate) async fn world() -> World {
    world_of(Routes::default(), Duration::from_secs(3600)).await
}

/// A relay behind mutual TLS that serves this, and cuts a connection when the certificate of its client ends.
pub(crate) async fn world_of(routes: Routes, lifetime: Duration) -> World {
    remoteprocess_tls::install_crypto_provider();
    let domain: TrustDomain = "remoteprocess.local".parse().unwrap();
    let authority = Authority::generate(&domain).unwrap();
    let (chain, key) = authority
        .issue(&Role::Operator, None, Duration::from_secs(3600))
        .unwrap();
    let identity = Identity::new(&chain, &key, authority.cert_pem(), &domain).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let limits = Limits {
        drain: Duration::ZERO,
        ..Limits::default()
    };
    tokio::spawn(serve(
        listener,
        identity,
        ClientAuth::Required,
        routes.prepare(),
        limits,
        shutdown.clone(),
    ));
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake {
        authority,
        user: "alice",
        denial: None,
        forbidden: None,
        is_unknown: false,
        lifetime,
        csr: None,
        signed: 0,
        refused: 0,
    };
    let fake = Arc::new(Mutex::new(fake));
    let cluster = Cluster {
        client: client(&fake),
        namespace: "default".into(),
        operator_namespace: "remoteprocess-system".into(),
        url: "https://cluster".into(),
        account: Account::default(),
        connector: Connector::default(),
        server: Some(address.to_string()),
        cache: Some(folder.path().join("rproc")),
    };
    World {
        fake,
        cluster,
        folder,
        shutdown,
    }
}

impl World {
    pub(crate) fn relay(&self) -> Relay {
        Relay::new(Arc::new(self.cluster.clone()))
    }

    pub(crate) fn signed(&self) -> usize {
        self.fake.lock().unwrap().signed
    }
}
