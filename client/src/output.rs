//! Follows the output of one process over any number of connections: nothing twice, nothing silently left out.

use std::time::Duration;

use futures::FutureExt;
use remoteprocess_proto::metadata::{ATTEMPT, UID};
use remoteprocess_proto::v1::{self, OutputFrame, output_frame::Frame};
use remoteprocess_proto::wire::{Messages, RELAY_WATCH_OUTPUT, call, decode};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::dial::{Dial, DialError};
use crate::sink::{Progress, Sink, SinkError, during};
use crate::stream::{Broken, ENDED, Here, Policy, Session, came, next, opened, run};

mod ledger;

pub use ledger::{Inconsistent, Ledger, Want};

/// Why following ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The relay refused, for good.
    #[error("{}", .0.message())]
    Relay(#[from] Status),
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
        let mut reading = Reading {
            follower: self,
            has_begun: false,
            frames: 0,
        };
        let exit = run(&mut reading, &mut Here::quiet()).await?;
        self.sink.flush().await?;
        Ok(exit)
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
}

/// A run of the follower.
struct Reading<'a, D, S, P> {
    follower: &'a mut Follower<D, S, P>,
    has_begun: bool,
    /// Number of frames that arrived.
    frames: u64,
}

impl<D: Dial, S: Sink, P: Progress> Session for Reading<'_, D, S, P> {
    type Over = Option<v1::Exit>;
    type Error = Error;
    type Dial = D;
    type Progress = P;

    async fn serve(&mut self, mut channel: Channel, here: &mut Here) -> Result<Option<v1::Exit>, Broken<Error>> {
        let follower = &mut *self.follower;
        let request = Request::new(follower.ledger.request().map_err(Error::from)?);
        let opened = opened(call(&mut channel, RELAY_WATCH_OUTPUT, request));
        let (metadata, messages) = during(&mut follower.progress, opened).await??;
        let mut messages = follower.accept(&metadata, messages).await?;
        self.has_begun = true;
        loop {
            // A frame that is lost here is sent again: the next stream begins at the cursor.
            if *here.renewed.borrow() {
                return Err(Broken::Renewed);
            }
            // A timer is set only if a frame must be awaited.
            let wire = match messages.next().now_or_never() {
                Some(wire) => wire.map_err(Broken::Refused)?,
                None => {
                    let next = async {
                        tokio::select! {
                            wire = next(messages.next()) => wire,
                            () = came(&here.renewed) => Err(Broken::Renewed),
                        }
                    };
                    during(&mut follower.progress, next).await??
                }
            };
            let Some(wire) = wire else {
                return match follower.ledger.is_following() {
                    true => Err(Broken::Cut(ENDED)),
                    false => Ok(None),
                };
            };
            self.frames += 1;
            let frame = decode(&wire).map_err(Broken::Refused)?;
            if let Some(exit) = follower.take(frame).await? {
                return Ok(Some(exit));
            }
        }
    }

    fn left(&self) -> Option<v1::Exit> {
        None
    }

    fn policy(&self) -> Policy {
        Policy {
            has_begun: self.has_begun,
            is_new: Instant::now() < self.follower.unknown_until,
            // The relay limits followers.
            waits_for_place: true,
            arrived: self.frames,
            longest_wait: Duration::MAX,
        }
    }

    fn parts(&mut self) -> (&mut D, &mut P) {
        (&mut self.follower.dial, &mut self.follower.progress)
    }
}

impl From<Error> for Broken<Error> {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
