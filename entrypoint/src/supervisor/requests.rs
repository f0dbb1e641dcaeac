//! Requests of the agent that have an id: signals, pause, resume.

use remoteprocess_entrypoint::message::{FromEntrypoint, Target, bounded_sentence};

use super::Supervisor;
use crate::clock::Moment;
use crate::pause::{Pause, Progress};
use crate::phase::Phase;
use crate::{processes, signals};

/// Maximum number of processes named in a message.
const NAMED: usize = 5;

impl Supervisor {
    pub(super) fn signal(&mut self, request: String, number: i32, target: Target, now: Moment) {
        let sent = match self.requests.is_done(&request) {
            true => return self.answer(request, None, now),
            false => self.signal_unless_paused(number, target),
        };
        self.conclude(request, sent, now);
    }

    fn signal_unless_paused(&self, number: i32, target: Target) -> Result<(), String> {
        match self.pause {
            // The program would run again, while agent and relay still report it as paused.
            Some(_) if number == libc::SIGCONT => Err("the process is paused: resume it instead".into()),
            _ => self.send_signal(number, target),
        }
    }

    pub(super) fn send_signal(&self, number: i32, target: Target) -> Result<(), String> {
        if !(1..=signals::LAST).contains(&number) {
            return Err(format!("{number} is not a signal"));
        }
        let pid = self.signalled_pid(target)?;
        let sent = match target {
            Target::Main => processes::signal_process(pid, number),
            Target::Group => processes::signal_group(pid, number),
            Target::All => self.scope.signal_all(number),
        };
        sent.map_err(|error| format!("cannot send signal {number}: {error}"))
    }

    fn signalled_pid(&self, target: Target) -> Result<u32, String> {
        match (&self.phase, self.program) {
            (Phase::Waiting, _) => Err("the program has not been started".into()),
            (Phase::Running, Some(program)) => Ok(program.pid),
            (Phase::Sweeping { .. }, Some(program)) if target != Target::Main && self.is_going_on() => Ok(program.pid),
            _ => Err("the program has ended".into()),
        }
    }

    pub(super) fn pause(&mut self, request: String, now: Moment) {
        if self.requests.is_done(&request) {
            return self.answer(request, None, now);
        }
        if let Err(why) = self.may_be_paused() {
            return self.answer(request, Some(why), now);
        }
        match &mut self.pause {
            Some(pause) if pause.is_complete() => self.conclude(request, Ok(()), now),
            Some(pause) => pause.waiting.push(request),
            None => {
                self.pause = Some(Pause::begin(request, now));
                self.look_for_running(now);
            }
        }
    }

    fn may_be_paused(&self) -> Result<(), String> {
        match &self.phase {
            Phase::Waiting => Err("the program has not been started".into()),
            _ if !self.is_going_on() => Err("the program has ended".into()),
            _ if self.stop.is_some() => Err("the process is being stopped".into()),
            _ => Ok(()),
        }
    }

    pub(super) fn resume(&mut self, request: String, now: Moment) {
        if !self.requests.is_done(&request) && self.pause.is_some() {
            processes::resume(self.sessions.shims());
            self.forget_pause("it was resumed meanwhile", now);
        }
        self.conclude(request, Ok(()), now);
    }

    /// Stops what runs, and answers when nothing runs anymore.
    pub(super) fn look_for_running(&mut self, now: Moment) {
        let Some(pause) = &mut self.pause else {
            return;
        };
        let running = processes::stop_running(&mut pause.signalled, self.sessions.shims());
        match pause.looked(!running.is_empty(), now) {
            Progress::Again => {}
            Progress::Complete => {
                if let Some(program) = &mut self.program {
                    program.clock.set_paused(true, now);
                }
                for request in std::mem::take(&mut pause.waiting) {
                    self.conclude(request, Ok(()), now);
                }
            }
            Progress::TimedOut => {
                processes::resume(self.sessions.shims());
                let named: Vec<String> = running.iter().take(NAMED).map(i32::to_string).collect();
                let why = format!("these processes could not be stopped: {}", named.join(", "));
                self.forget_pause(&why, now);
            }
        }
    }

    /// Ends the pause; requests that wait for it are told why.
    pub(super) fn forget_pause(&mut self, why: &str, now: Moment) {
        if let Some(program) = &mut self.program {
            program.clock.set_paused(false, now);
        }
        for request in self.pause.take().into_iter().flat_map(|pause| pause.waiting) {
            self.answer(request, Some(why.to_owned()), now);
        }
    }

    fn conclude(&mut self, request: String, result: Result<(), String>, now: Moment) {
        if result.is_ok() && !self.requests.is_done(&request) {
            self.requests.done(request.clone());
        }
        self.answer(request, result.err(), now);
    }

    fn answer(&mut self, request: String, error: Option<String>, now: Moment) {
        let error = error.map(bounded_sentence);
        self.send(FromEntrypoint::Done { request, error }, now);
    }
}
