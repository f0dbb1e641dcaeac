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
    /// Whole lines, of whichever process. A line of more than 64 KiB is cut; `…` shows where.
    Lines {
        /// With the time before each line.
        is_stamped: bool,
        /// With the process's name before it.
        prefix: Option<Prefix>,
    },
    /// One JSON object a line, on standard output.
    Json,
    /// Nothing: only its hash is taken.
    Hash,
}

/// What a terminal gets of the control sequences of a program. Pipes and files get every byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Shown instead of done, except colors.
    Shown,
    /// Done, but queries are left out: nobody passes the terminal's answers on, so the shell would read them.
    Watched,
    /// Done. This terminal is the program's keyboard as well, so the program gets the answers.
    Typed {
        /// Before these offsets it is a replay. Queries are left out: nobody waits for the answers any more.
        live_from: Cursor,
    },
}
