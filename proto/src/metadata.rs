//! Keys of gRPC metadata.

/// The attempt that is meant, or that an answer is about.
pub const ATTEMPT: &str = "rproc-attempt";
/// Uid of the object that an answer is about.
pub const UID: &str = "rproc-uid";
/// From replica to replica: the user who asked, as UTF-8.
pub const ON_BEHALF: &str = "rproc-on-behalf-bin";
