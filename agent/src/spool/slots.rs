//! A fact that changes often, in a file that never grows. It can be written to a full volume, which is when it is
//! needed, because it frees the volume.

use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::Error;

/// Size of each of the two slots of a value. They are written in turn, so that a torn write leaves the previous value.
const SLOT_BYTES: usize = 4096;
/// Number of the write, length of the value, and the hash of both and the value.
const HEAD_BYTES: usize = 8 + 4 + 32;

/// The two slots of one kind of value.
#[derive(Debug)]
pub(super) struct Slots<T> {
    file: File,
    /// Number of the last write.
    number: u64,
    value: PhantomData<fn(T)>,
}

impl<T: Serialize + DeserializeOwned> Slots<T> {
    /// Opens the file, with its space taken, and reads the last value that was written whole.
    pub(super) fn open(directory: &Path, name: &str) -> Result<(Self, Option<T>), Error> {
        let file = super::open_file(directory, name)?;
        let length = file.metadata().map_err(Error::io("size of a slot file"))?.len();
        if length < 2 * SLOT_BYTES as u64 {
            file.write_all_at(&[0; 2 * SLOT_BYTES], 0)
                .map_err(Error::io("make a slot file"))?;
        }
        let mut last = None;
        for index in 0..2 {
            let mut slot = [0; SLOT_BYTES];
            file.read_exact_at(&mut slot, index * SLOT_BYTES as u64)
                .map_err(Error::io("read a slot"))?;
            let found = decode(&slot);
            if found.as_ref().map(|(number, _)| *number) > last.as_ref().map(|(number, _)| *number) {
                last = found;
            }
        }
        let number = last.as_ref().map_or(0, |(number, _)| *number);
        let value = last.map(|(_, value)| value);
        let slots = Self {
            file,
            number,
            value: PhantomData,
        };
        Ok((slots, value))
    }

    /// Writes the value in place of the second to last. It survives a kill from here on.
    pub(super) fn store(&mut self, value: &T) -> Result<(), Error> {
        let number = self.number + 1;
        let payload = postcard::to_stdvec(value).map_err(|_| Error::Damaged("a value without a form"))?;
        let length = u32::try_from(payload.len()).map_err(|_| Error::Damaged("a value too long for its slot"))?;
        if HEAD_BYTES + payload.len() > SLOT_BYTES {
            return Err(Error::Damaged("a value too long for its slot"));
        }
        let mut slot = Vec::with_capacity(HEAD_BYTES + payload.len());
        slot.extend_from_slice(&number.to_le_bytes());
        slot.extend_from_slice(&length.to_le_bytes());
        slot.extend_from_slice(&check(number, &payload));
        slot.extend_from_slice(&payload);
        self.file
            .write_all_at(&slot, number % 2 * SLOT_BYTES as u64)
            .map_err(Error::io("write a slot"))?;
        self.number = number;
        Ok(())
    }
}

fn check(number: u64, payload: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(number.to_le_bytes());
    hash.update(payload);
    hash.finalize().into()
}

fn decode<T: DeserializeOwned>(slot: &[u8]) -> Option<(u64, T)> {
    let (number, rest) = slot.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (hash, rest) = rest.split_first_chunk::<32>()?;
    let number = u64::from_le_bytes(*number);
    let payload = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let is_whole = number > 0 && check(number, payload) == *hash;
    let value = is_whole.then(|| postcard::from_bytes(payload).ok()).flatten()?;
    Some((number, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_value_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let (mut slots, nothing) = Slots::<u64>::open(directory.path(), "value").unwrap();
        assert_eq!(nothing, None);
        for value in 1..=5 {
            slots.store(&value).unwrap();
            let (_, found) = Slots::<u64>::open(directory.path(), "value").unwrap();
            assert_eq!(found, Some(value));
        }
        // The fifth is torn: the fourth is still there, and the next write replaces the torn one.
        slots.file.write_all_at(&[0xff; 50], SLOT_BYTES as u64).unwrap();
        let (mut slots, found) = Slots::<u64>::open(directory.path(), "value").unwrap();
        assert_eq!(found, Some(4));
        slots.store(&6).unwrap();
        let (_, found) = Slots::<u64>::open(directory.path(), "value").unwrap();
        assert_eq!(found, Some(6));
    }
}
