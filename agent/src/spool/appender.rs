//! The one writer: takes bytes from a pipe into the spool.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::janitor::HASH_LAG;
use super::journal::Record;
use super::stage::{Masked, Stage};
use super::{Error, Inner, Stall, Stream};

/// Maximum number of bytes taken at once: the size of the largest pipe of an unprivileged program.
const MOST_AT_ONCE: usize = 1 << 20;
/// A record grows no further than this, which is also the longest chunk of a reader.
const LONGEST_RECORD: u32 = 64 * 1024;
/// A record covers at most this much time, so that times stay true to the millisecond.
const RECORD_NANOS: i64 = 1_000_000;
/// What the pipes may still hold when the program ends; it is taken even into a full spool, so that the program can
/// end.
const ENDING_ALLOWANCE: u64 = 4 << 20;
/// Bytes copied at once if `splice` is refused.
const COPY_BYTES: usize = 64 * 1024;

/// A shorter wait is normal (the program runs at the pace of the archive); a longer one is reported.
pub(super) const HELD_AFTER: Duration = Duration::from_secs(1);

/// Result of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// This many bytes are in the spool and journalled.
    Bytes(usize),
    /// The pipe is empty.
    Nothing,
    /// Every write end is closed and the pipe is empty.
    End,
}

/// Takes bytes into the spool. There is one per spool; it belongs to the thread that polls the pipes.
#[derive(Debug)]
pub struct Appender {
    inner: Arc<Inner>,
    janitor: Thread,
    /// Journal index of the open record.
    index: u64,
    open: Option<Record>,
    /// Bytes in the files without a record so far, because the volume refused it.
    unrecorded: Option<Record>,
    /// Bytes read from a pipe and not yet in a file: only if `splice` is refused.
    unwritten: Option<(Stream, Vec<u8>)>,
    splice_refused: bool,
    ending: bool,
    stalled_since: Option<Instant>,
    /// Where bytes wait for the mask, if there is one.
    stages: Option<[Stage; 2]>,
}

impl Appender {
    pub(super) fn new(inner: Arc<Inner>, janitor: Thread, stages: Option<[Stage; 2]>) -> Self {
        let index = inner.progress.borrow().fixed_records;
        Self {
            inner,
            janitor,
            index,
            open: None,
            unrecorded: None,
            unwritten: None,
            splice_refused: false,
            ending: false,
            stalled_since: None,
            stages,
        }
    }

