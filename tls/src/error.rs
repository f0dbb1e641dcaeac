use crate::{Role, TrustDomain};

/// What can be wrong with a certificate, a key, a request or a peer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A trust domain is a lower-case DNS name, because it becomes part of URIs and host names.
    #[error("the trust domain {0:?} is not a lower-case DNS name")]
    TrustDomain(String),
    /// PEM text that does not decode, or contains no item of the expected kind.
    #[error("no {what} can be read from the PEM text")]
    Pem {
        /// The expected item.
        what: &'static str,
    },
    /// A certificate that does not decode.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// A certificate without exactly one URI that is a role of the trust domain.
    #[error("the certificate names no role of the trust domain {0}")]
    NoRole(TrustDomain),
    /// The peer has another identity than expected.
    #[error("expected {expected} at the other end, found {found}")]
    WrongPeer {
        /// The expected role.
        expected: Role,
        /// The role of the peer.
        found: Role,
    },
    /// The peer presented no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// A certification request that is not signed.
    #[error("the certification request is refused: {0}")]
    Request(String),
    /// An authority whose certificate may not sign, or has expired.
    #[error("the authority cannot sign: {0}")]
    Authority(&'static str),
    /// A new identity that our own verifier refuses.
    #[error("the new certificate is refused by our own verifier")]
    Unverified(#[source] rustls::Error),
    /// A new identity with another role.
    #[error("the new certificate is for {found}, the old one for {current}")]
    OtherRole {
        /// Role of this program.
        current: Role,
        /// Role in the new certificate.
        found: Role,
    },
    /// A role that does not listen cannot be dialed.
    #[error("{0} has no server name and cannot be dialed")]
    NotAServer(Role),
    /// rustls refuses the configuration (a key that does not match its certificate, for example).
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
    /// A certificate or key could not be made.
    #[error("a certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// The connection failed; the source says at which step.
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
}
