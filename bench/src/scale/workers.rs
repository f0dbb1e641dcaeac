//! A few threads that share a number of tasks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, anyhow};

/// Requests at the same time.
const WORKERS: usize = 16;

/// Does `work` for each number below `count`, in their order; an error ends all.
pub(super) fn in_parallel(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            work(number).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        let mut ends = workers.into_iter().map(|worker| worker.join());
        ends.try_for_each(|end| end.unwrap_or_else(|_| Err(anyhow!("a worker panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use anyhow::ensure;

    use super::*;

    #[test]
    fn each_number_once_until_an_error() {
        let done = Mutex::new(Vec::new());
        let note = |number| {
            done.lock().unwrap().push(number);
            Ok(())
        };
        in_parallel(100, note).unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());

        let count = AtomicUsize::new(0);
        let failing = |number| {
            count.fetch_add(1, Ordering::Relaxed);
            ensure!(number < 5, "five");
            Ok(())
        };
        assert!(in_parallel(1_000_000, failing).is_err());
        assert!(count.into_inner() < 1_000_000);
    }
}
