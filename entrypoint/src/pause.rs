//! A pause in progress: which requests wait for it, and when to look again. Pure: times in, verdicts out.

use std::collections::HashSet;
use std::time::Duration;

use crate::clock::Moment;

/// Time between two looks for processes that were forked in the meantime.
const LOOK: Duration = Duration::from_millis(5);
/// A process that runs this long after SIGSTOP cannot be signalled, or hangs in the kernel.
const GIVE_UP: Duration = Duration::from_secs(3);

/// The result of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing runs anymore.
    Complete,
    /// Something runs: signal it, and look again.
    Again,
    /// Something still runs: it cannot be paused.
    TimedOut,
}

/// A pause that may not be complete yet.
#[derive(Debug)]
pub(crate) struct Pause {
    /// Requests to answer when it is complete.
    pub waiting: Vec<String>,
    /// Processes that were sent the signal.
    pub signalled: HashSet<i32>,
    give_up_at: Moment,
    next_look: Option<Moment>,
}

impl Pause {
    /// Begins now, for this request.
    pub(crate) fn begin(request: String, now: Moment) -> Self {
        Self {
            waiting: vec![request],
            signalled: HashSet::new(),
            give_up_at: now + GIVE_UP,
            next_look: Some(now),
        }
    }

    /// Whether nothing ran at the last look.
    pub(crate) fn is_complete(&self) -> bool {
        self.next_look.is_none()
    }

    /// When to look; `None` once it is complete.
    pub(crate) fn next_look(&self) -> Option<Moment> {
        self.next_look
    }

    /// Evaluates a look: whether something runs.
    pub(crate) fn looked(&mut self, something_runs: bool, now: Moment) -> Progress {
        self.next_look = something_runs.then(|| now + LOOK);
        match something_runs {
            false => Progress::Complete,
            true if now < self.give_up_at => Progress::Again,
            true => Progress::TimedOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_until_nothing_runs_but_not_for_ever() {
        let start = Duration::from_secs(9);
        let mut pause = Pause::begin("a".into(), start);
        assert_eq!(pause.next_look(), Some(start));
        assert_eq!(pause.looked(true, start), Progress::Again);
        assert_eq!(pause.next_look(), Some(start + LOOK));
        assert_eq!(pause.looked(true, start + GIVE_UP), Progress::TimedOut);
        assert_eq!(pause.looked(false, start + LOOK), Progress::Complete);
        assert!(pause.is_complete() && pause.next_look().is_none());
    }
}
