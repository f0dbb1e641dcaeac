//! Who a certificate names: its role and the user in its subject.

use remoteprocess_tls::{PeerIdentity, Role, TrustDomain, User, bundle, expiries, serial};
use serde_json::json;

use crate::signer::{self, DOMAIN, alice, anchor, certify};
use crate::{Input, Seed, form};

/// A certificate, DER.
const CERTIFICATE: u8 = 0;
/// A URI.
const URI: u8 = 1;
/// A trust domain.
const TRUST_DOMAIN: u8 = 2;
/// Length of a name, the name, and the other fields of a user as JSON.
const USER: u8 = 3;
/// CAs to trust, PEM.
const BUNDLE: u8 = 4;

/// Judges one input.
pub fn run(input: &[u8]) -> bool {
    let mut input = Input(input);
    let kind = input.byte() % 5;
    match kind {
        CERTIFICATE => certificate(input.rest()),
        USER => user(input),
        kind => str::from_utf8(input.rest()).is_ok_and(|text| match kind {
            URI => uri(text),
            TRUST_DOMAIN => trust_domain(text),
            _ => trusted(text),
        }),
    }
}

/// A certificate that names a peer can be issued again, and then names the same.
fn certificate(der: &[u8]) -> bool {
    let Ok(peer) = PeerIdentity::from_der(der, &DOMAIN) else {
        return false;
    };
    assert_eq!(peer.user.is_some(), peer.role == Role::User);
    assert!(uri(&peer.role.uri(&DOMAIN)));
    let again = certify(&peer.role, peer.user.as_ref()).expect("it was issued once");
    assert_eq!((again.role, again.user), (peer.role, peer.user));
    true
}

/// A role has one URI.
fn uri(text: &str) -> bool {
    let role = Role::from_uri(text, &DOMAIN);
    role.inspect(|role| assert_eq!(role.uri(&DOMAIN), text)).is_some()
}

/// The members of a trust domain belong to no other.
fn trust_domain(text: &str) -> bool {
    let Ok(domain) = text.parse::<TrustDomain>() else {
        return false;
    };
    assert_eq!(domain.as_str(), text);
    let agent = Role::Agent {
        namespace: "default".into(),
        pod_uid: "uid".into(),
    };
    for role in [Role::Operator, Role::User, agent] {
        assert_eq!(Role::from_uri(&role.uri(&domain), &domain), Some(role.clone()));
        assert_eq!(Role::from_uri(&role.uri(&domain), &DOMAIN).is_some(), domain == *DOMAIN);
    }
    true
}

/// The subject of a certificate is the user, with each character.
fn user(mut input: Input<'_>) -> bool {
    let length = input.byte();
    let Ok(name) = str::from_utf8(input.bytes(length.into())) else {
        return false;
    };
    let Ok(rest) = serde_json::from_slice::<User>(input.rest()) else {
        return false;
    };
    let user = User {
        name: name.to_owned(),
        ..rest
    };
    let Some(peer) = certify(&Role::User, Some(&user)) else {
        assert!(user.name.is_empty(), "{user:?} gets no certificate");
        return false;
    };
    assert_eq!((peer.role, peer.user), (Role::User, Some(user)));
    true
}

/// A bundle has each of its certificates once.
fn trusted(pem: &str) -> bool {
    serial(pem);
    let Ok(once) = bundle(&[pem]) else {
        return false;
    };
    assert_eq!(bundle(&[&once, pem]).expect("it was read before"), once);
    expiries(&once).is_ok()
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Seed> {
    let agent = Role::Agent {
        namespace: "default".into(),
        pod_uid: "6f2e8c1a-0000-4000-8000-000000000001".into(),
    };
    let certificate = |role, user| form(CERTIFICATE, &[&signer::certificate(role, user)]);
    let person = |name: &str, rest: serde_json::Value| {
        let length = u8::try_from(name.len()).expect("a short name");
        form(USER, &[&[length], name.as_bytes(), rest.to_string().as_bytes()])
    };
    vec![
        ("certificate-operator", certificate(&Role::Operator, None)),
        ("certificate-agent", certificate(&agent, None)),
        ("certificate-user", certificate(&Role::User, Some(&alice()))),
        ("uri-operator", form(URI, &[Role::Operator.uri(&DOMAIN).as_bytes()])),
        ("uri-agent", form(URI, &[agent.uri(&DOMAIN).as_bytes()])),
        ("odd-uri-more", form(URI, &[agent.uri(&DOMAIN).as_bytes(), b"/more"])),
        ("domain", form(TRUST_DOMAIN, &[DOMAIN.as_str().as_bytes()])),
        ("odd-domain", form(TRUST_DOMAIN, &[b"Remoteprocess..local"])),
        ("user", person("alice", json!(alice()))),
        (
            "user-strange",
            person("a\u{0}\u{202e}=,\u{e4}", json!({"groups": ["a,O=b", ""]})),
        ),
        ("odd-user-nameless", person("", json!({}))),
        ("bundle", form(BUNDLE, &[anchor().as_bytes(), anchor().as_bytes()])),
        (
            "odd-bundle",
            form(BUNDLE, &[b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"]),
        ),
    ]
}
