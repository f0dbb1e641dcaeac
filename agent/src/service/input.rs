//! Input by offset, on its way from a stream to the entrypoint.

use std::collections::VecDeque;

use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_proto::v1;
use tonic::Status;

/// Bytes that wait to be read; a client that keeps to less than that can always say something else.
const WAITING: usize = 256 * 1024;

/// Something that has its place in the input.
enum Piece {
    Bytes(u64, bytes::Bytes),
    End(u64),
}

/// What is to be sent to the entrypoint.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Bytes at their offset.
    Bytes(u64, Vec<u8>),
    /// The end at its offset.
    End(u64),
}

/// What a client has sent and the entrypoint has not accepted.
#[derive(Default)]
pub struct Incoming {
    /// Dense.
    waiting: VecDeque<Piece>,
}

impl Incoming {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether more may be taken.
    pub fn has_room(&self) -> bool {
        let length = |piece: &Piece| match piece {
            Piece::Bytes(_, bytes) => bytes.len(),
            Piece::End(_) => 0,
        };
        self.waiting.iter().map(length).sum::<usize>() < WAITING
    }

    /// Takes bytes, where `accepted` is known to be accepted.
    // tonic's own error type.
    #[allow(clippy::result_large_err)]
    pub fn take(&mut self, input: v1::Input, accepted: Option<u64>) -> Result<(), Status> {
        if input.bytes.len() > remoteprocess_proto::MAX_CHUNK {
            return Err(Status::invalid_argument("a chunk of input is longer than 64 KiB"));
        }
        self.check_place(input.offset, accepted)?;
        self.waiting.push_back(Piece::Bytes(input.offset, input.bytes));
        Ok(())
    }

    /// Takes the end likewise.
    // tonic's own error type.
    #[allow(clippy::result_large_err)]
    pub fn end(&mut self, end: v1::InputEnd, accepted: Option<u64>) -> Result<(), Status> {
        self.check_place(end.offset, accepted)?;
        self.waiting.push_back(Piece::End(end.offset));
        Ok(())
    }

    /// Nothing may be missing before this offset.
    // tonic's own error type.
    #[allow(clippy::result_large_err)]
    fn check_place(&self, offset: u64, accepted: Option<u64>) -> Result<(), Status> {
        let reached = match self.waiting.back() {
            Some(Piece::Bytes(begin, bytes)) => Some(begin + bytes.len() as u64),
            Some(Piece::End(end)) => Some(*end),
            None => accepted,
        };
        match reached {
            Some(reached) if offset > reached => Err(Status::out_of_range(format!(
                "the input has a hole: {reached} bytes of it are known, and this begins at {offset}"
            ))),
            _ => Ok(()),
        }
    }

    /// Drops what was accepted; what comes next, if there is room for it.
    pub fn due(&mut self, state: InputState) -> Option<Due> {
        while let Some(piece) = self.waiting.front_mut() {
            match piece {
                _ if state.is_over => {}
                Piece::Bytes(offset, bytes) => {
                    let known = usize::try_from(state.offset.saturating_sub(*offset)).unwrap_or(usize::MAX);
                    *bytes = bytes.split_off(known.min(bytes.len()));
                    *offset = (*offset).max(state.offset);
                    if !bytes.is_empty() {
                        let length = bytes.len().min(state.room as usize);
                        return (length > 0).then(|| Due::Bytes(*offset, bytes[..length].to_vec()));
                    }
                }
                Piece::End(offset) if *offset >= state.offset => {
                    return (state.room > 0).then_some(Due::End(*offset));
                }
                // Somebody has written beyond it.
                Piece::End(_) => {}
            }
            self.waiting.pop_front();
        }
        None
    }
}

/// The size as the entrypoint takes it.
pub fn window(size: v1::WindowSize) -> WindowSize {
    let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
    WindowSize {
        rows: side(size.rows),
        columns: side(size.columns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(offset: u64, room: u32) -> InputState {
        InputState {
            offset,
            room,
            is_over: false,
        }
    }

    fn input(offset: u64, bytes: &'static str) -> v1::Input {
        let bytes = bytes.into();
        v1::Input { offset, bytes }
    }

    #[test]
    fn what_was_accepted_is_left_out_and_a_hole_is_refused() {
        let mut incoming = Incoming::default();
        incoming.take(input(0, "abcd"), Some(2)).unwrap();
        incoming.end(v1::InputEnd { offset: 4 }, Some(2)).unwrap();
        assert_eq!(incoming.due(state(2, 0)), None);
        assert_eq!(incoming.due(state(2, 1)), Some(Due::Bytes(2, b"c".to_vec())));
        assert_eq!(incoming.due(state(4, 9)), Some(Due::End(4)));
        let hole = incoming.take(input(5, "f"), None).unwrap_err();
        assert_eq!(hole.code(), tonic::Code::OutOfRange);
        let over = InputState {
            is_over: true,
            ..state(4, 0)
        };
        assert_eq!((incoming.due(over), incoming.is_empty()), (None, true));
    }
}
