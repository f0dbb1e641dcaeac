//! Where an attach begins: a little before the end of the output that exists.

use remoteprocess_client::{Dial, Want};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{Cursor, GetStateRequest, ProcessKey};

/// How much of the output is shown again, in bytes of each stream.
const REPLAY: u64 = 256 * 1024;

/// How far the output has come; `None` if the relay does not say.
pub async fn reached(relay: &mut impl Dial, key: &ProcessKey) -> Option<Cursor> {
    let request = GetStateRequest {
        protocol: PROTOCOL,
        process: Some(key.clone()),
    };
    let state = relay
        .call(|mut client| {
            let request = request.clone();
            async move { client.get_state(request).await }
        })
        .await;
    state.ok()?.into_inner().process?.output
}

/// The end of the existing output, and everything after it; all output if the relay does not say how much there is.
pub fn want(key: &ProcessKey, reached: Option<Cursor>) -> Want {
    Want {
        cursor: reached.map(|reached| Cursor {
            stdout: reached.stdout.saturating_sub(REPLAY),
            stderr: reached.stderr.saturating_sub(REPLAY),
        }),
        process: key.clone(),
        follow: true,
        ..Want::default()
    }
}
