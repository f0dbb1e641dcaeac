//! The output of an attempt on its way: read, divided into events, and sent.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::sink::{OutputStream, SinkOutput};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::super::cursor::Cursor;
use super::super::divide::{Divider, Misplaced, Part};
use super::super::reader::{Piece, ReadError, Request};
use super::super::steps::Step;
use super::super::view::View;
use super::intake::{Intake, Next};
use super::{Stuck, Worker};

/// How long a worker sends output if others wait for its place, from the first piece on.
const TURN: Duration = Duration::from_secs(2);
/// How long a worker waits for the first piece if others wait for its place: an archive can be slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a worker that reads looks at what depends on time.
const TICK: Duration = Duration::from_millis(500);
/// How long after the end of an attempt the relay may not know its output, or its end. After that there is none.
const UNKNOWN: SignedDuration = SignedDuration::from_secs(60);

/// Why reading ended.
pub(super) enum Read {
    /// The whole output is sent.
    Whole,
    /// Something else comes next, because the process has changed, or the same with a new stream.
    Changed,
    /// Others wait, and it had its turn.
    Yielded,
}

impl Worker {
    /// Others wait, and this process, which reads since `begun`, had its turn.
    fn must_yield(&self, begun: Instant) -> bool {
        match self.pieces {
            Some((first, _)) => first.elapsed() >= TURN && self.tools.is_crowded(),
            None if begun.elapsed() >= PATIENCE => self.tools.is_crowded(),
            None => begun.elapsed() >= TURN && self.tools.makes_room(),
        }
    }

    /// Shows whether there is output that is not read.
    pub(super) fn show_what_is_left(&self, attempt: u32) {
        let is_flowing = self.pieces.is_some_and(|(_, last)| last.elapsed() < TICK);
        let is_behind = is_flowing || self.view.borrow().is_over(attempt);
        self.signs.is_behind.store(is_behind, Ordering::Relaxed);
    }

    /// Shows that output can be read: a piece came, or nothing went wrong for some time.
    fn show_that_it_reads(&self, begun: Instant) {
        let is_reading = self.pieces.is_some() || begun.elapsed() >= PATIENCE;
        if is_reading && self.cursor == self.noted {
            self.signs.is_well.store(true, Ordering::Relaxed);
        }
    }

    /// Does what depends on time.
    async fn look(&mut self, attempt: u32, begun: Instant) {
        self.write_if_due().await;
        self.show_that_it_reads(begun);
        self.show_what_is_left(attempt);
    }

    /// Sends the output of an attempt.
    pub(super) async fn read(&mut self, view: &View, attempt: u32, output: &SinkOutput) -> Result<Read, Stuck> {
        let request = request(view, &self.cursor, attempt, output);
        let mut streams = Streams::new(&request, output);
        let mut intake = Intake::open(&*self.tools.reader, request);
        let mut is_over = false;
        let begun = Instant::now();
        let mut tick = interval_at(begun + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for stream in [OutputStream::Stdout, OutputStream::Stderr] {
                while let Some(part) = streams.of(stream).take() {
                    intake.during(self.send_part(view, attempt, stream, &part)).await?;
                    if self.must_yield(begun) {
                        return Ok(Read::Yielded);
                    }
                    // Output that is sent slowly must not hide that the process changes.
                    if self.view.has_changed().unwrap_or(true) && !intake.during(self.tell_of_now(attempt)).await? {
                        return Ok(Read::Changed);
                    }
                }
            }
            if is_over {
                return Ok(Read::Whole);
            }
            if self.must_yield(begun) {
                return Ok(Read::Yielded);
            }
            // Nor output that never stops.
            if self.view.has_changed().unwrap_or(true) && !intake.during(self.tell_of_now(attempt)).await? {
                return Ok(Read::Changed);
            }
            tokio::select! {
                biased;
                next = intake.next() => match next {
                    Next::Piece(piece) => {
                        let taking = self.take(view, attempt, output, (&mut streams, &mut intake), piece);
                        taking.await?;
                    }
                    Next::End(read) => {
                        read.map_err(Stuck::Read)?;
                        is_over = true;
                        streams.end();
                    }
                    Next::Closed => return Ok(Read::Changed),
                },
                changed = self.view.changed() => {
                    if changed.is_err() || !intake.during(self.tell_of_now(attempt)).await? {
                        return Ok(Read::Changed);
                    }
                }
                _ = tick.tick() => self.look(attempt, begun).await,
            }
        }
    }

