//! A further command beside the program, in the words of both sides.
//!
//! A session lives no longer than the connection between entrypoint and agent: what the command has written and nobody
//! has taken yet is in the agent's memory.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::input::{InputState, WindowSize};
use crate::message::Outcome;

/// Most bytes of a command with its arguments, environment and directory: they have to fit into a packet.
pub const MAX_COMMAND_BYTES: usize = 48 * 1024;

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; the program is looked up in the session's PATH.
    pub words: Vec<ByteBuf>,
    /// Names and values beside, or in place of, those of the container.
    pub environment: Vec<(ByteBuf, ByteBuf)>,
    /// Where it starts; absent: where the program did.
    pub directory: Option<ByteBuf>,
    /// It takes input; else what it reads is at its end.
    pub stdin: bool,
    /// A terminal of this size for its input and output, which is one stream then.
    pub terminal: Option<WindowSize>,
}

impl Command {
    /// Bytes of everything that it names.
    #[must_use]
    pub fn length(&self) -> usize {
        let words = self.words.iter().map(|word| word.len());
        let environment = self.environment.iter().map(|(name, value)| name.len() + value.len());
        words.chain(environment).sum::<usize>() + self.directory.as_ref().map_or(0, |directory| directory.len())
    }
}

/// What the agent wants of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Begin it. A session of one name is begun once, whichever agent asks; a repeat is refused.
    Start(Command),
    /// As [`crate::message::ToEntrypoint::Input`].
    Input {
        /// Of the first byte.
        offset: u64,
        /// At most [`crate::input::MAX_INPUT_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// As [`crate::message::ToEntrypoint::EndInput`].
    EndInput {
        /// Bytes of the whole input.
        offset: u64,
    },
    /// Another size for its terminal.
    Resize(WindowSize),
    /// Nobody wants it any more: its streams are closed; a command that still runs gets SIGHUP, and SIGKILL 5 s later, with
    /// everything that it has started.
    Close,
}

/// What the entrypoint says of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// It has begun. With it come the read ends of its output: stdout and stderr, or one of a terminal.
    Started(InputState),
    /// How far its input has come, as [`crate::message::FromEntrypoint::Input`].
    Input(InputState),
    /// The command has ended, or could not be started; what it wrote is in the pipes.
    Ended(Outcome),
    /// It was not begun.
    Refused(String),
}
