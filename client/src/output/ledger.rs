use remoteprocess_proto::{
    MAX_OFFSET, PROTOCOL, STREAMS,
    v1::{Cursor, Data, Exit, Gap, Heartbeat, ProcessKey, Stream, WatchOutputRequest},
};

/// What is requested.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// The process.
    pub process: ProcessKey,
    /// The attempt; 0 for the latest.
    pub attempt: u32,
    /// `Unspecified` for both.
    pub stream: Stream,
    /// Where to begin, in bytes; if absent, 0 for both.
    pub cursor: Option<Cursor>,
    /// Begin at the last lines instead.
    pub tail_lines: Option<u64>,
    /// Leave out what the agent took before this time, in nanoseconds since the Unix epoch.
    pub since_unix_nanos: Option<i64>,
    /// Print new output until the process ends.
    pub follow: bool,
}

/// The relay contradicts itself: continuing would lose or duplicate bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}. Nothing more is written, so that no byte is lost or doubled in silence; please report this as a bug")]
pub struct Inconsistent(String);

/// What was requested, and the offset of the next byte of each stream. Offsets never go back.
#[derive(Debug)]
pub struct Ledger {
    want: Want,
    /// Unknown only between a request for the last lines, or for those since a time, and its first frame.
    next: [Option<u64>; 2],
    has_any: [bool; 2],
    losses: Vec<Gap>,
}

impl Ledger {
    /// A ledger with nothing received so far.
    #[must_use]
    pub fn new(want: Want) -> Self {
        let cursor = want.cursor.unwrap_or_default();
        let is_known = want.tail_lines.is_none() && want.since_unix_nanos.is_none();
        let next = STREAMS.map(|stream| is_known.then(|| cursor.of(stream)));
        Self {
            want,
            next,
            has_any: [false; 2],
            losses: Vec::new(),
        }
    }

    /// Starts another attempt of the same process, from its beginning.
    #[must_use]
    pub fn of_attempt(&self, attempt: u32) -> Self {
        Self::new(Want {
            attempt,
            cursor: None,
            tail_lines: None,
            since_unix_nanos: None,
            ..self.want.clone()
        })
    }

    /// Records of which attempt, and of which process, the output is according to the relay; 0 and empty if it does not
    /// say. Each further request asks for the same, so that no other attempt and no later process of the same name is
    /// taken for it.
    ///
    /// # Errors
    /// It is not what was requested.
    pub fn announce(&mut self, attempt: u32, uid: &str) -> Result<(), Inconsistent> {
        let wanted = &mut self.want;
        let is_other = (wanted.attempt != 0 && attempt != 0 && wanted.attempt != attempt)
            || (!wanted.process.uid.is_empty() && !uid.is_empty() && wanted.process.uid != uid);
        if is_other {
            return Err(Inconsistent(format!(
                "the relay answers with attempt {attempt} of {uid} where attempt {} of {} was asked for",
                wanted.attempt, wanted.process.uid
            )));
        }
        if attempt != 0 {
            wanted.attempt = attempt;
        }
        if !uid.is_empty() {
            uid.clone_into(&mut wanted.process.uid);
        }
        Ok(())
    }

    /// The attempt of the output, if it is known.
    #[must_use]
    pub fn attempt(&self) -> Option<u32> {
        Some(self.want.attempt).filter(|attempt| *attempt != 0)
    }

    /// The process of the output.
    #[must_use]
    pub fn process(&self) -> &ProcessKey {
        &self.want.process
    }

    /// Offset of the next byte of `stream`.
    #[must_use]
    pub fn reached(&self, stream: Stream) -> u64 {
        self.offset(stream)
    }

