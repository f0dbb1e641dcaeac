//! `agent install`: the postStart hook. The kubelet starts the user's container only after it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use remoteprocess_entrypoint::socket::Connection;

use crate::args::InstallArgs;

/// How often the socket is looked at: a start costs at most this much more.
const LOOK: Duration = Duration::from_millis(5);

/// Why the user's container cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The entrypoint could not be put on the handover volume.
    #[error("copy the entrypoint to the handover volume")]
    Copy(#[source] io::Error),
    /// No agent in time.
    #[error("no agent listens on the handover socket after {0:?}")]
    NoAgent(Duration),
}

/// Puts the entrypoint in place (whole or not at all) and waits until the agent accepts connections.
///
/// # Errors
/// [`Error`]; the kubelet then tries the container again.
pub fn install(args: &InstallArgs) -> Result<(), Error> {
    let fresh = args.handover.join(".entrypoint.new");
    fs::copy(&args.entrypoint, &fresh)
        .and_then(|_| fs::set_permissions(&fresh, Permissions::from_mode(0o555)))
        .and_then(|()| fs::rename(&fresh, args.handover.join("entrypoint")))
        .map_err(Error::Copy)?;
    let limit = Duration::from_secs(args.timeout_seconds);
    let socket = args.handover.join("socket");
    let begun = Instant::now();
    while Connection::connect(&socket).is_err() {
        if begun.elapsed() >= limit {
            return Err(Error::NoAgent(limit));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
