//! The messages between agent and entrypoint: each side may be in the hands of the user's program.

use std::time::Duration;

use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_entrypoint::message::{
    Exited, FromEntrypoint, Launch, Leftovers, MAX_PACKET_BYTES, Message, Outcome, PROTOCOL_VERSION, Resume, Secret,
    StopCause, Stream, Target, ToEntrypoint, Usage, bounded_sentence, decode, encode,
};
use remoteprocess_entrypoint::session::{Command, News, Order};

use crate::{Input, Seed, form};

/// From the entrypoint.
const FROM: u8 = 0;
/// To the entrypoint.
const TO: u8 = 1;

/// Judges one input.
pub fn run(input: &[u8]) -> bool {
    let mut input = Input(input);
    match input.byte() % 2 {
        FROM => from_entrypoint(input.rest()),
        _ => to_entrypoint(input.rest()),
    }
}

fn from_entrypoint(packet: &[u8]) -> bool {
    let Some(message) = read::<FromEntrypoint>(packet) else {
        return false;
    };
    match message {
        FromEntrypoint::Exited(Exited { outcome, .. })
        | FromEntrypoint::Session {
            news: News::Ended(outcome),
            ..
        } => {
            outcome.exit_code();
            if let Outcome::NotFound { message } | Outcome::NotExecutable { message } = outcome {
                let bounded = bounded_sentence(message.clone());
                assert!(message.starts_with(&bounded));
            }
        }
        _ => {}
    }
    true
}

fn to_entrypoint(packet: &[u8]) -> bool {
    let Some(message) = read::<ToEntrypoint>(packet) else {
        return false;
    };
    if let ToEntrypoint::Session {
        order: Order::Start(command),
        ..
    } = message
    {
        assert!(command.length() <= packet.len(), "no more than what was sent");
    }
    true
}

/// A message is what its packet says, takes no other packet, and needs no longer one.
fn read<M: Message + PartialEq + std::fmt::Debug>(packet: &[u8]) -> Option<M> {
    let message: M = decode(packet).ok()?;
    let again = encode(&message).expect("what fitted into a packet fits into one");
    assert!(packet.len() <= MAX_PACKET_BYTES && again.len() <= packet.len());
    assert_eq!(decode::<M>(&again).expect("what is encoded is decoded"), message);
    let longer = [packet, &[0]].concat();
    assert!(decode::<M>(&longer).is_err(), "bytes after a message");
    Some(message)
}

/// Inputs to begin with: one message of each kind.
pub fn seeds() -> Vec<Seed> {
    let from = |message: FromEntrypoint| form(FROM, &[&encode(&message).expect("a packet")]);
    let to = |message: ToEntrypoint| form(TO, &[&encode(&message).expect("a packet")]);
    let mut seeds: Vec<Seed> = reports().into_iter().map(|(name, it)| (name, from(it))).collect();
    let all = orders().into_iter().chain(streams());
    seeds.extend(all.map(|(name, it)| (name, to(it))));
    seeds.push((
        "odd-to-echo-endless",
        form(TO, &[&[6, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]]),
    ));
    seeds
}

fn reports() -> Vec<(&'static str, FromEntrypoint)> {
    let input = InputState {
        offset: 70,
        room: 1 << 15,
        is_over: false,
    };
    let exited = Exited {
        outcome: Outcome::Signal(9),
        at_unix_nanos: 1 << 60,
        usage: Usage {
            peak_memory_bytes: Some(1 << 20),
            ..Usage::default()
        },
        leftovers: 1,
        oom_kills: 2,
        is_oom: true,
        stop: Some(StopCause::Deadline),
    };
    let session = |news| FromEntrypoint::Session {
        session: "s-1".into(),
        news,
    };
    let missing = Outcome::NotFound {
        message: "no \u{e4}".into(),
    };
    vec![
        (
            "from-hello",
            FromEntrypoint::Hello {
                version: PROTOCOL_VERSION,
                pid: 1,
                resume: Some(Resume {
                    secret: Secret([7; 32]),
                    launched: true,
                }),
            },
        ),
        (
            "from-launched",
            FromEntrypoint::Launched {
                pid: 7,
                at_unix_nanos: 1 << 60,
                is_paused: true,
                input: Some(input),
            },
        ),
        ("from-input", FromEntrypoint::Input(input)),
        ("from-exited", FromEntrypoint::Exited(exited)),
        (
            "from-done",
            FromEntrypoint::Done {
                request: "r-1".into(),
                error: Some("no".into()),
            },
        ),
        ("from-session-started", session(News::Started(input))),
        ("from-session-ended", session(News::Ended(missing))),
        ("from-session-refused", session(News::Refused("no".into()))),
    ]
}

fn orders() -> Vec<(&'static str, ToEntrypoint)> {
    let launch = Launch {
        merge: true,
        stop_signal: 15,
        stop_grace_millis: 30_000,
        agent_lost_millis: 600_000,
        leftovers: Leftovers::Wait,
        run_deadline: Some(Duration::from_millis(1500)),
        pause_stops_clock: true,
        stdin: true,
        stdin_from_file: true,
        terminal: Some(WindowSize { rows: 24, columns: 80 }),
    };
    vec![
        (
            "to-welcome",
            ToEntrypoint::Welcome {
                version: PROTOCOL_VERSION,
                secret: Secret([7; 32]),
            },
        ),
        ("to-launch", ToEntrypoint::Launch(launch)),
        (
            "to-signal",
            ToEntrypoint::Signal {
                request: "r-1".into(),
                number: 10,
                target: Target::Group,
            },
        ),
        (
            "to-pause",
            ToEntrypoint::Pause {
                request: "r-2".into(),
                paused: true,
            },
        ),
        (
            "to-deadline",
            ToEntrypoint::SetDeadline {
                run_deadline: Some(Duration::MAX),
            },
        ),
        (
            "to-stop",
            ToEntrypoint::Stop {
                signal: 15,
                grace_millis: u64::MAX,
                cause: StopCause::Requested,
            },
        ),
        ("to-recorded", ToEntrypoint::Recorded),
    ]
}

/// What concerns output, input and sessions.
fn streams() -> Vec<(&'static str, ToEntrypoint)> {
    let command = Command {
        words: vec![b"sh".to_vec().into(), b"-c".to_vec().into()],
        environment: vec![(b"A".to_vec().into(), b"1".to_vec().into())],
        directory: Some(b"/tmp".to_vec().into()),
        stdin: true,
        terminal: None,
    };
    let session = |order| ToEntrypoint::Session {
        session: "s-1".into(),
        order,
    };
    vec![
        (
            "to-echo",
            ToEntrypoint::Echo {
                stream: Stream::Stderr,
                bytes: b"text\n".to_vec(),
            },
        ),
        (
            "to-input",
            ToEntrypoint::Input {
                offset: 70,
                bytes: b"text\n".to_vec(),
            },
        ),
        ("to-end", ToEntrypoint::EndInput { offset: 75 }),
        ("to-resize", ToEntrypoint::Resize(WindowSize { rows: 1, columns: 1 })),
        ("to-session-start", session(Order::Start(command))),
        (
            "to-session-input",
            session(Order::Input {
                offset: 5,
                bytes: b"x".to_vec(),
            }),
        ),
        ("to-session-close", session(Order::Close)),
    ]
}
