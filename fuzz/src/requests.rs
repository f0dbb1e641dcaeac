//! Requests for certificates: of people by `CertificateSigningRequest`, of agents and machines by token. Everything that is
//! not the API server's word comes from the peer.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Pod;
use pem::Pem;
use prost::Message;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use remoteprocess_api::{RemoteProcess, names};
use remoteprocess_operator::fuzz::{judge_agent, judge_machine, judge_request, token_expiry};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{EnrollRequest, LoginRequest};
use remoteprocess_tls::{Role, User};
use serde_json::{Value, json};

use crate::signer::{certify, sign};
use crate::{Input, Seed, form};

/// The PKCS#10 part of a request by alice, DER.
const DER: u8 = 0;
/// The same as PEM.
const PEM: u8 = 1;
/// A whole `CertificateSigningRequest`, JSON.
const OBJECT: u8 = 2;
/// The API server's answer about a token, JSON.
const REVIEW: u8 = 3;
/// `[answer about the token, pod, process]`, JSON.
const AGENT: u8 = 4;
/// A token.
const TOKEN: u8 = 5;
/// An `EnrollRequest`.
const ENROLL: u8 = 6;
/// A `LoginRequest`.
const LOGIN: u8 = 7;

/// More than any sentence that a peer gets, in bytes.
const SENTENCE: usize = 1000;
/// A time for which a certificate may be asked. The authority gives less.
const LONG: Duration = Duration::from_secs(1 << 40);

/// Judges one input.
pub fn run(input: &[u8]) -> bool {
    let mut input = Input(input);
    let kind = input.byte() % 8;
    let rest = input.rest();
    match kind {
        DER => request(by_alice(pem::encode(&Pem::new("CERTIFICATE REQUEST", rest)).as_bytes())),
        PEM => request(by_alice(rest)),
        OBJECT => serde_json::from_slice(rest).is_ok_and(request),
        REVIEW => serde_json::from_slice(rest).is_ok_and(review),
        AGENT => serde_json::from_slice(rest).is_ok_and(agent),
        TOKEN => str::from_utf8(rest).is_ok_and(token),
        ENROLL => EnrollRequest::decode(rest).is_ok_and(|request| enroll(&request)),
        _ => LoginRequest::decode(rest).is_ok_and(|request| login(&request)),
    }
}

/// Only the requester gets a certificate, with the key of the request.
fn request(request: CertificateSigningRequest) -> bool {
    let spec = &request.spec;
    let answered = request
        .status
        .as_ref()
        .is_some_and(|status| status.certificate.is_some());
    let (csr, user, lifetime) = match judge_request(&request) {
        Ok(Some(order)) => order,
        Ok(None) => return false,
        Err(sentence) => {
            assert!(sentence.len() < SENTENCE, "{} bytes", sentence.len());
            return false;
        }
    };
    assert!(!answered && spec.signer_name == names::CLIENT_SIGNER);
    let requester = User {
        name: spec.username.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    };
    assert_eq!(user, requester);
    let Some(peer) = sign(&csr, &Role::User, Some(&user), lifetime) else {
        return false;
    };
    assert_eq!((peer.role, peer.user), (Role::User, Some(requester)));
    let longest = SystemTime::now() + lifetime + Duration::from_secs(1);
    assert!(peer.not_after <= longest);
    true
}

/// A token proves an agent or a machine only if the API server says so for our audience.
fn review(review: TokenReviewStatus) -> bool {
    let is_of = |audience: &str| review.audiences.iter().flatten().any(|known| known == audience);
    let is_good = review.authenticated == Some(true);
    let Ok(user) = judge_machine(review.clone()) else {
        return false;
    };
    assert!(is_good && is_of(names::LOGIN_AUDIENCE));
    assert!(user.name.starts_with("system:serviceaccount:"));
    let peer = certify(&Role::User, Some(&user)).expect("its user fits into a certificate");
    assert_eq!(peer.user, Some(user));
    true
}

/// An agent gets the certificate of the pod that its process names.
fn agent((review, pod, process): (TokenReviewStatus, Pod, RemoteProcess)) -> bool {
    let uid = process.metadata.uid.clone().unwrap_or_default();
    let attempts = process.status.iter().flat_map(|status| &status.attempts);
    let numbers: Vec<u32> = attempts.map(|attempt| attempt.number).take(4).collect();
    let is_of = |audience: &str| review.audiences.iter().flatten().any(|known| known == audience);
    let mut is_taken = false;
    for number in numbers {
        let Ok([namespace, name, pod_uid]) = judge_agent(review.clone(), &pod, &process, &uid, number) else {
            continue;
        };
        assert!(review.authenticated == Some(true) && is_of(names::ENROLL_AUDIENCE));
        assert_eq!(process.metadata.namespace.as_ref(), Some(&namespace));
        assert_eq!(pod.metadata.uid.as_ref(), Some(&pod_uid));
        let status = process.status.as_ref().expect("it names the pod");
        let record = status.attempt(number).expect("it names the pod");
        assert_eq!(record.pod_name.as_ref(), Some(&name));
        assert!(record.pod_uid.is_none() || record.pod_uid.as_ref() == Some(&pod_uid));
        let role = Role::Agent { namespace, pod_uid };
        if let Some(peer) = certify(&role, None) {
            assert_eq!((peer.role, peer.user), (role, None));
        }
        is_taken = true;
    }
    is_taken
}

