//! A stream that writes to the program's input.

use remoteprocess_entrypoint::input::WindowSize;
use tokio::sync::{mpsc, oneshot, watch};

use super::Process;
use super::conversation::{InputRequest, Request};
use super::input::{InputError, Opening, View};

/// The input, until another writer takes it over. If it is dropped, the input is kept for the writer's return.
#[derive(Debug)]
pub struct Writer {
    number: u64,
    view: watch::Receiver<View>,
    requests: mpsc::UnboundedSender<Request>,
    has_let_go: bool,
}

impl Process {
    /// Opens the input of the program, which may not have been launched yet.
    pub async fn write(&self, opening: Opening) -> Result<Writer, InputError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Input(InputRequest::Open(opening, answer)));
        let number = answered.await.unwrap_or(Err(InputError::Leaving))?;
        Ok(Writer {
            number,
            view: self.input.clone(),
            requests: self.requests.clone(),
            has_let_go: false,
        })
    }
}

impl Writer {
    /// The current state of the input.
    pub fn look(&mut self) -> Result<View, InputError> {
        let view = self.view.borrow_and_update().clone();
        match view.refused.clone() {
            _ if view.writer != self.number => Err(InputError::TakenOver(view.user)),
            Some(why) => Err(why),
            None => Ok(view),
        }
    }

    /// Waits until there is something new to look at; returns false when there never will be.
    pub async fn changed(&mut self) -> bool {
        self.view.changed().await.is_ok()
    }

    /// Sends bytes, if there is room at this offset; if not, a change of the state follows that says why.
    pub fn send(&self, offset: u64, bytes: Vec<u8>) {
        self.ask(InputRequest::Write(self.number, offset, bytes));
    }

    /// Sends the end, likewise.
    pub fn end(&self, offset: u64) {
        self.ask(InputRequest::End(self.number, offset));
    }

    /// Changes the size of the terminal, if there is one.
    pub fn resize(&self, size: WindowSize) {
        self.ask(InputRequest::Resize(self.number, size));
    }

    /// Lets go: other writers may have the input.
    pub fn let_go(mut self) {
        self.has_let_go = true;
    }

    fn ask(&self, request: InputRequest) {
        // Fails only when the agent ends.
        let _ = self.requests.send(Request::Input(request));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ask(InputRequest::Leave(self.number, self.has_let_go));
    }
}
