//! A thread that hashes what was written and drops what is archived.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::checkpoint::{Checkpoint, RunningHash};
use super::hole::{self, BLOCK};
use super::journal::{RECORDS_PER_PAGE, Record};
use super::slots::Slots;
use super::{Error, Inner, Offsets, Pressure, Progress, Seals, Stream};

/// How many bytes the hash may lag behind before the thread continues to hash.
pub(super) const HASH_LAG: u64 = 1 << 20;
/// Bytes hashed between two checkpoints if nothing is dropped.
const CHECKPOINT_EVERY: u64 = 8 << 20;
const READ_BYTES: usize = 64 * 1024;
/// How long to wait after a failure, such as a full volume.
const RETRY: Duration = Duration::from_millis(250);
/// A wait for the archive that is older than this is stored, so that the next agent continues it.
const NOTE_WAIT: Duration = Duration::from_millis(500);

/// Starts the thread. It ends when `inner.stop` is set.
pub(super) fn spawn(
    inner: Arc<Inner>,
    checkpoint: Checkpoint,
    slots: Slots<Checkpoint>,
) -> Result<JoinHandle<()>, Error> {
    let hashes = [checkpoint.hash(Stream::Stdout)?, checkpoint.hash(Stream::Stderr)?];
    let mut janitor = Janitor {
        pressure: Pressure::new(inner.policy, checkpoint.wait),
        inner,
        checkpointed: hashes[0].hashed + hashes[1].hashed,
        hashes,
        checkpoint,
        slots,
        buffer: vec![0; READ_BYTES],
    };
    std::thread::Builder::new()
        .name("janitor".into())
        .stack_size(256 * 1024)
        .spawn(move || janitor.run())
        .map_err(Error::io("start a thread"))
}

struct Janitor {
    inner: Arc<Inner>,
    hashes: [RunningHash; 2],
    checkpoint: Checkpoint,
    slots: Slots<Checkpoint>,
    pressure: Pressure,
    /// Bytes of both streams that the stored checkpoint has hashed.
    checkpointed: u64,
    buffer: Vec<u8>,
}

