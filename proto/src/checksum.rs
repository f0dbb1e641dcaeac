//! The checksum of a stream in its seal.

/// CRC-32C and CRC-32 of a stream so far. Together they are a CRC whose polynomial is the product of both, of degree 64: it finds a
/// lost, doubled, moved or changed byte, but for one accident in 2^64. It does not protect from a forger: TLS does, and the
/// SHA-256 of the seal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    /// CRC-32/ISCSI (RFC 3720), of Castagnoli.
    crc32c: u32,
    /// CRC-32/ISO-HDLC (RFC 1952).
    crc32: u32,
}

impl Checksum {
    /// Continues from a [`value`](Self::value).
    #[must_use]
    pub const fn resume(value: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        Self {
            crc32c: u32::from_be_bytes([a, b, c, d]),
            crc32: u32::from_be_bytes([e, f, g, h]),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        let mut crc32 = crc32fast::Hasher::new_with_initial(self.crc32);
        crc32.update(bytes);
        self.crc32 = crc32.finalize();
    }

    /// The checksum of all bytes so far: CRC-32C in the upper half, CRC-32 in the lower one.
    #[must_use]
    pub fn value(&self) -> u64 {
        u64::from(self.crc32c) << 32 | u64::from(self.crc32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> u64 {
        let mut checksum = Checksum::default();
        for part in parts {
            checksum.update(part);
            checksum = Checksum::resume(checksum.value());
        }
        checksum.value()
    }

    #[test]
    fn it_is_both_check_values_however_the_stream_is_cut() {
        // The check values of the catalog of parametrized CRC algorithms.
        let check = 0xe306_9283_cbf4_3926;
        assert_eq!(of(&[b"123456789"]), check);
        assert_eq!(of(&[b"1", b"", b"2345678", b"9"]), check);
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
