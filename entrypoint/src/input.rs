//! The program's input and its terminal, as both sides describe them.
//!
//! The entrypoint takes input only at its own offset and only as much as it has offered room for. It lives as long as
//! the program, so it knows what it has taken across any number of agents: each byte is written at most once.

use serde::{Deserialize, Serialize};

/// Maximum number of bytes in one [`crate::message::ToEntrypoint::Input`], and of bytes that wait for the program to
/// read them.
pub const MAX_INPUT_BYTES: usize = 60 * 1024;

/// How far the program's input has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputState {
    /// Bytes taken since the launch: the offset of the next byte.
    pub offset: u64,
    /// Bytes that may be sent now, at most [`MAX_INPUT_BYTES`].
    pub room: u32,
    /// Nothing more is taken: the end of the input was sent, or there is no reader anymore.
    pub is_over: bool,
}

/// Size of a terminal's window, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}
