//! One connection of a client.

use std::sync::Arc;

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::session::Order;
use tokio::sync::watch;

use super::session::Session;
use super::{End, ExecError, State, Window};
use crate::spool::Offsets;

/// One connection to a session. If it is dropped, the session waits for its client to return.
#[derive(Debug)]
pub struct Client {
    session: Arc<Session>,
    number: u64,
    seen: watch::Receiver<State>,
    has_let_go: bool,
}

impl Client {
    /// The connection of this number.
    pub(super) fn new(session: &Arc<Session>, number: u64) -> Self {
        Self {
            session: session.clone(),
            number,
            seen: session.state.subscribe(),
            has_let_go: false,
        }
    }

    /// The current state of the session.
    pub fn look(&mut self) -> Result<watch::Ref<'_, State>, ExecError> {
        let state = self.seen.borrow_and_update();
        match &state.end {
            _ if state.client != self.number => Err(ExecError::Superseded),
            Some(End::Refused(why)) => Err(ExecError::Refused(why.clone())),
            _ => Ok(state),
        }
    }

    /// Waits until there is something new to look at.
    pub async fn changed(&mut self) {
        // The sender lives in the session.
        let _ = self.seen.changed().await;
    }

    /// The client has everything before these offsets.
    pub fn confirm(&self, Offsets { stdout, stderr }: Offsets) {
        self.session.state.send_if_modified(|state| {
            let before = state.outputs.each_ref().map(Window::room);
            state.outputs[0].confirm(stdout);
            state.outputs[1].confirm(stderr);
            before != state.outputs.each_ref().map(Window::room)
        });
    }

    /// Sends bytes, if there is room at this offset; if not, a change of the state follows that says why.
    pub fn send(&self, offset: u64, bytes: Vec<u8>) {
        if self.claim(offset) {
            self.order(Order::Input { offset, bytes });
        }
    }

    /// Sends the end of the input, likewise.
    pub fn end(&self, offset: u64) {
        if self.claim(offset) {
            self.order(Order::EndInput { offset });
        }
    }

    /// Changes the size of its terminal, if there is one.
    pub fn resize(&self, size: WindowSize) {
        self.order(Order::Resize(size));
    }

    /// Ends the session: its client does not come back.
    pub fn let_go(mut self) {
        self.has_let_go = true;
    }

    /// Whether this offset may be sent. Each is sent once: there is no room for more until the entrypoint has answered.
    fn claim(&self, offset: u64) -> bool {
        self.session.state.send_if_modified(|state| {
            let input = &mut state.input;
            let is_next = state.client == self.number && input.room > 0 && input.offset == offset;
            if is_next {
                input.room = 0;
            }
            is_next
        })
    }

    fn order(&self, order: Order) {
        self.session.orders.send(&self.session.name, order);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.seen.borrow().client != self.number {
            return;
        }
        if self.has_let_go {
            return self.order(Order::Close);
        }
        self.session.state.send_modify(|state| state.has_client = false);
    }
}
