//! Damaged requests and certificates: refused or read, never a panic.

use std::time::Duration;

use remoteprocess_tls::{Authority, Identity, KeyRequest, PeerIdentity, Role, TrustDomain, User};
use rustls_pki_types::{CertificateDer, pem::PemObject};

fn authority() -> Authority {
    remoteprocess_tls::install_crypto_provider();
    Authority::generate(&domain()).expect("an authority")
}

fn domain() -> TrustDomain {
    "test.local".parse().expect("a domain")
}

/// Every copy with one bit flipped, and every prefix.
fn damaged(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let turned = (0..whole.len() * 8).map(|bit| {
        let mut copy = whole.to_vec();
        copy[bit / 8] ^= 1 << (bit % 8);
        copy
    });
    turned.chain((0..whole.len()).map(|length| whole[..length].to_vec()))
}

#[test]
fn a_damaged_request_gets_nothing_for_another_key() {
    let (authority, hour) = (authority(), Duration::from_secs(3600));
    let KeyRequest { key_pem, csr_der, .. } = KeyRequest::generate().expect("a request");
    let mut refused = 0;
    for copy in damaged(&csr_der) {
        match authority.sign_csr_der(&copy, &Role::Operator, None, hour) {
            // The parser ignores a few tags outside of what the key has signed.
            Ok(chain) => drop(Identity::new(&chain, &key_pem, authority.cert_pem(), &domain()).expect("the same key")),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > csr_der.len() * 8, "{refused}");
    let followed = [&csr_der[..], &[0]].concat();
    assert!(authority.sign_csr_der(&followed, &Role::Operator, None, hour).is_err());
}

#[test]
fn a_damaged_certificate_is_read_or_refused_without_a_panic() {
    let user = User {
        name: "alice".into(),
        groups: vec!["dev".into()],
        ..User::default()
    };
    let (chain, _) = authority()
        .issue(&Role::User, Some(&user), Duration::from_secs(3600))
        .expect("a leaf");
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM");
    let whole = PeerIdentity::from_der(&leaf, &domain()).expect("a peer");
    assert_eq!((whole.role, whole.user), (Role::User, Some(user)));
    for copy in damaged(&leaf) {
        if let Ok(peer) = PeerIdentity::from_der(&copy, &domain()) {
            assert_eq!(peer.user.is_some(), peer.role == Role::User);
        }
    }
}