impl Janitor {
    fn run(&mut self) {
        while !self.inner.stop.load(Ordering::Acquire) {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => match self.pressure.remaining() {
                    Some(left) => std::thread::park_timeout(left.min(NOTE_WAIT)),
                    None => std::thread::park(),
                },
                Err(error) => {
                    tracing::warn!(%error, "hashing and dropping wait");
                    std::thread::park_timeout(RETRY);
                }
            }
        }
    }

    /// Does some of the pending work. Returns false if there is none.
    fn turn(&mut self) -> Result<bool, Error> {
        let progress = self.inner.progress.borrow().clone();
        self.pressure.set_policy(self.inner.policy());
        self.pressure.look(&progress);
        let excess = self.pressure.excess(&progress);
        let mut worked = false;
        for stream in Stream::ALL {
            worked |= self.hash_some(stream, &progress, excess > 0)?;
        }
        worked |= self.drop_some(&progress, excess)?;
        if self.hashed().total() - self.checkpointed >= CHECKPOINT_EVERY || self.pressure.is_worth_noting(NOTE_WAIT) {
            self.store_checkpoint()?;
        }
        if progress.closed && progress.seals.is_none() && self.hashed() == progress.written {
            let seals = Seals {
                stdout: self.hashes[0].seal(),
                stderr: self.hashes[1].seal(),
            };
            self.inner.progress.send_modify(|progress| progress.seals = Some(seals));
        }
        Ok(worked)
    }

    const fn hashed(&self) -> Offsets {
        Offsets {
            stdout: self.hashes[0].hashed,
            stderr: self.hashes[1].hashed,
        }
    }

    fn hash_some(&mut self, stream: Stream, progress: &Progress, is_urgent: bool) -> Result<bool, Error> {
        let hash = &mut self.hashes[stream.index()];
        let written = progress.written.of(stream);
        let is_awaited = is_urgent || progress.closed || progress.archived.of(stream) > hash.hashed;
        let due = is_awaited || written - hash.hashed >= HASH_LAG;
        let goal = written.min(hash.hashed + HASH_LAG);
        if !due || hash.hashed >= goal {
            return Ok(false);
        }
        while hash.hashed < goal {
            let length = (goal - hash.hashed).min(READ_BYTES as u64);
            // At most READ_BYTES.
            let part = &mut self.buffer[..usize::try_from(length).unwrap_or(READ_BYTES)];
            self.inner.files[stream.index()]
                .read_exact_at(part, hash.hashed)
                .map_err(Error::io("read a stream back"))?;
            hash.update(part);
        }
        Ok(true)
    }

    /// Drops what is archived and `excess` more bytes, the oldest first; only what is hashed.
    fn drop_some(&mut self, progress: &Progress, excess: u64) -> Result<bool, Error> {
        let mut target = progress.archived.map2(progress.dropped, u64::max);
        if excess > 0 {
            target = self.oldest(progress, target, excess)?;
        }
        let target = target.map2(self.hashed(), u64::min);
        let gain = target.total() - progress.dropped.total();
        // Many small commits must not cost a write each; but if the program is held back, every byte counts.
        let is_over = progress.closed && progress.archived == progress.written;
        let is_wanted = is_over || progress.stalled.is_some() || progress.used() * 2 >= self.inner.policy.size;
        let worth = match excess {
            0 if is_wanted => BLOCK,
            0 => HASH_LAG,
            _ => 1,
        };
        if gain < worth {
            return Ok(false);
        }
        self.checkpoint.dropped = target;
        self.forget_records(progress)?;
        self.store_checkpoint()?;
        crate::crash::point("spool", "checkpointed");
        let first_record = self.checkpoint.first_record;
        self.inner.progress.send_modify(|progress| {
            progress.dropped = target;
            progress.first_record = first_record;
        });
        crate::crash::point("spool", "published");
        for stream in Stream::ALL {
            let (from, to) = (progress.dropped.of(stream), target.of(stream));
            hole::punch(&self.inner.files[stream.index()], from, to)?;
            crate::crash::point("spool", "punched");
        }
        self.inner.journal.punch(first_record)?;
        self.inner.wake_appender();
        Ok(true)
    }

    /// Where each stream begins when everything below `begin`, and then `excess` bytes of the oldest output, are gone.
    fn oldest(&self, progress: &Progress, begin: Offsets, excess: u64) -> Result<Offsets, Error> {
        let mut target = begin;
        let mut page = Vec::with_capacity(RECORDS_PER_PAGE);
        let mut index = self.checkpoint.first_record;
        let goal = progress.dropped.total() + excess;
        while target.total() < goal {
            self.inner.journal.read_page(index, progress.fixed_records, &mut page)?;
            if page.is_empty() {
                break;
            }
            index += page.len() as u64;
            for record in &page {
                let missing = goal.saturating_sub(target.total());
                let from = target.of(record.stream);
                target.set(record.stream, record.end().clamp(from, from + missing));
            }
        }
        Ok(target)
    }

    /// Moves the beginning of the journal past whole pages of records that no reader can ask for anymore.
    fn forget_records(&mut self, progress: &Progress) -> Result<(), Error> {
        let checkpoint = &mut self.checkpoint;
        let mut page = Vec::with_capacity(RECORDS_PER_PAGE);
        loop {
            let first = checkpoint.first_record;
            let fixed = progress.fixed_records;
            self.inner.journal.read_page(first, fixed, &mut page)?;
            let is_dropped = |record: &Record| record.end() <= checkpoint.dropped.of(record.stream);
            if page.len() < RECORDS_PER_PAGE || !page.iter().all(is_dropped) {
                return Ok(());
            }
            checkpoint.first_record += page.len() as u64;
            for record in &page {
                let offsets = &mut checkpoint.first_record_offsets;
                offsets.set(record.stream, record.end());
                checkpoint.first_record_raw.set(record.stream, record.raw_end);
            }
        }
    }

    fn store_checkpoint(&mut self) -> Result<(), Error> {
        crate::crash::point("spool", "hashed");
        self.checkpoint.wait = self.pressure.noted();
        for stream in Stream::ALL {
            self.checkpoint.set_hash(stream, &self.hashes[stream.index()]);
        }
        self.slots.store(&self.checkpoint)?;
        self.checkpointed = self.hashed().total();
        Ok(())
    }
}
