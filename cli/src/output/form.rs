//! What is written of the output of a process, and how.

use remoteprocess_proto::v1::Cursor;

use super::label::Prefix;

/// SHA-256 of each stream, standard output first.
pub type Hashes = [[u8; 32]; 2];

/// What is written of the program's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The bytes as they come.
    Bytes {
        /// With the time before each line.
        is_stamped: bool,
    },
    /// Whole lines, of any process. A line of more than 64 KiB is cut, and marked with `…`.
    Lines {
        /// With the time before each line.
        is_stamped: bool,
        /// With the process's name before it.
        prefix: Option<Prefix>,
    },
    /// One JSON object per line, on standard output.
    Json,
    /// Nothing: only its hash is computed.
    Hash,
}

/// How a terminal handles the control sequences of a program. Pipes and files get every byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Shown instead of executed, except colors.
    Shown,
    /// Executed, but queries are removed: the terminal's answers would not reach the program, and the shell would read
    /// them.
    Watched,
    /// Executed. This terminal is also the program's keyboard, so the program gets the answers.
    Typed {
        /// Output before these offsets is a replay. Its queries are removed, because the program no longer waits for
        /// the answers.
        live_from: Cursor,
    },
}