    /// Whether the end of the process is awaited.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.want.follow
    }

    /// The request for everything that is still missing.
    ///
    /// # Errors
    /// The position in one stream is known and that in the other is not: asking again would lose or duplicate lines.
    pub fn request(&self) -> Result<WatchOutputRequest, Inconsistent> {
        let wanted = || STREAMS.into_iter().filter(|stream| self.wants(*stream));
        let is_known = wanted().all(|stream| self.next[stream.index()].is_some());
        let is_fresh = wanted().all(|stream| self.next[stream.index()].is_none());
        if !is_known && !is_fresh {
            return Err(Inconsistent(
                "the connection broke before the relay had said where the output begins".into(),
            ));
        }
        let cursor = is_known.then(|| {
            let mut cursor = Cursor::default();
            wanted().for_each(|stream| cursor.set(stream, self.offset(stream)));
            cursor
        });
        Ok(WatchOutputRequest {
            protocol: PROTOCOL,
            process: Some(self.want.process.clone()),
            attempt: self.want.attempt,
            stream: self.want.stream.into(),
            cursor,
            tail_lines: if is_known { None } else { self.want.tail_lines },
            follow: self.want.follow,
            since_unix_nanos: if is_known { None } else { self.want.since_unix_nanos },
        })
    }

    /// Records how far the relay has come on this connection: nothing below it has been sent of a stream without a
    /// position.
    pub fn heartbeat(&mut self, heartbeat: &Heartbeat) {
        if let Some(offsets) = heartbeat.offsets {
            for stream in STREAMS {
                self.next[stream.index()].get_or_insert(offsets.of(stream));
            }
        }
    }

    /// Records bytes. Returns true if they should be written.
    ///
    /// # Errors
    /// They do not follow what came before.
    pub fn take(&mut self, data: &Data) -> Result<bool, Inconsistent> {
        let stream = data.stream();
        if !self.wants(stream) || data.bytes.is_empty() {
            return Ok(false);
        }
        self.expect(stream, data.offset)?;
        self.next[stream.index()] = Some(data.offset + data.bytes.len() as u64);
        self.has_any[stream.index()] = true;
        Ok(true)
    }

    /// Records a range that will never come. Returns true if it should be reported: the stream is wanted, and the gap is
    /// not one without a known end that was reported before a connection broke.
    ///
    /// # Errors
    /// It does not follow what came before, or ends before it begins.
    pub fn lose(&mut self, gap: Gap) -> Result<bool, Inconsistent> {
        let stream = gap.stream();
        if !self.wants(stream) {
            return Ok(false);
        }
        self.expect(stream, gap.from)?;
        // Whatever may still follow a gap without a known end begins where the gap does.
        let to = gap.to.unwrap_or(gap.from);
        if to < gap.from || to > MAX_OFFSET {
            return Err(Inconsistent(format!(
                "the relay sent a gap of {} from byte {} to {to}",
                stream.name(),
                gap.from
            )));
        }
        self.next[stream.index()] = Some(to);
        let is_news = gap.to.is_some() || !self.losses.contains(&gap);
        if is_news {
            self.losses.push(gap);
        }
        Ok(is_news)
    }

    /// Ranges that never came.
    #[must_use]
    pub fn losses(&self) -> &[Gap] {
        &self.losses
    }

    /// What is wrong with the whole output, compared with the seal; `None` if nothing is, or if it cannot be
    /// determined.
    #[must_use]
    pub fn audit(&self, exit: &Exit) -> Option<String> {
        let seal = exit.seal.as_ref().filter(|_| exit.sealed)?;
        STREAMS
            .into_iter()
            .filter(|stream| self.wants(*stream))
            .find_map(|stream| {
                let sealed = if stream == Stream::Stdout {
                    seal.stdout.as_ref()
                } else {
                    seal.stderr.as_ref()
                }?
                .bytes;
                let received = self.next[stream.index()]?;
                // A reader that began after the end correctly received nothing.
                (received < sealed || (received > sealed && self.has_any[stream.index()])).then(|| {
                    format!(
                        "{} ended at byte {received}, and the seal says {sealed}: output is missing",
                        stream.name()
                    )
                })
            })
    }

    fn wants(&self, stream: Stream) -> bool {
        stream != Stream::Unspecified && (self.want.stream == Stream::Unspecified || self.want.stream == stream)
    }

    fn offset(&self, stream: Stream) -> u64 {
        self.next[stream.index()].unwrap_or_default()
    }

    fn expect(&self, stream: Stream, offset: u64) -> Result<(), Inconsistent> {
        match self.next[stream.index()] {
            Some(next) if next != offset => Err(Inconsistent(format!(
                "the relay sent byte {offset} of {} where byte {next} is next",
                stream.name()
            ))),
            _ if offset > MAX_OFFSET => Err(Inconsistent(format!(
                "the relay sent byte {offset} of {}, which no stream reaches",
                stream.name()
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_proto::v1::{GapReason, Seal, StreamSeal};

    fn data(stream: Stream, offset: u64, length: usize) -> Data {
        Data {
            stream: stream.into(),
            offset,
            bytes: vec![b'x'; length].into(),
            ..Data::default()
        }
    }

    #[test]
    fn each_request_asks_for_what_is_missing() {
        let mut ledger = Ledger::new(Want {
            follow: true,
            ..Want::default()
        });
        assert!(ledger.take(&data(Stream::Stdout, 0, 5)).unwrap());
        assert!(ledger.take(&data(Stream::Stderr, 0, 2)).unwrap());
        assert_eq!(ledger.request().unwrap().cursor, Some(Cursor { stdout: 5, stderr: 2 }));
    }

    #[test]
    fn a_hole_and_a_repeat_are_refused() {
        for offset in [4, 6] {
            let mut ledger = Ledger::new(Want::default());
            ledger.take(&data(Stream::Stdout, 0, 5)).unwrap();
            assert!(ledger.take(&data(Stream::Stdout, offset, 1)).is_err(), "{offset}");
        }
    }

    #[test]
    fn the_last_lines_are_asked_for_until_their_place_is_known() {
        let mut ledger = Ledger::new(Want {
            tail_lines: Some(3),
            ..Want::default()
        });
        assert_eq!(
            (ledger.request().unwrap().tail_lines, ledger.request().unwrap().cursor),
            (Some(3), None)
        );
        ledger.heartbeat(&Heartbeat {
            offsets: Some(Cursor { stdout: 70, stderr: 9 }),
            attempt: 0,
        });
        ledger.take(&data(Stream::Stdout, 70, 10)).unwrap();
        let request = ledger.request().unwrap();
        assert_eq!(
            (request.tail_lines, request.cursor),
            (None, Some(Cursor { stdout: 80, stderr: 9 }))
        );
        let mut half = Ledger::new(Want {
            tail_lines: Some(3),
            ..Want::default()
        });
        half.take(&data(Stream::Stdout, 70, 10)).unwrap();
        assert!(half.request().is_err());
        half.heartbeat(&Heartbeat {
            offsets: Some(Cursor { stdout: 80, stderr: 4 }),
            attempt: 0,
        });
        assert_eq!(half.request().unwrap().cursor, Some(Cursor { stdout: 80, stderr: 4 }));
        let mut single = Ledger::new(Want {
            tail_lines: Some(3),
            stream: Stream::Stdout,
            ..Want::default()
        });
        single.take(&data(Stream::Stdout, 70, 10)).unwrap();
        assert_eq!(single.request().unwrap().cursor, Some(Cursor { stdout: 80, stderr: 0 }));
    }

    #[test]
    fn since_a_time_is_asked_for_until_the_place_is_known() {
        let mut ledger = Ledger::new(Want {
            since_unix_nanos: Some(5),
            ..Want::default()
        });
        let request = ledger.request().unwrap();
        assert_eq!((request.cursor, request.since_unix_nanos), (None, Some(5)));
        ledger.heartbeat(&Heartbeat {
            offsets: Some(Cursor { stdout: 70, stderr: 9 }),
            ..Heartbeat::default()
        });
        ledger.take(&data(Stream::Stdout, 70, 10)).unwrap();
        let request = ledger.request().unwrap();
        assert_eq!(
            (request.cursor, request.since_unix_nanos),
            (Some(Cursor { stdout: 80, stderr: 9 }), None)
        );
        assert!(ledger.take(&data(Stream::Stdout, 90, 1)).is_err());
    }

    #[test]
    fn what_was_begun_is_what_is_asked_for_again() {
        let mut ledger = Ledger::new(Want::default());
        ledger.announce(0, "u-1").unwrap();
        assert_eq!((ledger.request().unwrap().attempt, ledger.attempt()), (0, None));
        ledger.announce(2, "").unwrap();
        let request = ledger.request().unwrap();
        assert_eq!((request.attempt, request.process.unwrap().uid), (2, "u-1".to_owned()));
        assert!(ledger.announce(3, "u-1").is_err());
        assert!(ledger.announce(2, "u-2").is_err());
        assert!(ledger.announce(0, "").is_ok(), "the relay need not say it again");
        assert_eq!(ledger.attempt(), Some(2));
    }

    #[test]
    fn an_unwanted_stream_is_left_aside() {
        let mut ledger = Ledger::new(Want {
            stream: Stream::Stderr,
            ..Want::default()
        });
        assert!(!ledger.take(&data(Stream::Stdout, 99, 1)).unwrap());
        assert_eq!(
            ledger.lose(Gap {
                stream: Stream::Stdout.into(),
                ..Gap::default()
            }),
            Ok(false)
        );
    }

    #[test]
    fn the_stream_continues_after_a_gap() {
        let mut ledger = Ledger::new(Want::default());
        let gap = Gap {
            stream: Stream::Stdout.into(),
            from: 0,
            to: Some(10),
            reason: GapReason::SpoolFull.into(),
        };
        assert!(ledger.lose(gap).unwrap());
        assert!(ledger.take(&data(Stream::Stdout, 10, 1)).unwrap());
        assert_eq!(ledger.losses().len(), 1);
    }

    #[test]
    fn a_gap_without_an_end_is_a_place_to_continue_from() {
        let gap = |stream: Stream, from| Gap {
            stream: stream.into(),
            from,
            to: None,
            reason: GapReason::NeverSealed.into(),
        };
        let mut ledger = Ledger::new(Want::default());
        ledger.take(&data(Stream::Stdout, 0, 5)).unwrap();
        assert!(ledger.lose(gap(Stream::Stdout, 5)).unwrap());
        assert!(ledger.lose(gap(Stream::Stderr, 0)).unwrap());
        // The connection breaks before the exit comes: nothing is asked for, and written, twice.
        assert_eq!(ledger.request().unwrap().cursor, Some(Cursor { stdout: 5, stderr: 0 }));
        assert!(ledger.take(&data(Stream::Stdout, 0, 5)).is_err());
        assert!(!ledger.lose(gap(Stream::Stdout, 5)).unwrap(), "it was reported");
        assert_eq!(ledger.losses().len(), 2);
        // The agent has come back.
        assert!(ledger.take(&data(Stream::Stdout, 5, 1)).unwrap());
    }

    #[test]
    fn no_offset_goes_back_or_overflows() {
        let gap = |from, to| Gap {
            stream: Stream::Stdout.into(),
            from,
            to: Some(to),
            reason: GapReason::SpoolFull.into(),
        };
        let mut ledger = Ledger::new(Want::default());
        ledger.take(&data(Stream::Stdout, 0, 5)).unwrap();
        for odd in [gap(5, 4), gap(5, u64::MAX)] {
            assert!(ledger.lose(odd).is_err(), "{odd:?}");
        }
        assert_eq!(ledger.reached(Stream::Stdout), 5);
        let mut tail = Ledger::new(Want {
            tail_lines: Some(1),
            ..Want::default()
        });
        assert!(tail.take(&data(Stream::Stdout, u64::MAX, 1)).is_err());
        assert!(tail.lose(gap(u64::MAX, u64::MAX)).is_err());
    }

    #[test]
    fn the_seal_is_compared() {
        let seal = |bytes| Seal {
            stdout: Some(StreamSeal {
                bytes,
                ..StreamSeal::default()
            }),
            ..Seal::default()
        };
        let exit = |bytes| Exit {
            sealed: true,
            seal: Some(seal(bytes)),
            ..Exit::default()
        };
        let mut ledger = Ledger::new(Want::default());
        ledger.take(&data(Stream::Stdout, 0, 5)).unwrap();
        assert_eq!(ledger.audit(&exit(5)), None);
        assert!(ledger.audit(&exit(6)).is_some());
        assert!(ledger.audit(&exit(4)).is_some());
    }
}
