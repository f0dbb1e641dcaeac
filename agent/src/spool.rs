//! The output of one attempt on disk.
//!
//! One sparse file per stream, where **the offset in the file is the offset in the stream**, and a journal of
//! fixed-size records that fixes one observed order of both. Bytes go from the pipe into the file by `splice(2)`, so
//! a byte is either in the pipe or in the file, whenever this process is killed. What is archived and hashed is
//! punched out of the files.
//!
//! Invariant: a reader at cursor *k* gets each byte at or beyond *k* exactly once, in journal order, or
//! [`Error::Dropped`].

mod appender;
mod checkpoint;
mod janitor;
mod journal;
mod offsets;
mod reader;
pub mod record;
mod slots;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

pub use appender::{Appender, Taken};
pub use offsets::{Offsets, Stream};
pub use reader::{Chunk, Item, Reader};

use checkpoint::Checkpoint;
use journal::{Journal, Record};
use slots::Slots;

/// What can go wrong with the spool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume did not do as asked.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Bytes at or beyond the cursor were archived and dropped from here.
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
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Why nothing is being taken from the pipes: the program will block when they are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The spool holds as many unarchived bytes as it may.
    SpoolFull,
    /// The volume refuses to take more.
    VolumeFull,
}

/// Byte count and SHA-256 of one whole stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StreamSeal {
    /// Bytes of the stream.
    pub bytes: u64,
    /// SHA-256 of all of them.
    pub sha256: [u8; 32],
}

/// The seals of both streams.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seals {
    /// Of stdout.
    pub stdout: StreamSeal,
    /// Of stderr.
    pub stderr: StreamSeal,
}

/// How far the spool has come. Published after each step, so that a reader never sees a byte without its record.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes taken and journalled.
    pub written: Offsets,
    /// Bytes that the archive holds durably.
    pub archived: Offsets,
    /// Bytes that have left the spool.
    pub dropped: Offsets,
    /// No byte will follow.
    pub closed: bool,
    /// Why the pipes are not being read.
    pub stalled: Option<Stall>,
    /// Present once closed and hashed to the end.
    pub seals: Option<Seals>,
    /// First record that the journal still holds.
    first_record: u64,
    /// Records that will not change any more.
    fixed_records: u64,
    /// The last record, which may still grow.
    open: Option<Record>,
}

impl Progress {
    /// Bytes that occupy the spool.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.written.total() - self.dropped.total()
    }

    fn records(&self) -> u64 {
        self.fixed_records + u64::from(self.open.is_some())
    }
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
    /// Most bytes to hold before the program is pushed back.
    size: u64,
    progress: watch::Sender<Progress>,
    /// Held while the spool is open: two writers would tear it.
    _lock: File,
    /// Wakes the one that appends: there is room again, or a command.
    wake: OwnedFd,
    stop: std::sync::atomic::AtomicBool,
    /// What the archive holds, across kills.
    archived: Mutex<Slots<Offsets>>,
}

impl Spool {
    /// Opens the spool in `directory`, which must exist, and brings it into order after a kill. `size` is the number
    /// of bytes above which the program is pushed back.
    ///
    /// # Errors
    /// When the volume cannot be used, or holds a spool that contradicts itself.
    pub fn open(directory: &Path, size: u64) -> Result<(Self, Appender), Error> {
        let lock = open_file(directory, "lock")?;
        lock.lock().map_err(Error::io("lock the spool"))?;
        let files = [
            open_file(directory, Stream::Stdout.file_name())?,
            open_file(directory, Stream::Stderr.file_name())?,
        ];
        let (checkpoint_slots, checkpoint) = Slots::open(directory, "checkpoint")?;
        let checkpoint: Checkpoint = checkpoint.unwrap_or_default();
        let (archived_slots, archived) = Slots::<Offsets>::open(directory, "archived")?;
        let journal = Journal::open(open_file(directory, "journal")?);
        let mut lengths = Offsets::default();
        for stream in Stream::ALL {
            let metadata = files[stream.index()].metadata();
            let length = metadata.map_err(Error::io("size of a stream"))?.len();
            lengths.set(stream, length);
        }
        checkpoint.check(lengths)?;
        let recovered = journal.recover(&checkpoint, lengths)?;
        let progress = Progress {
            written: recovered.written,
            archived: archived
                .unwrap_or_default()
                .map2(recovered.written, u64::min)
                .map2(checkpoint.dropped, u64::max),
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
            size,
            _lock: lock,
            progress: watch::Sender::new(progress),
            wake: wake.map_err(Error::errno("eventfd"))?,
            stop: false.into(),
            archived: Mutex::new(archived_slots),
        });
        let janitor = janitor::spawn(Arc::clone(&inner), checkpoint, checkpoint_slots)?;
        let appender = Appender::new(Arc::clone(&inner), janitor.thread().clone());
        let janitor = Some(janitor);
        Ok((Self { inner, janitor }, appender))
    }

    /// The directory of the spool, for [`record`]s.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// How far it has come, now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.inner.progress.borrow().clone()
    }

    /// How far it has come, as it goes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.inner.progress.subscribe()
    }

    /// A reader of everything at or beyond `cursor`.
    ///
    /// # Errors
    /// [`Error::Dropped`] or [`Error::Beyond`] when the cursor is not within what the spool holds.
    pub fn reader(&self, cursor: Offsets) -> Result<Reader, Error> {
        Reader::new(Arc::clone(&self.inner), cursor)
    }

    /// Takes note, for good, that the archive holds everything below `archived`; it leaves the spool as soon as it is
    /// hashed. Offsets never move back, and never beyond what was written.
    ///
    /// # Errors
    /// When the volume refuses the note. Then the spool keeps the bytes, and a repeat may succeed.
    pub fn commit(&self, archived: Offsets) -> Result<(), Error> {
        // Nothing is left half done by a panic.
        let mut slots = self.inner.archived.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = self.progress();
        let next = archived
            .map2(progress.written, u64::min)
            .map2(progress.archived, u64::max);
        if next == progress.archived {
            return Ok(());
        }
        // An agent that comes after a kill must know it too: the relay may have nothing new to say, and a full spool
        // would wait for it.
        slots.store(&next)?;
        self.inner.progress.send_modify(|progress| {
            progress.archived = progress.archived.map2(next, u64::max);
        });
        if let Some(janitor) = &self.janitor {
            janitor.thread().unpark();
        }
        Ok(())
    }

    /// Wakes whoever waits in `poll` for [`Appender::wake_fd`].
    pub fn wake_appender(&self) {
        self.inner.wake_appender();
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.inner.stop.store(true, std::sync::atomic::Ordering::Release);
        if let Some(janitor) = self.janitor.take() {
            janitor.thread().unpark();
            // A janitor that panicked has said so; there is nothing more to do with it here.
            let _ = janitor.join();
        }
    }
}

impl Inner {
    fn file(&self, stream: Stream) -> BorrowedFd<'_> {
        self.files[stream.index()].as_fd()
    }

    fn wake_appender(&self) {
        // The counter of an eventfd is full only after 2^64-2 unread wakes; then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
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
