//! The state machine of one attempt as the agent sees it: events in, actions out, no I/O.

mod run;
mod stop;

use std::time::Duration;

use remoteprocess_entrypoint::message::{Exited, Outcome, PROTOCOL_VERSION, Resume, Secret, ToEntrypoint};
use remoteprocess_entrypoint::run_clock::Moment;

pub use run::REQUESTED_BY;

use super::facts::{Closed, Ending, Fact, Facts, Launch, Started, Stop, Welcomed};
use super::settings::LaunchSettings;

/// How long pipes may stay open after the last process is gone.
const PIPE_HELD: Duration = Duration::from_secs(5);
/// How long an entrypoint may be away before it counts as lost, when its pipes have ended too.
const ENTRYPOINT_LOST: Duration = Duration::from_secs(5);
/// The same for an agent that has just started and holds no pipes.
const ENTRYPOINT_MISSING: Duration = Duration::from_secs(15);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// An entrypoint introduced itself.
    Hello {
        /// Proof that it was welcomed before.
        resume: Option<Resume>,
        /// Whether the read ends came along.
        has_pipes: bool,
        /// 32 random bytes, in case it is new.
        fresh_secret: Secret,
    },
    /// The welcomed entrypoint's connection ended.
    Disconnected,
    /// The relay allows the launch, with these settings.
    Granted(LaunchSettings),
    /// The entrypoint started the program.
    Launched {
        /// Process id in the container.
        pid: u32,
        /// Nanoseconds since the Unix epoch.
        at_unix_nanos: i64,
        /// Whether the read ends came along.
        has_pipes: bool,
        /// Whether it is paused.
        is_paused: bool,
        /// Now.
        now: Moment,
    },
    /// The program is paused or resumed, at this moment.
    Paused(bool, Moment),
    /// A new run deadline, counted from the start of the program.
    RunDeadline(Option<Duration>),
    /// The moment of [`Machine::next_tick`], or a later one.
    Tick(Moment),
    /// The entrypoint reports the end.
    Exited(Exited),
    /// All pipes were read to their end.
    PipesEnded,
    /// A request to end the program.
    Stop(Stop),
    /// The timer of [`Action::ArmHeld`] expired.
    Held,
    /// The timer of [`Action::ArmLost`] expired.
    Lost,
}

/// What to do, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Use these settings from now on.
    Apply(LaunchSettings),
    /// Store this before anything that follows.
    Persist(Fact),
    /// Store this when there is room; nothing waits for it.
    Note(Fact),
    /// Send to the entrypoint, if it is there.
    Send(ToEntrypoint),
    /// Use this connection for the entrypoint from now on; close an earlier one.
    Accept,
    /// Close the connection.
    Refuse(&'static str),
    /// Capture the pipes that came with the event.
    Attach,
    /// Take what is left in the pipes, even into a full spool.
    DrainPipes,
    /// Close the pipes; no byte follows.
    CloseStreams,
    /// Flush the echo, then send `Recorded`.
    FlushAndRecord,
    /// Send [`Event::Held`] after this time.
    ArmHeld(Duration),
    /// Send [`Event::Lost`] after this time, in place of an earlier one.
    ArmLost(Duration),
}

/// Phase of the attempt, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No entrypoint yet.
    Waiting,
    /// An entrypoint is there; the start is not granted or in progress.
    Starting,
    /// The program runs.
    Running,
    /// The program is paused.
    Paused,
    /// The stop path has begun.
    Stopping,
    /// The program has ended.
    Exited,
}

/// The state of one attempt.
#[derive(Debug)]
pub struct Machine {
    facts: Facts,
    is_connected: bool,
    granted: Option<LaunchSettings>,
    /// This agent holds the pipes, or read them to their end.
    is_attached: bool,
    have_pipes_ended: bool,
}

