//! Echo: a copy of the output in the container's own log, for `kubectl logs` and log collectors.

use std::sync::Arc;

use remoteprocess_entrypoint::message::{MAX_ECHO_BYTES, ToEntrypoint};
use tokio::sync::{mpsc, watch};

use crate::spool::{Error, Item, Offsets, Spool, Stream};

/// How much of the output goes into the container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
pub(super) type Outlet = watch::Receiver<Option<mpsc::Sender<ToEntrypoint>>>;

/// Echoes from `begin` until the end of the output. What was written before this agent started is left out, because an
/// earlier agent has echoed it. `pointer` is the message that says where the rest is.
pub(super) async fn run(spool: Arc<Spool>, mut begin: Offsets, echo: Echo, pointer: String, outlet: Outlet) {
    let limit = match echo {
        Echo::None => return,
        Echo::Limited => LIMIT,
        Echo::All => u64::MAX,
    };
    if begin.total() >= limit {
        // An earlier agent has written the message that says where the rest is.
        return;
    }
    loop {
        match follow(&spool, begin, limit, &outlet).await {
            Ok(is_whole) => {
                if !is_whole {
                    write(&outlet, Stream::Stderr, pointer.as_bytes()).await;
                }
                return flush(&outlet).await;
            }
            // The archive is faster than the log: what has left the spool is not echoed.
            Err(Error::Dropped { .. }) => begin = spool.progress().dropped,
            Err(error) => {
                tracing::warn!(%error, "the echo ends here");
                return;
            }
        }
    }
}

/// Echoes up to the end, or up to the limit: then false.
async fn follow(spool: &Spool, begin: Offsets, limit: u64, outlet: &Outlet) -> Result<bool, Error> {
    let mut reader = spool.reader(begin)?;
    let mut echoed = begin.total();
    while echoed < limit {
        let chunk = match reader.next().await? {
            Item::Chunk(chunk) => chunk,
            // The log is no record of the output; it does not report what it leaves out.
            Item::Gap(_) => continue,
            Item::End => return Ok(true),
        };
        let room = usize::try_from(limit - echoed).unwrap_or(usize::MAX);
        let part = &chunk.bytes[..chunk.bytes.len().min(room)];
        for bytes in part.chunks(MAX_ECHO_BYTES) {
            write(outlet, chunk.stream, bytes).await;
        }
        echoed += part.len() as u64;
    }
    Ok(false)
}

async fn write(outlet: &Outlet, stream: Stream, bytes: &[u8]) {
    let sender = outlet.borrow().clone();
    if let Some(sender) = sender {
        let echo = ToEntrypoint::Echo {
            stream: stream.into(),
            bytes: bytes.to_vec(),
        };
        // An entrypoint that has exited in the meantime has no log.
        let _ = sender.send(echo).await;
    }
}

/// Waits until the last packet has been taken from the queue, so that an order sent afterwards follows it.
async fn flush(outlet: &Outlet) {
    let sender = outlet.borrow().clone();
    if let Some(sender) = sender {
        let _ = sender.reserve().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::spool::{Policy, WhenFull};

    #[tokio::test]
    async fn the_echo_points_to_the_rest_even_if_the_archive_was_faster() {
        const WRITTEN: u64 = 2 * LIMIT;
        let patience = Duration::from_secs(20);
        let directory = tempfile::tempdir().unwrap();
        let policy = Policy {
            size: 16 << 20,
            when_full: WhenFull::Block,
            patience,
        };
        let (spool, mut appender) = Spool::open(directory.path(), policy, None).unwrap();
        let spool = Arc::new(spool);
        let (sender, mut packets) = mpsc::channel(1);
        let (_entrypoint, outlet) = watch::channel(Some(sender));
        let pointer = "there".to_owned();
        let echo = tokio::spawn(run(spool.clone(), Offsets::default(), Echo::Limited, pointer, outlet));
        // It waits for the first byte, and does not run again until all of them have come and gone.
        tokio::task::yield_now().await;
        let (read, mut write) = std::io::pipe().unwrap();
        let part = [b'x'; 32 * 1024];
        for _ in 0..WRITTEN / part.len() as u64 {
            write.write_all(&part).unwrap();
            appender.take(Stream::Stdout, read.as_fd()).unwrap();
        }
        let end = Offsets {
            stdout: WRITTEN,
            stderr: 0,
        };
        spool.commit(end).unwrap();
        let begun = Instant::now();
        while spool.progress().dropped != end {
            assert!(begun.elapsed() < patience, "it leaves the spool");
            std::thread::yield_now();
        }
        let said = tokio::time::timeout(patience, packets.recv()).await;
        let Ok(Some(ToEntrypoint::Echo { bytes, .. })) = said else {
            panic!("{said:?}")
        };
        assert_eq!(String::from_utf8_lossy(&bytes), "there");
        echo.await.unwrap();
    }
}
