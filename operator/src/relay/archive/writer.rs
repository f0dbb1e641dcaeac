//! Appends one attempt's history and makes it durable.

use std::collections::VecDeque;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload, PutResult};
use remoteprocess_proto::v1::{Cursor, Exit, Seal, SealReason, Stream, StreamSeal};
use tokio::task::{JoinError, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

use super::checkpoint::Tally;
use super::resume;
use super::segment::SegmentBuilder;
use super::{Archive, Error, Manifest, SEGMENT_BYTES, SegmentEntry};
use crate::relay::attempt::Subject;
use crate::relay::piece::Placed;

/// A segment that is stored before it is full is extended and put again until it has this size: few objects for a slow
/// stream, few bytes written twice.
const GROW_BELOW: usize = 256 * 1024;
/// Number of simultaneous puts: a slow store must not delay a stream for which memory has room.
const FLIGHTS: usize = 4;

/// The writer of one attempt. Only what `settle` or `flush` has returned is durable.
#[derive(Debug)]
pub struct Writer {
    archive: Archive,
    subject: Subject,
    mark: u32,
    open: SegmentBuilder,
    /// The last stored segment, if it may still be extended: its one put succeeded, so no older form of it can arrive
    /// late.
    small: Option<SegmentBuilder>,
    flights: VecDeque<Flight>,
    tally: Tally,
    saved: Cursor,
    manifest: Manifest,
}

/// A segment on its way into the store.
#[derive(Debug)]
struct Flight {
    path: Path,
    payload: PutPayload,
    end: Cursor,
    /// `None` between a failure and the next try.
    put: Option<AbortOnDropHandle<Result<PutResult, object_store::Error>>>,
    small: Option<SegmentBuilder>,
}

impl Writer {
    pub(super) async fn resume(archive: Archive, subject: Subject) -> Result<Self, Error> {
        let (saved, tally) = resume::resume(&archive, &subject.key).await?;
        let manifest = archive.begin_manifest(&subject).await?;
        let mark = mark();
        Ok(Self {
            archive,
            subject,
            mark,
            open: SegmentBuilder::new(saved, mark),
            small: None,
            flights: VecDeque::new(),
            tally,
            saved,
            manifest,
        })
    }

    /// Offsets below which everything is durable.
    pub fn saved(&self) -> Cursor {
        self.saved
    }

    /// Offsets of both streams after the last appended piece.
    pub fn end(&self) -> Cursor {
        self.open.end()
    }

    /// How the attempt ended, if an earlier writer sealed it.
    pub fn sealed_exit(&self) -> Option<Exit> {
        self.manifest.exit_frame()
    }

    /// Bytes in the open segment.
    pub fn open_bytes(&self) -> usize {
        self.open.raw_bytes()
    }

    /// Whether the open segment is full: store it before more is appended.
    pub fn is_full(&self) -> bool {
        self.open.raw_bytes() >= SEGMENT_BYTES
    }

    /// Whether no put is in progress.
    pub fn is_settled(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether the open segment may be stored now. A small one waits for the one before it, because it may extend that.
    pub fn may_store(&self) -> bool {
        self.flights.is_empty() || (self.open.raw_bytes() >= GROW_BELOW && self.flights.len() < FLIGHTS)
    }

    /// Adds the next piece, in memory.
    pub fn append(&mut self, placed: &Placed) {
        self.open.push(placed);
        self.tally.take(&placed.piece);
    }

    /// Closes the open segment and begins to put it.
    pub async fn store(&mut self) {
        let next = SegmentBuilder::new(self.open.end(), self.mark);
        let mut segment = std::mem::replace(&mut self.open, next);
        if let Some(mut small) = self.small.take() {
            small.absorb(segment);
            segment = small;
        }
        let Ok(path) = self.subject.key.segment_path(segment.name()) else {
            // `resume` has listed under the same key.
            return;
        };
        let end = segment.end();
        let checkpoint = self.tally.checkpoint(end, self.saved);
        let compress = self.archive.compresses(segment.rate());
        let encode = move || (segment.object(&checkpoint, compress), segment);
        let (object, segment) = match spawn_blocking(encode).await {
            Ok(encoded) => encoded,
            Err(error) => resume_panic(error),
        };
        let mut flight = Flight {
            path,
            payload: object.into_iter().collect(),
            end,
            put: None,
            small: (segment.raw_bytes() < GROW_BELOW).then_some(segment),
        };
        flight.begin(&self.archive);
        self.flights.push_back(flight);
    }

    /// Waits for the oldest put in progress and returns the offsets that are durable now. After an error, the same call
    /// retries. Nothing is lost when the future is dropped.
    pub async fn settle(&mut self) -> Result<Cursor, Error> {
        let Some(flight) = self.flights.front_mut() else {
            return Ok(self.saved);
        };
        let answer = flight.begin(&self.archive).await;
        flight.put = None;
        match answer.map_err(object_store::Error::from) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) | Err(error) => {
                flight.small = None;
                return Err(error.into());
            }
        }
        if let Some(flight) = self.flights.pop_front() {
            self.saved = flight.end;
            self.small = flight.small;
        }
        Ok(self.saved)
    }

    /// Makes everything appended durable and returns the offsets reached. May be repeated after an error.
    ///
    /// # Errors
    /// When the store refuses; nothing is lost.
    pub async fn flush(&mut self) -> Result<Cursor, Error> {
        loop {
            while !self.is_settled() {
                self.settle().await?;
            }
            if self.open.raw_bytes() == 0 {
                return Ok(self.saved);
            }
            self.store().await;
        }
    }

    /// The exit as the archive can confirm it: sealed if the agent's seal is whole, every byte that it counts is here,
    /// and what is here has the agent's checksum. Otherwise the reason of the seal says why not.
    async fn confirmed(&self, exit: &Exit) -> Result<Exit, Error> {
        let mut exit = exit.clone();
        exit.sealed = match &mut exit.seal {
            None => false,
            Some(seal) => {
                if seal.reason() == SealReason::Unspecified
                    && let Some(objection) = self.objection(seal).await?
                {
                    seal.set_reason(objection);
                }
                // Also a reason that only a newer agent knows.
                seal.reason == i32::from(SealReason::Unspecified)
            }
        };
        Ok(exit)
    }

    async fn objection(&self, seal: &Seal) -> Result<Option<SealReason>, Error> {
        let end = self.end();
        let nothing = StreamSeal::default();
        let streams = [(Stream::Stdout, &seal.stdout), (Stream::Stderr, &seal.stderr)];
        let streams = streams.map(|(stream, seal)| (stream, seal.as_ref().unwrap_or(&nothing)));
        if !self.tally.gaps.is_empty() || streams.iter().any(|(stream, seal)| seal.bytes > end.of(*stream)) {
            return Ok(Some(SealReason::BytesMissing));
        }
        if streams.iter().any(|(stream, seal)| seal.bytes < end.of(*stream)) {
            return Ok(Some(SealReason::CountMismatch));
        }
        let is_same = if streams.iter().all(|(_, seal)| seal.checksum.is_some()) {
            // Readers compare the output with the hash, so there must be one.
            streams
                .iter()
                .all(|(stream, seal)| self.tally.checksum(*stream) == seal.checksum && !seal.sha256.is_empty())
        } else {
            let here = resume::sha256(&self.archive, &self.subject.key, end).await?;
            streams
                .iter()
                .zip(here)
                .all(|((_, seal), sha256)| seal.sha256[..] == sha256[..])
        };
        Ok((!is_same).then_some(SealReason::HashMismatch))
    }

    /// Flushes, then writes the closing manifest, with the exit as the archive can confirm it. An existing exit stays.
    ///
    /// # Errors
    /// When the store refuses; may be repeated.
    pub async fn seal(&mut self, exit: &Exit) -> Result<Manifest, Error> {
        let end = self.flush().await?;
        let exit = self.confirmed(exit).await?;
        let names = self.archive.segments(&self.subject.key).await?;
        let manifest = Manifest {
            sealed: exit.sealed,
            exit: Some(exit),
            stdout_bytes: end.stdout,
            stderr_bytes: end.stderr,
            stdout_lost_bytes: self.tally.lost.stdout,
            stderr_lost_bytes: self.tally.lost.stderr,
            gaps: self.tally.gaps.clone(),
            segments: names.iter().map(SegmentEntry::of).collect(),
            ..self.manifest.clone()
        };
        self.manifest = self.archive.close_manifest(&self.subject.key, manifest).await?;
        Ok(self.manifest.clone())
    }
}

impl Flight {
    /// The put, which continues in the background.
    fn begin(&mut self, archive: &Archive) -> &mut AbortOnDropHandle<Result<PutResult, object_store::Error>> {
        self.put.get_or_insert_with(|| {
            let (store, path, payload) = (archive.store.clone(), self.path.clone(), self.payload.clone());
            AbortOnDropHandle::new(tokio::spawn(async move { store.put(&path, payload).await }))
        })
    }
}

fn resume_panic(error: JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => unreachable!("blocking tasks are never cancelled"),
    }
}

/// Distinguishes this writer's objects from those of any other.
fn mark() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::process::id());
    u32::try_from(random & u64::from(u32::MAX)).unwrap_or_default()
}
