//! A request to end the program, before or after the launch.

use remoteprocess_entrypoint::message::ToEntrypoint;

use super::{Action, Machine};
use crate::process::facts::{Closed, Ending, Fact, Stop};

impl Machine {
    pub(super) fn stop_order(&self) -> Option<Action> {
        self.facts.stop.as_ref().map(order)
    }

    pub(super) fn on_stop(&mut self, stop: Stop) -> Vec<Action> {
        if self.facts.ending.is_some() {
            return vec![];
        }
        let order = order(&stop);
        // The first requester counts as the one who ended it.
        let is_first = self.facts.stop.is_none();
        if is_first {
            self.facts.stop = Some(stop.clone());
        }
        if self.facts.launch.is_none() {
            // Stored first: a later agent must not launch either.
            let mut actions = vec![Action::Persist(Fact::Stop(stop))];
            actions.extend(self.cancel());
            actions.push(order);
            return actions;
        }
        let note = is_first.then_some(Action::Note(Fact::Stop(stop)));
        [order].into_iter().chain(note).collect()
    }

    /// The program was stopped before the launch: it never runs, and the process has ended.
    pub(super) fn cancel(&mut self) -> Vec<Action> {
        let ending = Ending::Cancelled {
            at_unix_nanos: crate::clock::unix_nanos(),
        };
        self.facts.ending = Some(ending.clone());
        self.facts.closed = Some(Closed::Whole);
        vec![
            Action::Persist(Fact::Ending(ending)),
            Action::Persist(Fact::Closed(Closed::Whole)),
            Action::CloseStreams,
        ]
    }

    pub(super) const fn is_cancelled(&self) -> bool {
        matches!(self.facts.ending, Some(Ending::Cancelled { .. }))
    }
}

fn order(stop: &Stop) -> Action {
    Action::Send(ToEntrypoint::Stop {
        signal: stop.signal,
        grace_millis: stop.grace_millis,
        cause: stop.cause,
    })
}
