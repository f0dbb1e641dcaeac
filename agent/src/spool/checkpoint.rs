//! What the janitor remembers across a kill: the state of the hashes, and what has left the spool.

use remoteprocess_proto::Checksum;
use sha2::Sha256;
use sha2::digest::common::hazmat::SerializableState;
use sha2::digest::{Digest, FixedOutput};

use super::pressure::Wait;
use super::{Error, Offsets, Stream, StreamSeal};

/// Written before anything is punched, so everything that it counts as dropped is hashed in it.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Checkpoint {
    /// Bytes that may have left the spool.
    pub dropped: Offsets,
    /// First record that the journal still holds.
    pub first_record: u64,
    /// Offsets of both streams before that record.
    pub first_record_offsets: Offsets,
    /// The number of raw bytes from which those were made, if the streams are masked.
    pub first_record_raw: Offsets,
    stdout: Hashed,
    stderr: Hashed,
    /// Since when the full spool waits for the archive.
    pub wait: Option<Wait>,
}

/// How far a stream is hashed.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Hashed {
    bytes: u64,
    /// State of the SHA-256; empty at 0 bytes.
    sha256: Vec<u8>,
    /// State of the checksum.
    checksum: u64,
}

impl Checkpoint {
    const fn hashed(&self, stream: Stream) -> &Hashed {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// Refuses a checkpoint that counts more bytes than the files hold: the volume lost something.
    pub(super) fn check(&self, lengths: Offsets) -> Result<(), Error> {
        let is_backed = Stream::ALL
            .into_iter()
            .all(|stream| self.dropped.of(stream).max(self.hashed(stream).bytes) <= lengths.of(stream));
        is_backed
            .then_some(())
            .ok_or(Error::Damaged("a stream is shorter than its checkpoint"))
    }

    /// Restores the hash of a stream.
    pub(super) fn hash(&self, stream: Stream) -> Result<RunningHash, Error> {
        let hashed = self.hashed(stream);
        if hashed.bytes == 0 {
            return Ok(RunningHash::default());
        }
        let state = hashed
            .sha256
            .as_slice()
            .try_into()
            .map_err(|_| Error::Damaged("length of a hash state"))?;
        Ok(RunningHash {
            hashed: hashed.bytes,
            sha256: Sha256::deserialize(state).map_err(|_| Error::Damaged("content of a hash state"))?,
            checksum: Checksum::resume(hashed.checksum),
        })
    }

    /// Saves the hash of a stream.
    pub(super) fn set_hash(&mut self, stream: Stream, hash: &RunningHash) {
        let noted = Hashed {
            bytes: hash.hashed,
            sha256: hash.sha256.serialize().to_vec(),
            checksum: hash.checksum.value(),
        };
        match stream {
            Stream::Stdout => self.stdout = noted,
            Stream::Stderr => self.stderr = noted,
        }
    }
}

/// SHA-256 and checksum of a stream so far.
#[derive(Clone, Default)]
pub(super) struct RunningHash {
    /// Bytes hashed.
    pub hashed: u64,
    sha256: Sha256,
    checksum: Checksum,
}

impl RunningHash {
    /// Takes the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.checksum.update(bytes);
        self.hashed += bytes.len() as u64;
    }

    /// The seal of a stream that ends here.
    pub(super) fn seal(&self) -> StreamSeal {
        StreamSeal {
            bytes: self.hashed,
            sha256: self.sha256.clone().finalize_fixed().into(),
            checksum: self.checksum.value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_continues_from_its_checkpoint() {
        let mut whole = RunningHash::default();
        let mut first = RunningHash::default();
        whole.update(b"hello, wor");
        first.update(b"hello, wor");
        let mut checkpoint = Checkpoint::default();
        checkpoint.set_hash(Stream::Stderr, &first);
        let mut second = checkpoint.hash(Stream::Stderr).unwrap();
        whole.update(b"ld");
        second.update(b"ld");
        assert_eq!(whole.seal(), second.seal());
        assert_eq!(second.seal().bytes, 12);
    }
}
