//! How long the program runs: its clock, pauses, the warning and the deadline.

use std::time::Duration;

use remoteprocess_entrypoint::message::{StopCause, Target, ToEntrypoint};
use remoteprocess_entrypoint::run_clock::{Moment, RunClock};

use super::{Action, Machine};
use crate::process::facts::{Fact, Stop, Warned};

/// Who requests a stop at the run deadline.
pub const REQUESTED_BY: &str = "deadline";

impl Machine {
    /// When the program is to be warned or stopped next.
    pub fn next_tick(&self) -> Option<Moment> {
        let over_at = self.over_at()?;
        let warn_at = self.warning(over_at).map(|(_, at)| at);
        Some(warn_at.map_or(over_at, |at| at.min(over_at)))
    }

    fn over_at(&self) -> Option<Moment> {
        let is_open = self.facts.ending.is_none() && self.facts.stop.is_none();
        self.facts.clock.filter(|_| is_open)?.over_at()
    }

    /// The next warning before this deadline, and when. `None` while no entrypoint is there to deliver it.
    fn warning(&self, over_at: Moment) -> Option<(Option<i32>, Moment)> {
        let warning = self.facts.launch?.settings.warning.filter(|_| self.is_connected)?;
        (!self.facts.is_warned()).then(|| (warning.signal, over_at.saturating_sub(warning.before)))
    }

    /// Handles the moment that [`Machine::next_tick`] announced.
    pub(super) fn on_tick(&mut self, now: Moment) -> Vec<Action> {
        let (Some(over_at), Some(launch)) = (self.over_at(), self.facts.launch) else {
            return vec![];
        };
        let run_deadline = self.facts.run_deadline().unwrap_or_default();
        if now >= over_at {
            return self.on_stop(Stop {
                requested_by: REQUESTED_BY.to_owned(),
                message: format!("it may run for no longer than {} s", run_deadline.as_secs_f64()),
                signal: launch.settings.order.stop_signal,
                grace_millis: launch.settings.order.stop_grace_millis,
                cause: StopCause::Deadline,
            });
        }
        match self.warning(over_at).filter(|(_, at)| now >= *at) {
            Some((signal, _)) => self.warn(signal, run_deadline),
            None => vec![],
        }
    }

    fn warn(&mut self, signal: Option<i32>, run_deadline: Duration) -> Vec<Action> {
        let warned = Warned { run_deadline };
        self.facts.warned = Some(warned);
        // The entrypoint recognizes a repeat by its id, so the program is warned once even if the agent dies in
        // between.
        let order = signal.map(|number| ToEntrypoint::Signal {
            request: format!("warning/{}", run_deadline.as_millis()),
            number,
            target: Target::Main,
        });
        let send = order.map(Action::Send);
        send.into_iter().chain([Action::Note(Fact::Warned(warned))]).collect()
    }

    /// Starts the clock when the program has started, and records its pauses.
    pub(super) fn keep_clock(&mut self, is_paused: bool, now: Moment) -> Option<Action> {
        let order = self.facts.launch?.settings.order;
        let mut clock = self
            .facts
            .clock
            .unwrap_or_else(|| RunClock::start(now, order.run_deadline, order.pause_stops_clock));
        clock.set_paused(is_paused, now);
        if self.facts.clock == Some(clock) {
            return None;
        }
        self.facts.clock = Some(clock);
        Some(Action::Note(Fact::Clock(clock)))
    }

    /// Sets another run deadline for a running program.
    pub(super) fn on_run_deadline(&mut self, run_deadline: Option<Duration>) -> Vec<Action> {
        let Some(mut clock) = self.facts.clock.filter(|clock| clock.run_deadline() != run_deadline) else {
            return vec![];
        };
        clock.set_run_deadline(run_deadline);
        self.facts.clock = Some(clock);
        vec![Action::Persist(Fact::Clock(clock)), set_deadline(run_deadline)]
    }

    /// Tells a returning entrypoint the run deadline, if it is no longer that of the launch.
    pub(super) fn run_deadline_order(&self) -> Option<Action> {
        let run_deadline = self.facts.clock?.run_deadline();
        let launched_with = self.facts.launch?.settings.order.run_deadline;
        (run_deadline != launched_with).then(|| set_deadline(run_deadline))
    }
}

fn set_deadline(run_deadline: Option<Duration>) -> Action {
    Action::Send(ToEntrypoint::SetDeadline { run_deadline })
}
