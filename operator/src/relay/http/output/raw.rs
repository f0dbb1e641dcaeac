//! Raw output: the bytes of one stream, without a hole, or a stream that breaks off.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{Exit, Stream, WatchOutputRequest};

use super::range::Part;
use super::{Broken, Encode, End, Step};
use crate::relay::core::output::OutputEvent;
use crate::relay::error::{Code, Error};
use crate::relay::grpc::pack;
use crate::relay::http::output::record::outcome;
use crate::relay::piece::Piece;

/// The trailers of a stream without a known length.
pub(super) const TRAILERS: [&str; 5] = ["rproc-end", "rproc-exit", "rproc-offset", "rproc-gaps", "rproc-sha256"];

/// The encoder.
pub(super) struct Raw {
    stream: Stream,
    follow: bool,
    /// The next offset, once it is known.
    at: Option<u64>,
    /// Where the answer ends, if it promised that.
    to: Option<u64>,
}

impl Raw {
    /// The encoder of a part, or of everything until the end.
    pub(super) fn new(request: &WatchOutputRequest, part: Option<Part>) -> Self {
        let stream = request.stream();
        let begins_elsewhere = request.tail_lines.is_some() || request.since_unix_nanos.is_some();
        let from = request.cursor.unwrap_or_default().of(stream);
        Self {
            stream,
            follow: request.follow,
            at: part.map(|part| part.from).or((!begins_elsewhere).then_some(from)),
            to: part.map(|part| part.to),
        }
    }

    fn take(&mut self, piece: Piece) -> Result<Bytes, Broken> {
        match piece {
            Piece::Gap(gap) => Err(Broken::Gap(gap)),
            Piece::Data(data) => {
                let at = *self.at.get_or_insert(data.offset);
                if data.offset != at {
                    return Err(Broken::Failed(torn(at)));
                }
                let mut bytes = data.bytes;
                if let Some(to) = self.to {
                    bytes.truncate(usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX));
                }
                self.at = Some(at + bytes.len() as u64);
                Ok(bytes)
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.to.is_some() && self.at == self.to
    }

    /// The end of the attempt, or of what there is now.
    fn finish(&self, exit: Option<&Exit>) -> End {
        let at = self.at.unwrap_or_default();
        if self.to.is_some() {
            return End::Broken(Broken::Failed(torn(at)));
        }
        let seal = exit.filter(|exit| exit.sealed).and_then(|exit| exit.seal.as_ref());
        let seal = seal.and_then(|seal| match self.stream {
            Stream::Stderr => seal.stderr.as_ref(),
            Stream::Stdout | Stream::Unspecified => seal.stdout.as_ref(),
        });
        if seal.is_some_and(|seal| self.at.is_some_and(|at| at != seal.bytes)) {
            return End::Broken(Broken::Failed(torn(at)));
        }
        let ended = exit.map_or("running", |_| "ended");
        let values = [
            Some(ended.to_owned()),
            exit.map(|exit| match exit.outcome() {
                Outcome::Code | Outcome::Signal => format!("{} {}", outcome(exit), exit.value),
                Outcome::Unknown => outcome(exit).to_owned(),
            }),
            self.at.map(|at| at.to_string()),
            Some("0".to_owned()),
            seal.map(|seal| hex::encode(&seal.sha256)),
        ];
        let trailers = TRAILERS.into_iter().zip(values).filter_map(|(name, value)| {
            let value = HeaderValue::try_from(value?).ok()?;
            Some((HeaderName::from_static(name), value))
        });
        End::Whole(trailers.collect())
    }
}

impl Encode for Raw {
    fn encode(&mut self, event: Option<Result<OutputEvent, Error>>) -> Step {
        let mut step = Step::default();
        match event {
            Some(Ok(OutputEvent::Output(frames))) => {
                for framed in frames {
                    match self.take(framed.placed.piece) {
                        Ok(bytes) => step.bytes.push(bytes),
                        Err(broken) => {
                            step.end = Some(End::Broken(broken));
                            break;
                        }
                    }
                    if self.is_complete() {
                        step.end = Some(End::Whole(HeaderMap::new()));
                        break;
                    }
                }
                step.bytes = pack(step.bytes).into();
            }
            Some(Ok(OutputEvent::Position { offsets, .. })) => {
                self.at = self.at.or(offsets.map(|offsets| offsets.of(self.stream)));
            }
            Some(Ok(OutputEvent::State(_))) => {}
            Some(Ok(OutputEvent::Exit(exit))) => step.end = Some(self.finish(Some(&*exit))),
            Some(Err(error)) => step.end = Some(End::Broken(Broken::Failed(error))),
            None if self.follow => step.end = Some(End::Broken(Broken::Failed(torn(self.at.unwrap_or_default())))),
            None => step.end = Some(self.finish(None)),
        }
        step
    }
}

fn torn(at: u64) -> Error {
    Error::new(
        Code::Unavailable,
        format!("the output broke off at offset {at}; read on from there"),
    )
}

#[cfg(test)]
mod tests {
    use remoteprocess_proto::v1::{Cursor, GapReason, Seal, StreamSeal};

