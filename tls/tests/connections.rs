//! Real handshakes over loopback: who gets in, who does not, and how connections end.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use remoteprocess_tls::{
    Authority, ClientAuth, Dialer, Error, Identity, KeyRequest, Limits, PeerIdentity, Role, TrustDomain, User, serve,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, transport::Channel};
use tower::{Service, ServiceExt, service_fn};

const HOUR: Duration = Duration::from_secs(3600);

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(20);

fn domain() -> TrustDomain {
    "test.local".parse().expect("a domain")
}

fn authority() -> Authority {
    remoteprocess_tls::install_crypto_provider();
    Authority::generate(&domain()).expect("an authority")
}

fn agent(pod_uid: &str) -> Role {
    Role::Agent {
        namespace: "default".into(),
        pod_uid: pod_uid.into(),
    }
}

fn alice() -> User {
    User {
        name: "alice".into(),
        groups: vec!["dev,\"ops\"".into(), "system:authenticated".into()],
        uid: "1".into(),
        extra: [("scope".into(), vec!["ä".into()])].into(),
    }
}

fn identity(authority: &Authority, role: &Role) -> Arc<Identity> {
    let user = (*role == Role::User).then(alice);
    let (chain, key) = authority.issue(role, user.as_ref(), HOUR).expect("a leaf");
    Identity::new(&chain, &key, authority.cert_pem(), &domain()).expect("an identity")
}

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// An endless body.
struct Flood;

impl http_body::Body for Flood {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 64 << 10])))))
    }
}

/// A server that answers each request with the user's name in a header; `/slow` never answers, `/flood` answers
/// endlessly.
async fn server(identity: Arc<Identity>, client_auth: ClientAuth, limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let service = service_fn(async |request: Request<Incoming>| match request.uri().path() {
        "/slow" => std::future::pending().await,
        "/flood" => Ok::<_, std::convert::Infallible>(Response::new(Body::new(Flood))),
        _ => {
            let peer = request.extensions().get::<Arc<PeerIdentity>>();
            let peer = peer.map_or_else(|| "nobody".to_owned(), |p| format!("{:?} {:?}", p.role, p.user));
            let response = Response::builder().header("peer", peer.into_bytes());
            Ok(response.body(Body::empty()).expect("a response"))
        }
    });
    let task = tokio::spawn(serve(
        listener,
        identity,
        client_auth,
        service,
        limits,
        shutdown.clone(),
    ));
    Server {
        address,
        shutdown,
        task,
    }
}

async fn ask(channel: &mut Channel, path: &str) -> Result<String, tonic::transport::Error> {
    let request = Request::builder()
        .uri(format!("http://peer{path}"))
        .body(Body::empty())
        .expect("a request");
    let response = channel.ready().await?.call(request).await?;
    Ok(String::from_utf8(response.headers()["peer"].as_bytes().to_vec()).expect("text"))
}

async fn connect(server: &Server, dialer: Dialer, expected: &Role) -> Result<Channel, Error> {
    timeout(PATIENCE, dialer.connect(&server.address.to_string(), expected))
        .await
        .expect("in time")
}

/// A client that ignores all our rules: any certificate or none, any ALPN. Returns whether its request was answered.
async fn is_served(server: &Server, authority: &Authority, own: Option<(String, String)>) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).expect("PEM"))
        .expect("a CA");
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                .collect::<Result<_, _>>()
                .expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a key that fits")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("operator.test.local").expect("a name");
    let stream = TcpStream::connect(server.address).await.expect("a connection");
    let Ok(stream) = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
    else {
        return false;
    };
    let endpoint = tonic::transport::Endpoint::from_static("http://operator.test.local");
    let mut stream = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = service_fn(move |_: http::Uri| {
        let stream = stream
            .take()
            .ok_or_else(|| std::io::Error::other("one connection only"));
        async move { stream }
    });
    let Ok(mut channel) = endpoint.connect_with_connector(connector).await else {
        return false;
    };
    timeout(PATIENCE, ask(&mut channel, "/"))
        .await
        .expect("in time")
        .is_ok()
}

