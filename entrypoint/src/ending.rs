//! When the processes that still run are signalled harder. Pure: times in, actions out.

use std::time::Duration;

use crate::clock::Moment;

/// What the program left behind may first end by itself: a `tee` behind a closed pipe needs a moment to write its last
/// bytes.
const LINGER: Duration = Duration::from_millis(100);
/// Between SIGTERM and SIGKILL for what the program left behind.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// Time between two rounds of SIGKILL, for processes that were forked in the meantime.
const KILL_AGAIN: Duration = Duration::from_millis(50);
/// A process that is left this long after SIGKILL cannot be signalled, or hangs in the kernel.
const GIVE_UP: Duration = Duration::from_secs(3);

/// What to do now with everything that still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// SIGTERM, then SIGCONT, to every process that has not been sent a terminating signal yet.
    Terminate,
    /// SIGKILL.
    Kill,
    /// Stop waiting: the end of PID 1 ends the rest.
    GiveUp,
}

/// The times of one end.
#[derive(Debug)]
pub(crate) struct Ending {
    terminate_at: Option<Moment>,
    kill_at: Moment,
    next_kill_at: Moment,
}

impl Ending {
    /// The program has ended by itself and has left processes behind.
    pub(crate) fn of_leftovers(now: Moment) -> Self {
        let terminate_at = now + LINGER;
        let kill_at = terminate_at + LEFTOVER_GRACE;
        Self {
            terminate_at: Some(terminate_at),
            kill_at,
            next_kill_at: kill_at,
        }
    }

    /// The stop path, whose first signal has just been sent.
    pub(crate) fn of_stop(now: Moment, grace: Duration) -> Self {
        let kill_at = now + grace;
        Self {
            terminate_at: None,
            kill_at,
            next_kill_at: kill_at,
        }
    }

    /// The program has ended during a stop. Processes that it started since the signal get a signal too, after a delay:
    /// a shell's child loses a signal that arrives between fork and exec.
    pub(crate) fn program_ended(&mut self, now: Moment) {
        self.terminate_at = Some(now + LINGER);
    }

    /// Kills after this grace period, if that is earlier than before.
    pub(crate) fn hasten(&mut self, now: Moment, grace: Duration) {
        self.kill_at = self.kill_at.min(now + grace);
        self.next_kill_at = self.next_kill_at.min(self.kill_at);
    }

    /// Whether SIGTERM has not been sent yet because leftovers may end by themselves.
    pub(crate) fn lingers(&self) -> bool {
        self.terminate_at.is_some()
    }

    /// The action that is due, each once (`Kill` repeatedly).
    pub(crate) fn due(&mut self, now: Moment) -> Option<Action> {
        if now >= self.kill_at + GIVE_UP {
            return Some(Action::GiveUp);
        }
        if now >= self.next_kill_at {
            self.next_kill_at = now + KILL_AGAIN;
            self.terminate_at = None;
            return Some(Action::Kill);
        }
        self.terminate_at.take_if(|at| now >= *at).map(|_| Action::Terminate)
    }

    /// When to call `due` again.
    pub(crate) fn next(&self) -> Moment {
        self.terminate_at
            .map_or(self.next_kill_at, |at| at.min(self.next_kill_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Duration::from_secs(1000);

    fn at(millis: u64) -> Moment {
        START + Duration::from_millis(millis)
    }

    #[test]
    fn leftovers_linger_are_terminated_then_killed_then_given_up() {
        let mut ending = Ending::of_leftovers(START);
        assert_eq!((ending.due(at(0)), ending.next()), (None, at(100)));
        assert!(ending.lingers());
        assert_eq!(ending.due(at(100)), Some(Action::Terminate));
        assert!(!ending.lingers());
        assert_eq!((ending.due(at(101)), ending.next()), (None, at(2100)));
        assert_eq!(ending.due(at(2100)), Some(Action::Kill));
        assert_eq!((ending.due(at(2101)), ending.next()), (None, at(2150)));
        assert_eq!(ending.due(at(2150)), Some(Action::Kill));
        assert_eq!(ending.due(at(5100)), Some(Action::GiveUp));
    }

    #[test]
    fn a_second_stop_shortens_and_never_lengthens() {
        let mut ending = Ending::of_stop(START, Duration::from_secs(30));
        ending.hasten(at(1000), Duration::from_secs(60));
        assert_eq!(ending.next(), at(30_000));
        ending.hasten(at(1000), Duration::from_secs(5));
        assert_eq!(ending.next(), at(6000));
        ending.hasten(at(2000), Duration::ZERO);
        assert_eq!(ending.due(at(2000)), Some(Action::Kill));
    }

    #[test]
    fn within_a_stop_newcomers_are_terminated_and_the_grace_stays() {
        let mut ending = Ending::of_stop(START, Duration::from_secs(30));
        ending.program_ended(at(1000));
        assert_eq!((ending.due(at(1000)), ending.next()), (None, at(1100)));
        assert_eq!(ending.due(at(1100)), Some(Action::Terminate));
        assert_eq!((ending.due(at(1100)), ending.next()), (None, at(30_000)));
        assert_eq!(ending.due(at(30_000)), Some(Action::Kill));
        ending.program_ended(at(30_000));
        assert_eq!(ending.due(at(30_050)), Some(Action::Kill));
        assert_eq!(ending.next(), at(30_100));
    }

    #[test]
    fn a_grace_without_end_does_not_overflow() {
        let mut ending = Ending::of_stop(START, Duration::from_millis(u64::MAX));
        assert_eq!(ending.due(at(1)), None);
        ending.hasten(at(1), Duration::from_millis(u64::MAX));
    }
}
