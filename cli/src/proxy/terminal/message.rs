//! What a client and the proxy say to each other in text messages. Binary messages are the bytes of the terminal.

use remoteprocess_proto::v1::WindowSize;
use serde::{Deserialize, Serialize};

/// Longest command of an exec, in words; the size of a message limits their length.
const MAX_WORDS: usize = 256;

/// A message of the client.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum ClientMessage {
    /// The first message, and never again.
    Open(Open),
    /// The terminal has another size.
    Resize(Size),
    /// How many bytes of output the client has shown since the beginning.
    Taken {
        /// Their number.
        bytes: u64,
    },
    /// There is no more input.
    End,
}

/// What the client wants.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Open {
    /// The uid of the process, so that no other process of this name is meant; empty for any.
    #[serde(default)]
    pub uid: String,
    /// The size of the terminal; absent if the process has none.
    pub size: Option<Size>,
    /// The command of an exec.
    #[serde(default)]
    pub command: Vec<String>,
    /// Take the input of the process away from the current writer.
    #[serde(default)]
    pub take_over: bool,
    /// Do not ask for the input of the process.
    #[serde(default)]
    pub watch: bool,
}

impl Open {
    /// What is wrong with it.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let is_possible = |word: &String| !word.contains('\0');
        if self.command.len() > MAX_WORDS || !self.command.iter().all(is_possible) {
            return Some("the command has more than 256 words, or a NUL");
        }
        self.size
            .is_some_and(|size| !size.is_possible())
            .then_some("the terminal has no rows or no columns, or more than 1,000")
    }
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Size {
    rows: u32,
    columns: u32,
}

impl Size {
    /// Whether a terminal can have this size.
    pub(super) fn is_possible(self) -> bool {
        [self.rows, self.columns]
            .iter()
            .all(|length| (1..=1000).contains(length))
    }
}

impl From<Size> for WindowSize {
    fn from(Size { rows, columns }: Size) -> Self {
        Self { rows, columns }
    }
}

/// A message to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum ServerMessage {
    /// The connection to the relay works.
    Live,
    /// It broke, or could not be opened. Another one is being opened, and nothing is lost.
    Cut {
        /// Why.
        message: String,
    },
    /// The state of a process that has not ended.
    State {
        /// As in `status.phase`.
        phase: String,
        /// As in `status.message`, or `status.reason`.
        message: String,
    },
    /// Output that never comes.
    Gap {
        /// Which bytes, and why.
        message: String,
    },
    /// Input is not passed on, although output continues.
    Input {
        /// What happened to the input.
        state: InputState,
        /// For people.
        message: String,
    },
    /// How many bytes of input were passed on since the beginning.
    Taken {
        /// Their number.
        bytes: u64,
    },
    /// The last message: the process, or the command, has ended.
    Exit {
        /// Its exit code, if it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// The name of the signal that ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
        /// How it ended, for people.
        message: String,
    },
    /// The last message: there is no way to continue.
    Error {
        /// The name of a gRPC code, such as `PermissionDenied`.
        code: String,
        /// Why, and the missing rule if a permission is missing.
        message: String,
    },
}

/// Why input is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum InputState {
    /// Another client has it. `takeOver` takes it.
    Held,
    /// The program does not read its input anymore.
    Closed,
    /// The process takes no input, or the user may not write.
    Refused,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_as_documented() {
        let said = |text: &str| serde_json::from_str::<ClientMessage>(text).unwrap();
        let open = Open {
            uid: "u".into(),
            size: Some(Size { rows: 24, columns: 80 }),
            command: vec!["sh".into()],
            take_over: true,
            watch: false,
        };
        let text = r#"{"type":"open","uid":"u","size":{"rows":24,"columns":80},"command":["sh"],"takeOver":true}"#;
        assert_eq!(said(text), ClientMessage::Open(open));
        assert_eq!(
            said(r#"{"type":"resize","rows":2,"columns":3}"#),
            ClientMessage::Resize(Size { rows: 2, columns: 3 })
        );
        assert_eq!(said(r#"{"type":"taken","bytes":7}"#), ClientMessage::Taken { bytes: 7 });
        assert_eq!(said(r#"{"type":"end"}"#), ClientMessage::End);
        assert!(serde_json::from_str::<ClientMessage>(r#"{"type":"other"}"#).is_err());
        let exit = ServerMessage::Exit {
            code: Some(7),
            signal: None,
            message: "why".into(),
        };
        assert_eq!(
            serde_json::to_value(exit).unwrap(),
            json!({"type": "exit", "code": 7, "message": "why"})
        );
        let held = ServerMessage::Input {
            state: InputState::Held,
            message: "bob".into(),
        };
        assert_eq!(
            serde_json::to_value(held).unwrap(),
            json!({"type": "input", "state": "held", "message": "bob"})
        );
        assert_eq!(
            serde_json::to_value(ServerMessage::Live).unwrap(),
            json!({"type": "live"})
        );
    }

    #[test]
    fn an_impossible_terminal_is_refused() {
        let open = |size: Option<(u32, u32)>, command: Vec<String>| Open {
            uid: String::new(),
            size: size.map(|(rows, columns)| Size { rows, columns }),
            command,
            take_over: false,
            watch: false,
        };
        assert_eq!(open(None, vec!["a".into()]).fault(), None);
        assert_eq!(open(Some((1, 1000)), Vec::new()).fault(), None);
        for size in [(0, 80), (24, 0), (24, 1001), (u32::MAX, 80)] {
            assert!(open(Some(size), Vec::new()).fault().is_some(), "{size:?}");
        }
        assert!(open(None, vec!["a\0b".into()]).fault().is_some());
        assert!(open(None, vec![String::new(); 257]).fault().is_some());
    }
}
