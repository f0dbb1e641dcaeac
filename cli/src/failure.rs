//! The end of a command that failed: an exit code and a message.

use std::io;

use remoteprocess_client::dial::CallError;
use remoteprocess_client::{DialError, SinkError, cluster, output as follow};

use crate::exit;

/// The failure of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Our exit code.
    pub code: u8,
    /// The message; may be empty.
    pub text: String,
}

impl Failure {
    /// A failure of rproc itself.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            code: exit::UNKNOWN,
            text: text.into(),
        }
    }

    /// A negative answer: what the command asked about is not true.
    pub fn no(text: impl Into<String>) -> Self {
        Self {
            code: 1,
            text: text.into(),
        }
    }

    /// The reader of our output is gone.
    pub fn closed() -> Self {
        Self {
            code: exit::PIPE,
            text: String::new(),
        }
    }
}

impl From<cluster::Error> for Failure {
    fn from(error: cluster::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::new(match &error {
            CallError::Relay(status) => remoteprocess_client::retry::cause(status),
            CallError::Dial(_) => error.to_string(),
        })
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Closed => Self::closed(),
            SinkError::Write(_) => Self::new(error.to_string()),
        }
    }
}

impl From<follow::Error> for Failure {
    fn from(error: follow::Error) -> Self {
        match error {
            follow::Error::Output(error) => error.into(),
            error => Self::new(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::closed()
        } else {
            Self::new(error.to_string())
        }
    }
}
