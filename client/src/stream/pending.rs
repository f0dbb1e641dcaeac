use bytes::{Buf, Bytes, BytesMut};
use remoteprocess_proto::MAX_OFFSET;
use remoteprocess_proto::v1::{Input, InputEnd, WindowSize};

use super::{Error, Local};

/// Maximum number of bytes that were sent and not accepted.
const WINDOW: usize = 128 * 1024;
/// Maximum number of bytes in one message.
const CHUNK: usize = 32 * 1024;

/// A part of the input to send.
#[derive(Debug)]
pub enum Said {
    /// Bytes, at their offset.
    Input(Input),
    /// No more bytes.
    End(InputEnd),
    /// Another size of the window.
    Resize(WindowSize),
}

/// Input in transit: accepted bytes are never sent again, and all others are.
#[derive(Debug, Default)]
pub struct Pending {
    /// Offset of the first byte in `bytes`; unknown until the other side has reported how far the input has come.
    accepted: Option<u64>,
    /// Sent, or to be sent, and not accepted.
    bytes: BytesMut,
    has_ended: bool,
    /// The input has no reader anymore.
    is_closed: bool,
    /// Size of the terminal.
    pub window: Option<WindowSize>,
}

impl Pending {
    /// How far the other side has accepted the input; `None`: not known yet.
    pub const fn accepted(&self) -> Option<u64> {
        self.accepted
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        self.bytes.len() < WINDOW && !self.has_ended && !self.is_closed
    }

    /// Records what was accepted.
    ///
    /// # Errors
    /// More or less than what was sent and not accepted before.
    pub fn take(&mut self, accepted: u64) -> Result<(), Error> {
        let from = self.accepted.unwrap_or(accepted);
        let to = from.saturating_add(self.bytes.len() as u64);
        if !(from..=to).contains(&accepted) || accepted > MAX_OFFSET {
            return Err(Error::Inconsistent { accepted, from, to });
        }
        // At most the length of what is pending.
        self.bytes.advance(usize::try_from(accepted - from).unwrap_or_default());
        self.accepted = Some(accepted);
        Ok(())
    }

    /// Drops what waits and takes no more, because there is no reader.
    pub fn close(&mut self) {
        self.bytes.clear();
        self.is_closed = true;
    }

    /// Sends again what an earlier connection may not have delivered.
    pub fn again(&self, say: impl Fn(Said)) {
        if self.is_closed {
            return;
        }
        send(&say, self.accepted.unwrap_or_default(), &self.bytes.clone().freeze());
        if self.has_ended {
            say(self.end());
        }
    }

    /// Sends what has happened on this side.
    pub fn say(&mut self, local: Local, say: impl Fn(Said)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_no_input_reaches_is_refused() {
        for accepted in [u64::MAX, u64::MAX - 1, MAX_OFFSET + 1] {
            let mut pending = Pending::default();
            pending.say(Local::Bytes(Bytes::from_static(b"ab")), |_| ());
            assert!(pending.take(accepted).is_err(), "{accepted}");
            assert_eq!(pending.accepted(), None);
        }
    }
}
