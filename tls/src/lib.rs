//! Mutual TLS and nothing else: roles, the authority that signs leaves, live identities, the accept loop, the dialer.
//!
//! Arrows: none to a sibling.
//! Invariant: a peer is who the URI in its certificate says, compared as a [`Role`], never as text; TLS 1.3 only, no
//! resumption, and a certificate that our own verifier refuses never replaces one that it accepted.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod admission;
mod authority;
mod certificate;
mod connect;
mod error;
mod identity;
mod metered;
mod role;
mod serve;

pub use admission::Refusal;
pub use authority::{Authority, KeyRequest};
pub use connect::Dialer;
pub use error::Error;
pub use identity::{Identity, bundle, expiries};
pub use role::{PeerIdentity, Role, TrustDomain, User, serial};
pub use serve::{ClientAuth, Connection, Limits, Listener, serve};

/// Makes ring the crypto provider of this program. Call it first in each `main` and test harness: rustls panics at its
/// first use if there are two providers or none. Calling it again does nothing.
pub fn install_crypto_provider() {
    // An error only means that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
