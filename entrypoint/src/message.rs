//! The messages, and how they are encoded as packets (postcard).
//!
//! One conversation, in order:
//!
//! 1. entrypoint: [`FromEntrypoint::Hello`] without `resume`; agent: [`ToEntrypoint::Welcome`] with
//!    a fresh secret.
//! 2. agent: [`ToEntrypoint::Launch`]; entrypoint: [`FromEntrypoint::Launched`] with the read ends
//!    of the output pipes. If the program cannot be started there is no `Launched` and there are no
//!    pipes: [`FromEntrypoint::Exited`] with [`Outcome::NotFound`] or [`Outcome::NotExecutable`]
//!    follows at once.
//! 3. [`ToEntrypoint::Signal`], [`ToEntrypoint::Pause`], [`ToEntrypoint::SetDeadline`],
//!    [`ToEntrypoint::Stop`], [`ToEntrypoint::Echo`], [`ToEntrypoint::Session`] at any time.
//! 4. entrypoint: [`FromEntrypoint::Exited`] when the program and all it left behind are gone;
//!    agent: [`ToEntrypoint::Recorded`]; the entrypoint exits.
//!
//! A stop before step 2 (from the agent or the kubelet) ends the entrypoint with code 143 and without another message:
//! nothing was started.
//!
//! After a break the entrypoint reconnects and starts with a `Hello` that carries [`Resume`], with the read ends as
//! descriptors if the program runs or ran. When the agent has answered with the same secret, `Launched` (now without
//! descriptors) and, if it has happened, `Exited` are sent again. Only a `Done` may be lost with the old connection:
//! the agent asks again with the same id, and what was done is not done twice.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::exit::{Exited, Outcome, StopCause, Usage};
use crate::input::{InputState, WindowSize};
use crate::session::{News, Order};

/// Version of these messages. Both sides come from one image, so a difference is a fault of the installation and ends
/// the connection.
pub const PROTOCOL_VERSION: u32 = 5;

/// Longest packet, in bytes. A longer one is not sent, and not decoded.
pub const MAX_PACKET_BYTES: usize = 64 * 1024;

/// Most bytes in one [`ToEntrypoint::Echo`].
pub const MAX_ECHO_BYTES: usize = 60 * 1024;

/// Most bytes of the id of a request.
pub const MAX_REQUEST_BYTES: usize = 256;

/// Maximum length in bytes of the text in [`Outcome`] or [`FromEntrypoint::Done`]; the sender cuts it.
pub const MAX_SENTENCE_BYTES: usize = 4 * 1024;

/// Why bytes are not a message, or a message not a packet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The packet or message is longer than [`MAX_PACKET_BYTES`].
    #[error("a packet of {0} bytes is longer than {MAX_PACKET_BYTES}")]
    TooLong(usize),
    /// The bytes are not a message of this direction and version.
    #[error("not a message: {0}")]
    Malformed(#[from] postcard::Error),
    /// A message was followed by this many more bytes.
    #[error("{0} bytes after the message")]
    Trailing(usize),
}

/// A message of one of the two directions. Sealed: [`FromEntrypoint`] and [`ToEntrypoint`].
pub trait Message: Serialize + DeserializeOwned + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::FromEntrypoint {}
    impl Sealed for super::ToEntrypoint {}
}

impl Message for FromEntrypoint {}
impl Message for ToEntrypoint {}

/// What the entrypoint sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromEntrypoint {
    /// First packet of each connection. With `resume.launched` it carries the read ends of the
    /// output pipes: stdout and stderr, or one for both when merged.
    Hello {
        /// [`PROTOCOL_VERSION`] of the sender.
        version: u32,
        /// The sender's process id in its own namespace: 1 in a container.
        pid: u32,
        /// Absent until an agent has welcomed this entrypoint.
        resume: Option<Resume>,
    },
    /// The program runs. The first one carries the read ends, as `Hello` does on resume; it is sent again without
    /// descriptors after each resumed `Hello`.
    Launched {
        /// The program's process id in its container; also the id of its process group.
        pid: u32,
        /// When, in nanoseconds since the Unix epoch.
        at_unix_nanos: u64,
        /// It is paused now.
        is_paused: bool,
        /// How far its input has come; absent where it takes none.
        input: Option<InputState>,
    },
    /// How far the program's input has come: the answer to [`ToEntrypoint::Input`] and [`ToEntrypoint::EndInput`], and
    /// sent again when there is room again.
    Input(InputState),
    /// The program and all its leftovers have ended, or it could not be started.
    Exited(Exited),
    /// Answer to [`ToEntrypoint::Signal`] and [`ToEntrypoint::Pause`].
    Done {
        /// The id of the request.
        request: String,
        /// A message if nothing was done.
        error: Option<String>,
    },
    /// News of a session. [`News::Started`] carries the read ends of its output.
    Session {
        /// Its name.
        session: String,
        /// The news.
        news: News,
    },
}

