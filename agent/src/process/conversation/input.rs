//! The program's input, between its writers and the entrypoint.

use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_entrypoint::message::ToEntrypoint;
use tokio::sync::oneshot;

use super::{Conversation, NOTE_TRIES};
use crate::clock;
use crate::process::facts::Fact;
use crate::process::input::{InputError, Opening};

/// Requests of writers.
#[derive(Debug)]
pub enum InputRequest {
    /// Open the input for a stream of requests; answered with the number of the stream.
    Open(Opening, oneshot::Sender<Result<u64, InputError>>),
    /// Bytes at their offset, of the stream with this number.
    Write(u64, u64, Vec<u8>),
    /// The end at its offset, likewise.
    End(u64, u64),
    /// Another size for the terminal, from the stream with this number.
    Resize(u64, WindowSize),
    /// The stream has ended; true: its writer said so.
    Leave(u64, bool),
}

impl Conversation {
    pub(super) async fn take_input(&mut self, request: InputRequest) {
        match request {
            InputRequest::Open(opening, answer) => {
                let result = self.open_input(opening).await;
                // Update the view first: the writer looks at it when it gets the answer.
                self.show_input();
                let _ = answer.send(result);
            }
            InputRequest::Write(writer, offset, bytes) => {
                if self.input.claim(writer, offset) {
                    self.send(ToEntrypoint::Input { offset, bytes });
                }
            }
            InputRequest::End(writer, offset) => {
                if self.input.claim(writer, offset) {
                    self.send(ToEntrypoint::EndInput { offset });
                }
            }
            InputRequest::Resize(writer, size) => {
                if writer == self.input.view().writer {
                    self.window = Some(size);
                    self.send(ToEntrypoint::Resize(size));
                }
            }
            InputRequest::Leave(writer, has_let_go) => self.input.leave(writer, has_let_go, clock::now()),
        }
        self.show_input();
    }

    async fn open_input(&mut self, opening: Opening) -> Result<u64, InputError> {
        if self.machine.facts().ending.is_some() {
            return Err(InputError::Ended);
        }
        let fresh = self.input.open(opening, clock::now())?;
        if let Some(lease) = fresh {
            tracing::info!(user = lease.user, "a writer has the input");
            self.persist(Fact::Lease(lease), NOTE_TRIES).await;
        }
        Ok(self.input.view().writer)
    }

    /// The entrypoint reported how far the input has come.
    pub(super) fn input_is(&mut self, state: InputState) {
        self.input.set(Some(state));
        self.show_input();
    }

    /// The program takes none, or has ended.
    pub(super) fn input_is_over(&mut self) {
        self.input.end();
        self.show_input();
    }

    /// The entrypoint is gone, and only it knows how far the input has come.
    pub(super) fn input_is_unknown(&mut self) {
        let facts = self.machine.facts();
        if facts.launch.is_some() && facts.ending.is_none() {
            self.input.set(None);
            self.show_input();
        }
    }

    pub(super) fn show_input(&self) {
        let view = self.input.view();
        self.input_view.send_if_modified(|shown| {
            let is_other = shown != view;
            shown.clone_from(view);
            is_other
        });
    }
}
