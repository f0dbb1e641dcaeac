//! The main loop: what happens on a message of the agent, a signal, the end of a child, or a timeout.

mod requests;
mod sessions;
mod stop;
mod streams;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::message::{FromEntrypoint, Launch, Leftovers, StopCause, Target, ToEntrypoint};
use remoteprocess_entrypoint::run_clock::{BACKSTOP, RunClock};
use rustix::event::{PollFd, PollFlags, poll};

use crate::arguments::Arguments;
use crate::cgroup::Cgroup;
use crate::clock::{self, Moment, Timer};
use crate::ending::{Action, Ending};
use crate::link::{Event, Link};
use crate::pause::Pause;
use crate::phase::{self, Phase, Program, Stop};
use crate::processes::{self, Scope};
use crate::requests::Requests;
use crate::sessions::Sessions;
use crate::signals::{Meaning, Signals};
use crate::stdin::Stdin;
use crate::stdio::Stdio;
use crate::terminal::Terminal;

/// An agent that sends a lot does not prevent children from being reaped.
const MESSAGES_PER_TURN: usize = 32;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No agent answered on the socket.
    #[error("no agent answered on {path} for {seconds} s; the program was not started")]
    NoAgent {
        /// Path of the socket.
        path: String,
        /// How long it waited.
        seconds: u64,
    },
}

/// Everything PID 1 knows.
pub(crate) struct Supervisor {
    arguments: Arguments,
    scope: Scope,
    stdio: Stdio,
    signals: Signals,
    timer: Timer,
    link: Link,
    cgroup: Cgroup,
    phase: Phase,
    order: Option<Launch>,
    program: Option<Program>,
    pipes: Vec<OwnedFd>,
    stdin: Option<Stdin>,
    terminal: Option<Terminal>,
    /// The last requested size.
    window: Option<WindowSize>,
    requests: Requests,
    sessions: Sessions,
    pause: Option<Pause>,
    stop: Option<Stop>,
    ending: Option<Ending>,
}

impl Supervisor {
    /// Combines the parts; nothing happens yet.
    pub(crate) fn new(arguments: Arguments, scope: Scope, stdio: Stdio, signals: Signals, timer: Timer) -> Self {
        Self {
            link: Link::new(arguments.socket.clone(), clock::now()),
            cgroup: Cgroup::new(arguments.cgroup.clone()),
            arguments,
            scope,
            stdio,
            signals,
            timer,
            phase: Phase::Waiting,
            order: None,
            program: None,
            pipes: Vec::new(),
            stdin: None,
            terminal: None,
            window: None,
            requests: Requests::default(),
            sessions: Sessions::default(),
            pause: None,
            stop: None,
            ending: None,
        }
    }

    /// Runs to the end and returns the exit code.
    ///
    /// # Errors
    /// Only before anything was started.
    pub(crate) fn run(mut self) -> Result<i32, Error> {
        loop {
            let now = clock::now();
            // Signals first: a container that is being stopped starts nothing.
            self.read_signals(now);
            self.talk(now);
            self.move_streams(now);
            self.move_sessions(now);
            self.reap(now);
            self.act_on_time(now)?;
            if let Phase::Done(code) = self.phase {
                if !self.sessions.shims().is_empty() {
                    // The end of process 1 does the same.
                    let _ = self.scope.signal_all(libc::SIGKILL);
                }
                return Ok(code);
            }
            self.sleep();
        }
    }

    fn read_signals(&mut self, now: Moment) {
        while let Some(meaning) = self.signals.next() {
            match meaning {
                Meaning::Stop => self.stop_as_ordered(StopCause::Terminated, now),
                Meaning::PassOn(number) => drop(self.send_signal(number, Target::Main)),
                Meaning::Nothing => {}
            }
        }
    }

    fn talk(&mut self, now: Moment) {
        self.hear_agent(now);
        if self.link.presence().is_away() {
            // The output of their commands was in the memory of the agent that is gone.
            self.sessions.close_all(now);
        }
    }

