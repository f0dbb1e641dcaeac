//! An authority, to sign what a target has taken and to read it back.

use std::sync::LazyLock;
use std::time::Duration;

use remoteprocess_tls::{Authority, KeyRequest, PeerIdentity, Role, TrustDomain, User, install_crypto_provider};
use x509_parser::pem::parse_x509_pem;

/// The trust domain of all targets.
pub(crate) static DOMAIN: LazyLock<TrustDomain> =
    LazyLock::new(|| "remoteprocess.local".parse().expect("a trust domain"));

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    install_crypto_provider();
    Authority::generate(&DOMAIN).expect("an authority")
});

static REQUEST: LazyLock<Vec<u8>> = LazyLock::new(|| KeyRequest::generate().expect("a request").csr_der);

/// How long the certificates are valid.
const LIFETIME: Duration = Duration::from_secs(600);

/// The peer that a certificate for the key of this request (PKCS#10, DER) names; `None` if the request is refused.
pub(crate) fn sign(csr: &[u8], role: &Role, user: Option<&User>, lifetime: Duration) -> Option<PeerIdentity> {
    let chain = AUTHORITY.sign_csr_der(csr, role, user, lifetime).ok()?;
    let leaf = parse_x509_pem(chain.as_bytes()).expect("PEM").1.contents;
    Some(PeerIdentity::from_der(&leaf, &DOMAIN).expect("what we sign we can read"))
}

/// The same for a good request.
pub(crate) fn certify(role: &Role, user: Option<&User>) -> Option<PeerIdentity> {
    sign(&REQUEST, role, user, LIFETIME)
}

/// A certificate, DER.
pub(crate) fn certificate(role: &Role, user: Option<&User>) -> Vec<u8> {
    let (chain, _) = AUTHORITY.issue(role, user, LIFETIME).expect("a certificate");
    parse_x509_pem(chain.as_bytes()).expect("PEM").1.contents
}

/// The certificate of the authority, PEM.
pub(crate) fn anchor() -> String {
    AUTHORITY.anchor_pem()
}

/// A user with information of each kind.
pub(crate) fn alice() -> User {
    User {
        name: "alice".into(),
        groups: vec!["dev".into(), "system:authenticated".into()],
        uid: "u-1".into(),
        extra: [("scopes".to_owned(), vec!["read".to_owned()])].into(),
    }
}
