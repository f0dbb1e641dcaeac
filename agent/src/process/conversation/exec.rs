//! Further commands, between their clients and the entrypoint.

use std::os::fd::OwnedFd;

use remoteprocess_entrypoint::message::ToEntrypoint;
use remoteprocess_entrypoint::session::{News, Order};

use super::{Conversation, Request};
use crate::process::exec::{Client, End, ExecError, ExecRequest, Opening, Orders};
use crate::process::machine::Phase;

impl Conversation {
    pub(super) fn take_exec(&mut self, request: ExecRequest) {
        match request {
            ExecRequest::Open(opening, answer) => {
                let client = self.open_session(opening);
                // The requester may be gone.
                let _ = answer.send(client);
            }
            ExecRequest::Order(session, order) => {
                if order == Order::Close {
                    self.sessions.forget(&session);
                }
                self.send(ToEntrypoint::Session { session, order });
            }
        }
    }

    fn open_session(&mut self, opening: Opening) -> Result<Client, ExecError> {
        if let Some(joined) = self.sessions.join(&opening) {
            return joined;
        }
        match self.machine.phase() {
            Phase::Exited => return Err(ExecError::Ended),
            // This agent has not started it, whatever it knows of the program.
            _ if opening.resume => return Err(ExecError::Lost),
            Phase::Waiting | Phase::Starting => return Err(ExecError::NotStarted),
            Phase::Running | Phase::Paused | Phase::Stopping => {}
        }
        if !self.sessions.have_room() {
            return Err(ExecError::Full);
        }
        let requests = self.requests.clone();
        let orders = Orders::new(move |session, order| {
            if let Some(requests) = requests.upgrade() {
                // Fails only when the agent ends.
                let _ = requests.send(Request::Exec(ExecRequest::Order(session, order)));
            }
        });
        let client = self.sessions.add(&opening, orders)?;
        let session = opening.name.clone();
        let order = Order::Start(opening.command);
        let link = self.link.as_ref();
        if !link.is_some_and(|link| link.send(ToEntrypoint::Session { session, order })) {
            self.sessions.forget(&opening.name);
            return Err(ExecError::EntrypointAway);
        }
        Ok(client)
    }

    /// What the entrypoint says of a session.
    pub(super) fn hear_session(&mut self, session: &str, news: News, outputs: Vec<OwnedFd>) {
        match news {
            News::Started(input) => self.sessions.begun(session, input, outputs),
            News::Input(input) => self.sessions.input_is(session, input),
            News::Ended(outcome) => self.sessions.ended(session, End::Known(outcome)),
            News::Refused(why) => self.sessions.ended(session, End::Refused(why)),
        }
    }

    /// The entrypoint is gone, which ends all sessions.
    pub(super) fn lose_sessions(&mut self) {
        self.sessions.lose(match self.machine.phase() {
            Phase::Exited => "the program has ended, and so have its sessions",
            _ => "the entrypoint is gone, and so are its sessions",
        });
    }
}
