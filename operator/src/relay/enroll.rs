//! The enrollment listener: an agent exchanges its projected token for a certificate.
//!
//! Callers present no certificate here, so everything is bounded: the size of a call, its time, the calls of one
//! source, and the simultaneous requests to the API server. A peer gets a safe message; the cause goes to the log.

pub(crate) mod machine;
pub(crate) mod proof;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use remoteprocess_api::{RemoteProcess, identifier, names, sanitize::plain};
use remoteprocess_proto::{
    PROTOCOL, Unsupported, check_protocol,
    v1::{
        EnrollRequest, EnrollResponse, LoginRequest, LoginResponse,
        enrollment_server::{Enrollment, EnrollmentServer},
    },
};
use remoteprocess_tls::serial;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status};

use self::proof::{Attempt, Bound};
use crate::audit::{Action, Audit};
use crate::authority::{AuthorityHandle, metrics::count_refusal, rate::RateLimit};

/// Maximum size of a request, in bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// Limit for one call.
const LIMIT: Duration = Duration::from_secs(5);

/// Calls of one source at once. A node whose network hides its pods behind one address may start all of its pods together.
const BURST: f64 = 250.0;

/// Calls of one source per second after that.
const PER_SECOND: f64 = 20.0;

/// Number of enrollments handled at the same time: more would only queue at the API server.
const CONCURRENCY: usize = 64;

/// The `Enrollment` service.
pub struct EnrollmentService {
    client: Client,
    authority: Arc<AuthorityHandle>,
    sources: RateLimit<Option<IpAddr>>,
    slots: Semaphore,
    signed: Mutex<HashMap<Attempt, Instant>>,
    is_connected: IsConnected,
}

/// Whether the agent of a process (by uid) and attempt is connected now.
type IsConnected = Box<dyn Fn(&str, u32) -> bool + Send + Sync>;

/// Why an agent gets no certificate. [`Refusal::status`] is what the peer sees.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Protocol(#[from] Unsupported),
    #[error("too many calls from one address")]
    TooMany,
    #[error("the API server did not answer in time")]
    Slow,
    #[error("the API server")]
    Kube(#[from] kube::Error),
    #[error("the token is refused: {0}")]
    Token(String),
    #[error("the pod does not belong to the attempt: {0}")]
    Pod(&'static str),
    #[error("the agent of this attempt is connected")]
    Connected,
    #[error("the certification request")]
    Csr(#[source] remoteprocess_tls::Error),
}

impl Refusal {
    /// A fixed word for metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Protocol(_) => "Protocol",
            Self::TooMany => "RateLimit",
            Self::Slow | Self::Kube(_) => "ApiServer",
            Self::Token(_) => "Token",
            Self::Pod(_) => "Pod",
            Self::Connected => "Connected",
            Self::Csr(_) => "Request",
        }
    }

    /// What the peer may know, and whether it should retry.
    fn status(&self) -> Status {
        match self {
            Self::Protocol(why) => Status::failed_precondition(why.to_string()),
            Self::TooMany => Status::resource_exhausted("too many enrollments from this address; try again later"),
            Self::Slow | Self::Kube(_) => Status::unavailable("the API server cannot be asked now; try again"),
            Self::Token(_) => Status::unauthenticated("the token is not a valid one of the audience of this listener"),
            Self::Pod(why) => Status::permission_denied(format!("the pod does not belong to the attempt: {why}")),
            Self::Connected => Status::unavailable("the agent of this attempt is connected; try again when it is not"),
            Self::Csr(_) => Status::invalid_argument("the certification request does not prove a P-256 key"),
        }
    }
}

