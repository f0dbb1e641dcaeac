//! Where the output of a process comes from: the relay, by the client library, which verifies it and continues from the
//! archive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use remoteprocess_api::sink::OutputStream;
use remoteprocess_client::output::Error;
use remoteprocess_client::pool::Shared;
use remoteprocess_client::{
    Cluster, ClusterOptions, Dial, DialError, Follower, Ledger, Progress, Sink, SinkError, Want,
};
use remoteprocess_proto::v1::{Cursor, Data, Gap, ProcessKey, Stream};
use tokio::sync::mpsc::Sender;
use tokio::sync::{OnceCell, mpsc};
use tokio::time::Instant;
use tonic::Code;

/// How long the relay may not know a process that was just created.
const NEW: Duration = Duration::from_secs(15);
/// A connection that is being replaced is no problem for people before this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that failed this long ago, and was not tried again, is none either: nobody wants output any more. Until
/// then, another worker may take over, and meet the same trouble.
const STALE: Duration = Duration::from_secs(60);

/// Whose output, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Namespace of the process.
    pub namespace: String,
    /// Name of the process.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// The only stream that is wanted; `None`: both.
    pub only: Option<OutputStream>,
    /// Offset of the first byte of the standard output.
    pub stdout: u64,
    /// Offset of the first byte of the standard error.
    pub stderr: u64,
}

/// What is read.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Bytes of a stream, at most 64 KiB, from an offset.
    Data(OutputStream, u64, Bytes),
    /// A range of a stream that never comes.
    Lost(OutputStream, Gap),
}

/// Why no output can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The relay does not know the process or the attempt.
    #[error("{0}")]
    Unknown(String),
    /// The ServiceAccount may not read it.
    #[error("{0}")]
    Forbidden(String),
    /// It refuses, or contradicts itself.
    #[error("{0}")]
    Failed(String),
}

/// Reads output.
pub trait OutputReader: Send + Sync {
    /// Sends the output of an attempt, each byte once and in order, to its end, for which it waits. Ends early if nobody
    /// receives any more.
    ///
    /// # Errors
    /// See [`ReadError`]. A relay that cannot be reached is none: it is tried again.
    fn read(&self, request: Request, pieces: Sender<Piece>) -> BoxFuture<'static, Result<(), ReadError>>;

    /// Why nothing can be read for some time.
    fn problem(&self) -> Option<String>;
}

/// Reads from the relay of this cluster, as the ServiceAccount of the pod.
#[derive(Default)]
pub struct RelayReader {
    shared: Arc<OnceCell<Shared>>,
    trouble: Trouble,
}

/// What keeps us from the relay, if something does.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<Option<Cut>>>);

/// Connections that failed, and none that worked after them.
struct Cut {
    cause: String,
    first: Instant,
    last: Instant,
}

impl Trouble {
    fn begin(&self, cause: String) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let first = trouble.take_if(|cut| !cut.is_stale()).map_or(now, |cut| cut.first);
        *trouble = Some(Cut {
            cause,
            first,
            last: now,
        });
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn lasting(&self) -> Option<String> {
        let trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = trouble
            .as_ref()
            .filter(|cut| cut.first.elapsed() > PATIENCE && !cut.is_stale());
        lasting.map(|cut| cut.cause.clone())
    }
}

impl Cut {
    fn is_stale(&self) -> bool {
        self.last.elapsed() >= STALE
    }
}

impl OutputReader for RelayReader {
    fn read(&self, request: Request, pieces: Sender<Piece>) -> BoxFuture<'static, Result<(), ReadError>> {
        let (shared, trouble) = (self.shared.clone(), self.trouble.clone());
        Box::pin(async move {
            let opened = shared.get_or_try_init(|| open(&request.namespace)).await;
            let dial = opened.map_err(|error| ReadError::Failed(error.to_string()))?.clone();
            follow(dial, request, pieces, trouble).await
        })
    }

    fn problem(&self) -> Option<String> {
        self.trouble.lasting()
    }
}

/// The relay: its address, and the namespace of the operator, which publishes what to trust, come from the environment.
async fn open(namespace: &str) -> Result<Shared, remoteprocess_client::cluster::Error> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let options = ClusterOptions {
        namespace: Some(namespace.to_owned()),
        server: set("RPROC_SERVER"),
        operator_namespace: set("RPROC_OPERATOR_NAMESPACE"),
        is_unattended: true,
        ..ClusterOptions::default()
    };
    Ok(Shared::new(Arc::new(Cluster::open(&options).await?)))
}