impl Machine {
    /// Continues from what an earlier agent of this attempt left.
    pub fn new(facts: Facts) -> (Self, Vec<Action>) {
        let mut machine = Self {
            is_connected: false,
            granted: None,
            is_attached: false,
            have_pipes_ended: false,
            facts,
        };
        let actions = match (machine.facts.launch, machine.facts.closed) {
            (_, Some(_)) => vec![Action::CloseStreams],
            (Some(_), None) => vec![Action::ArmLost(ENTRYPOINT_MISSING)],
            (None, None) if machine.facts.stop.is_some() => machine.cancel(),
            (None, None) => vec![],
        };
        (machine, actions)
    }

    /// All recorded facts.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether an entrypoint is connected.
    pub const fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// The phase of the attempt.
    pub const fn phase(&self) -> Phase {
        match &self.facts {
            Facts { ending: Some(_), .. } => Phase::Exited,
            Facts {
                started: Some(_),
                stop: Some(_),
                ..
            } => Phase::Stopping,
            Facts {
                started: Some(_),
                clock: Some(clock),
                ..
            } if clock.is_paused() => Phase::Paused,
            Facts { started: Some(_), .. } => Phase::Running,
            Facts { launch: Some(_), .. } => Phase::Starting,
            _ if self.is_connected => Phase::Starting,
            _ => Phase::Waiting,
        }
    }

