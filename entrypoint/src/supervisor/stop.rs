//! How a run ends: stop, leftovers, reaping, the report.

use std::time::Duration;

use remoteprocess_entrypoint::message::{Exited, FromEntrypoint, Outcome, StopCause};

use super::Supervisor;
use crate::clock::{self, Moment};
use crate::ending::Ending;
use crate::phase::{Phase, Stop};
use crate::processes::{self, Reaped};

/// Exit code when the container is stopped before anything was started.
const EXIT_STOPPED: i32 = 128 + libc::SIGTERM;

impl Supervisor {
    pub(super) fn stop_as_ordered(&mut self, cause: StopCause, now: Moment) {
        let order = self.order.map(|order| (order.stop_signal, order.stop_grace_millis));
        let (signal, grace) = order.unwrap_or((libc::SIGTERM, 0));
        self.stop(cause, signal, Duration::from_millis(grace), now);
    }

    /// Begins the stop path, or makes it faster. While leftovers are being ended, the program's own end stays as
    /// recorded, and only the end of the leftovers can become faster.
    pub(super) fn stop(&mut self, cause: StopCause, signal: i32, grace: Duration, now: Moment) {
        match &self.phase {
            Phase::Waiting => self.phase = Phase::Done(EXIT_STOPPED),
            Phase::Running | Phase::Sweeping { .. } => {
                let is_new = self.stop.as_ref().is_none_or(|stop| stop.signal != signal);
                if is_new && self.is_going_on() {
                    self.forget_pause("the process is being stopped", now);
                    let cause = self.stop.as_ref().map_or(cause, |stop| stop.cause);
                    // Listed first: every process in the list has been sent the signal.
                    let signalled = processes::descendants().into_iter().map(|(pid, _)| pid).collect();
                    self.stop = Some(Stop {
                        cause,
                        signal,
                        signalled,
                    });
                    self.signal_all(signal);
                }
                // Counted from the signal on: the turn in which the stop was requested may have begun earlier.
                self.hasten(grace, clock::now());
            }
            Phase::Reporting { .. } | Phase::Done(_) => {}
        }
    }

    fn hasten(&mut self, grace: Duration, now: Moment) {
        let has_ended = matches!(self.phase, Phase::Sweeping { .. });
        match &mut self.ending {
            Some(ending) => ending.hasten(now, grace),
            None => {
                let ending = self.ending.insert(Ending::of_stop(now, grace));
                if has_ended {
                    ending.program_ended(now);
                }
            }
        }
    }

    /// Signals everything; stopped processes are resumed, because otherwise they would not act on the signal. A process
    /// that cannot be signalled ends with PID 1.
    pub(super) fn signal_all(&self, number: i32) {
        let _ = self.scope.signal_all(number);
        let _ = self.scope.signal_all(libc::SIGCONT);
    }

    pub(super) fn reap(&mut self, now: Moment) {
        let main = self.program.map(|program| program.pid);
        let mut ended = None;
        let is_childless = loop {
            match processes::reap() {
                Reaped::Child(pid, outcome) if Some(pid) == main => ended = Some(outcome),
                Reaped::Child(pid, _) if self.sessions.has_ended(pid) => {}
                Reaped::Child(..) => self.count_leftover(),
                Reaped::NoneEnded => break false,
                Reaped::NoChildren => break true,
            }
        };
        // Only after the loop: children that ended before the program are not leftovers.
        if let (Some(outcome), Phase::Running) = (ended, &self.phase) {
            self.program_ended(outcome, now);
        }
        if is_childless || self.only_sessions_are_left() {
            self.swept(now);
        }
        // After the report, which waits for none of them.
        if !self.is_going_on() {
            self.sessions.hang_up();
        }
    }

    fn program_ended(&mut self, outcome: Outcome, now: Moment) {
        self.cgroup.look(now);
        self.phase = Phase::Sweeping {
            is_oom: outcome == Outcome::Signal(libc::SIGKILL) && self.cgroup.has_just_killed(now),
            outcome,
            at_unix_nanos: clock::unix_nanos(),
            leftovers: 0,
        };
        if let Some(ending) = &mut self.ending {
            ending.program_ended(now);
        } else if !self.waits_for_leftovers() {
            self.ending = Some(Ending::of_leftovers(now));
        }
    }

    /// A process that ends by itself in time, or by a stop that was meant for all, is not a leftover.
    fn count_leftover(&mut self) {
        let lingers = self.ending.as_ref().is_none_or(Ending::lingers);
        if let Phase::Sweeping { leftovers, .. } = &mut self.phase
            && !lingers
            && self.stop.is_none()
        {
            *leftovers += 1;
        }
    }

    fn swept(&mut self, now: Moment) {
        if let Phase::Sweeping {
            outcome,
            is_oom,
            at_unix_nanos,
            leftovers,
        } = &self.phase
        {
            let (end, leftovers) = ((outcome.clone(), *is_oom), *leftovers);
            let at_unix_nanos = match self.waits_for_leftovers() {
                true => clock::unix_nanos(),
                false => *at_unix_nanos,
            };
            self.report(end, at_unix_nanos, leftovers, now);
        }
    }

    /// Reports the end to the agent: how, and whether the kernel killed the program because memory ran out.
    pub(super) fn report(
        &mut self,
        (outcome, is_oom): (Outcome, bool),
        at_unix_nanos: u64,
        leftovers: u32,
        now: Moment,
    ) {
        self.forget_pause("the program has ended", now);
        self.ending = None;
        self.close_streams();
        self.cgroup.look(now);
        let mut usage = processes::usage();
        self.cgroup.correct(&mut usage);
        let exited = Exited {
            outcome,
            at_unix_nanos,
            usage,
            leftovers,
            oom_kills: self.cgroup.oom_kills(),
            is_oom,
            stop: self.stop.as_ref().map(|stop| stop.cause),
        };
        self.send(FromEntrypoint::Exited(exited.clone()), now);
        self.phase = Phase::Reporting { exited, since: now };
    }

    /// A process survives SIGKILL for now. It ends with PID 1 at the latest.
    pub(super) fn give_up(&mut self, now: Moment) {
        match self.phase {
            Phase::Running => {
                let killed = (Outcome::Signal(libc::SIGKILL), false);
                self.report(killed, clock::unix_nanos(), 0, now);
            }
            _ => self.swept(now),
        }
    }
}
