//! Readers: from a cursor on, in the observed order.

use std::sync::Arc;

use bytes::Bytes;
use remoteprocess_proto::wire::{HEAD, data_message};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::sync::watch;

use super::journal::{RECORDS_PER_PAGE, Record};
use super::{Error, Inner, Offsets, Progress, Stream};

/// Maximum length of a chunk, in bytes, as on the wire.
pub(super) const LONGEST_CHUNK: u64 = remoteprocess_proto::MAX_CHUNK as u64;
/// Records further apart than this are not merged into one chunk, so that a replay has meaningful times.
const MERGE_NANOS: i64 = 20_000_000;

/// A run of bytes of one stream.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The stream.
    pub stream: Stream,
    /// Offset of the first byte in the stream.
    pub offset: u64,
    /// When the first byte was taken from the pipe.
    pub time_unix_nanos: i64,
    /// At most [`LONGEST_CHUNK`].
    pub bytes: Bytes,
    /// The encoded message, with its prefix, which ends with `bytes`.
    pub wire: Bytes,
}

/// A range that was dropped before the archive had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The stream.
    pub stream: Stream,
    /// Offset of the first byte that is gone.
    pub from: u64,
    /// Offset of the first byte that is there again.
    pub to: u64,
}

/// What comes next.
#[derive(Clone, Debug)]
pub enum Item {
    /// More output.
    Chunk(Chunk),
    /// Output that was dropped.
    Gap(Gap),
    /// Every byte was delivered and none will follow.
    End,
}

/// A position in the journal. Many may read at once; a slow one delays no other.
#[derive(Debug)]
pub struct Reader {
    inner: Arc<Inner>,
    changes: watch::Receiver<Progress>,
    cursor: Offsets,
    /// The record that holds the next byte, or one before it.
    index: u64,
    /// Fixed records from `page_index` on.
    page: Vec<Record>,
    page_index: u64,
    /// The number of the home that reads, if a home reads.
    home: Option<u64>,
}

impl Reader {
    pub(super) fn new(inner: Arc<Inner>, cursor: Offsets, home: Option<u64>) -> Result<Self, Error> {
        let changes = inner.progress.subscribe();
        let progress = changes.borrow().clone();
        let reader = Self {
            inner,
            changes,
            cursor,
            index: progress.first_record,
            page: Vec::with_capacity(RECORDS_PER_PAGE),
            page_index: 0,
            home,
        };
        for stream in Stream::ALL {
            let (wanted, written) = (cursor.of(stream), progress.written.of(stream));
            if wanted > written {
                return Err(Error::Beyond {
                    stream,
                    wanted,
                    written,
                });
            }
        }
        reader.hole(&progress)?;
        Ok(reader)
    }

    pub(super) const fn set_home(&mut self, number: u64) {
        self.home = Some(number);
    }

    /// Offsets of the next bytes.
    pub const fn cursor(&self) -> Offsets {
        self.cursor
    }

    /// Waits for the next chunk or the end. Safe to cancel: what is not returned is not consumed.
    ///
    /// # Errors
    /// [`Error::Dropped`] when the reader is so slow that its next bytes were archived and dropped.
    pub async fn next(&mut self) -> Result<Item, Error> {
        loop {
            if let Some(item) = self.try_next()? {
                return Ok(item);
            }
            // The sender lives in `inner`, which this reader holds.
            let _ = self.changes.changed().await;
        }
    }

