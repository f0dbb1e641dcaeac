//! The loop: what happens when the agent, a signal, a child or the clock says something.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use remoteprocess_entrypoint::message::{
    Exited, FromEntrypoint, Outcome, StopCause, Target, ToEntrypoint, bounded_sentence,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::arguments::Arguments;
use crate::clock::{self, Moment};
use crate::ending::{Action, Ending};
use crate::link::{Event, Link};
use crate::phase::{self, Order, Phase, Program, Stop};
use crate::processes::{self, Reaped, Scope};
use crate::signals::{self, Meaning, Signals};
use crate::stdio::Stdio;
use crate::{launch, oom};

/// Exit code when the container is stopped before anything was started.
const EXIT_STOPPED: i32 = 128 + libc::SIGTERM;
/// `poll(2)` does not count suspended time; deadlines do, so it never sleeps longer than this
/// towards one.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// An agent that says very much does not keep children from being reaped.
const MESSAGES_PER_TURN: usize = 32;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answered on the socket.
    #[error("no agent answered on {path} for {seconds} s; the program was not started")]
    NoAgent {
        /// The socket.
        path: String,
        /// Waited for.
        seconds: u64,
    },
}

/// Everything PID 1 knows.
pub struct Supervisor {
    arguments: Arguments,
    scope: Scope,
    stdio: Stdio,
    signals: Signals,
    link: Link,
    phase: Phase,
    order: Option<Order>,
    program: Option<Program>,
    pipes: Vec<OwnedFd>,
    stop: Option<Stop>,
    ending: Option<Ending>,
}

impl Supervisor {
    /// Puts the parts together; nothing happens yet.
    pub fn new(arguments: Arguments, scope: Scope, stdio: Stdio, signals: Signals) -> Self {
        let link = Link::new(arguments.socket.clone(), clock::now());
        Self {
            arguments,
            scope,
            stdio,
            signals,
            link,
            phase: Phase::Waiting,
            order: None,
            program: None,
            pipes: Vec::new(),
            stop: None,
            ending: None,
        }
    }

    /// Works until the end and returns the exit code.
    ///
    /// # Errors
    /// Only before anything was started.
    pub fn run(mut self) -> Result<i32, Error> {
        loop {
            let now = clock::now();
            // Signals first: a container that is being stopped starts nothing.
            self.read_signals(now);
            self.talk(now);
            self.reap(now);
            self.act_on_time(now)?;
            if let Phase::Done(code) = self.phase {
                return Ok(code);
            }
            self.sleep(now);
        }
    }

    fn read_signals(&mut self, now: Moment) {
        while let Some(meaning) = self.signals.next() {
            match meaning {
                Meaning::Stop => self.stop_as_ordered(StopCause::Terminated, now),
                Meaning::PassOn(number) => drop(self.signal(number, Target::Main)),
                Meaning::Nothing => {}
            }
        }
    }

    fn talk(&mut self, now: Moment) {
        self.link.connect_if_due(now, &self.pipes);
        self.link.flush(now, &self.pipes);
        for _ in 0..MESSAGES_PER_TURN {
            match self.link.receive(now) {
                Some(Event::Welcomed) => self.say_all(now),
                Some(Event::Message(message)) => self.obey(message, now),
                None => return,
            }
            if matches!(self.phase, Phase::Done(_)) {
                return;
            }
        }
    }

    fn send(&mut self, message: FromEntrypoint, now: Moment) {
        self.link.send(message, false, now, &self.pipes);
    }

    /// What an agent that came (back) must know.
    fn say_all(&mut self, now: Moment) {
        if let Some(Program { pid, at_unix_nanos }) = self.program {
            self.send(FromEntrypoint::Launched { pid, at_unix_nanos }, now);
        }
        if let Phase::Reporting { exited, .. } = &self.phase {
            let exited = FromEntrypoint::Exited(exited.clone());
            self.send(exited, now);
        }
    }