impl EnrollmentService {
    /// Reviews tokens and reads pods with `client`, signs with `authority`. `is_connected` says whether the agent of a
    /// process (by uid) and attempt is connected now.
    #[must_use]
    pub fn new(
        client: Client,
        authority: Arc<AuthorityHandle>,
        is_connected: impl Fn(&str, u32) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            client,
            authority,
            sources: RateLimit::new(BURST, PER_SECOND),
            slots: Semaphore::new(CONCURRENCY),
            signed: Mutex::default(),
            is_connected: Box::new(is_connected),
        }
    }

    /// The tonic server of the enrollment listener, with its limits.
    #[must_use]
    pub fn into_server(self) -> EnrollmentServer<Self> {
        EnrollmentServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    /// The pod of the agent, and the response.
    async fn issue(&self, request: &EnrollRequest) -> Result<(Bound, EnrollResponse), Refusal> {
        check_protocol(request.protocol)?;
        let review = self.review(&request.token, names::ENROLL_AUDIENCE).await?;
        let bound = proof::read_review(review).map_err(Refusal::Token)?;
        let attempt = Attempt {
            process_uid: request.process_uid.clone(),
            number: request.attempt,
        };
        self.check(&bound, &attempt).await?;
        let chain = self
            .authority
            .sign_agent(&request.csr, &bound.namespace, &bound.pod_uid)
            .map_err(Refusal::Csr)?;
        self.sign_once(attempt)?;
        let response = EnrollResponse {
            protocol: PROTOCOL,
            certificate_chain: chain,
            bundle: self.authority.bundle_pem(),
        };
        Ok((bound, response))
    }

    /// Whether the attempt's process names the pod that has the token. The objects are read from the API server, so
    /// every replica gives the same answer, and a restart does not change it.
    async fn check(&self, bound: &Bound, attempt: &Attempt) -> Result<(), Refusal> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        let pod = pods.get_opt(&bound.pod_name).await?.ok_or(Refusal::Pod("it is gone"))?;
        proof::check_pod(&pod, bound).map_err(Refusal::Pod)?;
        let owner = proof::claimed_owner(&pod).filter(|name| identifier::is_name(name));
        let owner = owner.ok_or(Refusal::Pod("no process controls it"))?;
        let processes: Api<RemoteProcess> = Api::namespaced(self.client.clone(), &bound.namespace);
        let process = processes.get_opt(owner).await?;
        let process = process.ok_or(Refusal::Pod("the process that it names is gone"))?;
        proof::check_process(&process, bound, attempt).map_err(Refusal::Pod)
    }

    async fn review(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, Refusal> {
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let spec = TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![audience.to_owned()]),
        };
        let review = TokenReview {
            spec,
            ..TokenReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Within the limits of this listener.
    async fn bounded<T>(
        &self,
        source: Option<IpAddr>,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let bounded = async {
            if !self.sources.admit(source, Instant::now()) {
                return Err(Refusal::TooMany);
            }
            let _slot = self.slots.acquire().await.map_err(|_| Refusal::Slow)?;
            work.await
        };
        timeout(LIMIT, bounded).await.unwrap_or(Err(Refusal::Slow))
    }

    /// One live key for each attempt: while its agent is connected, a further one is given when half of the life of the
    /// last one is over. The agent renews after three fifths. Others who have a token of its pod (editors of the namespace
    /// can make one) get nothing.
    fn sign_once(&self, attempt: Attempt) -> Result<(), Refusal> {
        let (now, renewal) = (Instant::now(), self.authority.leaf_lifetime() / 2);
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        signed.retain(|_, at| now < *at + renewal);
        if signed.contains_key(&attempt) && (self.is_connected)(&attempt.process_uid, attempt.number) {
            return Err(Refusal::Connected);
        }
        signed.insert(attempt, now);
        Ok(())
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let source = request.remote_addr().map(|address| address.ip());
        let request = request.into_inner();
        let result = self.bounded(source, self.issue(&request)).await;
        let (process, attempt) = (&request.process_uid, request.attempt);
        match result {
            Ok((bound, response)) => {
                let audit = Audit {
                    namespace: &bound.namespace,
                    name: &bound.pod_name,
                    uid: process,
                    attempt,
                    serial: &serial(&response.certificate_chain).unwrap_or_default(),
                    source,
                    ..Audit::default()
                };
                audit.write(Action::Enroll);
                Ok(Response::new(response))
            }
            Err(refusal) => {
                let error = &refusal as &dyn std::error::Error;
                let process = plain(process, identifier::MAX_NAME);
                count_refusal("enroll", refusal.reason());
                let audit = Audit {
                    uid: &process,
                    attempt,
                    source,
                    ..Audit::default()
                };
                audit.refuse("Enroll", None, refusal.reason());
                tracing::warn!(process, attempt, source = ?source, error, "refused to enroll an agent");
                Err(refusal.status())
            }
        }
    }

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let source = request.remote_addr().map(|address| address.ip());
        let request = request.into_inner();
        match self.bounded(source, self.log_in(&request)).await {
            Ok((user, certificate_chain)) => {
                let audit = Audit {
                    serial: &serial(&certificate_chain).unwrap_or_default(),
                    source,
                    ..Audit::by(&user)
                };
                audit.write(Action::Login);
                Ok(Response::new(LoginResponse {
                    protocol: PROTOCOL,
                    certificate_chain,
                }))
            }
            Err(refusal) => {
                count_refusal("enroll", refusal.reason());
                let audit = Audit {
                    source,
                    ..Audit::default()
                };
                audit.refuse("Login", None, refusal.reason());
                let error = &refusal as &dyn std::error::Error;
                tracing::warn!(?source, error, "refused to log a machine in");
                Err(refusal.status())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_tls::{Identity, KeyRequest, Role};
    use serde_json::{Value, json};
    use tonic::Code;

    use super::*;
    use crate::{authority, fake_api};

    /// A service whose API server knows one token, one pod and its process.
    pub(super) async fn service(pod: Value) -> EnrollmentService {
        service_with(pod, proof::tests::process()).await
    }

    async fn service_with(mut pod: Value, process: Value) -> EnrollmentService {
        let client = fake_api::client(move |call| match call.path.as_str() {
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                let audience = call.body["spec"]["audiences"][0].as_str().unwrap_or_default();
                let status = match call.body["spec"]["token"].as_str() {
                    Some(token) if audience == names::LOGIN_AUDIENCE => machine::tests::review(token),
                    Some("good") => proof::tests::review(),
                    _ => json!({"authenticated": false, "error": "invalid bearer token"}),
                };
                (201, json!({"spec": call.body["spec"], "status": status}))
            }
            "/api/v1/namespaces/default/pods/hello-1" => match pod.take() {
                Value::Null => fake_api::refusal(404, "NotFound"),
                found => {
                    pod = found.clone();
                    (200, found)
                }
            },
            "/apis/remoteprocess.dev/v1alpha1/namespaces/default/remoteprocesses/hello" => (200, process.clone()),
            path => panic!("asked for {path}"),
        });
        EnrollmentService::new(client, authority::tests::handle().await, |_, _| false)
    }

    fn request(key: &KeyRequest) -> EnrollRequest {
        EnrollRequest {
            protocol: PROTOCOL,
            token: "good".into(),
            csr: key.csr_der.clone().into(),
            process_uid: "process-uid-1".into(),
            attempt: 2,
        }
    }

    async fn refused(service: &EnrollmentService, request: EnrollRequest) -> Status {
        service.enroll(Request::new(request)).await.expect_err("refused")
    }

    #[tokio::test]
    async fn an_agent_gets_the_certificate_of_its_pod() {
        let service = service(proof::tests::pod()).await;
        let key = KeyRequest::generate().expect("a request");
        let answer = service
            .enroll(Request::new(request(&key)))
            .await
            .expect("enrolled")
            .into_inner();
        let domain = service.authority.trust_domain();
        let identity = Identity::new(&answer.certificate_chain, &key.key_pem, &answer.bundle, domain).expect("ours");
        assert_eq!(
            identity.role(),
            Role::Agent {
                namespace: "default".into(),
                pod_uid: "pod-uid-1".into()
            }
        );
        service
            .enroll(Request::new(request(&key)))
            .await
            .expect("the same pod may come again");
    }

    #[tokio::test]
    async fn refusals_tell_peers_no_secrets() {
        let service = service(proof::tests::pod()).await;
        let key = KeyRequest::generate().expect("a request");
        let stolen = refused(
            &service,
            EnrollRequest {
                token: "x".into(),
                ..request(&key)
            },
        )
        .await;
        assert_eq!(stolen.code(), Code::Unauthenticated);
        assert!(!stolen.message().contains("bearer"), "{}", stolen.message());
        let foreign = refused(
            &service,
            EnrollRequest {
                process_uid: "y".into(),
                ..request(&key)
            },
        )
        .await;
        assert_eq!(foreign.code(), Code::PermissionDenied);
        let early = refused(
            &service,
            EnrollRequest {
                attempt: 1,
                ..request(&key)
            },
        )
        .await;
        assert_eq!(early.code(), Code::PermissionDenied);
        let unproven = refused(
            &service,
            EnrollRequest {
                csr: vec![0; 64].into(),
                ..request(&key)
            },
        )
        .await;
        assert_eq!(unproven.code(), Code::InvalidArgument);
        let other = refused(
            &service,
            EnrollRequest {
                protocol: PROTOCOL + 2,
                ..request(&key)
            },
        )
        .await;
        assert_eq!(other.code(), Code::FailedPrecondition);
        assert!(other.message().contains("version 3 of the wire"), "{}", other.message());
    }

    #[tokio::test]
    async fn agents_and_machines_may_be_one_version_away() {
        let service = service(proof::tests::pod()).await;
        let key = KeyRequest::generate().expect("a request");
        for protocol in [PROTOCOL - 1, PROTOCOL, PROTOCOL + 1] {
            let enrolled = service.enroll(Request::new(EnrollRequest {
                protocol,
                ..request(&key)
            }));
            enrolled.await.expect("enrolled");
            let login = |protocol| {
                service.login(Request::new(LoginRequest {
                    protocol,
                    token: machine::tests::token(600),
                    csr: key.csr_der.clone().into(),
                }))
            };
            login(protocol).await.expect("logged in");
            let refused = login(PROTOCOL + 2).await.expect_err("refused");
            assert_eq!(refused.code(), Code::FailedPrecondition);
        }
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_gets_nothing() {
        let service = service(Value::Null).await;
        let key = KeyRequest::generate().expect("a request");
        assert_eq!(refused(&service, request(&key)).await.code(), Code::PermissionDenied);
    }

    /// An editor of the namespace `default` learns the uid of a process in another namespace and writes it into a pod
    /// of its own.
    #[tokio::test]
    async fn a_uid_of_another_namespace_takes_no_key() {
        let mut pod = proof::tests::pod();
        pod["metadata"]["ownerReferences"][0]["uid"] = "victim-uid".into();
        let service = service(pod).await;
        let key = KeyRequest::generate().expect("a request");
        for attempt in 1..=8 {
            let request = EnrollRequest {
                process_uid: "victim-uid".into(),
                attempt,
                ..request(&key)
            };
            assert_eq!(refused(&service, request).await.code(), Code::PermissionDenied);
        }
    }

    /// A restart forgets nothing: the status decides.
    #[tokio::test]
    async fn after_a_restart_another_pod_is_still_refused() {
        let mut process = proof::tests::process();
        process["status"]["attempts"][1]["podUid"] = "the-running-pod".into();
        let fresh = service_with(proof::tests::pod(), process).await;
        let key = KeyRequest::generate().expect("a request");
        let status = refused(&fresh, request(&key)).await;
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("names another pod"), "{}", status.message());
    }

    #[tokio::test(start_paused = true)]
    async fn while_an_agent_is_connected_only_a_renewal_is_signed() {
        let mut service = service(proof::tests::pod()).await;
        service.is_connected = Box::new(|process, attempt| (process, attempt) == ("p", 1));
        let attempt = Attempt {
            process_uid: "p".into(),
            number: 1,
        };
        service
            .sign_once(attempt.clone())
            .expect("this relay was started again and knows no key yet");
        assert!(matches!(service.sign_once(attempt.clone()), Err(Refusal::Connected)));
        tokio::time::advance(service.authority.leaf_lifetime() / 2).await;
        service.sign_once(attempt.clone()).expect("due");
        service.is_connected = Box::new(|_, _| false);
        service.sign_once(attempt).expect("it lost its connection");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_api_server_is_not_waited_for() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let client = Client::new(silent, "default");
        let service = EnrollmentService::new(client, authority::tests::handle().await, |_, _| false);
        let key = KeyRequest::generate().expect("a request");
        assert_eq!(refused(&service, request(&key)).await.code(), Code::Unavailable);
    }
}
