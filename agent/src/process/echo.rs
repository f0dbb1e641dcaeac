//! Echo: the output once more in the container's own log, for `kubectl logs` and log collectors.

use std::sync::Arc;

use remoteprocess_entrypoint::message::{MAX_ECHO_BYTES, ToEntrypoint};
use tokio::sync::{mpsc, watch};

use crate::spool::{Error, Item, Spool, Stream};

/// How much of the output goes into the container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Echo {
    /// The first 1 MiB, both streams together.
    Limited,
    /// Everything, as far as the log takes it.
    All,
    /// Nothing.
    None,
}

const LIMIT: u64 = 1 << 20;

/// Where echoed bytes go: to the entrypoint that is connected at the time, if any.
pub type Outlet = watch::Receiver<Option<mpsc::Sender<ToEntrypoint>>>;

/// Echoes from now on until the end of the output. What was written before this agent started is left out: an earlier
/// agent has echoed it. `pointer` is the sentence that says where the rest is.
pub async fn run(spool: Arc<Spool>, echo: Echo, pointer: String, outlet: Outlet) {
    let mut begin = spool.progress().written;
    let limit = match echo {
        Echo::None => return,
        Echo::Limited => LIMIT,
        Echo::All => u64::MAX,
    };
    loop {
        match follow(&spool, begin, limit, &pointer, &outlet).await {
            Ok(()) => return,
            // The archive is faster than the log: what has left the spool is not echoed.
            Err(Error::Dropped { .. }) => begin = spool.progress().dropped,
            Err(error) => {
                tracing::warn!(%error, "the echo ends here");
                return;
            }
        }
    }
}

async fn follow(
    spool: &Spool,
    begin: crate::spool::Offsets,
    limit: u64,
    pointer: &str,
    outlet: &Outlet,
) -> Result<(), Error> {
    let mut reader = spool.reader(begin)?;
    let mut echoed = begin.total();
    while echoed < limit {
        let chunk = match reader.next().await? {
            Item::Chunk(chunk) => chunk,
            // The log is no record of the output; it says nowhere what it leaves out.
            Item::Gap(_) => continue,
            Item::End => {
                flush(outlet).await;
                return Ok(());
            }
        };
        let room = usize::try_from(limit - echoed).unwrap_or(usize::MAX);
        let part = &chunk.bytes[..chunk.bytes.len().min(room)];
        for bytes in part.chunks(MAX_ECHO_BYTES) {
            write(outlet, chunk.stream, bytes).await;
        }
        echoed += part.len() as u64;
    }
    if begin.total() < limit {
        write(outlet, Stream::Stderr, pointer.as_bytes()).await;
        flush(outlet).await;
    }
    Ok(())
}

async fn write(outlet: &Outlet, stream: Stream, bytes: &[u8]) {
    let sender = outlet.borrow().clone();
    if let Some(sender) = sender {
        let echo = ToEntrypoint::Echo {
            stream: stream.into(),
            bytes: bytes.to_vec(),
        };
        // An entrypoint that left meanwhile has no log any more.
        let _ = sender.send(echo).await;
    }
}

/// Waits until the last packet has been taken from the queue: an order that is given afterwards follows it.
async fn flush(outlet: &Outlet) {
    let sender = outlet.borrow().clone();
    if let Some(sender) = sender {
        let _ = sender.reserve().await;
    }
}