    fn obey(&mut self, message: ToEntrypoint, now: Moment) {
        match message {
            ToEntrypoint::Launch {
                merge,
                stop_signal,
                stop_grace_millis,
                agent_lost_millis,
            } => {
                if matches!(self.phase, Phase::Waiting) {
                    self.order = Some(Order {
                        stop_signal,
                        stop_grace: Duration::from_millis(stop_grace_millis),
                        agent_lost: Duration::from_millis(agent_lost_millis),
                        oom_kills_before: oom::kills(),
                    });
                    self.launch(merge, now);
                }
            }
            ToEntrypoint::Signal { id, number, target } => {
                let error = self.signal(number, target).err().map(bounded_sentence);
                self.send(FromEntrypoint::SignalDone { id, error }, now);
            }
            ToEntrypoint::Stop { signal, grace_millis } => {
                let grace = Duration::from_millis(grace_millis);
                self.stop(StopCause::Requested, signal, grace, now);
            }
            ToEntrypoint::Echo { stream, bytes } => self.stdio.echo(stream, &bytes),
            ToEntrypoint::Recorded => {
                if let Phase::Reporting { exited, .. } = &self.phase {
                    self.phase = Phase::Done(exited.outcome.exit_code());
                }
            }
            // The link takes it.
            ToEntrypoint::Welcome { .. } => {}
        }
    }

    fn launch(&mut self, merge: bool, now: Moment) {
        match self.start(merge) {
            Ok(pid) => {
                let at_unix_nanos = clock::unix_nanos();
                self.program = Some(Program { pid, at_unix_nanos });
                self.phase = Phase::Running;
                let launched = FromEntrypoint::Launched { pid, at_unix_nanos };
                self.link.send(launched, true, now, &self.pipes);
            }
            Err(outcome) => {
                self.pipes.clear();
                self.report(outcome, clock::unix_nanos(), 0, now);
            }
        }
    }

    fn start(&mut self, merge: bool) -> Result<u32, Outcome> {
        let command = &self.arguments.command;
        self.pipes = self
            .stdio
            .redirect(merge)
            .map_err(|error| launch::no_pipes(command, &error))?;
        launch::start(command)
    }

    fn signal(&self, number: i32, target: Target) -> Result<(), String> {
        if !(1..=signals::LAST).contains(&number) {
            return Err(format!("{number} is not a signal"));
        }
        let pid = match (&self.phase, self.program) {
            (Phase::Waiting, _) => return Err("the program has not been started".into()),
            (Phase::Running, Some(program)) => program.pid,
            _ => return Err("the program has ended".into()),
        };
        let sent = match target {
            Target::Main => processes::signal_process(pid, number),
            Target::Group => processes::signal_group(pid, number),
            Target::All => self.scope.signal_all(number),
        };
        sent.map_err(|error| format!("cannot send signal {number}: {error}"))
    }

    fn stop_as_ordered(&mut self, cause: StopCause, now: Moment) {
        let order = self.order.as_ref().map(|order| (order.stop_signal, order.stop_grace));
        let (signal, grace) = order.unwrap_or((libc::SIGTERM, Duration::ZERO));
        self.stop(cause, signal, grace, now);
    }

    /// Begins the stop path or makes it quicker. While leftovers are swept the program's own end
    /// stands, and only the sweep can become quicker.
    fn stop(&mut self, cause: StopCause, signal: i32, grace: Duration, now: Moment) {
        match &self.phase {
            Phase::Waiting => self.phase = Phase::Done(EXIT_STOPPED),
            Phase::Running => {
                if self.stop.as_ref().is_none_or(|stop| stop.signal != signal) {
                    let cause = self.stop.as_ref().map_or(cause, |stop| stop.cause);
                    // Listed first: whoever is in the list has been sent the signal.
                    let signalled = processes::descendants().into_iter().collect();
                    self.stop = Some(Stop {
                        cause,
                        signal,
                        signalled,
                    });
                    self.signal_all(signal);
                }
                self.hasten(grace, now);
            }
            Phase::Sweeping { .. } => self.hasten(grace, now),
            Phase::Reporting { .. } | Phase::Done(_) => {}
        }
    }

    fn hasten(&mut self, grace: Duration, now: Moment) {
        match &mut self.ending {
            Some(ending) => ending.hasten(now, grace),
            None => self.ending = Some(Ending::of_stop(now, grace)),
        }
    }

    /// To everything; stopped processes continue, else they would not act on it. What may not be
    /// signalled ends with PID 1.
    fn signal_all(&self, number: i32) {
        let _ = self.scope.signal_all(number);
        let _ = self.scope.signal_all(libc::SIGCONT);
    }

