use std::{io, process};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal ends the program at once, with 128 and the
/// signal's number as the exit code, so that a shutdown that hangs can be ended without SIGKILL. Needs a tokio runtime.
pub fn shutdown_token() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
            }
        };
        let (signal, _) = next().await;
        tracing::info!(signal, "shutting down; a second signal ends the program at once");
        cancel.cancel();
        let (signal, kind) = next().await;
        tracing::warn!(signal, "a second signal: the program ends without waiting");
        process::exit(128 + kind.as_raw_value());
    });
    Ok(token)
}