/// Follows an attempt to its end, over as many connections as it takes.
async fn follow(dial: impl Dial, request: Request, pieces: Sender<Piece>, trouble: Trouble) -> Result<(), ReadError> {
    let stream = match request.only {
        None => Stream::Unspecified,
        Some(OutputStream::Stdout) => Stream::Stdout,
        Some(OutputStream::Stderr) => Stream::Stderr,
    };
    let want = Want {
        process: ProcessKey {
            namespace: request.namespace,
            name: request.name,
            uid: request.uid,
        },
        attempt: request.attempt,
        stream,
        cursor: Some(Cursor {
            stdout: request.stdout,
            stderr: request.stderr,
        }),
        follow: true,
        ..Want::default()
    };
    let mut follower = Follower {
        dial,
        ledger: Ledger::new(want),
        sink: Forward(pieces),
        progress: trouble,
        unknown_until: Instant::now() + NEW,
    };
    let followed = follower.run().await;
    let exit = match followed {
        Ok(exit) => exit,
        // The worker has something else to do.
        Err(Error::Output(_)) => return Ok(()),
        Err(error) => return Err(read_error(&error)),
    };
    let wrong = exit.and_then(|exit| follower.ledger.audit(&exit));
    wrong.map_or(Ok(()), |wrong| Err(ReadError::Failed(wrong)))
}

fn read_error(error: &Error) -> ReadError {
    match error {
        Error::Relay(status) if matches!(status.code(), Code::NotFound | Code::OutOfRange) => {
            ReadError::Unknown(error.to_string())
        }
        Error::Relay(status) if status.code() == Code::PermissionDenied => ReadError::Forbidden(error.to_string()),
        Error::Dial(DialError::Missing(_)) | Error::Relay(_) | Error::Dial(_) => ReadError::Failed(error.to_string()),
        Error::Inconsistent(_) | Error::NextAttempt(_) | Error::Output(_) => ReadError::Failed(error.to_string()),
    }
}

impl Progress for Trouble {
    fn cut(&mut self, cause: String) {
        self.begin(cause);
    }

    async fn alive(&mut self) -> Result<(), SinkError> {
        self.end();
        Ok(())
    }
}

/// Passes output on, and waits until there is room for it.
struct Forward(mpsc::Sender<Piece>);

impl Forward {
    async fn send(&self, piece: Piece) -> Result<(), SinkError> {
        self.0.send(piece).await.map_err(|_| SinkError::Closed)
    }
}

impl Sink for Forward {
    async fn attempt(&mut self, _attempt: u32) -> Result<(), SinkError> {
        Ok(())
    }

    async fn data(&mut self, data: Data) -> Result<(), SinkError> {
        self.send(Piece::Data(of(data.stream()), data.offset, data.bytes)).await
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), SinkError> {
        self.send(Piece::Lost(of(gap.stream()), gap)).await
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn of(stream: Stream) -> OutputStream {
    match stream {
        Stream::Stderr => OutputStream::Stderr,
        Stream::Stdout | Stream::Unspecified => OutputStream::Stdout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_replaced_is_no_problem_but_one_that_stays_away_is() {
        let mut trouble = Trouble::default();
        trouble.cut("gone".into());
        assert_eq!(trouble.lasting(), None);
        tokio::time::advance(Duration::from_secs(6)).await;
        trouble.cut("still gone".into());
        assert_eq!(trouble.lasting().as_deref(), Some("still gone"));
        trouble.alive().await.unwrap();
        assert_eq!(trouble.lasting(), None);
    }

    /// The process whose output was read is gone, and no other is read.
    #[tokio::test(start_paused = true)]
    async fn a_problem_that_nobody_has_any_more_is_over() {
        let mut trouble = Trouble::default();
        trouble.cut("gone".into());
        tokio::time::advance(PATIENCE + Duration::from_secs(1)).await;
        assert!(trouble.lasting().is_some());
        tokio::time::advance(STALE).await;
        assert_eq!(trouble.lasting(), None);
        trouble.cut("again".into());
        assert_eq!(trouble.lasting(), None, "this is another one");
    }
}
