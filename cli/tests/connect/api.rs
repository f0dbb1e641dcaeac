//! An API server that knows one token, and kubeconfigs for it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The token that is accepted.
pub(crate) const TOKEN: &str = "right";

/// A call that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub path: String,
    pub authorization: Option<String>,
    pub impersonated: Vec<String>,
}

/// The server; it ends with the value.
pub(crate) struct Api {
    pub port: u16,
    pub folder: tempfile::TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
    tls: TlsAcceptor,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    /// Starts it, with its CA in `ca.crt` of the folder.
    pub(crate) fn start() -> Self {
        remoteprocess_tls::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let names = ["127.0.0.1", "localhost", "api.example.com"].map(str::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let tls = TlsAcceptor::from(Arc::new(config));
        runtime.spawn(serve(listener, tls.clone(), calls.clone()));
        Self {
            port,
            folder,
            calls,
            tls,
            runtime,
        }
    }

    /// A port that terminates TLS and forwards to another port.
    pub(crate) fn tls_in_front_of(&self, target: u16) -> u16 {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = self.tls.clone();
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    let mut client = tls.accept(stream).await.unwrap();
                    let mut server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        port
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// A kubeconfig next to the CA with this user entry, and more fields for the cluster.
    pub(crate) fn kubeconfig(&self, user: &Value, cluster: &Value) -> PathBuf {
        let mut entry = json!({
            "server": format!("https://127.0.0.1:{}", self.port),
            "certificate-authority": "ca.crt",
        });
        entry
            .as_object_mut()
            .unwrap()
            .extend(cluster.as_object().cloned().unwrap_or_default());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "main",
            "contexts": [{"name": "main", "context": {"cluster": "c", "user": "alice"}}],
            "clusters": [{"name": "c", "cluster": entry}],
            "users": [{"name": "alice", "user": user}],
        });
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// `rproc` with this kubeconfig and without variables that affect its connections.
    pub(crate) fn rproc(&self, kubeconfig: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("rproc"));
        for name in ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command
            .env_remove("RPROC_SERVER")
            .env_remove("KUBERNETES_SERVICE_HOST")
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", kubeconfig)
            .args(arguments);
        command
    }

    /// A program in the folder.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// What was written to standard error.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, calls: Arc<Mutex<Vec<Call>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, calls) = (tls.clone(), calls.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, &calls);
                let hangs = request.uri().path().contains("/hanging/");
                async move {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(answer)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, calls: &Mutex<Vec<Call>>) -> Response<Full<bytes::Bytes>> {
    let text = |name: &str| {
        let values = request.headers().get_all(name).iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let call = Call {
        path: request.uri().path().to_owned(),
        authorization: text("authorization").first().cloned(),
        impersonated: ["impersonate-user", "impersonate-group"]
            .iter()
            .flat_map(|name| text(name))
            .collect(),
    };
    let is_known = call.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
    let (code, body) = match call.path.rsplit('/').next().unwrap_or_default() {
        _ if !is_known => (StatusCode::UNAUTHORIZED, status(401, "Unauthorized")),
        "remoteprocesses" => (StatusCode::OK, processes(request.uri())),
        "processtriggers" => (StatusCode::OK, triggers()),
        "orders" => (StatusCode::OK, trigger()),
        "processsinks" => (StatusCode::OK, sinks()),
        "feed" => (StatusCode::OK, sink()),
        "version" => (
            StatusCode::OK,
            json!({"major": "1", "minor": "33", "gitVersion": "v1.33.1", "gitCommit": "", "gitTreeState": "",
                   "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
        ),
        "v1alpha1" => (
            StatusCode::OK,
            json!({"kind": "APIResourceList", "groupVersion": "remoteprocess.dev/v1alpha1", "resources": [
                {"name": "remoteprocesses", "singularName": "", "namespaced": true, "kind": "RemoteProcess", "verbs": []},
            ]}),
        ),
        "pods" => (
            StatusCode::OK,
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []}),
        ),
        "namespaces" => (StatusCode::OK, list(&["default", "jobs"])),
        "build" => (
            StatusCode::OK,
            json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "build"},
                   "spec": {}, "status": {"attempt": 2, "attempts": [{"number": 1}, {"number": 2}]}}),
        ),
        "selfsubjectreviews" => (
            StatusCode::CREATED,
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {},
                   "status": {"userInfo": {"username": "alice", "groups": ["devs"]}}}),
        ),
        _ => (StatusCode::NOT_FOUND, status(404, "NotFound")),
    };
    calls.lock().unwrap().push(call);
    let body = Full::from(body.to_string());
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

/// The processes of the namespace `jobs`, in two pages; the second one has ended.
fn processes(uri: &http::Uri) -> Value {
    let query = uri.query().unwrap_or_default();
    if query.contains("trigger-uid") {
        let mut of_trigger = list(&["orders-1", "orders-2"]);
        of_trigger["metadata"]["resourceVersion"] = "1".into();
        of_trigger["items"][1]["metadata"]["annotations"] = json!({"remoteprocess.dev/message-id": "7"});
        return of_trigger;
    }
    if !uri.path().contains("/jobs/") {
        return list(&[]);
    }
    if query.contains("fieldSelector") {
        return list(&["build"]);
    }
    if query.contains("continue=more") {
        return list(&["bundle", "other"]);
    }
    let mut first = list(&["build"]);
    first["metadata"]["continue"] = "more".into();
    first
}

fn triggers() -> Value {
    json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTriggerList", "metadata": {},
           "items": [trigger(), {"metadata": {"name": "other", "namespace": "jobs"}}]})
}

fn trigger() -> Value {
    json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessTrigger",
           "metadata": {"name": "orders", "namespace": "jobs", "uid": "u-1"},
           "spec": {"serviceAccountName": "a", "source": {"http": {"secretName": "s"}},
                    "template": {"spec": {"image": "i", "command": ["x"]}}},
           "status": {"running": 3, "conditions": [
               {"type": "Ready", "status": "False", "reason": "Suspended", "message": "spec.suspend is set",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

fn sinks() -> Value {
    json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessSinkList", "metadata": {},
           "items": [sink(), {"metadata": {"name": "other", "namespace": "jobs"}}]})
}

fn sink() -> Value {
    json!({"apiVersion": "remoteprocess.dev/v1alpha1", "kind": "ProcessSink",
           "metadata": {"name": "feed", "namespace": "jobs", "uid": "u-2"},
           "spec": {"serviceAccountName": "a", "destination": {"http": {"url": "https://events.example"}}},
           "status": {"sent": 12, "conditions": [
               {"type": "Ready", "status": "False", "reason": "Suspended", "message": "spec.suspend is set",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

fn list(names: &[&str]) -> Value {
    let items: Vec<Value> = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items})
}

fn status(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
           "code": code, "reason": message, "message": message})
}
