//! Keys of gRPC metadata.

/// The attempt that a request or an answer is about.
pub const ATTEMPT: &str = "rproc-attempt";
/// Uid of the object that an answer is about.
pub const UID: &str = "rproc-uid";
/// From one replica to another: the user who made the request, as UTF-8.
pub const ON_BEHALF: &str = "rproc-on-behalf-bin";
