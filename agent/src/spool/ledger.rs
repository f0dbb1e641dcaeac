//! What the archive holds, and what it will never hold.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::slots::Slots;
use super::{Error, Offsets, Stream};

/// Maximum number of uncommitted gaps of one stream that a home was told; more are counted as lost at once.
const MOST_TOLD: usize = 64;

/// The content of the ledger, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Account {
    /// Below these offsets the archive holds every byte, or the gap in its place.
    archived: Offsets,
    /// Bytes below `archived` that are gaps.
    lost: Offsets,
    /// Gaps at or beyond `archived` that the home was told, in order.
    told: [Vec<(u64, u64)>; 2],
}

impl Account {
    /// A home continues from `cursor`: it has not been told of any gap beyond it.
    fn rewind(&mut self, cursor: Offsets) {
        for stream in Stream::ALL {
            let begin = cursor.of(stream);
            let told = &mut self.told[stream.index()];
            told.retain(|(from, _)| *from < begin);
            for (_, to) in told {
                *to = begin.min(*to);
            }
        }
    }

    fn tell(&mut self, stream: Stream, from: u64, to: u64) {
        let told = &mut self.told[stream.index()];
        match told.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => told.push((from, to)),
        }
        if told.len() > MOST_TOLD {
            let (from, to) = told.remove(0);
            self.lost.set(stream, self.lost.of(stream) + to - from);
        }
    }

    fn commit(&mut self, archived: Offsets) {
        for stream in Stream::ALL {
            let end = archived.of(stream);
            let told = &mut self.told[stream.index()];
            let mut lost = self.lost.of(stream);
            for (from, to) in told.iter_mut() {
                lost += end.clamp(*from, *to) - *from;
                *from = end.clamp(*from, *to);
            }
            told.retain(|(from, to)| from < to);
            self.lost.set(stream, lost);
        }
        self.archived = archived;
    }

    fn lost(&self) -> Offsets {
        let mut lost = self.lost;
        for stream in Stream::ALL {
            let told: u64 = self.told[stream.index()].iter().map(|(from, to)| to - from).sum();
            lost.set(stream, lost.of(stream) + told);
        }
        lost
    }
}

#[derive(Debug)]
struct Book {
    slots: Slots<Account>,
    account: Account,
    /// Number of homes that have come.
    homes: u64,
}

impl Book {
    fn change(&mut self, change: impl FnOnce(&mut Account)) -> Result<(), Error> {
        let mut account = self.account.clone();
        change(&mut account);
        if account != self.account {
            self.slots.store(&account)?;
            self.account = account;
        }
        Ok(())
    }
}

/// Survives kills: each change is stored before it counts.
#[derive(Debug)]
pub(super) struct Ledger {
    book: Mutex<Book>,
}

impl Ledger {
    /// Opens it in the spool's directory.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let (slots, account) = Slots::open(directory, "archived")?;
        let book = Book {
            slots,
            account: account.unwrap_or_default(),
            homes: 0,
        };
        Ok(Self { book: Mutex::new(book) })
    }

    /// What the archive holds.
    pub(super) fn archived(&self) -> Offsets {
        self.book().account.archived
    }

    /// How many bytes of each stream are, or will be, gaps in the archive.
    pub(super) fn lost(&self) -> Offsets {
        self.book().account.lost()
    }

    /// A home comes, to continue from `cursor`. Returns its number, for [`Self::tell`].
    pub(super) fn new_home(&self, cursor: Offsets) -> Result<u64, Error> {
        let mut book = self.book();
        book.change(|account| account.rewind(cursor))?;
        book.homes += 1;
        Ok(book.homes)
    }

    /// The home is about to be told that `[from, to)` is gone. Only the latest home's gaps are recorded.
    pub(super) fn tell(&self, home: u64, stream: Stream, from: u64, to: u64) -> Result<(), Error> {
        let mut book = self.book();
        if book.homes != home {
            return Ok(());
        }
        book.change(|account| account.tell(stream, from, to))?;
        crate::crash::point("ledger", "told");
        Ok(())
    }

    /// The archive holds everything below `archived`.
    pub(super) fn commit(&self, archived: Offsets) -> Result<(), Error> {
        self.book().change(|account| {
            let archived = archived.map2(account.archived, u64::max);
            account.commit(archived);
        })
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        // A panic leaves nothing half done.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn stdout(stdout: u64) -> Offsets {
        Offsets { stdout, stderr: 0 }
    }

    #[test]
    fn a_gap_counts_once_however_often_homes_change() {
        let mut account = Account::default();
        account.tell(Stream::Stdout, 10, 20);
        account.tell(Stream::Stdout, 20, 25);
        account.tell(Stream::Stdout, 40, 50);
        assert_eq!(account.lost(), stdout(25));
        account.commit(stdout(12));
        assert_eq!((account.lost, account.lost()), (stdout(2), stdout(25)));
        // The next home was told of the first gap only, and is told of a longer second one.
        account.rewind(stdout(30));
        assert_eq!(account.lost(), stdout(15));
        account.tell(Stream::Stdout, 30, 60);
        account.commit(stdout(60));
        assert_eq!((account.lost, account.told), (stdout(45), [vec![], vec![]]));
    }

    #[test]
    fn more_gaps_than_fit_are_still_counted_and_fit_their_slot() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let home = ledger.new_home(Offsets::default()).unwrap();
        let far = u64::MAX / 2;
        for stream in Stream::ALL {
            for gap in 0..1000 {
                ledger.tell(home, stream, far + 10 * gap, far + 10 * gap + 3).unwrap();
            }
        }
        assert_eq!(
            ledger.lost(),
            Offsets {
                stdout: 3000,
                stderr: 3000
            }
        );
        let again = Ledger::open(directory.path()).unwrap();
        assert_eq!(again.lost(), ledger.lost());
    }
}