/// A leaf with arbitrary times and names, signed by `authority` or by itself.
fn odd_leaf(authority: Option<&Authority>, uris: &[&str], from: i64, to: i64) -> (String, String) {
    let both = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    odd_leaf_for(authority, uris, (from, to), both)
}

fn odd_leaf_for(
    authority: Option<&Authority>,
    uris: &[&str],
    (from, to): (i64, i64),
    usages: Vec<ExtendedKeyUsagePurpose>,
) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let shifted = |seconds: i64| {
        let magnitude = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        if seconds < 0 { now - magnitude } else { now + magnitude }
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = shifted(from).into();
    params.not_after = shifted(to).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().expect("a URI")))
        .collect();
    params
        .subject_alt_names
        .push(SanType::DnsName("operator.test.local".try_into().expect("a name")));
    let certificate = match authority {
        None => params.self_signed(&key),
        Some(authority) => {
            let ca_key = KeyPair::from_pem(&authority.key_pem()).expect("PEM");
            let issuer = Issuer::from_ca_cert_pem(authority.cert_pem(), ca_key).expect("a CA");
            params.signed_by(&key, &issuer)
        }
    };
    (certificate.expect("a certificate").pem(), key.serialize_pem())
}

const AGENT_URI: &str = "spiffe://test.local/agent/default/a";

#[tokio::test]
async fn the_service_learns_who_calls() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, Limits::default()).await;
    for role in [agent("a"), Role::User, Role::Operator] {
        let mut channel = connect(&server, Dialer::new(identity(&ca, &role)), &Role::Operator)
            .await
            .expect("served");
        let user = (role == Role::User).then(alice);
        assert_eq!(
            ask(&mut channel, "/").await.expect("an answer"),
            format!("{role:?} {user:?}")
        );
    }
}

#[tokio::test]
async fn without_client_certificates_requests_have_no_identity() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::None, Limits::anonymous()).await;
    let dialer = Dialer::anonymous(ca.cert_pem(), &domain()).expect("a dialer");
    let mut channel = connect(&server, dialer, &Role::Operator).await.expect("served");
    assert_eq!(ask(&mut channel, "/").await.expect("an answer"), "nobody");
}

/// A leaf of the operator's name whose key may only serve.
fn server_only(authority: &Authority) -> (String, String) {
    odd_leaf_for(
        Some(authority),
        &["spiffe://test.local/operator"],
        (-60, 3600),
        vec![ExtendedKeyUsagePurpose::ServerAuth],
    )
}

/// The main listener, and the one of an agent; the enrollment listener asks for no certificate.
#[tokio::test]
async fn only_our_own_certificates_get_in() {
    const OPERATOR: &str = "spiffe://test.local/operator";
    let (ca, other) = (authority(), authority());
    let ours = |uris: &[&str], from, to| Some(odd_leaf(Some(&ca), uris, from, to));
    for (client_auth, right) in [(ClientAuth::Required, AGENT_URI), (ClientAuth::OperatorOnly, OPERATOR)] {
        let server = server(identity(&ca, &Role::Operator), client_auth, Limits::default()).await;
        let cases = [
            ("none", None),
            ("self-signed", Some(odd_leaf(None, &[right], -60, 3600))),
            (
                "of another CA, a user's",
                Some(other.issue(&Role::User, Some(&alice()), HOUR).expect("a leaf")),
            ),
            (
                "of another CA, the operator's",
                Some(other.issue(&Role::Operator, None, HOUR).expect("a leaf")),
            ),
            ("expired", ours(&[right], -120, -60)),
            ("not yet valid", ours(&[right], 60, 3600)),
            ("of a wrong key usage", Some(server_only(&ca))),
            ("of no role", ours(&[], -60, 3600)),
            ("of two roles", ours(&[AGENT_URI, OPERATOR], -60, 3600)),
            ("of another domain", ours(&["spiffe://other.local/operator"], -60, 3600)),
            ("of a longer role", ours(&["spiffe://test.local/operator/x"], -60, 3600)),
            ("of a nameless user", ours(&["spiffe://test.local/user"], -60, 3600)),
        ];
        for (what, own) in cases {
            assert!(
                !is_served(&server, &ca, own).await,
                "{client_auth:?}: a certificate {what} got in"
            );
        }
        assert!(
            is_served(&server, &ca, ours(&[right], -60, 3600)).await,
            "{client_auth:?}"
        );
    }
    let agents = server(
        identity(&ca, &Role::Operator),
        ClientAuth::OperatorOnly,
        Limits::default(),
    )
    .await;
    let user = ca.issue(&Role::User, Some(&alice()), HOUR).expect("a leaf");
    for (what, own) in [("another agent", ours(&[AGENT_URI], -60, 3600)), ("a user", Some(user))] {
        assert!(!is_served(&agents, &ca, own).await, "{what} got in");
    }
}