    /// Readable when there is room again or [`super::Spool::wake_appender`] was called. Read it empty.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake.as_fd()
    }

    /// Whether the spool may take more.
    pub fn has_room(&self) -> bool {
        let allowance = if self.ending { ENDING_ALLOWANCE } else { 0 };
        self.inner.progress.borrow().used() < self.inner.policy.size + allowance
    }

    /// The program has ended: take what is left in its pipes even if the spool is full.
    pub const fn set_ending(&mut self) {
        self.ending = true;
    }

    /// Whether [`Self::take`] blocks on an empty pipe: `splice` is refused, and `read` obeys the flags of the pipe,
    /// which are not ours to set.
    pub const fn may_block(&self) -> bool {
        self.splice_refused
    }

    /// Sets or clears the reason why nothing is being taken. While it lasts, call again after the returned time.
    pub fn set_stalled(&mut self, stall: Option<Stall>) -> Option<Duration> {
        let changed = self.inner.progress.send_if_modified(|progress| {
            let changed = progress.stalled != stall;
            progress.stalled = stall;
            changed
        });
        if changed {
            self.janitor.unpark();
        }
        let since = stall.map(|_| *self.stalled_since.get_or_insert_with(Instant::now));
        self.stalled_since = since;
        let left = HELD_AFTER.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed()));
        let held = stall.filter(|_| left.is_zero());
        let is_news = self
            .inner
            .held
            .send_if_modified(|told| std::mem::replace(told, held) != held);
        match held {
            Some(why) if is_news => tracing::warn!(?why, "the program is held back"),
            None if is_news => tracing::info!("the program is no longer held back"),
            _ => {}
        }
        stall.map(|_| left).filter(|left| !left.is_zero())
    }

    /// Takes what `pipe` holds. Call it when `pipe` is readable: otherwise it may block if `splice` is refused.
    ///
    /// # Errors
    /// When the pipe or the volume refuses. After [`Error::is_no_space`] nothing is lost: call again later.
    pub fn take(&mut self, stream: Stream, pipe: BorrowedFd<'_>) -> Result<Taken, Error> {
        self.settle()?;
        let taken = self.transfer(stream, pipe, self.offset(stream))?;
        match taken {
            Taken::Bytes(length) => self.arrived(stream, length)?,
            Taken::End => self.mask(stream, true)?,
            Taken::Nothing => {}
        }
        Ok(taken)
    }

    /// Finishes what an earlier [`Self::take`] could not because there was no room.
    pub fn settle(&mut self) -> Result<(), Error> {
        if let Some((stream, bytes)) = self.unwritten.take() {
            let length = self.write_out(stream, bytes, self.offset(stream))?;
            self.arrived(stream, length)?;
        }
        if let Some(record) = self.unrecorded {
            self.record(record)?;
        }
        Stream::ALL.into_iter().try_for_each(|stream| self.mask(stream, false))
    }

    /// As [`Self::settle`], and also takes what the mask held back: nothing follows that could complete a value.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.settle()?;
        Stream::ALL.into_iter().try_for_each(|stream| self.mask(stream, true))
    }

    /// Where the next byte from the pipe goes.
    fn offset(&self, stream: Stream) -> u64 {
        match &self.stages {
            Some(stages) => stages[stream.index()].end,
            None => self.inner.progress.borrow().written.of(stream),
        }
    }

    /// This many more bytes are in the file that [`Self::transfer`] fills.
    fn arrived(&mut self, stream: Stream, length: usize) -> Result<(), Error> {
        if let Some(stages) = &mut self.stages {
            stages[stream.index()].end += length as u64;
            crate::crash::point("stage", "spliced");
            return self.mask(stream, false);
        }
        crate::crash::point("spool", "spliced");
        let offset = self.offset(stream);
        self.record(record_of(stream, offset, length, 0))
    }

    /// Moves the content of the stage through the mask.
    fn mask(&mut self, stream: Stream, is_end: bool) -> Result<(), Error> {
        while let Some(stages) = &mut self.stages {
            let Some(Masked { bytes, raw_end }) = stages[stream.index()].next(is_end)? else {
                break;
            };
            let offset = self.inner.progress.borrow().written.of(stream);
            self.inner.files[stream.index()]
                .write_all_at(&bytes, offset)
                .map_err(Error::io("write a stream"))?;
            crate::crash::point("stage", "masked");
            let recorded = self.record(record_of(stream, offset, bytes.len(), raw_end));
            // Bytes without a record are masked again.
            self.unrecorded = None;
            recorded?;
            crate::crash::point("stage", "journalled");
            if let Some(stages) = &mut self.stages {
                stages[stream.index()].done(raw_end)?;
            }
        }
        Ok(())
    }

    /// No byte will follow: the streams can be sealed.
    pub fn close(&mut self) {
        self.set_stalled(None);
        self.inner.progress.send_modify(|progress| {
            progress.closed = true;
        });
        self.janitor.unpark();
    }

    fn transfer(&mut self, stream: Stream, pipe: BorrowedFd<'_>, offset: u64) -> Result<Taken, Error> {
        if !self.splice_refused {
            let file = self.file(stream).as_fd();
            let mut at = offset;
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            match splice(pipe, None, file, Some(&mut at), MOST_AT_ONCE, flags) {
                Ok(0) => return Ok(Taken::End),
                Ok(length) => return Ok(Taken::Bytes(length)),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(Taken::Nothing),
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    tracing::warn!("splice is refused here: a kill may lose what is being copied");
                    self.splice_refused = true;
                }
                Err(errno) => return Err(Error::errno("splice a pipe into the spool")(errno)),
            }
        }
        self.copy(stream, pipe, offset)
    }

    fn file(&self, stream: Stream) -> &File {
        match &self.stages {
            Some(stages) => &stages[stream.index()].file,
            None => &self.inner.files[stream.index()],
        }
    }

    fn copy(&mut self, stream: Stream, pipe: BorrowedFd<'_>, offset: u64) -> Result<Taken, Error> {
        let mut buffer = vec![0; COPY_BYTES];
        match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) => Ok(Taken::End),
            Ok(length) => {
                buffer.truncate(length);
                self.write_out(stream, buffer, offset).map(Taken::Bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::Nothing),
            Err(errno) => Err(Error::errno("read a pipe")(errno)),
        }
    }

    fn write_out(&mut self, stream: Stream, bytes: Vec<u8>, offset: u64) -> Result<usize, Error> {
        match self.file(stream).write_all_at(&bytes, offset) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.unwritten = Some((stream, bytes));
                Err(Error::io("write a stream")(error))
            }
        }
    }

    fn record(&mut self, record: Record) -> Result<(), Error> {
        let (index, next) = match self.open {
            Some(open) if is_continued(&open, &record) => (
                self.index,
                Record {
                    length: open.length + record.length,
                    raw_end: record.raw_end,
                    ..open
                },
            ),
            Some(_) => (self.index + 1, record),
            None => (self.index, record),
        };
        if let Err(error) = self.inner.journal.write(index, &next) {
            self.unrecorded = Some(record);
            return Err(error);
        }
        crate::crash::point("spool", "journalled");
        self.unrecorded = None;
        self.index = index;
        self.open = Some(next);
        let mut unhashed = 0;
        self.inner.progress.send_modify(|progress| {
            unhashed = progress.written.total() % HASH_LAG + u64::from(record.length);
            progress.written.set(next.stream, next.end());
            progress.fixed_records = index;
            progress.open = Some(next);
        });
        if unhashed >= HASH_LAG {
            self.janitor.unpark();
        }
        Ok(())
    }
}

/// The journal's record for bytes that have just reached the file.
fn record_of(stream: Stream, offset: u64, length: usize, raw_end: u64) -> Record {
    Record {
        stream,
        offset,
        length: u32::try_from(length).unwrap_or(u32::MAX),
        time_unix_nanos: crate::clock::unix_nanos(),
        raw_end,
    }
}

fn is_continued(open: &Record, next: &Record) -> bool {
    open.stream == next.stream
        && open.length.saturating_add(next.length) <= LONGEST_RECORD
        && (0..RECORD_NANOS).contains(&(next.time_unix_nanos - open.time_unix_nanos))
}
