//! Further commands beside the program: what the conversation and the clients of each share.
//!
//! The entrypoint starts the command and takes its input. Its output is kept here until the client has confirmed it, so
//! a connection that breaks ends nothing and loses nothing: the client joins again, with the offsets that it has.

mod client;
mod session;
mod window;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use remoteprocess_entrypoint::input::InputState;
use remoteprocess_entrypoint::message::Outcome;
use remoteprocess_entrypoint::session::{Command, Order};
use tokio::sync::oneshot;

use crate::spool::Offsets;
pub use client::Client;
use session::Session;
pub use window::Window;

/// Maximum number of sessions, including ended ones whose clients have not returned yet.
const MOST: usize = 16;

/// A client's request for a session.
#[derive(Debug)]
pub struct Opening {
    /// The client's own name for it, over all connections.
    pub name: String,
    /// The user behind it.
    pub user: String,
    /// It was started before: do not start it.
    pub resume: bool,
    /// What to run.
    pub command: Command,
    /// Output that the client has; `None` if it wants none.
    pub received: Option<Offsets>,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The program has not been started.
    #[error("the program has not been started yet")]
    NotStarted,
    /// The program has ended.
    #[error("the program has ended")]
    Ended,
    /// The client can try again.
    #[error("the entrypoint is not connected")]
    EntrypointAway,
    /// The limit is reached.
    #[error("{MOST} sessions run in this process already: end one first")]
    Full,
    /// The agent that held it is gone.
    #[error("the session is lost: the agent that held its output has ended, and its command was ended with SIGHUP")]
    Lost,
    /// It belongs to another user.
    #[error("the session belongs to another user")]
    Foreign,
    /// The client's offsets do not fit this session.
    #[error("the session does not hold its output from there on")]
    Beyond,
    /// Another connection has replaced this one.
    #[error("another connection has joined the session")]
    Superseded,
    /// The entrypoint refused; its message.
    #[error("{0}")]
    Refused(String),
    /// The agent ends.
    #[error("the agent is ending")]
    Leaving,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As the entrypoint reported.
    Known(Outcome),
    /// Unknown, and why.
    Lost(String),
    /// It was never started.
    Refused(String),
}

/// State of a session.
#[derive(Debug)]
pub struct State {
    /// The entrypoint has started it.
    pub is_running: bool,
    /// How far its input has come.
    pub input: InputState,
    /// Standard output and error; a terminal has the first only.
    pub outputs: [Window; 2],
    /// The command has ended; output may still be on its way.
    pub end: Option<End>,
    /// Number of the connection that is served.
    client: u64,
    has_client: bool,
}

impl State {
    fn new() -> Self {
        Self {
            is_running: false,
            input: InputState::default(),
            outputs: Default::default(),
            end: None,
            client: 0,
            has_client: false,
        }
    }

    /// How it ended, for a client that has received all output up to these offsets.
    pub fn end_at(&self, received: [u64; 2]) -> Option<&End> {
        let mut streams = self.outputs.iter().zip(received);
        self.end
            .as_ref()
            .filter(|_| streams.all(|(window, offset)| window.is_over_at(offset)))
    }
}

/// Requests of clients.
#[derive(Debug)]
pub enum ExecRequest {
    /// Start or join a session.
    Open(Opening, oneshot::Sender<Result<Client, ExecError>>),
    /// An order for the session of this name.
    Order(String, Order),
}

/// The way of orders to the entrypoint.
#[derive(Clone)]
pub struct Orders(Arc<dyn Fn(String, Order) + Send + Sync>);

impl Orders {
    /// Hands the name of a session and an order for it to `send`.
    pub fn new(send: impl Fn(String, Order) + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    fn send(&self, session: &str, order: Order) {
        (self.0)(session.to_owned(), order);
    }
}

impl fmt::Debug for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Orders")
    }
}

/// All sessions of this agent that a client may come back to.
#[derive(Debug, Default)]
pub struct Sessions(Vec<Arc<Session>>);

impl Sessions {
    /// Joins an existing session.
    ///
    /// # Errors
    /// It does not belong to this client; `None`: there is none of this name.
    pub fn join(&self, opening: &Opening) -> Option<Result<Client, ExecError>> {
        Some(self.find(&opening.name)?.join(opening))
    }