#[tokio::test]
async fn the_client_insists_on_its_peer() {
    let (ca, other) = (authority(), authority());
    let server = server(identity(&ca, &agent("a")), ClientAuth::Required, Limits::default()).await;
    let operator = identity(&ca, &Role::Operator);
    assert!(
        connect(&server, Dialer::new(operator.clone()), &agent("a"))
            .await
            .is_ok()
    );
    assert!(
        connect(&server, Dialer::new(operator.clone()), &agent("b"))
            .await
            .is_err()
    );
    assert!(
        connect(&server, Dialer::new(operator.clone()), &Role::Operator)
            .await
            .is_err()
    );
    let same_name = Role::Agent {
        namespace: "other".into(),
        pod_uid: "a".into(),
    };
    let error = connect(&server, Dialer::new(operator.clone()), &same_name)
        .await
        .expect_err("the namespace differs");
    assert!(
        chain(&error).contains("expected the agent of pod a in namespace other"),
        "{}",
        chain(&error)
    );
    assert!(
        connect(&server, Dialer::new(operator), &Role::User).await.is_err(),
        "users listen nowhere"
    );
    assert!(
        connect(&server, Dialer::new(identity(&other, &Role::Operator)), &agent("a"))
            .await
            .is_err()
    );
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .map(|e| e.to_string())
        .collect::<Vec<_>>()
        .join(": ")
}

#[tokio::test]
async fn a_new_identity_serves_at_once_and_a_bad_one_never() {
    let (old, new) = (authority(), authority());
    let both = format!("{}{}", old.cert_pem(), new.cert_pem());
    let own = identity(&old, &Role::Operator);
    let server = server(own.clone(), ClientAuth::Required, Limits::default()).await;
    let mut before = connect(&server, Dialer::new(identity(&old, &agent("a"))), &Role::Operator)
        .await
        .expect("served");

    let (chain, key) = new.issue(&Role::Operator, None, HOUR).expect("a leaf");
    let (_, other_key) = new.issue(&Role::Operator, None, HOUR).expect("a leaf");
    let (agents, agents_key) = new.issue(&agent("a"), None, HOUR).expect("a leaf");
    let (expired, expired_key) = odd_leaf(Some(&new), &["spiffe://test.local/operator"], -120, -60);
    assert!(
        own.replace(&chain, &key, old.cert_pem()).is_err(),
        "not signed by a CA of the bundle"
    );
    assert!(
        own.replace(&chain, &other_key, &both).is_err(),
        "the key of another leaf"
    );
    assert!(matches!(
        own.replace(&agents, &agents_key, &both),
        Err(Error::OtherRole { .. })
    ));
    assert!(own.replace(&expired, &expired_key, &both).is_err(), "expired");
    assert!(own.replace(&chain, &key, "nonsense").is_err());
    assert_eq!(own.bundle_pem(), old.cert_pem());

    own.replace(&chain, &key, &both).expect("a good one");
    let overlapping = Dialer::new(identity(&new, &agent("b")));
    connect(&server, overlapping, &Role::Operator)
        .await
        .expect("the new CA is trusted on both sides");
    let behind = Dialer::new(identity(&old, &agent("c")));
    assert!(
        connect(&server, behind, &Role::Operator).await.is_err(),
        "it does not know the new CA yet"
    );
    ask(&mut before, "/")
        .await
        .expect("a connection that stood before is left alone");
}