    /// Handles one event.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Hello {
                resume,
                has_pipes,
                fresh_secret,
            } => self.on_hello(resume, has_pipes, fresh_secret),
            Event::Disconnected => {
                self.is_connected = false;
                self.watch_for_loss()
            }
            Event::Granted(settings) => {
                self.granted = Some(settings);
                self.launch_if_due()
            }
            Event::Launched {
                pid,
                at_unix_nanos,
                has_pipes,
                is_paused,
                now,
            } => {
                let mut actions = self.on_launched(Started { pid, at_unix_nanos }, has_pipes);
                actions.extend(self.keep_clock(is_paused, now));
                actions
            }
            Event::Paused(is_paused, now) => Vec::from_iter(self.keep_clock(is_paused, now)),
            Event::RunDeadline(run_deadline) => self.on_run_deadline(run_deadline),
            Event::Tick(now) => self.on_tick(now),
            Event::Exited(exited) => self.on_exited(exited),
            Event::PipesEnded => {
                self.have_pipes_ended = true;
                match self.facts.ending {
                    Some(_) => self.close(Closed::Whole),
                    None => self.watch_for_loss(),
                }
            }
            Event::Stop(stop) => self.on_stop(stop),
            Event::Held if self.facts.ending.is_some() => self.close(Closed::PipeHeld),
            Event::Held => vec![],
            Event::Lost => self.on_lost(),
        }
    }

    fn on_hello(&mut self, resume: Option<Resume>, has_pipes: bool, fresh_secret: Secret) -> Vec<Action> {
        let known = self.facts.welcomed.as_ref().map(|known| known.secret);
        let mut actions = match (&resume, known) {
            (Some(resume), Some(secret)) if resume.secret == secret => {
                vec![Action::Accept, welcome(secret)]
            }
            (Some(_), _) => return vec![Action::Refuse("it shows a secret that is not ours")],
            (None, _) if self.facts.launch.is_some() => {
                return vec![Action::Refuse("the program was launched by another entrypoint")];
            }
            (None, _) => {
                let welcomed = Welcomed { secret: fresh_secret };
                self.facts.welcomed = Some(welcomed.clone());
                let persist = Action::Persist(Fact::Welcomed(welcomed));
                vec![persist, Action::Accept, welcome(fresh_secret)]
            }
        };
        self.is_connected = true;
        actions.extend(self.attach(has_pipes));
        let was_launched = resume.is_some_and(|resume| resume.launched);
        if self.is_cancelled() {
            actions.extend(self.stop_order());
        } else if self.facts.launch.is_none() {
            actions.extend(self.launch_if_due());
        } else if self.facts.closed.is_some() {
            actions.push(Action::FlushAndRecord);
        } else if self.facts.ending.is_none() {
            // The order may have been lost with the agent that wrote the launch record. An entrypoint that knows the
            // secret is the one for which the order was meant, and it launches once however often it gets the order.
            actions.extend(self.launch_order().filter(|_| !was_launched));
            actions.extend(self.run_deadline_order());
            actions.extend(self.stop_order());
        }
        actions
    }

    fn launch_if_due(&mut self) -> Vec<Action> {
        let Some(settings) = self.granted.filter(|_| self.is_connected) else {
            return vec![];
        };
        if self.facts.launch.is_some() || self.is_cancelled() {
            return vec![];
        }
        let launch = Launch {
            at_unix_nanos: crate::clock::unix_nanos(),
            settings,
        };
        self.facts.launch = Some(launch);
        let prepare = [Action::Apply(settings), Action::Persist(Fact::Launch(launch))];
        prepare.into_iter().chain(self.launch_order()).collect()
    }

    fn launch_order(&self) -> Option<Action> {
        let launch = self.facts.launch?;
        Some(Action::Send(ToEntrypoint::Launch(launch.settings.order)))
    }

    fn attach(&mut self, has_pipes: bool) -> Option<Action> {
        let is_wanted = has_pipes && !self.is_attached && self.facts.closed.is_none();
        self.is_attached |= is_wanted;
        is_wanted.then_some(Action::Attach)
    }

    fn on_launched(&mut self, started: Started, has_pipes: bool) -> Vec<Action> {
        let mut actions = Vec::from_iter(self.attach(has_pipes));
        if self.facts.started.is_none() {
            self.facts.started = Some(started);
            actions.push(Action::Note(Fact::Started(started)));
        }
        actions
    }

    fn on_exited(&mut self, exited: Exited) -> Vec<Action> {
        if self.facts.launch.is_none() {
            return vec![Action::Refuse("it reports the end of what was never launched")];
        }
        if self.facts.closed.is_some() {
            return vec![Action::FlushAndRecord];
        }
        let never_ran = matches!(exited.outcome, Outcome::NotFound { .. } | Outcome::NotExecutable { .. });
        let mut actions = Vec::new();
        if self.facts.ending.is_none() {
            let ending = Ending::Reported(exited);
            self.facts.ending = Some(ending.clone());
            actions.push(Action::Persist(Fact::Ending(ending)));
        }
        actions.push(Action::DrainPipes);
        match (self.is_attached, self.have_pipes_ended) {
            (true, false) => actions.push(Action::ArmHeld(PIPE_HELD)),
            (true, true) => actions.extend(self.close(Closed::Whole)),
            (false, _) if never_ran => actions.extend(self.close(Closed::Whole)),
            (false, _) => actions.extend(self.close(Closed::EntrypointLost)),
        }
        actions
    }

    fn watch_for_loss(&self) -> Vec<Action> {
        let holds_open_pipes = self.is_attached && !self.have_pipes_ended;
        let is_open = self.facts.launch.is_some() && self.facts.closed.is_none();
        if is_open && !self.is_connected && !holds_open_pipes {
            vec![Action::ArmLost(ENTRYPOINT_LOST)]
        } else {
            vec![]
        }
    }

    fn on_lost(&mut self) -> Vec<Action> {
        let holds_open_pipes = self.is_attached && !self.have_pipes_ended;
        if self.is_connected || holds_open_pipes || self.facts.closed.is_some() {
            return vec![];
        }
        let mut actions = Vec::new();
        if self.facts.ending.is_none() {
            let ending = Ending::Lost {
                at_unix_nanos: crate::clock::unix_nanos(),
            };
            self.facts.ending = Some(ending.clone());
            actions.push(Action::Persist(Fact::Ending(ending)));
        }
        let closed = if self.have_pipes_ended {
            Closed::Whole
        } else {
            Closed::EntrypointLost
        };
        actions.extend(self.close(closed));
        actions
    }

    fn close(&mut self, closed: Closed) -> Vec<Action> {
        if self.facts.closed.is_some() {
            return vec![];
        }
        self.facts.closed = Some(closed);
        vec![
            Action::Persist(Fact::Closed(closed)),
            Action::CloseStreams,
            Action::FlushAndRecord,
        ]
    }
}

fn welcome(secret: Secret) -> Action {
    Action::Send(ToEntrypoint::Welcome {
        version: PROTOCOL_VERSION,
        secret,
    })
}

#[cfg(test)]
mod tests;