fn token(token: &str) -> bool {
    token_expiry(token).is_some_and(|expiry| expiry >= SystemTime::UNIX_EPOCH)
}

fn enroll(request: &EnrollRequest) -> bool {
    let again = EnrollRequest::decode(&request.encode_to_vec()[..]).expect("what is encoded is decoded");
    assert_eq!(&again, request);
    let role = Role::Agent {
        namespace: "default".into(),
        pod_uid: "pod-uid-1".into(),
    };
    let peer = sign(&request.csr, &role, None, LONG);
    peer.inspect(|peer| assert_eq!((&peer.role, &peer.user), (&role, &None)))
        .is_some()
}

fn login(request: &LoginRequest) -> bool {
    let again = LoginRequest::decode(&request.encode_to_vec()[..]).expect("what is encoded is decoded");
    assert_eq!(&again, request);
    let user = User {
        name: "system:serviceaccount:ci:nightly".into(),
        ..User::default()
    };
    let peer = sign(&request.csr, &Role::User, Some(&user), LONG);
    peer.inspect(|peer| assert_eq!((&peer.role, &peer.user), (&Role::User, &Some(user))))
        .is_some()
}

fn by_alice(pem: &[u8]) -> CertificateSigningRequest {
    let mut request: CertificateSigningRequest = serde_json::from_value(spec_of_alice()).expect("a request");
    request.spec.request = ByteString(pem.to_vec());
    request
}

fn spec_of_alice() -> Value {
    json!({
        "metadata": {"name": "rproc-1"},
        "spec": {
            "request": "",
            "signerName": names::CLIENT_SIGNER,
            "usages": ["digital signature", "client auth"],
            "username": "alice",
            "groups": ["dev", "system:authenticated"],
            "uid": "u-1",
            "extra": {"scopes": ["read"]},
            "expirationSeconds": 600,
        },
    })
}

/// A request whose parameters are changed; DER.
fn csr(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    let request = params.serialize_request(&key).expect("a request");
    request.der().to_vec()
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Seed> {
    let empty = csr(|_| {});
    let true_claims = csr(|params| {
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let false_claim = csr(|params| params.distinguished_name.push(DnType::CommonName, "bob"));
    let pem = pem::encode(&Pem::new("CERTIFICATE REQUEST", empty.as_slice()));
    let object = by_alice(pem.as_bytes());
    let json = |value: &Value| value.to_string().into_bytes();
    let [agent, machine] = reviews();
    let token = "e30.eyJleHAiOjE4OTM0NTYwMDB9.c2lnbmF0dXJl";
    let enroll = EnrollRequest {
        protocol: PROTOCOL,
        token: token.into(),
        csr: empty.clone().into(),
        process_uid: "process-uid-1".into(),
        attempt: 1,
    };
    let login = LoginRequest {
        protocol: PROTOCOL,
        token: token.into(),
        csr: empty.clone().into(),
    };
    vec![
        ("der-empty", form(DER, &[&empty])),
        ("der-claims", form(DER, &[&true_claims])),
        ("odd-der-bob", form(DER, &[&false_claim])),
        ("pem", form(PEM, &[pem.as_bytes()])),
        ("odd-pem", form(PEM, &[b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n"])),
        ("object", form(OBJECT, &[&json(&json!(object))])),
        ("review-machine", form(REVIEW, &[&json(&machine)])),
        ("odd-review-agent", form(REVIEW, &[&json(&agent)])),
        ("agent", form(AGENT, &[&json(&json!([agent, pod(), process()]))])),
        (
            "odd-agent-machine",
            form(AGENT, &[&json(&json!([machine, pod(), process()]))]),
        ),
        ("token", form(TOKEN, &[token.as_bytes()])),
        ("odd-token", form(TOKEN, &[b"a.e30.c"])),
        ("enroll", form(ENROLL, &[&enroll.encode_to_vec()])),
        ("login", form(LOGIN, &[&login.encode_to_vec()])),
    ]
}

/// What the API server says about the token of an agent and of a machine.
fn reviews() -> [Value; 2] {
    let pod = json!({
        "authentication.kubernetes.io/pod-name": ["hello-1"],
        "authentication.kubernetes.io/pod-uid": ["pod-uid-1"],
    });
    let review = |audience, user: &str| {
        json!({
            "authenticated": true, "audiences": [audience],
            "user": {"username": user, "uid": "sa", "groups": ["system:serviceaccounts"], "extra": pod.clone()},
        })
    };
    [
        review(names::ENROLL_AUDIENCE, "system:serviceaccount:default:runner"),
        review(names::LOGIN_AUDIENCE, "system:serviceaccount:ci:nightly"),
    ]
}

fn pod() -> Value {
    json!({
        "metadata": {
            "name": "hello-1", "namespace": "default", "uid": "pod-uid-1",
            "ownerReferences": [{
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "hello",
                "uid": "process-uid-1", "controller": true,
            }],
        },
        "status": {"phase": "Pending"},
    })
}

fn process() -> Value {
    json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": "hello", "namespace": "default", "uid": "process-uid-1"},
        "spec": {"image": "busybox", "command": ["true"]},
        "status": {"attempt": 1, "attempts": [{"number": 1, "podName": "hello-1", "grantedAt": Timestamp::UNIX_EPOCH}]},
    })
}