#[tokio::test]
async fn a_silent_client_is_cut() {
    let ca = authority();
    let limits = Limits {
        handshake: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, limits).await;
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    stream.write_all(&[22]).await.expect("half a record");
    let end = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("cut in time");
    assert!(matches!(end, Ok(0) | Err(_)));
}

#[tokio::test]
async fn an_anonymous_connection_ends_by_itself() {
    let ca = authority();
    let limits = Limits {
        lifetime: Some(Duration::from_millis(50)),
        drain: Duration::from_millis(50),
        ..Limits::anonymous()
    };
    let server = server(identity(&ca, &Role::Operator), ClientAuth::None, limits).await;
    let dialer = Dialer::anonymous(ca.cert_pem(), &domain()).expect("a dialer");
    let mut channel = connect(&server, dialer, &Role::Operator).await.expect("served");
    let answer = timeout(PATIENCE, ask(&mut channel, "/slow"))
        .await
        .expect("cut in time");
    assert!(answer.is_err());
}

#[tokio::test]
async fn the_drain_ends_with_an_idle_and_a_stuck_connection() {
    let ca = authority();
    let limits = Limits {
        drain: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, limits).await;
    let dialer = Dialer::new(identity(&ca, &agent("a")));
    let mut idle = connect(&server, dialer.clone(), &Role::Operator).await.expect("served");
    ask(&mut idle, "/").await.expect("an answer");
    let mut stuck = connect(&server, dialer, &Role::Operator).await.expect("served");
    let call = tokio::spawn(async move { ask(&mut stuck, "/slow").await });
    let _unsaid = TcpStream::connect(server.address)
        .await
        .expect("a connection without a handshake");
    server.shutdown.cancel();
    timeout(PATIENCE, server.task)
        .await
        .expect("drained in time")
        .expect("no panic");
    assert!(
        timeout(PATIENCE, call)
            .await
            .expect("cut in time")
            .expect("no panic")
            .is_err()
    );
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn requests_are_signed_for_whom_we_say_and_for_their_key_only() {
    let ca = authority();
    let request = KeyRequest::generate().expect("a request");
    let chain = ca
        .sign_csr_der(&request.csr_der, &agent("a"), None, HOUR)
        .expect("signed");
    let own = Identity::new(&chain, &request.key_pem, ca.cert_pem(), &domain()).expect("an identity");
    assert_eq!(own.role(), agent("a"));
    assert!(own.renew_at() < own.not_after());

    let mut broken = request.csr_der.clone();
    *broken.last_mut().expect("not empty") ^= 1;
    assert!(
        ca.sign_csr_der(&broken, &agent("a"), None, HOUR).is_err(),
        "its key is not proven"
    );
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let p384 = CertificateParams::default()
        .serialize_request(&p384)
        .expect("a request");
    assert!(
        ca.sign_csr_der(p384.der(), &agent("a"), None, HOUR).is_err(),
        "another kind of key"
    );
    assert!(
        ca.sign_csr_der(&request.csr_der, &Role::User, None, HOUR).is_err(),
        "a user without a name"
    );
    assert!(
        ca.sign_csr_der(&request.csr_der, &Role::Operator, Some(&alice()), HOUR)
            .is_err()
    );
    let traversal = Role::Agent {
        namespace: "a/../operator".into(),
        pod_uid: "a".into(),
    };
    assert!(ca.sign_csr_der(&request.csr_der, &traversal, None, HOUR).is_err());
}

#[tokio::test]
async fn an_intermediate_signs_too() {
    let root_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_pem = params.self_signed(&root_key).expect("a root").pem();
    let issuer = Issuer::new(params, root_key);
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "intermediate");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("a key");
    let intermediate = params.signed_by(&key, &issuer).expect("a certificate").pem();
    remoteprocess_tls::install_crypto_provider();
    let ca = Authority::from_pem(&intermediate, &key.serialize_pem(), &domain()).expect("an authority");
    let (chain, key) = ca.issue(&Role::Operator, None, HOUR).expect("a leaf");
    Identity::new(&chain, &key, &root_pem, &domain()).expect("the chain leads to the root");
}

