//! What an agent may say.
//!
//! Every user who can create pods in a namespace can act for the agents of that namespace. So whatever an agent sends gets
//! its bounds here, before anything is kept of it. What would make the history wrong is refused with a sentence; a text or
//! a number that is merely too large is cut.

use bytes::Bytes;
use remoteprocess_api::signal;
use remoteprocess_proto::MAX_OFFSET;
use remoteprocess_proto::v1::exit::{Outcome, Stop};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Data, Exit, Gap, Seal, State, Stream, StreamSeal, Usage};

/// Bytes of a text.
const MAX_TEXT: usize = 4096;
/// Bytes of a SHA-256.
const HASH: usize = 32;

/// The frame, within its bounds.
pub(super) fn bound(frame: Frame) -> Result<Frame, &'static str> {
    Ok(match frame {
        Frame::Data(data) => {
            check_data(&data)?;
            Frame::Data(data)
        }
        Frame::Gap(gap) => {
            check_gap(&gap)?;
            Frame::Gap(gap)
        }
        Frame::State(state) => Frame::State(State {
            message: bound_text(state.message),
            ..state
        }),
        Frame::Exit(exit) => Frame::Exit(bound_exit(exit)),
        numbers @ (Frame::Heartbeat(_) | Frame::Spool(_)) => numbers,
    })
}

fn check_data(data: &Data) -> Result<(), &'static str> {
    check_stream(data.stream())?;
    check_offset(data.offset)
}

fn check_gap(gap: &Gap) -> Result<(), &'static str> {
    check_stream(gap.stream())?;
    check_offset(gap.from)?;
    match gap.to {
        Some(to) if to < gap.from => Err("a gap that ends before it begins"),
        Some(to) => check_offset(to),
        None => Ok(()),
    }
}

fn check_stream(stream: Stream) -> Result<(), &'static str> {
    match stream {
        Stream::Unspecified => Err("output of neither stdout nor stderr"),
        Stream::Stdout | Stream::Stderr => Ok(()),
    }
}

fn check_offset(offset: u64) -> Result<(), &'static str> {
    if offset <= MAX_OFFSET {
        Ok(())
    } else {
        Err("an offset that no stream reaches")
    }
}

/// The end is always taken: without it the attempt would have none. A value that nothing can end with is no known end, and
/// an odd seal leaves the output unsealed.
fn bound_exit(exit: Exit) -> Exit {
    let is_possible = match exit.outcome() {
        Outcome::Code => (0..=255).contains(&exit.value),
        Outcome::Signal => (1..=signal::MAX_SIGNAL).contains(&exit.value),
        Outcome::Unknown => true,
    };
    let (outcome, value) = match is_possible {
        true => (exit.outcome, exit.value),
        false => (Outcome::Unknown.into(), 0),
    };
    Exit {
        outcome,
        value,
        seal: exit.seal.map(|seal| Seal {
            stdout: bound_seal(seal.stdout),
            stderr: bound_seal(seal.stderr),
            ..seal
        }),
        message: bound_text(exit.message),
        stop: exit.stop.map(|stop| Stop {
            requested_by: bound_text(stop.requested_by),
            message: bound_text(stop.message),
        }),
        usage: exit.usage.map(bound_usage),
        oom_kills: exit.oom_kills.min(MAX_OFFSET),
        ..exit
    }
}

fn bound_seal(seal: Option<StreamSeal>) -> Option<StreamSeal> {
    let mut seal = seal.filter(|seal| check_offset(seal.bytes).is_ok())?;
    seal.dropped_bytes = seal.dropped_bytes.min(MAX_OFFSET);
    if seal.sha256.len() != HASH {
        seal.sha256 = Bytes::new();
    }
    Some(seal)
}

