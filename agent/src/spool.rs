//! The output of one attempt on disk.
//!
//! One sparse file per stream, where **the offset in the file is the offset in the stream**, and a journal of
//! fixed-size records that fixes one observed order of both. `splice(2)` moves bytes from the pipe into the file, so a
//! byte is either in the pipe or in the file, whenever this process is killed. What is archived and hashed is punched
//! out of the files; if [`WhenFull`] allows it, so is the oldest hashed output.
//!
//! Invariant: a reader at cursor *k* gets each byte at or beyond *k* exactly once, in journal order, or a gap in its
//! place, or [`Error::Dropped`], which means that the archive has it.

mod appender;
mod checkpoint;
mod hole;
mod janitor;
mod journal;
mod ledger;
mod offsets;
mod pressure;
mod progress;
mod reader;
pub mod record;
mod slots;
mod stage;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

pub use appender::{Appender, Taken};
pub use offsets::{Offsets, Stream};
pub use pressure::{Policy, WhenFull};
pub use progress::{Progress, Stall};
pub use reader::{Chunk, Gap, Item, Reader};

use checkpoint::Checkpoint;
use journal::{Journal, Recovered};
use ledger::Ledger;
use pressure::Pressure;
use slots::Slots;
use stage::Stage;

use crate::mask::Mask;

/// What can go wrong with the spool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on the volume failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Bytes at or beyond the cursor have left the spool: they are in the archive.
    #[error("offset {wanted} of {stream:?} has left the spool, which begins at {begins}")]
    Dropped {
        /// The stream.
        stream: Stream,
        /// The first offset wanted.
        wanted: u64,
        /// The first offset that the spool holds.
        begins: u64,
    },
    /// The cursor lies beyond what was written.
    #[error("offset {wanted} of {stream:?} lies beyond the {written} bytes written")]
    Beyond {
        /// The stream.
        stream: Stream,
        /// The first offset wanted.
        wanted: u64,
        /// Bytes written.
        written: u64,
    },
    /// A journal record or a checkpoint does not decode.
    #[error("the spool is damaged: {0}")]
    Damaged(&'static str),
}

impl Error {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    fn errno(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }

    /// Whether the volume has no room: a state to wait in, not a failure.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Byte count, SHA-256 and checksum of one whole stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StreamSeal {
    /// Bytes of the stream.
    pub bytes: u64,
    /// SHA-256 of all of them.
    pub sha256: [u8; 32],
    /// [`Checksum`](remoteprocess_proto::Checksum) of all of them.
    pub checksum: u64,
}

/// The seals of both streams.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seals {
    /// Of stdout.
    pub stdout: StreamSeal,
    /// Of stderr.
    pub stderr: StreamSeal,
}

/// The spool of one attempt, open.
#[derive(Debug)]
pub struct Spool {
    inner: Arc<Inner>,
    janitor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    files: [File; 2],
    journal: Journal,
    policy: Policy,
    /// Known with the launch.
    when_full: OnceLock<WhenFull>,
    progress: watch::Sender<Progress>,
    /// Why the program is held back, once that has lasted for [`appender::HELD_AFTER`].
    held: watch::Sender<Option<Stall>>,
    /// Locked while the spool is open: two writers would corrupt it.
    _lock: File,
    /// Wakes the appender: there is room again, or a command.
    wake: OwnedFd,
    stop: std::sync::atomic::AtomicBool,
    ledger: Ledger,
}

impl Spool {
    /// Opens the spool in `directory`, which must exist, and repairs it after a kill. With a `mask`, the streams
    /// contain the masked output of the program; the mask must be the same from the first opening on.
    pub fn open(directory: &Path, policy: Policy, mask: Option<Mask>) -> Result<(Self, Appender), Error> {
        let lock = open_file(directory, "lock")?;
        lock.lock().map_err(Error::io("lock the spool"))?;
        let files = [
            open_file(directory, Stream::Stdout.file_name())?,
            open_file(directory, Stream::Stderr.file_name())?,
        ];
        let (checkpoint_slots, checkpoint) = Slots::open(directory, "checkpoint")?;
        let checkpoint: Checkpoint = checkpoint.unwrap_or_default();
        let ledger = Ledger::open(directory)?;
        let journal = Journal::open(open_file(directory, "journal")?);
        let mut lengths = Offsets::default();
        for stream in Stream::ALL {
            let metadata = files[stream.index()].metadata();
            let length = metadata.map_err(Error::io("size of a stream"))?.len();
            lengths.set(stream, length);
        }
        checkpoint.check(lengths)?;
        let recovered = journal.recover(&checkpoint, lengths, mask.is_some())?;
        let stages = mask.map(|mask| open_stages(directory, &files, &recovered, mask));
        let stages = stages.transpose()?;
        let progress = Progress {
            written: recovered.written,
            archived: ledger.archived().map2(recovered.written, u64::min),
            dropped: checkpoint.dropped,
            first_record: checkpoint.first_record,
            fixed_records: recovered.records,
            ..Progress::default()
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let inner = Arc::new(Inner {
            directory: directory.to_owned(),
            files,
            journal,
            policy,
            when_full: OnceLock::new(),
            _lock: lock,
            progress: watch::Sender::new(progress),
            held: watch::Sender::new(None),
            wake: wake.map_err(Error::errno("eventfd"))?,
            stop: false.into(),
            ledger,
        });
        let janitor = janitor::spawn(Arc::clone(&inner), checkpoint, checkpoint_slots)?;
        let appender = Appender::new(Arc::clone(&inner), janitor.thread().clone(), stages);
        let janitor = Some(janitor);
        Ok((Self { inner, janitor }, appender))
    }

    /// The directory of the spool, for [`record`]s.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// The current progress.
    pub fn progress(&self) -> Progress {
        self.inner.progress.borrow().clone()
    }

    /// The progress, as it changes.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.inner.progress.subscribe()
    }

