//! A thread of its own that hashes what was written and drops what is archived.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use super::checkpoint::{Checkpoint, RunningHash};
use super::journal::RECORDS_PER_PAGE;
use super::slots::Slots;
use super::{Error, Inner, Offsets, Progress, Seals, Stream};

/// How far the hash may lag behind before it is taken up again, in bytes.
pub const HASH_LAG: u64 = 1 << 20;
/// What is dropped is a whole number of these.
const BLOCK: u64 = 4096;
/// Bytes hashed between two checkpoints where nothing is dropped.
const CHECKPOINT_EVERY: u64 = 8 << 20;
const READ_BYTES: usize = 64 * 1024;
/// After a failure (a full volume), it is tried again this much later.
const RETRY: Duration = Duration::from_millis(250);

/// Starts the thread. It ends when `inner.stop` is set.
pub fn spawn(inner: Arc<Inner>, checkpoint: Checkpoint, slots: Slots<Checkpoint>) -> Result<JoinHandle<()>, Error> {
    let hashes = [checkpoint.hash(Stream::Stdout)?, checkpoint.hash(Stream::Stderr)?];
    let mut janitor = Janitor {
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
    /// Bytes of both streams that the stored checkpoint has hashed.
    checkpointed: u64,
    buffer: Vec<u8>,
}

impl Janitor {
    fn run(&mut self) {
        while !self.inner.stop.load(Ordering::Acquire) {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => std::thread::park(),
                Err(error) => {
                    tracing::warn!(%error, "hashing and dropping wait");
                    std::thread::park_timeout(RETRY);
                }
            }
        }
    }

    /// Does a little of what there is to do. False: there is nothing.
    fn turn(&mut self) -> Result<bool, Error> {
        let progress = self.inner.progress.borrow().clone();
        let mut worked = false;
        for stream in Stream::ALL {
            worked |= self.hash_some(stream, &progress)?;
        }
        worked |= self.drop_some(&progress)?;
        let hashed: u64 = self.hashes.iter().map(|hash| hash.hashed).sum();
        if hashed - self.checkpointed >= CHECKPOINT_EVERY {
            self.store_checkpoint()?;
        }
        if progress.closed && progress.seals.is_none() && hashed == progress.written.total() {
            let seals = Seals {
                stdout: self.hashes[0].seal(),
                stderr: self.hashes[1].seal(),
            };
            self.inner.progress.send_modify(|progress| progress.seals = Some(seals));
        }
        Ok(worked)
    }

    fn hash_some(&mut self, stream: Stream, progress: &Progress) -> Result<bool, Error> {
        let hash = &mut self.hashes[stream.index()];
        let written = progress.written.of(stream);
        let due = progress.closed || written - hash.hashed >= HASH_LAG || progress.archived.of(stream) > hash.hashed;
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

    fn drop_some(&mut self, progress: &Progress) -> Result<bool, Error> {
        let hashed = Offsets {
            stdout: self.hashes[0].hashed,
            stderr: self.hashes[1].hashed,
        };
        let droppable = progress
            .archived
            .map2(hashed, |archived, hashed| archived.min(hashed) / BLOCK * BLOCK);
        let gain = droppable.total() - progress.dropped.total();
        // Many small commits must not cost a write each; but whoever is pushed back gets every byte.
        let is_over = progress.closed && progress.archived == progress.written;
        let is_wanted = is_over || progress.stalled.is_some() || progress.used() * 2 >= self.inner.size;
        let worth = if is_wanted { BLOCK } else { HASH_LAG };
        if gain < worth {
            return Ok(false);
        }
        self.checkpoint.dropped = droppable;
        self.forget_records(progress)?;
        self.store_checkpoint()?;
        let first_record = self.checkpoint.first_record;
        self.inner.progress.send_modify(|progress| {
            progress.dropped = droppable;
            progress.first_record = first_record;
        });
        for stream in Stream::ALL {
            punch_hole(
                &self.inner.files[stream.index()],
                progress.dropped.of(stream),
                droppable.of(stream),
            )?;
        }
        self.inner.journal.punch(first_record)?;
        self.inner.wake_appender();
        Ok(true)
    }

    /// Moves the beginning of the journal over whole pages of records that nobody can ask for any more.
    fn forget_records(&mut self, progress: &Progress) -> Result<(), Error> {
        let checkpoint = &mut self.checkpoint;
        let mut page = Vec::with_capacity(RECORDS_PER_PAGE);
        loop {
            let first = checkpoint.first_record;
            let fixed = progress.fixed_records;
            self.inner.journal.read_page(first, fixed, &mut page)?;
            let is_dropped = |record: &super::Record| record.end() <= checkpoint.dropped.of(record.stream);
            if page.len() < RECORDS_PER_PAGE || !page.iter().all(is_dropped) {
                return Ok(());
            }
            checkpoint.first_record += page.len() as u64;
            for record in &page {
                let offsets = &mut checkpoint.first_record_offsets;
                offsets.set(record.stream, record.end());
            }
        }
    }

    fn store_checkpoint(&mut self) -> Result<(), Error> {
        for stream in Stream::ALL {
            self.checkpoint.set_hash(stream, &self.hashes[stream.index()]);
        }
        self.slots.store(&self.checkpoint)?;
        self.checkpointed = self.hashes.iter().map(|hash| hash.hashed).sum();
        Ok(())
    }
}

/// Frees the blocks of `[from, to)`, keeping the size of the file.
pub fn punch_hole(file: &File, from: u64, to: u64) -> Result<(), Error> {
    if to <= from {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, from, to - from).map_err(Error::errno("punch a hole"))
}