    fn reap(&mut self, now: Moment) {
        let main = self.program.map(|program| program.pid);
        let mut ended = None;
        let childless = loop {
            match processes::reap() {
                Reaped::Child(pid, outcome) if Some(pid) == main => ended = Some(outcome),
                Reaped::Child(..) => self.count_leftover(),
                Reaped::NoneEnded => break false,
                Reaped::NoChildren => break true,
            }
        };
        // Only after the loop: children that had ended before the program are not left behind.
        if let (Some(outcome), Phase::Running) = (ended, &self.phase) {
            let at_unix_nanos = clock::unix_nanos();
            self.phase = Phase::Sweeping {
                outcome,
                at_unix_nanos,
                leftovers: 0,
            };
            match &mut self.ending {
                Some(ending) => ending.program_ended(now),
                None => self.ending = Some(Ending::of_leftovers(now)),
            }
        }
        if childless {
            self.swept(now);
        }
    }

    /// What ends by itself in time, or by a stop that was meant for all, is not a leftover.
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
            at_unix_nanos,
            leftovers,
        } = &self.phase
        {
            let (outcome, at, leftovers) = (outcome.clone(), *at_unix_nanos, *leftovers);
            self.report(outcome, at, leftovers, now);
        }
    }

    fn report(&mut self, outcome: Outcome, at_unix_nanos: u64, leftovers: u32, now: Moment) {
        self.ending = None;
        self.stdio.restore();
        let oom_before = self.order.as_ref().map_or(0, |order| order.oom_kills_before);
        let exited = Exited {
            outcome,
            at_unix_nanos,
            usage: processes::usage(),
            leftovers,
            oom_kills: oom::kills().saturating_sub(oom_before),
            stop: self.stop.as_ref().map(|stop| stop.cause),
        };
        self.send(FromEntrypoint::Exited(exited.clone()), now);
        self.phase = Phase::Reporting { exited, since: now };
    }

    fn act_on_time(&mut self, now: Moment) -> Result<(), Error> {
        if self.deadline().is_some_and(|at| now >= at) {
            match &self.phase {
                Phase::Waiting => return Err(self.no_agent()),
                Phase::Running => self.stop_as_ordered(StopCause::AgentLost, now),
                Phase::Reporting { exited, .. } => {
                    self.phase = Phase::Done(exited.outcome.exit_code());
                }
                Phase::Sweeping { .. } | Phase::Done(_) => {}
            }
        }
        match self.ending.as_mut().and_then(|ending| ending.due(now)) {
            Some(Action::Terminate) => match &mut self.stop {
                Some(stop) => processes::signal_newcomers(&mut stop.signalled, stop.signal),
                None => self.signal_all(libc::SIGTERM),
            },
            Some(Action::Kill) => drop(self.scope.signal_all(libc::SIGKILL)),
            Some(Action::GiveUp) => self.give_up(now),
            None => {}
        }
        Ok(())
    }

    /// Something survives SIGKILL for now. It ends with PID 1 at the latest.
    fn give_up(&mut self, now: Moment) {
        match self.phase {
            Phase::Running => {
                self.report(Outcome::Signal(libc::SIGKILL), clock::unix_nanos(), 0, now);
            }
            _ => self.swept(now),
        }
    }

    fn no_agent(&self) -> Error {
        Error::NoAgent {
            path: self.arguments.socket.display().to_string(),
            seconds: self.arguments.agent_wait.as_secs(),
        }
    }

    /// When the present phase is over for want of an agent.
    fn deadline(&self) -> Option<Moment> {
        let presence = self.link.presence();
        match (&self.phase, &self.order) {
            (Phase::Waiting, _) => presence.lost_at(self.arguments.agent_wait),
            (Phase::Running, Some(order)) if self.stop.is_none() => presence.lost_at(order.agent_lost),
            (Phase::Reporting { since, .. }, _) => Some(phase::report_until(*since, presence)),
            _ => None,
        }
    }

    fn sleep(&self, now: Moment) {
        let ending = self.ending.as_ref().map(Ending::next);
        let next = [self.deadline(), ending, self.link.retry_at()]
            .into_iter()
            .flatten()
            .min();
        let timeout = next.map(|at| timespec(at.saturating_sub(now).min(LONGEST_SLEEP)));
        let mut asked = vec![PollFd::new(&self.signals, PollFlags::IN)];
        asked.extend(self.link.poll_fd());
        // An interruption or a want of memory is a short sleep.
        let _: Result<usize, io::Error> = poll(&mut asked, timeout.as_ref()).map_err(Into::into);
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up to a millisecond: a deadline is not approached in a busy loop.
    let millis = duration.as_millis().saturating_add(1);
    let duration = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
}