/// A peer that was away while the authorities changed, twice, trusts the first one alone.
#[tokio::test]
async fn a_leaf_is_followed_by_what_its_former_authorities_said() {
    let first = authority();
    let second = authority();
    let cross = first.cross_sign(&second).expect("a certificate");
    let third = authority();
    let crosses = second.cross_sign(&third).expect("a certificate") + &cross;
    for (authority, crosses) in [(second, cross), (third, crosses)] {
        let (alone, key) = authority.issue(&Role::Operator, None, HOUR).expect("a leaf");
        assert!(Identity::new(&alone, &key, &first.anchor_pem(), &domain()).is_err());
        let authority = authority.with_cross_certificates(&crosses);
        let (chain, key) = authority.issue(&Role::Operator, None, HOUR).expect("a leaf");
        for root in [first.anchor_pem(), authority.anchor_pem()] {
            Identity::new(&chain, &key, &root, &domain()).expect("trusted");
        }
        let stranger = crate::authority().anchor_pem();
        assert!(Identity::new(&chain, &key, &stranger, &domain()).is_err());
    }
}

#[tokio::test]
async fn an_expired_peer_gets_no_further_call_on_its_old_connection() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, Limits::default()).await;
    let (chain, key) = odd_leaf(Some(&ca), &["spiffe://test.local/operator"], -60, 2);
    let short = Identity::new(&chain, &key, ca.cert_pem(), &domain()).expect("valid for two seconds");
    let mut channel = connect(&server, Dialer::new(short), &Role::Operator)
        .await
        .expect("served");
    ask(&mut channel, "/").await.expect("an answer");
    let refused = async { while ask(&mut channel, "/").await.is_ok() {} };
    timeout(PATIENCE, refused).await.expect("refused after it expired");
}

#[tokio::test]
async fn what_an_expired_peer_still_has_open_is_cut_however_it_behaves() {
    let ca = authority();
    let limits = Limits {
        drain: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, limits).await;
    let (chain, key) = odd_leaf(Some(&ca), &["spiffe://test.local/operator"], -60, 2);
    let short = Identity::new(&chain, &key, ca.cert_pem(), &domain()).expect("valid for two seconds");
    let dialer = Dialer::new(short);
    let mut waits = connect(&server, dialer.clone(), &Role::Operator).await.expect("served");
    let mut takes_nothing = connect(&server, dialer, &Role::Operator).await.expect("served");
    let flood = Request::get("http://peer/flood")
        .body(Body::empty())
        .expect("a request");
    let flood = takes_nothing.ready().await.expect("connected").call(flood).await;
    let mut flood = flood.expect("an answer").into_body();
    let answer = timeout(PATIENCE, ask(&mut waits, "/slow")).await;
    assert!(answer.expect("cut in time").is_err());
    // What arrived before the cut can still be read; the flood would have no end.
    let drained = async { while let Some(Ok(_)) = flood.frame().await {} };
    timeout(PATIENCE, drained).await.expect("cut in time");
}

#[tokio::test]
async fn a_stalled_reader_does_not_stop_the_others_of_its_connection() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, Limits::default()).await;
    let dialer = Dialer::new(identity(&ca, &agent("a")));
    let channel = connect(&server, dialer, &Role::Operator).await.expect("served");
    let flood = async |mut channel: Channel| {
        let request = Request::get("http://peer/flood")
            .body(Body::empty())
            .expect("a request");
        channel
            .ready()
            .await
            .expect("connected")
            .call(request)
            .await
            .expect("an answer")
            .into_body()
    };
    let mut stalled = Vec::new();
    for _ in 0..6 {
        stalled.push(flood(channel.clone()).await);
    }
    let mut read = flood(channel).await;
    let mut bytes = 0;
    while bytes < 64 << 20 {
        let frame = timeout(PATIENCE, read.frame())
            .await
            .expect("no stall")
            .expect("no end")
            .expect("no error");
        bytes += frame.into_data().map_or(0, |data| data.len());
    }
}

