//! What the janitor remembers across a kill: the state of the hashes, and what has left the spool.

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
    /// Bytes of stdout hashed, and the state of its hash; empty at 0.
    stdout: (u64, Vec<u8>),
    /// The same of stderr.
    stderr: (u64, Vec<u8>),
    /// Since when the full spool waits for the archive.
    pub wait: Option<Wait>,
}

impl Checkpoint {
    /// Refuses a checkpoint that counts more bytes than the files hold: the volume lost something.
    pub(super) fn check(&self, lengths: Offsets) -> Result<(), Error> {
        let is_backed = Stream::ALL.into_iter().all(|stream| {
            let (hashed, _) = match stream {
                Stream::Stdout => &self.stdout,
                Stream::Stderr => &self.stderr,
            };
            self.dropped.of(stream).max(*hashed) <= lengths.of(stream)
        });
        is_backed
            .then_some(())
            .ok_or(Error::Damaged("a stream is shorter than its checkpoint"))
    }

    /// Restores the hash of a stream.
    pub(super) fn hash(&self, stream: Stream) -> Result<RunningHash, Error> {
        let (hashed, state) = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        if *hashed == 0 {
            return Ok(RunningHash::default());
        }
        let state = state
            .as_slice()
            .try_into()
            .map_err(|_| Error::Damaged("length of a hash state"))?;
        let state = Sha256::deserialize(state).map_err(|_| Error::Damaged("content of a hash state"))?;
        Ok(RunningHash { hashed: *hashed, state })
    }

    /// Saves the hash of a stream.
    pub(super) fn set_hash(&mut self, stream: Stream, hash: &RunningHash) {
        let noted = (hash.hashed, hash.state.serialize().to_vec());
        match stream {
            Stream::Stdout => self.stdout = noted,
            Stream::Stderr => self.stderr = noted,
        }
    }
}

/// SHA-256 of a stream so far.
#[derive(Clone, Default)]
pub(super) struct RunningHash {
    /// Bytes hashed.
    pub hashed: u64,
    state: Sha256,
}

impl RunningHash {
    /// Takes the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.hashed += bytes.len() as u64;
    }

    /// The seal of a stream that ends here.
    pub(super) fn seal(&self) -> StreamSeal {
        StreamSeal {
            bytes: self.hashed,
            sha256: self.state.clone().finalize_fixed().into(),
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