    fn hear_agent(&mut self, now: Moment) {
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

    /// Sends what an agent that has just connected must know.
    fn say_all(&mut self, now: Moment) {
        if let Some(program) = self.program {
            self.send(self.launched(program), now);
        }
        if let Phase::Reporting { exited, .. } = &self.phase {
            let exited = FromEntrypoint::Exited(exited.clone());
            self.send(exited, now);
        }
    }

    fn launched(&self, program: Program) -> FromEntrypoint {
        FromEntrypoint::Launched {
            pid: program.pid,
            at_unix_nanos: program.at_unix_nanos,
            is_paused: self.pause.as_ref().is_some_and(Pause::is_complete),
            input: self.stdin.as_ref().map(Stdin::state),
        }
    }

    fn obey(&mut self, message: ToEntrypoint, now: Moment) {
        match message {
            ToEntrypoint::Launch(order) => {
                if matches!(self.phase, Phase::Waiting) {
                    self.launch(order, now);
                }
            }
            ToEntrypoint::Signal {
                request,
                number,
                target,
            } => self.signal(request, number, target, now),
            ToEntrypoint::Pause { request, paused: true } => self.pause(request, now),
            ToEntrypoint::Pause { request, paused: false } => self.resume(request, now),
            ToEntrypoint::SetDeadline { run_deadline } => {
                if let Some(program) = &mut self.program {
                    program.clock.set_run_deadline(run_deadline);
                }
            }
            ToEntrypoint::Stop {
                signal,
                grace_millis,
                cause,
            } => self.stop(cause, signal, Duration::from_millis(grace_millis), now),
            ToEntrypoint::Echo { stream, bytes } => self.stdio.echo(stream, &bytes),
            ToEntrypoint::Input { offset, bytes } => self.take_input(offset, &bytes, now),
            ToEntrypoint::EndInput { offset } => self.end_input(offset, now),
            ToEntrypoint::Resize(size) => self.resize(size),
            ToEntrypoint::Session { session, order } => self.order_session(session, order, now),
            ToEntrypoint::Recorded => {
                if let Phase::Reporting { exited, .. } = &self.phase {
                    self.phase = Phase::Done(exited.outcome.exit_code());
                }
            }
            // The link handles it.
            ToEntrypoint::Welcome { .. } => {}
        }
    }

    fn launch(&mut self, order: Launch, now: Moment) {
        self.order = Some(order);
        self.cgroup.begin(now);
        match self.start(&order) {
            Ok(pid) => {
                let program = Program {
                    pid,
                    at_unix_nanos: clock::unix_nanos(),
                    clock: RunClock::start(now, order.run_deadline, order.pause_stops_clock),
                };
                self.program = Some(program);
                self.phase = Phase::Running;
                let launched = self.launched(program);
                self.link.send(launched, true, now, &self.pipes);
            }
            Err(outcome) => {
                self.drop_streams();
                self.report((outcome, false), clock::unix_nanos(), 0, now);
            }
        }
    }

    /// The run does not end with the program, but with the last descendant.
    fn waits_for_leftovers(&self) -> bool {
        self.order.is_some_and(|order| order.leftovers == Leftovers::Wait)
    }

    /// Whether there is a process of the run that can be signalled, paused or stopped.
    fn is_going_on(&self) -> bool {
        match self.phase {
            Phase::Running => true,
            Phase::Sweeping { .. } => self.waits_for_leftovers(),
            _ => false,
        }
    }

    fn act_on_time(&mut self, now: Moment) -> Result<(), Error> {
        if self.cgroup.next_look().is_some_and(|at| now >= at) {
            self.cgroup.look(now);
        }
        if self.deadline().is_some_and(|at| now >= at) {
            match &self.phase {
                Phase::Waiting => return Err(self.no_agent()),
                Phase::Running | Phase::Sweeping { .. } => self.stop_as_ordered(StopCause::AgentLost, now),
                Phase::Reporting { exited, .. } => {
                    self.phase = Phase::Done(exited.outcome.exit_code());
                }
                Phase::Done(_) => {}
            }
        }
        if self.backstop().is_some_and(|at| now >= at) {
            self.stop_as_ordered(StopCause::Deadline, now);
        }
        if self
            .pause
            .as_ref()
            .and_then(Pause::next_look)
            .is_some_and(|at| now >= at)
        {
            self.look_for_running(now);
        }
        self.sessions.act_on_time(now);
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

    fn no_agent(&self) -> Error {
        Error::NoAgent {
            path: self.arguments.socket.display().to_string(),
            seconds: self.arguments.agent_wait.as_secs(),
        }
    }

    /// When the current phase ends because there is no agent.
    fn deadline(&self) -> Option<Moment> {
        let presence = self.link.presence();
        match (&self.phase, self.order) {
            (Phase::Waiting, _) => presence.lost_at(self.arguments.agent_wait),
            (Phase::Reporting { since, .. }, _) => Some(phase::report_until(*since, presence)),
            (_, Some(order)) if self.is_going_on() && self.stop.is_none() => {
                presence.lost_at(Duration::from_millis(order.agent_lost_millis))
            }
            _ => None,
        }
    }

    /// When this process stops the program because the agent should have done so and has not.
    fn backstop(&self) -> Option<Moment> {
        let program = self.program.filter(|_| self.is_going_on() && self.stop.is_none())?;
        Some(program.clock.over_at()?.saturating_add(BACKSTOP))
    }

    /// Sets the timer to what is due next, and sleeps until then or until something happens.
    fn sleep(&mut self) {
        let is_running = matches!(self.phase, Phase::Running);
        let next = [
            self.deadline(),
            self.backstop(),
            self.ending.as_ref().map(Ending::next),
            self.pause.as_ref().and_then(Pause::next_look),
            self.cgroup.next_look().filter(|_| is_running),
            self.link.retry_at(),
            self.sessions.next(),
        ];
        self.timer.set(next.into_iter().flatten().min());
        let mut asked = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        asked.extend(self.link.poll_fd());
        asked.extend(self.stdin.as_ref().and_then(Stdin::poll_fd));
        asked.extend(self.terminal.as_ref().and_then(Terminal::poll_fd));
        asked.extend(self.sessions.poll_fds());
        let announcer = self.cgroup.announcer().filter(|_| is_running);
        let announces = announcer.is_some();
        asked.extend(announcer.map(|file| PollFd::from_borrowed_fd(file, PollFlags::PRI)));
        // If poll is interrupted or lacks memory, the sleep is short.
        let _: Result<usize, io::Error> = poll(&mut asked, None).map_err(Into::into);
        let announced = asked
            .pop()
            .filter(|_| announces)
            .is_some_and(|file| !file.revents().is_empty());
        if announced {
            self.cgroup.look(clock::now());
        }
    }
}