    /// The next chunk or the end, if it is there already.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<Item>, Error> {
        let progress = self.changes.borrow_and_update().clone();
        if let Some(gap) = self.hole(&progress)? {
            if let Some(home) = self.home {
                self.inner.ledger.tell(home, gap.stream, gap.from, gap.to)?;
            }
            self.cursor.set(gap.stream, gap.to);
            return Ok(Some(Item::Gap(gap)));
        }
        self.index = self.index.max(progress.first_record);
        let Some(first) = self.find(&progress)? else {
            let is_end = progress.closed && self.cursor == progress.written;
            return Ok(is_end.then_some(Item::End));
        };
        let stream = first.stream;
        let offset = self.cursor.of(stream);
        let mut end = first.end().min(offset + LONGEST_CHUNK);
        let mut last = first;
        while end == last.end() && end < offset + LONGEST_CHUNK && self.step(&progress) {
            let Some(next) = self.record(self.index, &progress)? else {
                break;
            };
            let is_near = next.time_unix_nanos - first.time_unix_nanos < MERGE_NANOS;
            if next.stream != stream || !is_near {
                break;
            }
            end = next.end().min(offset + LONGEST_CHUNK);
            last = next;
        }
        let Some(buffer) = self.read(stream, offset, end - offset)? else {
            return self.try_next();
        };
        self.cursor.set(stream, end);
        let wire = data_message(buffer, stream.into(), offset, first.time_unix_nanos);
        Ok(Some(Item::Chunk(Chunk {
            stream,
            offset,
            time_unix_nanos: first.time_unix_nanos,
            // At most LONGEST_CHUNK.
            bytes: wire.slice(wire.len() - usize::try_from(end - offset).unwrap_or_default()..),
            wire,
        })))
    }

    /// The first record that holds a byte at or beyond the cursor.
    fn find(&mut self, progress: &Progress) -> Result<Option<Record>, Error> {
        while let Some(record) = self.record(self.index, progress)? {
            if record.end() > self.cursor.of(record.stream) {
                return Ok(Some(record));
            }
            if !self.step(progress) {
                break;
            }
        }
        Ok(None)
    }

    /// Goes to the next record. Not beyond the open one: it may still grow.
    fn step(&mut self, progress: &Progress) -> bool {
        let is_fixed = self.index < progress.fixed_records;
        self.index += u64::from(is_fixed);
        is_fixed
    }

    fn record(&mut self, index: u64, progress: &Progress) -> Result<Option<Record>, Error> {
        if index >= progress.fixed_records {
            return Ok(progress.open.filter(|_| index < progress.records()));
        }
        let within = |reader: &Self| {
            let at = index.checked_sub(reader.page_index)?;
            reader.page.get(usize::try_from(at).ok()?).copied()
        };
        if let Some(record) = within(self) {
            return Ok(Some(record));
        }
        self.page_index = index;
        self.inner
            .journal
            .read_page(index, progress.fixed_records, &mut self.page)?;
        match self.page.first() {
            Some(record) => Ok(Some(*record)),
            // The janitor has moved on and published that: the next turn begins where the journal does.
            None if index < self.inner.progress.borrow().first_record => Ok(None),
            None => Err(Error::Damaged("a record of the journal")),
        }
    }

    /// The bytes, after room for the head of their message; `None` if they were dropped in the meantime.
    fn read(&self, stream: Stream, offset: u64, length: u64) -> Result<Option<Vec<u8>>, Error> {
        // At most LONGEST_CHUNK.
        let goal = HEAD + usize::try_from(length).unwrap_or_default();
        let mut buffer = Vec::with_capacity(goal);
        buffer.resize(HEAD, 0);
        while buffer.len() < goal {
            let at = offset + (buffer.len() - HEAD) as u64;
            match rustix::io::pread(self.inner.file(stream), spare_capacity(&mut buffer), at) {
                Ok(0) => return Err(Error::Damaged("a stream is shorter than its journal")),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::errno("read a stream")(errno)),
            }
        }
        // The capacity may exceed the request, and the file may have grown.
        buffer.truncate(goal);
        // What was punched during the read came as zeros. The janitor publishes before it punches.
        let is_held = self.inner.progress.borrow().dropped.of(stream) <= offset;
        Ok(is_held.then_some(buffer))
    }

    /// The next range, in stream order, that the reader wants and the spool no longer has.
    fn hole(&self, progress: &Progress) -> Result<Option<Gap>, Error> {
        for stream in Stream::ALL {
            let (wanted, begins) = (self.cursor.of(stream), progress.dropped.of(stream));
            if wanted < progress.archived.of(stream).min(begins) {
                return Err(Error::Dropped { stream, wanted, begins });
            }
            if wanted < begins {
                let (from, to) = (wanted, begins);
                return Ok(Some(Gap { stream, from, to }));
            }
        }
        Ok(None)
    }
}