fn bound_usage(usage: Usage) -> Usage {
    let most = |number: u64| number.min(MAX_OFFSET);
    // Without `..`: a number that is added gets its bound.
    let Usage {
        user_micros,
        system_micros,
        peak_memory_bytes,
        container_peak_memory_bytes,
        read_bytes,
        written_bytes,
    } = usage;
    Usage {
        user_micros: most(user_micros),
        system_micros: most(system_micros),
        peak_memory_bytes: most(peak_memory_bytes),
        container_peak_memory_bytes: container_peak_memory_bytes.map(most),
        read_bytes: most(read_bytes),
        written_bytes: most(written_bytes),
    }
}

fn bound_text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_proto::v1::GapReason;

    fn gap(stream: Stream, from: u64, to: Option<u64>) -> Frame {
        Frame::Gap(Gap {
            stream: stream.into(),
            from,
            to,
            reason: GapReason::SpoolFull.into(),
        })
    }

    fn data(stream: Stream, offset: u64, length: usize) -> Frame {
        Frame::Data(Data {
            stream: stream.into(),
            offset,
            time_unix_nanos: i64::MIN,
            bytes: vec![1; length].into(),
        })
    }

    #[test]
    fn what_would_make_the_history_wrong_is_refused() {
        for (odd, why) in [
            (gap(Stream::Stdout, 20, Some(15)), "before it begins"),
            (gap(Stream::Stdout, 20, Some(u64::MAX)), "no stream reaches"),
            (gap(Stream::Stderr, u64::MAX, None), "no stream reaches"),
            (gap(Stream::Unspecified, 0, Some(1)), "neither"),
            (data(Stream::Stdout, u64::MAX, 1), "no stream reaches"),
            (data(Stream::Unspecified, 0, 1), "neither"),
        ] {
            let refused = bound(odd.clone()).unwrap_err();
            assert!(refused.contains(why), "{odd:?}: {refused}");
        }
        for good in [
            gap(Stream::Stderr, 3, None),
            gap(Stream::Stdout, 3, Some(3)),
            data(Stream::Stdout, MAX_OFFSET, 1 << 16),
        ] {
            assert_eq!(bound(good.clone()), Ok(good));
        }
    }

    #[test]
    fn an_end_is_always_taken_with_no_more_than_fits() {
        let long = "ä".repeat(1 << 20);
        let stream = StreamSeal {
            bytes: 5,
            sha256: vec![7; 1 << 20].into(),
            dropped_bytes: u64::MAX,
            checksum: None,
        };
        let exit = Exit {
            outcome: Outcome::Code.into(),
            value: 70_000,
            message: long.clone(),
            stop: Some(Stop {
                requested_by: long.clone(),
                message: long.clone(),
            }),
            seal: Some(Seal {
                stdout: Some(stream),
                ..Seal::default()
            }),
            usage: Some(Usage {
                user_micros: u64::MAX,
                system_micros: u64::MAX,
                ..Usage::default()
            }),
            oom_kills: u64::MAX,
            ..Exit::default()
        };
        let Ok(Frame::Exit(exit)) = bound(Frame::Exit(exit)) else {
            panic!("refused");
        };
        let usage = exit.usage.unwrap();
        assert!(usage.user_micros.checked_add(usage.system_micros).is_some());
        assert_eq!((exit.outcome(), exit.value), (Outcome::Unknown, 0));
        let stop = exit.stop.unwrap();
        for text in [exit.message, stop.requested_by, stop.message] {
            assert!(!text.is_empty() && text.len() <= MAX_TEXT, "{}", text.len());
        }
        let stdout = exit.seal.unwrap().stdout.unwrap();
        assert_eq!((stdout.bytes, stdout.sha256.len()), (5, 0));
        assert!(i64::try_from(exit.oom_kills).is_ok() && i64::try_from(stdout.dropped_bytes).is_ok());
        let Ok(Frame::State(state)) = bound(Frame::State(State {
            message: long,
            ..State::default()
        })) else {
            panic!("refused");
        };
        assert!(state.message.len() <= MAX_TEXT);
        let signal = Exit {
            outcome: Outcome::Signal.into(),
            value: 9,
            ..Exit::default()
        };
        assert_eq!(bound(Frame::Exit(signal.clone())), Ok(Frame::Exit(signal)));
    }
}
