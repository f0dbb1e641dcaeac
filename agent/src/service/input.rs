//! Input by offset, between a stream of requests and the entrypoint.

use std::collections::VecDeque;

use remoteprocess_entrypoint::input::InputState;
use remoteprocess_proto::v1;
use tonic::Status;

/// Maximum number of waiting bytes: a client that stays below it can always send other messages.
const WAITING: usize = 256 * 1024;

/// A piece of the input, or its end.
enum Piece {
    Bytes(u64, bytes::Bytes),
    End(u64),
}

/// What to send to the entrypoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Bytes at their offset.
    Bytes(u64, Vec<u8>),
    /// The end at its offset.
    End(u64),
}

/// What a client has sent and the entrypoint has not accepted.
#[derive(Default)]
pub(super) struct Incoming {
    /// Without holes.
    waiting: VecDeque<Piece>,
    /// Everything before this offset was accepted or waits. Unknown until the client or the entrypoint has named an offset.
    reached: Option<u64>,
    /// There is no reader anymore. What still arrives is dropped, as in a pipe without a reader.
    is_over: bool,
}

impl Incoming {
    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there is room for more.
    pub(super) fn has_room(&self) -> bool {
        let length = |piece: &Piece| match piece {
            Piece::Bytes(_, bytes) => bytes.len(),
            Piece::End(_) => 0,
        };
        self.waiting.iter().map(length).sum::<usize>() < WAITING
    }

    /// Takes bytes; drops them if there is no reader anymore.
    // tonic's own error type.
    pub(super) fn take(&mut self, input: v1::Input) -> Result<(), Status> {
        if input.bytes.len() > remoteprocess_proto::MAX_CHUNK {
            return Err(Status::invalid_argument("a chunk of input is longer than 64 KiB"));
        }
        let end = input.offset.saturating_add(input.bytes.len() as u64);
        self.push(input.offset, end, Piece::Bytes(input.offset, input.bytes))
    }

    /// Takes the end, likewise.
    // tonic's own error type.
    pub(super) fn end(&mut self, end: v1::InputEnd) -> Result<(), Status> {
        self.push(end.offset, end.offset, Piece::End(end.offset))
    }

    /// Nothing may be missing before `begin`. The client sends before it is told what was accepted, so its own earlier
    /// pieces count as well.
    // tonic's own error type.
    fn push(&mut self, begin: u64, end: u64, piece: Piece) -> Result<(), Status> {
        if self.is_over {
            return Ok(());
        }
        let reached = self.reached.unwrap_or(begin);
        if begin > reached {
            return Err(Status::invalid_argument(format!(
                "the input has a hole: {reached} bytes of it are known, and this begins at {begin}"
            )));
        }
        self.reached = Some(reached.max(end));
        self.waiting.push_back(piece);
        Ok(())
    }

    /// Drops what was accepted; returns what to send next, if there is room for it.
    pub(super) fn due(&mut self, state: InputState) -> Option<Due> {
        self.reached = self.reached.max(Some(state.offset));
        self.is_over |= state.is_over;
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
                // Another writer has written beyond it.
                Piece::End(_) => {}
            }
            self.waiting.pop_front();
        }
        None
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
        assert_eq!(incoming.due(state(2, 0)), None);
        incoming.take(input(0, "abcd")).unwrap();
        incoming.end(v1::InputEnd { offset: 4 }).unwrap();
        assert_eq!(incoming.due(state(2, 0)), None);
        assert_eq!(incoming.due(state(2, 1)), Some(Due::Bytes(2, b"c".to_vec())));
        assert_eq!(incoming.due(state(4, 9)), Some(Due::End(4)));
        let hole = incoming.take(input(5, "f")).unwrap_err();
        assert_eq!(hole.code(), tonic::Code::InvalidArgument);
        let hole = incoming.end(v1::InputEnd { offset: 5 }).unwrap_err();
        assert_eq!(hole.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn input_without_a_reader_has_no_hole() {
        let mut incoming = Incoming::default();
        incoming.take(input(0, "abcd")).unwrap();
        let over = InputState {
            is_over: true,
            ..state(2, 0)
        };
        assert_eq!((incoming.due(over), incoming.is_empty()), (None, true));
        // The client has not been told yet.
        incoming.take(input(4, "ef")).unwrap();
        incoming.take(input(9, "x")).unwrap();
        incoming.end(v1::InputEnd { offset: 10 }).unwrap();
        assert!(incoming.is_empty() && incoming.has_room());
    }

    #[test]
    fn a_client_that_sends_before_the_answer_makes_no_hole() {
        let mut incoming = Incoming::default();
        assert_eq!(incoming.due(state(0, 9)), None);
        incoming.take(input(0, "abcd")).unwrap();
        assert_eq!(incoming.due(state(4, 9)), None);
        assert!(incoming.is_empty());
        incoming.take(input(4, "ef")).unwrap();
        assert_eq!(incoming.due(state(4, 9)), Some(Due::Bytes(4, b"ef".to_vec())));
    }
}