/// How an entrypoint that was welcomed before proves it to an agent that has returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// From the [`ToEntrypoint::Welcome`] of the first connection.
    pub secret: Secret,
    /// The program was started, and the read ends come with this packet.
    pub launched: bool,
}

/// 32 random bytes that tie an entrypoint to its agent. Compared in constant time, never printed.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let different = self.0.iter().zip(other.0).fold(0, |seen, (a, b)| seen | (a ^ b));
        different == 0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// What happens to processes that outlive the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftovers {
    /// They are ended and counted.
    #[default]
    Kill,
    /// The run lasts until the last of them has ended.
    Wait,
}

/// How to run the program of the container's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// One pipe for stdout and stderr: true order, no split.
    pub merge: bool,
    /// First signal of the stop path if the agent did not request it.
    pub stop_signal: i32,
    /// Time between that signal and SIGKILL, milliseconds.
    pub stop_grace_millis: u64,
    /// Without an agent for this long the stop path runs, milliseconds.
    pub agent_lost_millis: u64,
    /// What happens to processes that the program leaves behind.
    pub leftovers: Leftovers,
    /// How long the program may run. The agent enforces it; the entrypoint does so only if the agent has
    /// not, [`crate::run_clock::BACKSTOP`] later.
    pub run_deadline: Option<Duration>,
    /// Whether the time for which the program was paused does not count toward `run_deadline`.
    pub pause_stops_clock: bool,
    /// Whether it takes input from clients; if neither this nor `stdin_from_file`, its input is empty.
    pub stdin: bool,
    /// Whether its input is the file [`STDIN_FILE`](crate::STDIN_FILE). Excludes `stdin` and `terminal`.
    pub stdin_from_file: bool,
    /// Size of a terminal for its input and output, which is then one stream.
    pub terminal: Option<WindowSize>,
}

/// What the agent sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEntrypoint {
    /// Answer to each `Hello`.
    Welcome {
        /// [`PROTOCOL_VERSION`] of the sender.
        version: u32,
        /// A new one for the first `Hello`, the same one on resume; otherwise the entrypoint disconnects.
        secret: Secret,
    },
    /// Start the program. Every one after the first is ignored.
    Launch(Launch),
    /// Send a signal, answered by [`FromEntrypoint::Done`]. A repeat of what was done is answered
    /// and does nothing.
    Signal {
        /// Names this request, at most [`MAX_REQUEST_BYTES`].
        request: String,
        /// 1 to 64.
        number: i32,
        /// The receivers.
        target: Target,
    },
    /// Stop (SIGSTOP) every process under the entrypoint, or resume them. Answered by [`FromEntrypoint::Done`] when
    /// none runs anymore, or when one could not be stopped: then all are resumed. A repeat of what was done is answered
    /// and does nothing.
    Pause {
        /// Names this request, at most [`MAX_REQUEST_BYTES`].
        request: String,
        /// Pause (true) or resume (false).
        paused: bool,
    },
    /// Another `run_deadline` than that of the launch, counted from the start of the program.
    SetDeadline {
        /// Absent: no deadline.
        run_deadline: Option<Duration>,
    },
    /// Signal everything, resume what is stopped, and send SIGKILL after the grace period. A later one can shorten the
    /// grace period and send another signal; it cannot lengthen the grace period.
    Stop {
        /// 1 to 64.
        signal: i32,
        /// Milliseconds.
        grace_millis: u64,
        /// [`StopCause::Requested`] or [`StopCause::Deadline`].
        cause: StopCause,
    },
    /// Write to the container's own stdout or stderr; what does not fit at once is dropped.
    Echo {
        /// Which of the two.
        stream: Stream,
        /// At most [`MAX_ECHO_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Input for the program, taken only at the offset and within the room of [`InputState`]; answered by
    /// [`FromEntrypoint::Input`].
    Input {
        /// Offset of the first byte.
        offset: u64,
        /// At most [`crate::input::MAX_INPUT_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// No more input follows. Taken only at the offset of [`InputState`], and answered likewise.
    EndInput {
        /// Length of the whole input in bytes.
        offset: u64,
    },
    /// Another size for the terminal, if there is one.
    Resize(WindowSize),
    /// The agent has read the pipes to their end and has stored the exit: the entrypoint may exit.
    Recorded,
    /// An order for a session. A session ends with the connection on which it was started.
    Session {
        /// Its name, at most [`MAX_REQUEST_BYTES`].
        session: String,
        /// The order.
        order: Order,
    },
}

/// Receivers of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The program itself.
    Main,
    /// The program's process group.
    Group,
    /// Every process of the container except the entrypoint.
    All,
}

