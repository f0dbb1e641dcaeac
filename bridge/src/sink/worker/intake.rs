//! Output from the relay. While an event is on its way to the destination, what comes is kept, within a bound, so that the
//! relay is not made to wait; if that takes long, the stream is closed, and what is kept is sent without it.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Fuse};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Instant, sleep_until};

use super::super::reader::{OutputReader, Piece, ReadError, Request};

/// What is kept at most, in bytes and one piece: 32 workers have this at the same time.
const AHEAD: usize = 128 << 10;
/// What a piece takes besides its bytes, about.
const PIECE: usize = 256;
/// If as much is kept as may be, and an event is not taken in this time, the stream is closed: the relay cuts streams that
/// stall.
const STALLED: Duration = Duration::from_secs(2);
/// If an event is not taken in this time, the stream is closed, even if little comes: a user has a limited number. A
/// destination that needs less time for each event has the stream of a program that writes little opened once.
const AWAY: Duration = Duration::from_secs(20);

/// The stream of one attempt, and what of it was received ahead.
pub(super) struct Intake {
    open: Option<Open>,
    /// How the stream has ended, if it was not closed before.
    end: Option<Result<(), ReadError>>,
    ahead: VecDeque<Piece>,
    /// Size of what is kept.
    size: usize,
}

struct Open {
    reading: Fuse<BoxFuture<'static, Result<(), ReadError>>>,
    /// What it has returned.
    read: Option<Result<(), ReadError>>,
    received: Receiver<Piece>,
}

/// What comes next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Output.
    Piece(Piece),
    /// There is no more.
    End(Result<(), ReadError>),
    /// The stream was closed: another one has the rest.
    Closed,
}

impl Open {
    /// The next piece, or how the stream has ended. Cancel-safe.
    async fn next(&mut self) -> Result<Piece, Result<(), ReadError>> {
        loop {
            tokio::select! {
                biased;
                piece = self.received.recv() => match (piece, self.read.take()) {
                    (Some(piece), read) => {
                        self.read = read;
                        return Ok(piece);
                    }
                    (None, Some(read)) => return Err(read),
                    (None, None) => return Err((&mut self.reading).await),
                },
                // It drops the sender, so that what is left is received, and then nothing.
                read = &mut self.reading => self.read = Some(read),
            }
        }
    }
}

impl Intake {
    /// Opens a stream.
    pub(super) fn open(reader: &dyn OutputReader, request: Request) -> Self {
        let (pieces, received) = mpsc::channel(1);
        Self {
            open: Some(Open {
                reading: reader.read(request, pieces).fuse(),
                read: None,
                received,
            }),
            end: None,
            ahead: VecDeque::new(),
            size: 0,
        }
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            if let Some(piece) = self.ahead.pop_front() {
                self.size -= size(&piece);
                return Next::Piece(piece);
            }
            if let Some(end) = self.end.take() {
                return Next::End(end);
            }
            if self.open.is_none() {
                return Next::Closed;
            }
            self.fill().await;
        }
    }

    /// Does something that may take long. If it takes too long, the stream is closed.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let begun = Instant::now();
        loop {
            let is_full = self.size >= AHEAD;
            let patience = if is_full { STALLED } else { AWAY };
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep_until(begun + patience), if self.open.is_some() => self.open = None,
                () = self.fill(), if self.open.is_some() && !is_full => {}
            }
        }
    }

    /// Receives a piece, or the end. Cancel-safe.
    async fn fill(&mut self) {
        let Some(open) = &mut self.open else { return };
        match open.next().await {
            Ok(piece) => {
                self.size += size(&piece);
                self.ahead.push_back(piece);
            }
            Err(end) => {
                self.end = Some(end);
                self.open = None;
            }
        }
    }
}

fn size(piece: &Piece) -> usize {
    match piece {
        Piece::Data(_, _, bytes) => bytes.len() + PIECE,
        Piece::Lost(..) => PIECE,
    }
}

#[cfg(test)]
mod tests;
