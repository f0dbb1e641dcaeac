//! The stream of output: messages on the wire, what the relay makes of an agent's, and what a client makes of a relay's.

use std::cell::RefCell;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream;
use http_body_util::StreamBody;
use remoteprocess_client::stream::Local;
use remoteprocess_client::stream::pending::{Pending, Said};
use remoteprocess_client::{Ledger, Want};
use remoteprocess_operator::fuzz::carry;
use remoteprocess_operator::relay::piece::Framed;
use remoteprocess_proto::STREAMS;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Cursor, Data, Exit, Gap, Heartbeat, OutputFrame, Seal, State, Stream, StreamSeal};
use remoteprocess_proto::wire::{HEAD, Messages, PREFIX, data_message, decode, encode};
use tonic::Status;
use tonic::body::Body;

use crate::{Input, Seed, form};

/// Size of the parts in which they arrive, and bytes from the network.
const BYTES: u8 = 0;
/// The same, from an agent through the relay to a client.
const AGENT_BYTES: u8 = 1;
/// Steps of an agent, through the relay to a client; see [`frame`].
const AGENT: u8 = 2;
/// Steps of a relay, to a client; see [`frame`].
const RELAY: u8 = 3;
/// Input of a client: steps of both sides.
const INPUT: u8 = 4;

/// Most steps of an input.
const STEPS: usize = 64;

/// Judges one input.
pub fn run(input: &[u8]) -> bool {
    let mut input = Input(input);
    match input.byte() % 5 {
        BYTES => {
            let part = input.byte();
            !received(part, input.rest()).is_empty()
        }
        AGENT_BYTES => {
            let part = input.byte();
            let sent = received(part, input.rest()).into_iter();
            let frames = sent.filter_map(|wire| Some((decode(&wire).ok()?.frame?, wire)));
            relayed(frames.collect(), Cursor::default(), part)
        }
        AGENT => {
            let begin = Cursor {
                stdout: input.byte().into(),
                stderr: input.byte().into(),
            };
            let part = input.byte();
            relayed(script(input, begin), begin, part)
        }
        RELAY => followed(input),
        _ => said(input),
    }
}

/// The messages in `bytes`, which arrive in parts of about `part` bytes. Each byte is in one message, in its place.
fn received(part: u8, bytes: &[u8]) -> Vec<Bytes> {
    let parts: Vec<_> = bytes
        .chunks(usize::from(part) * 8 + 1)
        .map(|part| Ok::<_, Status>(http_frame(part)))
        .collect();
    let mut messages = Messages::new(Body::new(StreamBody::new(stream::iter(parts))));
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some(Ok(Some(message))) = messages.next().now_or_never() {
        assert!(message.len() >= PREFIX && rest.starts_with(&message));
        rest = &rest[message.len()..];
        if let Ok(frame) = decode(&message) {
            assert_eq!(decode(&encode(&frame)).expect("what is encoded is decoded"), frame);
        }
        found.push(message);
    }
    found
}

fn http_frame(part: &[u8]) -> http_body::Frame<Bytes> {
    http_body::Frame::data(Bytes::copy_from_slice(part))
}

/// Whatever an agent sends, the relay ends the stream, or its followers get each byte once: theirs is a history.
fn relayed(sent: Vec<(Frame, Bytes)>, begin: Cursor, part: u8) -> bool {
    let is_empty = sent.is_empty();
    let Ok(carried) = carry(sent, begin, usize::from(part) * 256 + 1) else {
        return false;
    };
    let mut at = begin;
    let mut ledger = Ledger::new(Want {
        cursor: Some(begin),
        follow: true,
        ..Want::default()
    });
    for Framed { placed, wire } in carried {
        let stream = placed.piece.stream();
        assert_eq!((placed.start, placed.piece.from()), (at, at.of(stream)));
        assert!(placed.piece.from() <= placed.piece.to());
        at = placed.end();
        let frame = decode(&wire).expect("a message");
        assert_eq!(frame, placed.piece.into_frame(), "the message is the piece");
        taken(&mut ledger, frame.frame.expect("a frame")).expect("a client takes what the relay sends");
    }
    for stream in STREAMS {
        assert_eq!(ledger.reached(stream), at.of(stream));
    }
    !is_empty
}