/// An output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1; both when merged.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// The packet for a message.
///
/// # Errors
/// [`Error::TooLong`] for a message over [`MAX_PACKET_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, Error> {
    let packet = postcard::to_stdvec(message)?;
    match packet.len() {
        0..=MAX_PACKET_BYTES => Ok(packet),
        length => Err(Error::TooLong(length)),
    }
}

/// The message in a packet. Safe for bytes from an untrusted peer.
///
/// # Errors
/// [`Error`] for anything that is not exactly one message.
pub fn decode<M: Message>(packet: &[u8]) -> Result<M, Error> {
    if packet.len() > MAX_PACKET_BYTES {
        return Err(Error::TooLong(packet.len()));
    }
    match postcard::take_from_bytes(packet)? {
        (message, []) => Ok(message),
        (_, rest) => Err(Error::Trailing(rest.len())),
    }
}

/// Cuts a text to [`MAX_SENTENCE_BYTES`] at a character boundary.
pub fn bounded_sentence(mut sentence: String) -> String {
    sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE_BYTES));
    sentence
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::Command;

    fn secret() -> impl Strategy<Value = Secret> {
        any::<[u8; 32]>().prop_map(Secret)
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            any::<i32>().prop_map(Outcome::Code),
            any::<i32>().prop_map(Outcome::Signal),
            any::<String>().prop_map(|message| Outcome::NotFound { message }),
            any::<String>().prop_map(|message| Outcome::NotExecutable { message }),
        ]
    }

    fn from_entrypoint() -> impl Strategy<Value = FromEntrypoint> {
        let resume = proptest::option::of((secret(), any::<bool>()))
            .prop_map(|pair| pair.map(|(secret, launched)| Resume { secret, launched }));
        let exited = (outcome(), any::<[u64; 5]>(), any::<u32>()).prop_map(|(outcome, n, leftovers)| {
            let usage = Usage {
                user_micros: n[0],
                system_micros: n[1],
                max_rss_bytes: n[2],
                peak_memory_bytes: Some(n[0]),
                read_bytes: n[1],
                written_bytes: n[3],
            };
            let stop = Some(StopCause::AgentLost);
            Exited {
                outcome,
                at_unix_nanos: n[3],
                usage,
                leftovers,
                oom_kills: n[4],
                is_oom: n[4] > 1,
                stop,
            }
        });
        prop_oneof![
            (any::<u32>(), any::<u32>(), resume)
                .prop_map(|(version, pid, resume)| { FromEntrypoint::Hello { version, pid, resume } }),
            any::<(u32, u64, bool)>().prop_map(|(pid, at_unix_nanos, is_paused)| FromEntrypoint::Launched {
                pid,
                at_unix_nanos,
                is_paused,
                input: is_paused.then(InputState::default),
            }),
            any::<(u64, u32, bool)>().prop_map(|(offset, room, is_over)| FromEntrypoint::Input(InputState {
                offset,
                room,
                is_over
            })),
            exited.prop_map(FromEntrypoint::Exited),
            any::<(String, Option<String>)>().prop_map(|(request, error)| FromEntrypoint::Done { request, error }),
            (any::<String>(), news()).prop_map(|(session, news)| FromEntrypoint::Session { session, news }),
        ]
    }

    fn news() -> impl Strategy<Value = News> {
        prop_oneof![
            any::<u64>().prop_map(|offset| News::Started(InputState {
                offset,
                ..InputState::default()
            })),
            any::<u32>().prop_map(|room| News::Input(InputState {
                room,
                ..InputState::default()
            })),
            outcome().prop_map(News::Ended),
            any::<String>().prop_map(News::Refused),
        ]
    }

    fn order() -> impl Strategy<Value = Order> {
        let command = any::<(Vec<Vec<u8>>, Vec<u8>, bool)>().prop_map(|(words, text, flag)| Command {
            words: words.into_iter().map(Into::into).collect(),
            environment: vec![(text.clone().into(), text.clone().into())],
            directory: flag.then(|| text.into()),
            stdin: flag,
            terminal: flag.then_some(WindowSize { rows: 24, columns: 80 }),
        });
        prop_oneof![
            command.prop_map(Order::Start),
            any::<(u64, Vec<u8>)>().prop_map(|(offset, bytes)| Order::Input { offset, bytes }),
            any::<u64>().prop_map(|offset| Order::EndInput { offset }),
            any::<(u16, u16)>().prop_map(|(rows, columns)| Order::Resize(WindowSize { rows, columns })),
            Just(Order::Close),
        ]
    }

    fn to_entrypoint() -> impl Strategy<Value = ToEntrypoint> {
        let target = prop_oneof![Just(Target::Main), Just(Target::Group), Just(Target::All)];
        let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
        prop_oneof![
            (any::<u32>(), secret()).prop_map(|(version, secret)| ToEntrypoint::Welcome { version, secret }),
            any::<(bool, i32, u64, u64, Option<Duration>)>().prop_map(
                |(flag, stop_signal, grace, lost, run_deadline)| {
                    ToEntrypoint::Launch(Launch {
                        merge: flag,
                        stop_signal,
                        stop_grace_millis: grace,
                        agent_lost_millis: lost,
                        leftovers: if flag { Leftovers::Wait } else { Leftovers::Kill },
                        run_deadline,
                        pause_stops_clock: flag,
                        stdin: flag,
                        stdin_from_file: !flag,
                        terminal: flag.then_some(WindowSize { rows: 24, columns: 80 }),
                    })
                }
            ),
            (any::<String>(), any::<i32>(), target).prop_map(|(request, number, target)| ToEntrypoint::Signal {
                request,
                number,
                target
            }),
            any::<(String, bool)>().prop_map(|(request, paused)| ToEntrypoint::Pause { request, paused }),
            any::<Option<Duration>>().prop_map(|run_deadline| ToEntrypoint::SetDeadline { run_deadline }),
            any::<(i32, u64)>().prop_map(|(signal, grace_millis)| ToEntrypoint::Stop {
                signal,
                grace_millis,
                cause: StopCause::Deadline
            }),
            (stream, any::<Vec<u8>>()).prop_map(|(stream, bytes)| ToEntrypoint::Echo { stream, bytes }),
            any::<(u64, Vec<u8>)>().prop_map(|(offset, bytes)| ToEntrypoint::Input { offset, bytes }),
            any::<u64>().prop_map(|offset| ToEntrypoint::EndInput { offset }),
            any::<(u16, u16)>().prop_map(|(rows, columns)| ToEntrypoint::Resize(WindowSize { rows, columns })),
            Just(ToEntrypoint::Recorded),
            (any::<String>(), order()).prop_map(|(session, order)| ToEntrypoint::Session { session, order }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(ours in from_entrypoint(), theirs in to_entrypoint()) {
            prop_assert_eq!(&decode::<FromEntrypoint>(&encode(&ours).unwrap()).unwrap(), &ours);
            prop_assert_eq!(&decode::<ToEntrypoint>(&encode(&theirs).unwrap()).unwrap(), &theirs);
        }

        #[test]
        fn garbage_is_an_error_or_a_message(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode::<FromEntrypoint>(&bytes);
            let _ = decode::<ToEntrypoint>(&bytes);
        }

        #[test]
        fn a_damaged_packet_does_not_panic(message in to_entrypoint(), at: usize, flip: u8, keep: usize) {
            let mut packet = encode(&message).unwrap();
            let index = at % packet.len();
            packet[index] ^= flip;
            packet.truncate(keep % (packet.len() + 1));
            let _ = decode::<ToEntrypoint>(&packet);
        }
    }

    #[test]
    fn sizes_are_bounded_both_ways() {
        let echo = |length| ToEntrypoint::Echo {
            stream: Stream::Stderr,
            bytes: vec![0; length],
        };
        assert!(encode(&echo(MAX_ECHO_BYTES)).is_ok());
        assert!(matches!(encode(&echo(MAX_PACKET_BYTES)), Err(Error::TooLong(_))));
        let long = vec![0; MAX_PACKET_BYTES + 1];
        assert!(matches!(decode::<ToEntrypoint>(&long), Err(Error::TooLong(_))));
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        let mut packet = encode(&ToEntrypoint::Recorded).unwrap();
        packet.push(0);
        assert!(matches!(decode::<ToEntrypoint>(&packet), Err(Error::Trailing(1))));
    }

    #[test]
    fn a_length_larger_than_the_packet_allocates_nothing() {
        // Echo, stdout, then a length of 2^32 - 1 and no bytes.
        let packet = [6, 0, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(decode::<ToEntrypoint>(&packet).is_err());
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(Outcome::Code(7).exit_code(), 7);
        assert_eq!(Outcome::Signal(15).exit_code(), 143);
        assert_eq!(
            Outcome::Signal(i32::MAX).exit_code(),
            i32::MAX,
            "of a hostile entrypoint"
        );
        assert_eq!(Outcome::NotFound { message: String::new() }.exit_code(), 127);
        assert_eq!(Outcome::NotExecutable { message: String::new() }.exit_code(), 126);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret([7; 32])), "Secret(…)");
        assert_ne!(Secret([7; 32]), Secret([8; 32]));
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let cut = bounded_sentence("ä".repeat(MAX_SENTENCE_BYTES));
        assert_eq!(cut.len(), MAX_SENTENCE_BYTES);
        let odd = bounded_sentence(format!("a{}", "ä".repeat(MAX_SENTENCE_BYTES)));
        assert_eq!(odd.len(), MAX_SENTENCE_BYTES - 1);
    }
}
