//! Damaged and odd input of peers and users is refused or read: nothing panics, and nothing is taken for something else.
//!
//! CI tries a few hundred inputs; for more: `PROPTEST_CASES=200000 cargo test -p remoteprocess-operator --lib hostile`.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::Full;
use proptest::prelude::*;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::wire::{Messages, decode};
use remoteprocess_tls::{Authority, PeerIdentity, Role, TrustDomain, User};
use serde_json::{Value, json};
use tonic::body::Body;
use x509_parser::pem::parse_x509_pem;

use crate::controller::validate::validate;

fn domain() -> TrustDomain {
    "remoteprocess.local".parse().expect("a domain")
}

/// Bytes that are overwritten, and how many of all remain.
pub(crate) fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
    let changes = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4);
    (changes, prop_oneof![3 => Just(usize::MAX), 1 => any::<usize>()])
}

/// The bytes with this damage.
pub(crate) fn damaged(mut bytes: Vec<u8>, (changes, keep): (Vec<(usize, u8)>, usize)) -> Vec<u8> {
    let length = bytes.len();
    for (at, byte) in changes {
        bytes[at % length] = byte;
    }
    bytes.truncate(if keep == usize::MAX {
        length
    } else {
        keep % (length + 1)
    });
    bytes
}

/// A certificate of a user with information of each kind.
fn certificate() -> Vec<u8> {
    remoteprocess_tls::install_crypto_provider();
    let user = User {
        name: "alice".into(),
        groups: vec!["devs".into()],
        uid: "u".into(),
        extra: [("scopes".to_owned(), vec!["read".to_owned()])].into(),
    };
    let authority = Authority::generate(&domain()).expect("an authority");
    let issued = authority.issue(&Role::User, Some(&user), Duration::from_secs(600));
    let (chain, _) = issued.expect("a certificate");
    parse_x509_pem(chain.as_bytes()).expect("PEM").1.contents
}

/// Texts for fields that are checked.
fn text() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,300}",
        any::<Vec<char>>().prop_map(|characters| characters.into_iter().collect()),
        "-?[0-9]{0,25}(\\.[0-9]{0,25})?(e[-+]?[0-9]{0,6}|[EPTGMkmun]i?|h|s)?",
        "[A-Za-z0-9./=+-]{0,70}",
    ];
    text.prop_map(Value::from)
}

/// A valid object.
fn object() -> Value {
    json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {
            "image": "busybox", "command": ["true"], "args": ["a"], "workingDir": "/tmp",
            "env": [{"name": "A", "value": "a"}],
            "resources": {"limits": {"memory": "64Mi"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "stdinFrom": {"configMapKeyRef": {"name": "a", "key": "b"}},
            "stop": {"signal": "TERM", "gracePeriodSeconds": 5},
            "retries": {"limit": 1, "after": ["ProcessFailure"], "backoff": {"initialSeconds": 1, "maxSeconds": 2}},
            "deadlines": {"runSeconds": 9, "warnSignal": "USR1", "warnBeforeSeconds": 1},
            "output": {"spoolSize": "64Mi"},
            "pod": {"labels": {"a": "b"}, "nodeSelector": {"a": "b"}, "serviceAccountName": "a",
                    "volumes": [{"name": "v", "emptyDir": {}}]},
        },
    })
}

/// Fields of the spec that take a text.
const TEXTS: [&str; 18] = [
    "/image",
    "/command/0",
    "/args/0",
    "/workingDir",
    "/env/0/name",
    "/env/0/value",
    "/resources/limits/memory",
    "/volumeMounts/0/name",
    "/volumeMounts/0/mountPath",
    "/stdinFrom/configMapKeyRef/name",
    "/stdinFrom/configMapKeyRef/key",
    "/stop/signal",
    "/deadlines/warnSignal",
    "/output/spoolSize",
    "/pod/labels/a",
    "/pod/nodeSelector/a",
    "/pod/serviceAccountName",
    "/pod/volumes/0/name",
];
/// Fields of the spec that take a number.
const NUMBERS: [&str; 6] = [
    "/stop/gracePeriodSeconds",
    "/retries/limit",
    "/retries/backoff/initialSeconds",
    "/retries/backoff/maxSeconds",
    "/deadlines/runSeconds",
    "/deadlines/warnBeforeSeconds",
];

#[test]
fn the_object_is_valid_before_it_is_changed() {
    let process: RemoteProcess = serde_json::from_value(object()).expect("an object");
    validate(&process).expect("a valid one");
}

proptest! {
    #[test]
    fn a_uri_is_a_role_only_in_its_one_form(
        uri in prop_oneof![
            any::<String>(),
            "spiffe://remoteprocess.local/(operator|user|agent)(/[a-z0-9./%-]{0,70}){0,3}",
        ],
    ) {
        if let Some(role) = Role::from_uri(&uri, &domain()) {
            prop_assert_eq!(role.uri(&domain()), uri);
        }
    }

    #[test]
    fn messages_of_any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..600),
    ) {
        let _ = decode(&Bytes::from(bytes.clone()));
        let mut messages = Messages::new(Body::new(Full::new(Bytes::from(bytes))));
        while let Some(Ok(Some(message))) = messages.next().now_or_never() {
            let _ = decode(&message);
        }
    }

    #[test]
    fn an_object_of_any_values_is_judged(
        texts in proptest::collection::vec((0..TEXTS.len(), text()), 1..4),
        numbers in proptest::collection::vec((0..NUMBERS.len(), any::<u32>()), 0..3),
    ) {
        let mut object = object();
        let texts = texts.into_iter().map(|(field, value)| (TEXTS[field], value));
        let numbers = numbers.into_iter().map(|(field, value)| (NUMBERS[field], Value::from(value)));
        for (field, value) in texts.chain(numbers) {
            if let Some(found) = object["spec"].pointer_mut(field) {
                *found = value;
            }
        }
        if let Ok(process) = serde_json::from_value::<RemoteProcess>(object)
            && let Err(error) = validate(&process)
        {
            // It gets into the status.
            prop_assert!(error.to_string().len() < 2000);
        }
    }
}

#[test]
fn a_damaged_certificate_names_nobody_else() {
    let whole = certificate();
    let alice = PeerIdentity::from_der(&whole, &domain()).expect("whole");
    let mut runner = proptest::test_runner::TestRunner::default();
    let tried = runner.run(&damage(), |damage| {
        // Signatures are checked before; here it is enough that roles do not mix.
        if let Ok(peer) = PeerIdentity::from_der(&damaged(whole.clone(), damage), &domain()) {
            prop_assert_eq!(peer.user.is_some(), peer.role == alice.role);
        }
        Ok(())
    });
    tried.expect("no damage matters");
}
