//! The wire of RemoteProcess: the gRPC services `Executor`, `Relay` and `Enrolment`, and their messages.
//!
//! Arrows: none to a sibling. It knows nothing of Kubernetes, of TLS or of files.
//! Invariant: `gen/` is made from `remoteprocess/v1/*.proto` by `cargo xtask proto` and never edited.

#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
#[path = "gen/remoteprocess.v1.rs"]
pub mod v1;

mod cursor;
pub mod wire;

/// Version of the wire, sent in the first exchange of each call. An operator serves agents of this version and the one
/// before, and clients one version away.
pub const PROTOCOL: u32 = 1;

/// Longest `Data.bytes`, in bytes: 16 to 64 KiB measured best.
pub const MAX_CHUNK: usize = 64 * 1024;

/// Largest message that a peer has to accept, in bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;
