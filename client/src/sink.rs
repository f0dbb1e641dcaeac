//! Where the output of a process goes, and what is told about its progress.

use std::future::pending;

use remoteprocess_proto::v1::{Data, Gap, State};

/// Why a sink takes nothing more.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The reader of the pipe is gone, as with `| head -1`.
    #[error("the reader of the output is gone")]
    Closed,
    /// For example, the disk is full.
    #[error("cannot write the output: {0}")]
    Write(String),
}

/// Receives the output of a process: each byte once and in order, per stream.
pub trait Sink: Send {
    /// What follows is the output of this attempt. May be called more than once for the same attempt.
    fn attempt(&mut self, attempt: u32) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Takes bytes. Return late to slow the relay down.
    fn data(&mut self, data: Data) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Takes a range that never comes.
    fn gap(&mut self, gap: Gap) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Returns when everything that was taken is written.
    fn flush(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// Is told what happens while output is followed. Each method does nothing by default; `()` ignores everything.
pub trait Progress: Send {
    /// The state of a process that has not ended.
    fn state(&mut self, _state: &State) {}

    /// Output came.
    fn data(&mut self) {}

    /// A range of output never comes; the sink has taken it.
    fn gap(&mut self, _gap: &Gap) -> impl Future<Output = Result<(), SinkError>> + Send {
        async { Ok(()) }
    }

    /// The connection broke, or could not be opened. Another one is opened; nothing is lost.
    fn cut(&mut self, _cause: String) {}

    /// A message arrived: the connection works.
    fn alive(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send {
        async { Ok(()) }
    }

    /// Returns when there is something to report although nothing arrives. May be dropped at any time.
    fn due(&self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// Reports what is due. Never dropped before it returns.
    fn tell(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send {
        async { Ok(()) }
    }
}

impl Progress for () {}

/// Waits for `future`, and reports what is due in the meantime.
pub(crate) async fn during<F: Future>(progress: &mut impl Progress, future: F) -> Result<F::Output, SinkError> {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            biased;
            done = &mut future => return Ok(done),
            () = progress.due() => progress.tell().await?,
        }
    }
}
