//! Which versions of the wire protocol are compatible.

/// Version of the wire protocol, sent in the first exchange of each call. An operator serves agents and clients
/// whose version differs by at most one from its own.
pub const PROTOCOL: u32 = 1;

/// The peer's version is too far away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported(u32);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "version {} of the wire is not supported: this side speaks version {PROTOCOL} and one version away from it",
            self.0
        )
    }
}

impl std::error::Error for Unsupported {}

/// Accepts versions that are at most one away.
///
/// # Errors
/// For any other version.
pub fn check_protocol(protocol: u32) -> Result<(), Unsupported> {
    match protocol.abs_diff(PROTOCOL) {
        0 | 1 => Ok(()),
        _ => Err(Unsupported(protocol)),
    }
}
