//! The checksum of a stream in its seal.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-64/NVME of a stream so far. It finds a lost, doubled, moved or changed byte, but for one accident in 2^64. It does not
/// protect from a forger: TLS does, and the SHA-256 of the seal.
#[derive(Clone, Copy, Debug)]
pub struct Checksum(Digest);

impl Default for Checksum {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Nvme))
    }
}

impl Checksum {
    /// Continues from a [`state`](Self::state).
    #[must_use]
    pub fn resume(state: u64) -> Self {
        Self(Digest::new_with_init_state(CrcAlgorithm::Crc64Nvme, state))
    }

    /// What a later writer of the same stream needs.
    #[must_use]
    pub fn state(&self) -> u64 {
        self.0.get_state()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> u64 {
        let mut checksum = Checksum::default();
        for part in parts {
            checksum.update(part);
            checksum = Checksum::resume(checksum.state());
        }
        checksum.value()
    }

    #[test]
    fn it_is_that_of_the_nvme_specification_however_the_stream_is_cut() {
        // The check value of the catalog of parametrized CRC algorithms.
        assert_eq!(of(&[b"123456789"]), 0xae8b_1486_0a79_9888);
        assert_eq!(of(&[b"1", b"", b"2345678", b"9"]), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn a_lost_doubled_moved_or_changed_byte_is_found() {
        let line = b"the same line\n".repeat(5000);
        let whole = of(&[&line]);
        let (before, behind) = line.split_at(33_333);
        let mut changed = line.clone();
        changed[33_333] ^= 0x40;
        let mut moved = line.clone();
        moved.swap(33_333, 33_334);
        let others = [
            of(&[before, &behind[1..]]),
            of(&[before, &behind[..1], behind]),
            of(&[&changed]),
            of(&[&moved]),
            of(&[&line, &[0]]),
            of(&[&[0], &line]),
        ];
        assert!(!others.contains(&whole), "{whole:x} {others:x?}");
    }
}