    use super::*;
    use crate::relay::piece::{Framed, Placed, data, gap};

    fn output(pieces: Vec<Piece>) -> Option<Result<OutputEvent, Error>> {
        let start = Cursor::default();
        let frames = pieces.into_iter().map(|piece| Framed::new(Placed { start, piece }));
        Some(Ok(OutputEvent::Output(frames.collect())))
    }

    fn chunk(offset: u64, text: &'static str) -> Piece {
        data(Stream::Stdout, offset, 1, Bytes::from_static(text.as_bytes()))
    }

    fn raw(part: Option<Part>) -> Raw {
        let request = WatchOutputRequest {
            stream: Stream::Stdout.into(),
            follow: true,
            ..WatchOutputRequest::default()
        };
        Raw::new(&request, part)
    }

    fn exit(bytes: u64) -> Option<Result<OutputEvent, Error>> {
        let stdout = Some(StreamSeal {
            bytes,
            sha256: vec![7; 32].into(),
            ..StreamSeal::default()
        });
        let seal = Some(Seal {
            stdout,
            ..Seal::default()
        });
        Some(Ok(OutputEvent::Exit(Box::new(Exit {
            outcome: Outcome::Code.into(),
            value: 3,
            sealed: true,
            seal,
            ..Exit::default()
        }))))
    }

    #[test]
    fn the_end_names_exit_offset_and_hash() {
        let mut raw = raw(None);
        let step = raw.encode(output(vec![chunk(0, "ab"), chunk(2, "c")]));
        assert_eq!(step.bytes, ["abc"]);
        let Some(End::Whole(trailers)) = raw.encode(exit(3)).end else {
            panic!("no end");
        };
        let values = TRAILERS.map(|name| trailers[name].to_str().unwrap().to_owned());
        assert_eq!(values, ["ended", "code 3", "3", "0", &"07".repeat(32)]);
    }

    #[test]
    fn nothing_but_the_end_looks_like_the_end() {
        let broken = |step: Step| matches!(step.end, Some(End::Broken(_)));
        assert!(broken(raw(None).encode(output(vec![chunk(1, "b")]))), "a hole");
        let lost = gap(Stream::Stdout, 0, Some(4), GapReason::SpoolFull);
        assert!(broken(raw(None).encode(output(vec![lost]))), "a gap");
        assert!(broken(raw(None).encode(Some(Err(Error::expired())))), "an error");
        assert!(broken(raw(None).encode(None)), "a follower without an exit");
        assert!(broken(raw(None).encode(exit(3))), "fewer bytes than were sealed");
        assert!(
            broken(raw(Some(Part::new(0, 2, 2))).encode(exit(2))),
            "a part that is not complete"
        );
    }

    #[test]
    fn a_part_ends_where_it_promised() {
        let mut raw = raw(Some(Part::new(1, 3, 9)));
        let step = raw.encode(output(vec![chunk(1, "bcdef"), chunk(6, "ghi")]));
        assert_eq!(step.bytes, ["bc"]);
        assert!(matches!(step.end, Some(End::Whole(trailers)) if trailers.is_empty()));
    }
}
