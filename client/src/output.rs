//! Follows the output of one process over any number of connections: nothing twice, nothing silently left out.

use futures::FutureExt;
use remoteprocess_proto::metadata::{ATTEMPT, UID};
use remoteprocess_proto::v1::{self, OutputFrame, output_frame::Frame};
use remoteprocess_proto::wire::{Messages, RELAY_WATCH_OUTPUT, call, decode};
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::dial::{DIAL_LIMIT, Dial, DialError, SILENCE_LIMIT};
use crate::retry::{Backoff, Retry, cause};
use crate::sink::{Progress, Sink, SinkError, during};

mod ledger;

pub use ledger::{Inconsistent, Ledger, Want};

/// Why following ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The relay refused, for good.
    #[error("{}", .0.message())]
    Relay(Status),
    /// The relay cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The relay's offsets contradict what was received.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
    /// It cannot be determined whether another attempt follows.
    #[error("{0}")]
    NextAttempt(String),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] SinkError),
}

/// How one connection ended.
enum End {
    Exit(Box<v1::Exit>),
    /// All existing output is written; the process still runs.
    Complete,
    Cut {
        cause: String,
        /// Frames arrived: the next try need not wait long.
        was_alive: bool,
    },
}

/// One process whose output is being followed.
pub struct Follower<D, S, P> {
    /// The source of connections.
    pub dial: D,
    /// What was requested and what has been received.
    pub ledger: Ledger,
    /// Where the output is written.
    pub sink: S,
    /// Is told what happens in the meantime.
    pub progress: P,
    /// Until this time, the relay may not know a process yet.
    pub unknown_until: Instant,
}

impl<D: Dial, S: Sink, P: Progress> Follower<D, S, P> {
    /// Writes the output until the process has ended (or, without `follow`, until the existing output is written), over
    /// as many connections as it takes. `None`: it has not ended.
    ///
    /// # Errors
    /// An error that another connection would not fix. Everything received until then is written.
    pub async fn run(&mut self) -> Result<Option<v1::Exit>, Error> {
        let mut backoff = Backoff::default();
        let mut has_connected = false;
        loop {
            let end = match self.session(&mut has_connected).await {
                Err(Error::Dial(DialError::Unreachable(cause))) => End::Cut {
                    cause,
                    was_alive: false,
                },
                Err(Error::Dial(DialError::Missing(cause))) if has_connected => End::Cut {
                    cause,
                    was_alive: false,
                },
                end => end?,
            };
            match end {
                End::Exit(exit) => {
                    self.sink.flush().await?;
                    return Ok(Some(*exit));
                }
                End::Complete => {
                    self.sink.flush().await?;
                    return Ok(None);
                }
                End::Cut { cause, was_alive } => {
                    if was_alive {
                        backoff = Backoff::default();
                    }
                    self.progress.cut(cause);
                    during(&mut self.progress, tokio::time::sleep(backoff.wait())).await?;
                }
            }
        }
    }

    async fn session(&mut self, has_connected: &mut bool) -> Result<End, Error> {
        let request = self.ledger.request()?;
        let dialed = timeout(DIAL_LIMIT, self.dial.dial());
        let mut channel = match during(&mut self.progress, dialed).await? {
            Ok(channel) => channel?,
            Err(_) => return Ok(cut("the relay cannot be reached in time", false)),
        };
        let opened = call(&mut channel, RELAY_WATCH_OUTPUT, Request::new(request));
        let opened = timeout(SILENCE_LIMIT, opened);
        let mut messages = match during(&mut self.progress, opened).await? {
            Ok(Ok((metadata, messages))) => self.accept(&metadata, messages).await?,
            Ok(Err(status)) => return self.retry(status, false),
            Err(_) => return Ok(cut("the relay does not answer", false)),
        };
        *has_connected = true;
        let mut was_alive = false;
        loop {
            // A timer is set only if a frame must be awaited.
            let next = match messages.next().now_or_never() {
                Some(next) => Ok(next),
                None => {
                    let next = timeout(SILENCE_LIMIT, messages.next());
                    during(&mut self.progress, next).await?
                }
            };
            let wire = match next {
                Ok(Ok(Some(wire))) => wire,
                Ok(Ok(None)) if self.ledger.is_following() => return Ok(cut("the relay ended the stream", was_alive)),
                Ok(Ok(None)) => return Ok(End::Complete),
                Ok(Err(status)) => return self.retry(status, was_alive),
                Err(_) => return Ok(cut("nothing came for 30 s", was_alive)),
            };
            was_alive = true;
            let frame = match decode(&wire) {
                Ok(frame) => frame,
                Err(status) => return self.retry(status, was_alive),
            };
            if let Some(exit) = self.take(frame).await? {
                return Ok(End::Exit(Box::new(exit)));
            }
        }
    }

    /// Reads what the relay says about the stream before it begins.
    async fn accept(&mut self, metadata: &MetadataMap, messages: Messages) -> Result<Messages, Error> {
        let text = |key| {
            metadata
                .get(key)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        self.announce(text(ATTEMPT).parse().unwrap_or_default(), text(UID))
            .await?;
        Ok(messages)
    }

    async fn announce(&mut self, attempt: u32, uid: &str) -> Result<(), Error> {
        self.ledger.announce(attempt, uid)?;
        if attempt != 0 {
            self.sink.attempt(attempt).await?;
        }
        Ok(())
    }

    async fn take(&mut self, frame: OutputFrame) -> Result<Option<v1::Exit>, Error> {
        self.progress.alive().await?;
        match frame.frame {
            Some(Frame::Data(data)) if self.ledger.take(&data)? => {
                self.progress.data();
                self.sink.data(data).await?;
            }
            Some(Frame::Gap(gap)) => {
                if self.ledger.lose(gap)? {
                    self.sink.gap(gap).await?;
                    self.progress.gap(&gap).await?;
                }
            }
            Some(Frame::State(state)) => self.progress.state(&state),
            Some(Frame::Heartbeat(heartbeat)) => {
                self.announce(heartbeat.attempt, "").await?;
                self.ledger.heartbeat(&heartbeat);
            }
            Some(Frame::Exit(exit)) => return Ok(Some(exit)),
            // Of the other stream, or a frame of a newer relay that is not output.
            Some(Frame::Data(_) | Frame::Spool(_)) | None => {}
        }
        Ok(None)
    }

    /// Whether another connection can fix the relay's answer.
    fn retry(&mut self, status: Status, was_alive: bool) -> Result<End, Error> {
        match Retry::of(&status) {
            Retry::Never => return Err(Error::Relay(status)),
            Retry::Unknown if Instant::now() >= self.unknown_until => return Err(Error::Relay(status)),
            Retry::NewCertificate => self.dial.discredit(),
            // The relay limits the number of followers; a place becomes free.
            Retry::Reconnect | Retry::Unknown | Retry::Held => {}
        }
        Ok(cut(&cause(&status), was_alive))
    }
}

fn cut(cause: &str, was_alive: bool) -> End {
    End::Cut {
        cause: cause.to_owned(),
        was_alive,
    }
}
