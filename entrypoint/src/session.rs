//! A session (a further command beside the program), as both sides describe it.
//!
//! A session does not outlive the connection between entrypoint and agent: output of the command that no client has
//! confirmed is in the agent's memory.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::exit::Outcome;
use crate::input::{InputState, WindowSize};

/// Maximum size of a command with its arguments, environment and directory in bytes: they must fit into one packet.
pub const MAX_COMMAND_BYTES: usize = 48 * 1024;

/// The command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; the program is looked up in the session's PATH.
    pub words: Vec<ByteBuf>,
    /// Variables that are added to those of the container, or replace them.
    pub environment: Vec<(ByteBuf, ByteBuf)>,
    /// Working directory; absent: that of the program.
    pub directory: Option<ByteBuf>,
    /// Whether it takes input; if not, its input is empty.
    pub stdin: bool,
    /// Size of a terminal for its input and output, which is then one stream.
    pub terminal: Option<WindowSize>,
}

impl Command {
    /// Size in bytes of all its parts.
    pub fn length(&self) -> usize {
        let words = self.words.iter().map(|word| word.len());
        let environment = self.environment.iter().map(|(name, value)| name.len() + value.len());
        words.chain(environment).sum::<usize>() + self.directory.as_ref().map_or(0, |directory| directory.len())
    }
}

/// An order of the agent for a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Start it. A session of one name is started once, whichever agent asks; a repeat is refused.
    Start(Command),
    /// As [`crate::message::ToEntrypoint::Input`].
    Input {
        /// Offset of the first byte.
        offset: u64,
        /// At most [`crate::input::MAX_INPUT_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// As [`crate::message::ToEntrypoint::EndInput`].
    EndInput {
        /// Length of the whole input in bytes.
        offset: u64,
    },
    /// Another size for its terminal.
    Resize(WindowSize),
    /// Close its streams, because no client wants it anymore. A command that still runs gets SIGHUP, and SIGKILL 5 s
    /// later, with everything that it has started.
    Close,
}

/// What the entrypoint reports about a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// It was started. The message carries the read ends of its output: stdout and stderr, or one of a terminal.
    Started(InputState),
    /// How far its input has come, as [`crate::message::FromEntrypoint::Input`].
    Input(InputState),
    /// The command has ended, or could not be started; its output is in the pipes.
    Ended(Outcome),
    /// It was not started.
    Refused(String),
}