#[tokio::test]
async fn no_session_is_resumed() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::None, Limits::anonymous()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).expect("PEM"))
        .expect("a CA");
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for _ in 0..2 {
        let stream = TcpStream::connect(server.address).await.expect("a connection");
        let name = ServerName::try_from("operator.test.local").expect("a name");
        let mut stream = connector.connect(name, stream).await.expect("a handshake");
        // The preface of HTTP/2, so that the server answers, and any session ticket has arrived before.
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .expect("written");
        stream.read_u8().await.expect("its settings");
        let tls = stream.get_ref().1;
        assert_eq!(tls.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(tls.tls13_tickets_received(), 0);
        assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

/// The first bytes of a handshake that announces more than it sends.
fn unfinished_hello(bytes: usize) -> Vec<u8> {
    let mut hello = vec![1, 0, 0xff, 0xf0];
    hello.resize(bytes, 0);
    hello
        .chunks(16 << 10)
        .flat_map(|part| {
            let [high, low] = u16::try_from(part.len()).expect("fits").to_be_bytes();
            [&[22, 3, 1, high, low], part].concat()
        })
        .collect()
}

/// A connection from one of the loopback's addresses.
async fn connect_from(host: u8, server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::from(([127, 0, 0, host], 0)))
        .expect("an address of the loopback");
    socket.connect(server.address).await.expect("a connection")
}

/// Bytes of memory that this program has in use.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("its status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("its size");
    let kibibytes = line.split_whitespace().nth(1).expect("a number");
    kibibytes.parse::<usize>().expect("a number") << 10
}

#[tokio::test]
async fn unfinished_handshakes_hold_little_memory_and_keep_no_peer_out() {
    let ca = authority();
    // Time limits do not help here: a flood is faster.
    let limits = Limits {
        handshake: 10 * PATIENCE,
        ..Limits::default()
    };
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, limits).await;
    // One exceeds the limit of a handshake, the other does not.
    let hellos = [unfinished_hello(65_000), unfinished_hello(30_000)];
    let before = resident();
    let mut flood = Vec::new();
    for number in 0..3000_u16 {
        let mut stream = connect_from(2 + (number % 20) as u8, &server).await;
        // The server may have closed it already.
        let _ = timeout(PATIENCE, stream.write_all(&hellos[usize::from(number % 2)]))
            .await
            .expect("taken in time");
        flood.push(stream);
    }
    let dialer = Dialer::new(identity(&ca, &agent("a")));
    let mut channel = connect(&server, dialer, &Role::Operator).await.expect("served");
    ask(&mut channel, "/").await.expect("an answer");
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "the flood holds {} MiB", grown >> 20);
}

#[tokio::test]
async fn a_user_of_many_groups_fits_into_a_handshake() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, Limits::default()).await;
    let user = User {
        groups: (0..600).map(|number| format!("{number:040}")).collect(),
        ..alice()
    };
    let (chain, key) = ca.issue(&Role::User, Some(&user), HOUR).expect("a leaf");
    let own = Identity::new(&chain, &key, ca.cert_pem(), &domain()).expect("an identity");
    let mut channel = connect(&server, Dialer::new(own), &Role::Operator)
        .await
        .expect("served");
    // Any other response would repeat the groups in a header.
    let request = Request::get("http://peer/flood")
        .body(Body::empty())
        .expect("a request");
    let call = channel.ready().await.expect("connected").call(request);
    timeout(PATIENCE, call).await.expect("in time").expect("an answer");
}