/// Whatever a relay sends, no offset goes back, each byte is written once, and the next request asks for the next byte.
fn followed(mut input: Input<'_>) -> bool {
    let (kind, place) = (input.byte(), u64::from(input.byte()));
    let mut ledger = Ledger::new(Want {
        stream: [Stream::Unspecified, Stream::Stdout, Stream::Stderr][usize::from(kind % 3)],
        cursor: (kind & 8 != 0).then_some(Cursor {
            stdout: place,
            stderr: place,
        }),
        tail_lines: (kind & 16 != 0).then_some(place),
        follow: true,
        ..Want::default()
    });
    let is_known = kind & 16 == 0;
    let mut written = STREAMS.map(|stream| is_known.then(|| ledger.reached(stream)));
    let mut count = 0;
    while !input.is_empty() && count < STEPS {
        let at = cursor(&ledger);
        let Some(frame) = frame(&mut input, &at).frame else {
            break;
        };
        let Ok(new) = taken(&mut ledger, frame.clone()) else {
            break;
        };
        if let (Frame::Data(data), true) = (&frame, new) {
            let next = &mut written[data.stream().index()];
            assert!(next.is_none_or(|next| next == data.offset), "each byte once, in order");
            *next = Some(data.offset + data.bytes.len() as u64);
        }
        for stream in STREAMS {
            let next = &mut written[stream.index()];
            assert!(
                ledger.reached(stream) >= next.unwrap_or_default(),
                "{frame:?} goes back"
            );
            *next = next.map(|_| ledger.reached(stream));
        }
        if let Ok(request) = ledger.request()
            && let Some(cursor) = request.cursor
        {
            for stream in STREAMS.into_iter().filter(|stream| cursor.of(*stream) != 0) {
                assert_eq!(cursor.of(stream), ledger.reached(stream));
            }
        }
        count += 1;
    }
    count > 0
}

fn cursor(ledger: &Ledger) -> Cursor {
    let mut cursor = Cursor::default();
    STREAMS
        .into_iter()
        .for_each(|stream| cursor.set(stream, ledger.reached(stream)));
    cursor
}

/// Gives a frame to the ledger as a follower does. Whether it is to be written.
fn taken(ledger: &mut Ledger, frame: Frame) -> Result<bool, String> {
    match frame {
        Frame::Data(data) => ledger.take(&data).map_err(|error| error.to_string()),
        Frame::Gap(gap) => ledger.lose(gap).map_err(|error| error.to_string()),
        Frame::Heartbeat(heartbeat) => {
            ledger
                .announce(heartbeat.attempt, "")
                .map_err(|error| error.to_string())?;
            ledger.heartbeat(&heartbeat);
            Ok(false)
        }
        Frame::Exit(exit) => {
            let _ = ledger.audit(&exit);
            Ok(false)
        }
        Frame::State(_) | Frame::Spool(_) => Ok(false),
    }
}

/// The frames of a script, each with its message.
fn script(mut input: Input<'_>, begin: Cursor) -> Vec<(Frame, Bytes)> {
    let mut at = begin;
    let mut frames = Vec::new();
    while !input.is_empty() && frames.len() < STEPS {
        let message = frame(&mut input, &at);
        let Some(frame) = message.frame.clone() else { break };
        let wire = match &frame {
            Frame::Data(data) => {
                at.set(data.stream(), data.offset.saturating_add(data.bytes.len() as u64));
                let built = built(data);
                assert_eq!(decode(&built).expect("a message"), message);
                built
            }
            Frame::Gap(gap) => {
                at.set(gap.stream(), gap.to.unwrap_or(gap.from));
                encode(&message)
            }
            _ => encode(&message),
        };
        frames.push((frame, wire));
    }
    frames
}