    /// Why the program is held back, once that has lasted for a second, as it changes.
    pub fn watch_held(&self) -> watch::Receiver<Option<Stall>> {
        self.inner.held.subscribe()
    }

    /// A reader of everything at or beyond `cursor`.
    ///
    /// # Errors
    /// [`Error::Dropped`] or [`Error::Beyond`] when the cursor is not within what the spool held.
    pub fn reader(&self, cursor: Offsets) -> Result<Reader, Error> {
        Reader::new(Arc::clone(&self.inner), cursor, None)
    }

    /// As [`Self::reader`], for the home: bytes that it was told are gone, and then commits, are permanently lost.
    ///
    /// # Errors
    /// As [`Self::reader`], and when the volume refuses the record that a home has come.
    pub fn home_reader(&self, cursor: Offsets) -> Result<Reader, Error> {
        let mut reader = self.reader(cursor)?;
        reader.set_home(self.inner.ledger.new_home(cursor)?);
        Ok(reader)
    }

    /// How many bytes of each stream are gaps in the archive, as far as homes were told of them.
    pub fn lost(&self) -> Offsets {
        self.inner.ledger.lost()
    }

    /// The policy with which it was opened, as changed by [`Self::set_when_full`].
    pub fn policy(&self) -> Policy {
        self.inner.policy()
    }

    /// What happens when it is full, in place of what it was opened with. Only the first time means anything.
    pub fn set_when_full(&self, when_full: WhenFull) {
        if self.inner.when_full.set(when_full).is_ok()
            && let Some(janitor) = &self.janitor
        {
            janitor.thread().unpark();
        }
    }

    /// Records durably that the archive holds everything below `archived`; those bytes leave the spool as soon as they
    /// are hashed. Offsets never move back, and never beyond what was written.
    ///
    /// # Errors
    /// When the volume refuses the record. Then the spool keeps the bytes, and a repeat may succeed.
    pub fn commit(&self, archived: Offsets) -> Result<(), Error> {
        let progress = self.progress();
        let next = archived
            .map2(progress.written, u64::min)
            .map2(progress.archived, u64::max);
        if next == progress.archived {
            return Ok(());
        }
        // An agent that starts after a kill must know it too: the relay may have nothing new to commit, and a full
        // spool would wait for it.
        self.inner.ledger.commit(next)?;
        crate::crash::point("ledger", "committed");
        self.inner.progress.send_modify(|progress| {
            progress.archived = progress.archived.map2(next, u64::max);
        });
        if let Some(janitor) = &self.janitor {
            janitor.thread().unpark();
        }
        Ok(())
    }

    /// Wakes the thread that waits in `poll` for [`Appender::wake_fd`].
    pub fn wake_appender(&self) {
        self.inner.wake_appender();
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.inner.stop.store(true, std::sync::atomic::Ordering::Release);
        if let Some(janitor) = self.janitor.take() {
            janitor.thread().unpark();
            // A janitor that panicked has logged it; there is nothing more to do here.
            let _ = janitor.join();
        }
    }
}

impl Inner {
    fn policy(&self) -> Policy {
        Policy {
            when_full: self.when_full.get().copied().unwrap_or(self.policy.when_full),
            ..self.policy
        }
    }

    fn file(&self, stream: Stream) -> BorrowedFd<'_> {
        self.files[stream.index()].as_fd()
    }

    fn wake_appender(&self) {
        // The counter of an eventfd is full only after 2^64-2 unread wakes; then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Cuts the streams to what the journal covers; the rest is masked again.
fn open_stages(directory: &Path, files: &[File; 2], recovered: &Recovered, mask: Mask) -> Result<[Stage; 2], Error> {
    let mask = Arc::new(mask);
    let open = |stream: Stream| {
        files[stream.index()]
            .set_len(recovered.written.of(stream))
            .map_err(Error::io("cut a stream"))?;
        Stage::open(directory, stream, recovered.raw.of(stream), Arc::clone(&mask))
    };
    Ok([open(Stream::Stdout)?, open(Stream::Stderr)?])
}

fn open_file(directory: &Path, name: &str) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(name))
        .map_err(Error::io("open a file of the spool"))
}

#[cfg(test)]
mod tests;
