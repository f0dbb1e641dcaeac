//! Calls that change a running process.

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{ProcessKey, SignalRequest, SignalTarget};

use crate::dial::{CallError, Dial};
use crate::stream::session_name;

/// Sends a signal to a process. The process gets it once, however often the call is retried.
///
/// # Errors
/// The relay refuses, or cannot be reached within 30 s.
pub async fn signal(
    relay: &mut impl Dial,
    process: ProcessKey,
    number: i32,
    target: SignalTarget,
) -> Result<(), CallError> {
    let request = SignalRequest {
        protocol: PROTOCOL,
        process: Some(process),
        request_id: session_name(),
        number,
        target: target.into(),
    };
    relay
        .call(|mut client| {
            let request = request.clone();
            async move { client.signal(request).await }
        })
        .await?;
    Ok(())
}
