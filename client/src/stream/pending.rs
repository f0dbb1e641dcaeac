use bytes::{Buf, Bytes, BytesMut};
use remoteprocess_proto::v1::{Input, InputEnd, WindowSize};

use super::{Error, Local};

/// Bytes that were sent and not accepted.
const WINDOW: usize = 128 * 1024;
/// Bytes in one message.
const CHUNK: usize = 32 * 1024;

/// What is sent of the input.
pub(crate) enum Said {
    Input(Input),
    End(InputEnd),
    Resize(WindowSize),
}

/// Input on its way: nothing is sent that was accepted, and everything that was not is sent again.
#[derive(Default)]
pub(crate) struct Pending {
    /// Offset of the first byte in `bytes`; unknown until the other side has said where the input stands.
    accepted: Option<u64>,
    /// Sent, or to be sent, and not accepted.
    bytes: BytesMut,
    has_ended: bool,
    /// Nobody reads the input any more.
    is_closed: bool,
    /// Of the terminal.
    pub window: Option<WindowSize>,
}

impl Pending {
    /// The other side has said where the input stands; `None`: not yet.
    pub(crate) const fn accepted(&self) -> Option<u64> {
        self.accepted
    }

    /// Whether more may be said.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() < WINDOW && !self.has_ended && !self.is_closed
    }

    /// Books what was accepted.
    pub(crate) fn take(&mut self, accepted: u64) -> Result<(), Error> {
        let from = self.accepted.unwrap_or(accepted);
        let to = from + self.bytes.len() as u64;
        if !(from..=to).contains(&accepted) {
            return Err(Error::Inconsistent { accepted, from, to });
        }
        // At most the length of what is pending.
        self.bytes.advance(usize::try_from(accepted - from).unwrap_or_default());
        self.accepted = Some(accepted);
        Ok(())
    }

    /// Drops what waits and takes no more: nobody reads it.
    pub(crate) fn close(&mut self) {
        self.bytes.clear();
        self.is_closed = true;
    }

    /// Says again what an earlier connection may not have brought there.
    pub(crate) fn again(&self, say: impl Fn(Said)) {
        if self.is_closed {
            return;
        }
        send(&say, self.accepted.unwrap_or_default(), &self.bytes.clone().freeze());
        if self.has_ended {
            say(self.end());
        }
    }

    /// Says what has happened on this side.
    pub(crate) fn say(&mut self, local: Local, say: impl Fn(Said)) {
        match local {
            Local::Bytes(bytes) => {
                let offset = self.reached();
                self.bytes.extend_from_slice(&bytes);
                send(&say, offset, &bytes);
            }
            Local::End => {
                self.has_ended = true;
                say(self.end());
            }
            Local::Resize(window) => {
                self.window = Some(window);
                say(Said::Resize(window));
            }
        }
    }

    fn end(&self) -> Said {
        let offset = self.reached();
        Said::End(InputEnd { offset })
    }

    fn reached(&self) -> u64 {
        self.accepted.unwrap_or_default() + self.bytes.len() as u64
    }
}

fn send(say: &impl Fn(Said), mut offset: u64, bytes: &Bytes) {
    for begin in (0..bytes.len()).step_by(CHUNK) {
        let bytes = bytes.slice(begin..bytes.len().min(begin + CHUNK));
        let length = bytes.len() as u64;
        say(Said::Input(Input { offset, bytes }));
        offset += length;
    }
}
