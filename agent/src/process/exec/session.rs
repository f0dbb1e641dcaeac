//! One session and the output of its command.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use remoteprocess_entrypoint::input::InputState;
use remoteprocess_entrypoint::session::Order;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Client, End, ExecError, Opening, Orders, State, Window};
use crate::spool::Offsets;

/// A session without a client for this long is closed.
const AWAY: Duration = Duration::from_secs(5 * 60);
/// How long another process may hold the streams of an ended command without writing.
const HELD: Duration = Duration::from_secs(1);
/// How long the output of a hung-up command is drained: longer than the entrypoint waits before SIGKILL.
const DRAIN: Duration = Duration::from_secs(10);
/// Bytes read at a time.
const READ: usize = 32 * 1024;

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    /// The name that its client gave it.
    pub name: String,
    /// The user who started it.
    pub user: String,
    /// Its state.
    pub state: watch::Sender<State>,
    /// Where its orders go.
    pub orders: Orders,
    over: CancellationToken,
    _guard: DropGuard,
}

impl Session {
    pub(super) fn new(name: String, user: String, orders: Orders) -> Arc<Self> {
        let over = CancellationToken::new();
        let session = Arc::new(Self {
            name,
            user,
            state: watch::Sender::new(State::new()),
            orders,
            _guard: over.clone().drop_guard(),
            over: over.clone(),
        });
        let (name, orders, seen) = (session.name.clone(), session.orders.clone(), session.state.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                () = left_alone(seen, AWAY) => orders.send(&name, Order::Close),
                () = over.cancelled() => {}
            }
        });
        session
    }

    pub(super) fn join(self: &Arc<Self>, opening: &Opening) -> Result<Client, ExecError> {
        if self.user != opening.user {
            return Err(ExecError::Foreign);
        }
        let holds = |state: &State, Offsets { stdout, stderr }: Offsets| {
            state.outputs[0].holds(stdout) && state.outputs[1].holds(stderr)
        };
        if (opening.received).is_some_and(|received| !holds(&self.state.borrow(), received)) {
            return Err(ExecError::Beyond);
        }
        let mut number = 0;
        self.state.send_modify(|state| {
            state.client += 1;
            state.has_client = true;
            number = state.client;
        });
        let client = Client::new(self, number);
        if let Some(received) = opening.received {
            client.confirm(received);
        }
        Ok(client)
    }

    pub(super) fn begin(&self, input: InputState, outputs: Vec<OwnedFd>) {
        let mut pipes = outputs.into_iter();
        for index in 0..2 {
            match pipes.next().map(pipe::Receiver::from_owned_fd) {
                Some(Ok(mut pipe)) => {
                    let (state, over) = (self.state.clone(), self.over.clone());
                    tokio::spawn(async move {
                        let reading = read(&mut pipe, index, state);
                        if over.run_until_cancelled(reading).await.is_none() {
                            drain(pipe).await;
                        }
                    });
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the output of a session cannot be read");
                    self.end(End::Lost("the agent cannot read its output".to_owned()));
                    self.state.send_modify(|state| state.outputs[index].end());
                }
                None => self.state.send_modify(|state| state.outputs[index].end()),
            }
        }
        self.state.send_modify(|state| {
            state.is_running = true;
            state.input = input;
        });
    }

    pub(super) fn end(&self, end: End) {
        self.state.send_modify(|state| {
            // There are no pipes whose end could be awaited.
            if !state.is_running {
                state.outputs.iter_mut().for_each(Window::end);
            }
            state.end.get_or_insert(end);
            state.input.is_over = true;
            state.input.room = 0;
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.borrow().end.is_some()
    }

    pub(super) fn has_client(&self) -> bool {
        self.state.borrow().has_client
    }
}

/// Returns when there was no client for too long.
async fn left_alone(mut seen: watch::Receiver<State>, away: Duration) {
    // The sender lives as long as the session, and this future does not outlive it.
    while seen.wait_for(|state| !state.has_client).await.is_ok() {
        let comes = seen.wait_for(|state| state.has_client);
        if tokio::time::timeout(away, comes).await.is_err() {
            return;
        }
    }
}

/// Moves what a command writes into its window, as far as there is room.
async fn read(pipe: &mut pipe::Receiver, index: usize, state: watch::Sender<State>) {
    let mut seen = state.subscribe();
    let mut buffer = vec![0; READ];
    loop {
        let room = match seen.wait_for(|state| state.outputs[index].room() > 0).await {
            Ok(state) => state.outputs[index].room(),
            Err(_) => return,
        };
        let most = room.min(READ);
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer[..most]) => read.unwrap_or(0),
            () = held(state.subscribe()) => 0,
        };
        state.send_modify(|state| match read {
            0 => state.outputs[index].end(),
            read => state.outputs[index].push(&buffer[..read]),
        });
        if read == 0 {
            return;
        }
    }
}

/// Reads and drops the last output of a command that was hung up, so that SIGPIPE does not end it early.
async fn drain(mut pipe: pipe::Receiver) {
    let _ = tokio::time::timeout(DRAIN, tokio::io::copy(&mut pipe, &mut tokio::io::sink())).await;
}

/// Returns when a command has ended and only other processes can write to its streams.
async fn held(mut seen: watch::Receiver<State>) {
    if seen.wait_for(|state| state.end.is_some()).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(HELD).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_is_left_alone_when_its_client_has_been_away_for_long() {
        let (state, seen) = watch::channel(State::new());
        state.send_modify(|state| state.has_client = true);
        let away = Duration::from_millis(50);
        let mut alone = tokio::spawn(left_alone(seen, away));
        assert!(
            tokio::time::timeout(away * 3, &mut alone).await.is_err(),
            "a client is there"
        );
        let left = std::time::Instant::now();
        state.send_modify(|state| state.has_client = false);
        alone.await.unwrap();
        assert!(left.elapsed() >= away);
    }
}