/// The message of a chunk as an agent builds it.
fn built(data: &Data) -> Bytes {
    let buffer = [&[0; HEAD][..], &data.bytes].concat();
    data_message(buffer, data.stream(), data.offset, data.time_unix_nanos)
}

/// One step: a byte for kind and stream, one for the offset, then what the kind needs. Most offsets are near `at`.
fn frame(input: &mut Input<'_>, at: &Cursor) -> OutputFrame {
    let kind = input.byte();
    let stream = STREAMS[usize::from(kind % 2)];
    let offset = match input.byte() {
        near @ 0..128 => at.of(stream).wrapping_add(u64::from(near)),
        near @ 128..240 => at.of(stream).wrapping_sub(u64::from(near - 128)),
        _ => input.number(),
    };
    let length = u64::from(input.byte());
    let frame = match kind / 2 % 8 {
        0 => Frame::Gap(Gap {
            stream: stream.into(),
            from: offset,
            to: (length != 0).then(|| offset.wrapping_add(length).wrapping_sub(8)),
            reason: (length % 9).cast_signed().try_into().unwrap_or_default(),
        }),
        1 => Frame::Heartbeat(Heartbeat {
            offsets: Some(Cursor {
                stdout: offset,
                stderr: length,
            }),
            attempt: u32::from(input.byte()),
        }),
        2 => Frame::Exit(exit(offset, length)),
        3 => Frame::State(State {
            message: "\u{e4}".repeat(length as usize * 20),
            ..State::default()
        }),
        // Of more than 16 and 32 KiB: a message of its own, or the one that came.
        4 => Frame::Data(Data {
            stream: stream.into(),
            offset,
            time_unix_nanos: i64::from(input.byte()) << 24,
            bytes: vec![kind; (length * length) as usize].into(),
        }),
        _ => Frame::Data(Data {
            stream: if kind == u8::MAX { Stream::Unspecified } else { stream }.into(),
            offset,
            time_unix_nanos: i64::from(input.byte()) << 24,
            bytes: Bytes::copy_from_slice(input.bytes(length as usize)),
        }),
    };
    OutputFrame { frame: Some(frame) }
}

fn exit(bytes: u64, length: u64) -> Exit {
    let seal = |bytes| {
        Some(StreamSeal {
            bytes,
            ..StreamSeal::default()
        })
    };
    Exit {
        sealed: true,
        value: i32::MAX,
        seal: Some(Seal {
            stdout: seal(bytes),
            stderr: seal(length),
            ..Seal::default()
        }),
        ..Exit::default()
    }
}

