//! Crash points: places between two steps at which a test can make this process abort. Release builds have none.
//!
//! `RPROC_CRASH_AT=<part>.<step>:<n>:<file>` aborts the n-th time (from 1) that the point is reached. Only the process
//! that creates `<file>` aborts, so it happens once.

/// All points, `<part>.<step>`.
pub const POINTS: [&str; 21] = [
    "spool.spliced",
    "spool.journalled",
    "spool.hashed",
    "spool.checkpointed",
    "spool.published",
    "spool.punched",
    "ledger.told",
    "ledger.committed",
    "stage.spliced",
    "stage.masked",
    "stage.journalled",
    "secret.written",
    "secret.stored",
    "launch.written",
    "launch.stored",
    "started.stored",
    "exit.written",
    "exit.stored",
    "seal.written",
    "seal.stored",
    "done.written",
];

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub const fn point(_part: &str, _step: &str) {}

#[cfg(debug_assertions)]
pub use armed::point;

#[cfg(debug_assertions)]
mod armed {
    use std::fs::File;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Crash {
        point: String,
        hits_left: AtomicU64,
        mark: PathBuf,
    }

    static ARMED: LazyLock<Option<Crash>> = LazyLock::new(|| {
        let told = std::env::var("RPROC_CRASH_AT").ok()?;
        let mut words = told.splitn(3, ':');
        Some(Crash {
            point: words.next()?.to_owned(),
            hits_left: AtomicU64::new(words.next()?.parse().ok()?),
            mark: words.next()?.into(),
        })
    });

    /// Aborts here, if `RPROC_CRASH_AT` names this point.
    pub fn point(part: &str, step: &str) {
        let Some(crash) = &*ARMED else { return };
        let is_here = crash.point.strip_prefix(part).and_then(|rest| rest.strip_prefix('.')) == Some(step);
        if is_here && crash.hits_left.fetch_sub(1, Ordering::Relaxed) == 1 && File::create_new(&crash.mark).is_ok() {
            std::process::abort();
        }
    }
}