    /// Takes what was read.
    async fn take(
        &mut self,
        view: &View,
        attempt: u32,
        output: &SinkOutput,
        (streams, intake): (&mut Streams, &mut Intake),
        piece: Piece,
    ) -> Result<(), Stuck> {
        let now = Instant::now();
        self.pieces = Some((self.pieces.map_or(now, |(first, _)| first), now));
        match piece {
            Piece::Data(stream, offset, bytes) if output.has(stream) => {
                streams.of(stream).add(offset, &bytes).map_err(misplaced)
            }
            Piece::Lost(stream, lost) if output.has(stream) && lost.to.is_none() && self.may_learn(attempt) => {
                tracing::debug!(process = view.name(), ?stream, "the end of the output is not known yet");
                Err(Stuck::Unsealed)
            }
            Piece::Lost(stream, lost) if output.has(stream) => {
                intake.during(self.lose(view, attempt, stream, streams, lost)).await
            }
            Piece::Data(..) | Piece::Lost(..) => Ok(()),
        }
    }

    /// Whether the relay may still learn where the output of an attempt ends: its agent may come back.
    fn may_learn(&self, attempt: u32) -> bool {
        let view = self.view.borrow();
        let is_recorded = view.attempt(attempt).is_some_and(|record| record.output.is_some());
        !is_recorded && !is_late(&view, attempt, Timestamp::now())
    }

    async fn send_part(&mut self, view: &View, attempt: u32, stream: OutputStream, part: &Part) -> Result<(), Stuck> {
        let event = self.tools.planner.author.output(view, attempt, stream, part);
        self.send(&event, view).await?;
        self.cursor.reach(attempt, stream, part.end());
        self.write_if_due().await;
        Ok(())
    }

    /// Sends what is left before a range that is lost, and that it is lost.
    async fn lose(
        &mut self,
        view: &View,
        attempt: u32,
        stream: OutputStream,
        streams: &mut Streams,
        lost: remoteprocess_proto::v1::Gap,
    ) -> Result<(), Stuck> {
        streams.of(stream).cut(lost.from).map_err(misplaced)?;
        while let Some(part) = streams.of(stream).take() {
            self.send_part(view, attempt, stream, &part).await?;
        }
        let event = self.tools.planner.author.output_lost(view, attempt, stream, &lost);
        self.send(&event, view).await?;
        let to = lost.to.unwrap_or(lost.from);
        self.cursor.reach(attempt, stream, to);
        streams.of(stream).skip_to(to);
        self.write_if_due().await;
        Ok(())
    }

    /// While output is read: sends that the program is paused, or continues, or is to stop. Returns false if the output of
    /// this attempt is not what comes next.
    async fn tell_of_now(&mut self, attempt: u32) -> Result<bool, Stuck> {
        loop {
            let view = self.view.borrow_and_update().clone();
            let next = self.tools.planner.next(&view, &self.cursor, Timestamp::now());
            match next {
                Step::Send(event, note) => {
                    self.send(&event, &view).await?;
                    note.apply(&mut self.cursor);
                }
                Step::Read(number) => return Ok(number == attempt),
                Step::Skip(_) | Step::GiveUp | Step::Wait(_) | Step::Done => return Ok(false),
            }
        }
    }
}

/// Divides both streams.
struct Streams([Divider; 2]);

impl Streams {
    fn new(request: &Request, output: &SinkOutput) -> Self {
        let offsets = [request.stdout, request.stderr];
        Self(offsets.map(|offset| Divider::new(output.format, offset)))
    }

    fn of(&mut self, stream: OutputStream) -> &mut Divider {
        let [stdout, stderr] = &mut self.0;
        match stream {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
        }
    }

    fn end(&mut self) {
        self.0.iter_mut().for_each(Divider::end);
    }
}

fn request(view: &View, cursor: &Cursor, attempt: u32, output: &SinkOutput) -> Request {
    let only = match (output.has(OutputStream::Stdout), output.has(OutputStream::Stderr)) {
        (true, false) => Some(OutputStream::Stdout),
        (false, true) => Some(OutputStream::Stderr),
        _ => None,
    };
    Request {
        namespace: view.process.metadata.namespace.clone().unwrap_or_default(),
        name: view.name(),
        uid: view.uid(),
        attempt,
        only,
        stdout: cursor.offset(attempt, OutputStream::Stdout),
        stderr: cursor.offset(attempt, OutputStream::Stderr),
    }
}

/// Whether output that the relay does not know will not come any more. A bridge that was away gives it its time, too.
pub(super) fn is_late(view: &View, attempt: u32, now: Timestamp) -> bool {
    let of_attempt = view.attempt(attempt).and_then(|record| record.finished_at);
    let ended = of_attempt.map_or_else(|| view.ended(), |ended| Some(ended).max(view.since));
    view.is_over(attempt) && ended.is_none_or(|ended| now.duration_since(ended) > UNKNOWN)
}

fn misplaced(error: Misplaced) -> Stuck {
    Stuck::Read(ReadError::Failed(error.to_string()))
}