#[tokio::test]
async fn silent_connections_delay_no_others() {
    let ca = authority();
    let server = server(identity(&ca, &Role::Operator), ClientAuth::None, Limits::anonymous()).await;
    let mut silent = Vec::new();
    for number in 0..1100_u16 {
        silent.push(connect_from(2 + (number % 7) as u8, &server).await);
    }
    let dialer = Dialer::anonymous(ca.cert_pem(), &domain()).expect("a dialer");
    let honest = async {
        let mut channel = dialer.connect(&server.address.to_string(), &Role::Operator).await?;
        ask(&mut channel, "/").await.map_err(Error::from)
    };
    let answer = timeout(Duration::from_secs(1), honest).await.expect("without delay");
    assert_eq!(answer.expect("served"), "nobody");
}

#[tokio::test]
async fn one_identity_cannot_take_all_connections() {
    let ca = authority();
    let limits = Limits {
        connections_per_identity: 1,
        ..Limits::default()
    };
    let server = server(identity(&ca, &Role::Operator), ClientAuth::Required, limits).await;
    let dialer = Dialer::new(identity(&ca, &agent("a")));
    let mut first = connect(&server, dialer.clone(), &Role::Operator).await.expect("served");
    ask(&mut first, "/").await.expect("an answer");
    assert!(is_refused(&server, &dialer).await, "it has a connection already");
    let other = Dialer::new(identity(&ca, &agent("b")));
    assert!(!is_refused(&server, &other).await, "others are not concerned");
    drop(first);
    let again = async { while is_refused(&server, &dialer).await {} };
    timeout(PATIENCE, again).await.expect("room again");
}

#[tokio::test]
async fn an_agent_talks_to_the_operator_only() {
    let ca = authority();
    let server = server(identity(&ca, &agent("a")), ClientAuth::OperatorOnly, Limits::default()).await;
    for role in [agent("a"), agent("b"), Role::User] {
        let dialer = Dialer::new(identity(&ca, &role));
        let served = connect(&server, dialer, &agent("a"))
            .await
            .map(|mut channel| async move { ask(&mut channel, "/").await });
        let is_served = match served {
            Ok(asked) => timeout(PATIENCE, asked).await.expect("in time").is_ok(),
            Err(_) => false,
        };
        assert!(!is_served, "{role} got in");
    }
    let operator = Dialer::new(identity(&ca, &Role::Operator));
    let mut channel = connect(&server, operator, &agent("a")).await.expect("served");
    ask(&mut channel, "/").await.expect("an answer");
}

/// Whether the server closes a new connection of this peer. It does so after the handshake, so a call detects it.
async fn is_refused(server: &Server, dialer: &Dialer) -> bool {
    match connect(server, dialer.clone(), &Role::Operator).await {
        Ok(mut channel) => timeout(PATIENCE, ask(&mut channel, "/"))
            .await
            .expect("in time")
            .is_err(),
        Err(_) => true,
    }
}

/// A connection of a user that offers HTTP/1.1 only; `None` if the handshake fails.
async fn http1(server: &Server, authority: &Authority) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
    let (chain, key) = authority.issue(&Role::User, Some(&alice()), HOUR).expect("a leaf");
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).expect("PEM");
    roots.add(ca).expect("a CA");
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(chain, key).expect("a key that fits");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("operator.test.local").expect("a name");
    let stream = TcpStream::connect(server.address).await.expect("a connection");
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
    connecting.await.ok()
}

#[tokio::test]
async fn http1_is_served_where_it_is_on_and_slow_headers_end_the_connection() {
    let authority = authority();
    let operator = identity(&authority, &Role::Operator);
    let off = server(operator.clone(), ClientAuth::Required, Limits::default()).await;
    assert!(http1(&off, &authority).await.is_none(), "HTTP/2 only");
    let limits = Limits {
        http1: true,
        headers: Duration::from_millis(300),
        ..Limits::default()
    };
    let on = server(operator, ClientAuth::Required, limits).await;
    for (request, is_answered) in [
        ("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nhost: x\r\n", false),
    ] {
        let mut stream = http1(&on, &authority).await.expect("a handshake");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // The connection may end without close_notify.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("in time");
        assert_eq!(answer.starts_with(b"HTTP/1.1 200"), is_answered, "{request}");
    }
}