    /// Whether another session may start. Ended ones do not count.
    pub fn have_room(&self) -> bool {
        self.0.iter().filter(|session| !session.has_ended()).count() < MOST
    }

    /// Adds a session that the entrypoint has been asked to start.
    ///
    /// # Errors
    /// As [`Sessions::join`].
    pub fn add(&mut self, opening: &Opening, orders: Orders) -> Result<Client, ExecError> {
        let ended = self.0.iter().filter(|session| session.has_ended()).count();
        let oldest = self
            .0
            .iter()
            .position(|session| session.has_ended() && !session.has_client());
        if let Some(oldest) = oldest.filter(|_| ended >= MOST) {
            self.0.remove(oldest);
        }
        let session = Session::new(opening.name.clone(), opening.user.clone(), orders);
        let client = session.join(opening);
        self.0.push(session);
        client
    }

    /// The entrypoint has started it.
    pub fn begun(&self, name: &str, input: InputState, outputs: Vec<OwnedFd>) {
        if let Some(session) = self.find(name) {
            session.begin(input, outputs);
        }
    }

    /// The entrypoint reported how far its input has come.
    pub fn input_is(&self, name: &str, input: InputState) {
        if let Some(session) = self.find(name) {
            session.state.send_modify(|state| state.input = input);
        }
    }

    /// Its command has ended.
    pub fn ended(&self, name: &str, end: End) {
        if let Some(session) = self.find(name) {
            session.end(end);
        }
    }

    /// No session's end will be reported anymore.
    pub fn lose(&self, why: &str) {
        for session in self.0.iter().filter(|session| !session.has_ended()) {
            session.end(End::Lost(why.to_owned()));
        }
    }

    /// Removes a session that no client comes back to.
    pub fn forget(&mut self, name: &str) {
        self.0.retain(|session| session.name != name);
    }

    fn find(&self, name: &str) -> Option<&Arc<Session>> {
        self.0.iter().find(|session| session.name == name)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn opening(user: &str) -> Opening {
        Opening {
            name: "one".into(),
            user: user.into(),
            resume: false,
            command: Command::default(),
            received: Some(Offsets::default()),
        }
    }

    fn bench() -> (Sessions, Orders, mpsc::UnboundedReceiver<Order>) {
        #[allow(clippy::disallowed_methods, reason = "a test reads all of it")]
        let (sender, inbox) = mpsc::unbounded_channel();
        let orders = Orders::new(move |_, order| drop(sender.send(order)));
        (Sessions::default(), orders, inbox)
    }

    #[tokio::test]
    async fn only_its_own_user_joins_it_and_the_later_connection_has_it() {
        let (mut sessions, orders, mut inbox) = bench();
        let mut first = sessions.add(&opening("alice"), orders.clone()).unwrap();
        assert_eq!(sessions.join(&opening("bob")).unwrap().unwrap_err(), ExecError::Foreign);
        let beyond = Opening {
            received: Some(Offsets { stdout: 1, stderr: 0 }),
            ..opening("alice")
        };
        assert_eq!(sessions.join(&beyond).unwrap().unwrap_err(), ExecError::Beyond);
        let second = sessions.join(&opening("alice")).unwrap().unwrap();
        assert_eq!(first.look().err(), Some(ExecError::Superseded));
        first.let_go();
        assert!(
            inbox.try_recv().is_err(),
            "the end of an earlier connection says nothing"
        );
        second.let_go();
        assert!(inbox.try_recv().is_ok());
    }

    #[tokio::test]
    async fn running_and_ended_sessions_are_limited() {
        let (mut sessions, orders, _inbox) = bench();
        let named = |number: usize| Opening {
            name: number.to_string(),
            ..opening("alice")
        };
        for number in 0..MOST {
            assert!(sessions.have_room());
            drop(sessions.add(&named(number), orders.clone()).unwrap());
        }
        assert!(!sessions.have_room());
        for number in 0..MOST {
            sessions.ended(&number.to_string(), End::Known(Outcome::Code(0)));
        }
        assert!(sessions.have_room());
        drop(sessions.add(&named(MOST), orders.clone()).unwrap());
        assert!(sessions.join(&named(0)).is_none() && sessions.join(&named(1)).is_some());
        assert_eq!(sessions.0.len(), MOST);
    }
}