/// Whatever a relay accepts, each byte of the input is sent at its own offset, and none that was accepted again.
fn said(mut input: Input<'_>) -> bool {
    let typed = RefCell::new(Vec::new());
    let mut begin = None;
    let mut pending = Pending::default();
    let mut count = 0;
    while !input.is_empty() && count < STEPS {
        count += 1;
        let (first, accepted) = (begin.unwrap_or_default(), pending.accepted().unwrap_or_default());
        let check = |said: Said| {
            if let Said::Input(sent) = said {
                let at = usize::try_from(sent.offset - first).expect("at or after the first byte");
                assert_eq!(&typed.borrow()[at..at + sent.bytes.len()], &sent.bytes[..]);
                assert!(sent.offset >= accepted, "it was accepted");
            }
        };
        match input.byte() % 4 {
            0 => {
                let before = pending.accepted();
                let accepted = match input.byte() {
                    near @ 0..240 => before.unwrap_or_default().wrapping_add(u64::from(near)),
                    _ => input.number(),
                };
                if pending.take(accepted).is_err() {
                    assert_eq!(pending.accepted(), before, "what is refused changes nothing");
                    return count > 1;
                }
                begin.get_or_insert(accepted);
                let sent = begin.unwrap_or_default() + typed.borrow().len() as u64;
                assert!(before.unwrap_or_default() <= accepted && accepted <= sent);
            }
            // A client sends nothing before it knows where the input stands.
            1 if begin.is_some() && pending.has_room() => {
                let length = input.byte();
                let bytes = input.bytes(length.into());
                typed.borrow_mut().extend_from_slice(bytes);
                pending.say(Local::Bytes(Bytes::copy_from_slice(bytes)), check);
            }
            2 if begin.is_some() => pending.again(check),
            3 if begin.is_some() && input.byte() == 0 => pending.say(Local::End, check),
            _ => {}
        }
    }
    count > 0
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Seed> {
    let [stream, skipped, back] = streams();
    // Data, data of the other stream, a gap, large data, an exit.
    let steps = b"\x0a\x00\x03\x00abc\x0b\x00\x02\x01xy\x00\x00\x0c\x08\x00\xb6\x02\x08\x00\xc0\x03\x04\x00\x05";
    let typing = b"\x00\x05\x01\x03abc\x02\x00\x02\x01\x02de\x02\x00\x03\x03\x00";
    vec![
        ("bytes", form(BYTES, &[&[0], &stream])),
        ("bytes-whole", form(BYTES, &[&[255], &stream])),
        ("odd-bytes-compressed", form(BYTES, &[&[0], &[1, 0, 0, 0, 1, 0]])),
        ("odd-bytes-large", form(BYTES, &[&[0], &[0, 255, 0, 0, 0]])),
        ("agent-bytes", form(AGENT_BYTES, &[&[1], &stream])),
        ("agent-bytes-skipped", form(AGENT_BYTES, &[&[200], &skipped])),
        ("odd-agent-bytes-back", form(AGENT_BYTES, &[&[1], &back])),
        ("agent", form(AGENT, &[&[7, 9, 4], steps])),
        ("relay", form(RELAY, &[&[0, 0], steps])),
        ("relay-tail", form(RELAY, &[&[16, 3], b"\x02\x07\x09\x01", steps])),
        ("relay-one", form(RELAY, &[&[10, 0], steps])),
        // A gap without an end, then bytes that were written before.
        (
            "relay-endless",
            form(RELAY, &[&[0, 0], b"\x0a\x00\x03\x00abc\x00\x00\x00\x0a\x83\x03\x00abc"]),
        ),
        ("input", form(INPUT, &[typing])),
    ]
}

/// What a network carries: a whole stream, one with repeated and skipped bytes, and a gap that goes back.
fn streams() -> [Vec<u8>; 3] {
    let data = |stream: Stream, offset, bytes: &'static [u8]| Data {
        stream: stream.into(),
        offset,
        time_unix_nanos: 1 << 60,
        bytes: Bytes::from_static(bytes),
    };
    let gap = Gap {
        stream: Stream::Stderr.into(),
        from: 0,
        to: Some(9),
        reason: 1,
    };
    let frames = |frames: Vec<Frame>| -> Vec<u8> {
        let messages = frames
            .into_iter()
            .map(|frame| encode(&OutputFrame { frame: Some(frame) }));
        messages.flatten().collect()
    };
    let stream = frames(vec![
        Frame::State(State {
            message: "running".into(),
            ..State::default()
        }),
        Frame::Data(data(Stream::Stdout, 0, b"hello\n")),
        Frame::Gap(gap),
        Frame::Data(data(Stream::Stderr, 9, b"lost?\n")),
        Frame::Heartbeat(Heartbeat {
            offsets: Some(Cursor { stdout: 6, stderr: 15 }),
            attempt: 1,
        }),
        Frame::Data(data(Stream::Stdout, 6, b"end\n")),
        Frame::Exit(exit(10, 15)),
    ]);
    let skipped = frames(vec![
        Frame::Data(data(Stream::Stdout, 0, b"one\n")),
        Frame::Data(data(Stream::Stdout, 2, b"e\ntwo\n")),
        Frame::Data(data(Stream::Stdout, 20, b"three\n")),
    ]);
    let back = frames(vec![Frame::Gap(Gap {
        to: Some(3),
        from: 4,
        ..gap
    })]);
    [stream, skipped, back]
}
