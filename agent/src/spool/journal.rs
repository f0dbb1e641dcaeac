//! The journal: which bytes of which stream were taken when, in one order.

use std::fs::File;

use super::checkpoint::Checkpoint;
use super::{Error, Offsets, Stream, hole};

/// Bytes of one record on disk.
const RECORD_BYTES: usize = 32;
/// Records in one page: the unit in which they are read and punched.
pub(super) const RECORDS_PER_PAGE: usize = 4096 / RECORD_BYTES;
/// Maximum length of a record that is reconstructed after a kill.
const LONGEST_FOUND: u64 = 1 << 30;

/// A run of bytes of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub stream: Stream,
    /// Offset of the first byte in the stream.
    pub offset: u64,
    pub length: u32,
    /// When the first of the bytes was taken.
    pub time_unix_nanos: i64,
    /// If the stream is masked: the number of raw bytes from which the stream up to the end of this run was made. 56
    /// bits.
    pub raw_end: u64,
}

impl Record {
    /// Offset of the first byte after the run.
    pub(super) const fn end(&self) -> u64 {
        self.offset + self.length as u64
    }

    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time_unix_nanos.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_le_bytes());
        bytes[20] = self.stream as u8 + 1;
        bytes[21..28].copy_from_slice(&self.raw_end.to_le_bytes()[..7]);
        let check = checksum(&bytes[..28]);
        bytes[28..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let (body, check) = bytes.split_at(28);
        if checksum(body).to_le_bytes() != check {
            return None;
        }
        let stream = match body[20] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let mut raw_end = [0; 8];
        raw_end[..7].copy_from_slice(&body[21..28]);
        Some(Self {
            stream,
            raw_end: u64::from_le_bytes(raw_end),
            offset: u64::from_le_bytes(body[0..8].try_into().ok()?),
            time_unix_nanos: i64::from_le_bytes(body[8..16].try_into().ok()?),
            length: u32::from_le_bytes(body[16..20].try_into().ok()?),
        })
    }
}

/// FNV-1a, folded: it must reject a torn or punched record; it does not protect against attacks.
fn checksum(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The upper half is mixed best; the lower one is folded in.
    (hash >> 32) as u32 ^ hash as u32
}

/// What a scan found, and what the file holds.
#[derive(Debug)]
pub(super) struct Recovered {
    pub written: Offsets,
    /// Number of records since the beginning of the attempt.
    pub records: u64,
    /// The number of raw bytes from which `written` was made, if the streams are masked.
    pub raw: Offsets,
}

/// The file of records. Record *n* is always at byte 32·*n*.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    pub(super) const fn open(file: File) -> Self {
        Self { file }
    }

    /// Writes record `index`, in place.
    pub(super) fn write(&self, index: u64, record: &Record) -> Result<(), Error> {
        use std::os::unix::fs::FileExt;
        self.file
            .write_all_at(&record.encode(), index * RECORD_BYTES as u64)
            .map_err(Error::io("write the journal"))
    }

    /// Reads the records from `index` on, at most to the end of its page and at most up to `end`. Stops at the first
    /// torn record.
    pub(super) fn read_page(&self, index: u64, end: u64, into: &mut Vec<Record>) -> Result<(), Error> {
        use std::os::unix::fs::FileExt;
        into.clear();
        let page = RECORDS_PER_PAGE as u64;
        let count = (page - index % page).min(end.saturating_sub(index));
        let mut buffer = [0; RECORDS_PER_PAGE * RECORD_BYTES];
        // At most one page.
        let wanted = usize::try_from(count).unwrap_or(RECORDS_PER_PAGE) * RECORD_BYTES;
        let mut have = 0;
        while have < wanted {
            let at = index * RECORD_BYTES as u64 + have as u64;
            match self.file.read_at(&mut buffer[have..wanted], at) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the journal")(error)),
            }
        }
        let (whole, _) = buffer[..have].as_chunks::<RECORD_BYTES>();
        into.extend(whole.iter().map_while(Record::decode));
        Ok(())
    }

    /// Frees the pages that hold only records below `first`.
    pub(super) fn punch(&self, first: u64) -> Result<(), Error> {
        hole::punch(&self.file, 0, first * RECORD_BYTES as u64)
    }

    /// Reconciles journal and files after a kill: drops a torn end, and adds a record for what the files hold beyond
    /// it. With `is_masked` nothing is added, because the output is made again from the raw stream.
    pub(super) fn recover(&self, from: &Checkpoint, lengths: Offsets, is_masked: bool) -> Result<Recovered, Error> {
        let mut recovered = self.scan(from, lengths)?;
        self.file
            .set_len(recovered.records * RECORD_BYTES as u64)
            .map_err(Error::io("cut the journal"))?;
        if is_masked {
            return Ok(recovered);
        }
        let now = crate::clock::unix_nanos();
        for stream in Stream::ALL {
            let length = lengths.of(stream);
            while recovered.written.of(stream) < length {
                let offset = recovered.written.of(stream);
                let found = (length - offset).min(LONGEST_FOUND);
                let record = Record {
                    stream,
                    offset,
                    length: u32::try_from(found).unwrap_or(u32::MAX),
                    time_unix_nanos: now,
                    raw_end: 0,
                };
                self.write(recovered.records, &record)?;
                recovered.records += 1;
                recovered.written.set(stream, record.end());
            }
        }
        Ok(recovered)
    }

    /// Reads every record from the checkpoint on, up to the first that is torn or that the files do not contain.
    fn scan(&self, from: &Checkpoint, lengths: Offsets) -> Result<Recovered, Error> {
        let mut recovered = Recovered {
            written: from.first_record_offsets,
            records: from.first_record,
            raw: from.first_record_raw,
        };
        let mut page = Vec::with_capacity(RECORDS_PER_PAGE);
        loop {
            self.read_page(recovered.records, u64::MAX, &mut page)?;
            if page.is_empty() {
                return Ok(recovered);
            }
            for record in &page {
                let expected = recovered.written.of(record.stream);
                if record.offset != expected || record.end() > lengths.of(record.stream) {
                    tracing::warn!(?record, expected, "the journal ends in a record without bytes");
                    return Ok(recovered);
                }
                recovered.written.set(record.stream, record.end());
                recovered.raw.set(record.stream, record.raw_end);
                recovered.records += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_encoding_and_a_torn_one_does_not() {
        let record = Record {
            stream: Stream::Stderr,
            offset: 1 << 40,
            length: 65_536,
            time_unix_nanos: -5,
            raw_end: (1 << 56) - 3,
        };
        let mut bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record));
        bytes[3] ^= 1;
        assert_eq!(Record::decode(&bytes), None);
        assert_eq!(Record::decode(&[0; RECORD_BYTES]), None);
    }
}
