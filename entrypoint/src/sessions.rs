//! The sessions of this run: their streams, their shims, their ends.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;
use std::time::Duration;

use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_entrypoint::message::{Outcome, bounded_sentence};
use remoteprocess_entrypoint::session::{Command, News};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::clock::Moment;
use crate::processes;
use crate::requests::Requests;
use crate::shim::{Kept, read_report};
use crate::stdin::{Stdin, set_nonblocking};
use crate::terminal::Terminal;

/// Time between SIGHUP and SIGKILL for a session that was closed.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// One session.
struct Session {
    name: String,
    shim: u32,
    /// Where its shim writes how the command ended.
    report: OwnedFd,
    reported: Vec<u8>,
    stdin: Option<Stdin>,
    terminal: Option<Terminal>,
    has_ended: bool,
    is_hung_up: bool,
    is_closed: bool,
    kill_at: Option<Moment>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Vec<Session>,
    /// Shims outlive their sessions, as long as any process of the session is left.
    shims: Vec<u32>,
    begun: Requests,
}

impl Sessions {
    /// Starts a session. Returns how far its input has come, and the read ends of its output.
    ///
    /// # Errors
    /// What to report instead.
    pub(crate) fn start(&mut self, name: &str, command: Command) -> Result<(InputState, Vec<OwnedFd>), News> {
        if self.begun.is_done(name) {
            let why = "this session was started before, and the agent that knew it is gone";
            return Err(News::Refused(why.into()));
        }
        self.begun.done(name.to_owned());
        let words: Vec<OsString> = command.words.into_iter().map(|word| string(word.into_vec())).collect();
        let Some(program) = words.first().cloned() else {
            return Err(News::Refused("there is no command".into()));
        };
        let environment = command.environment.into_iter();
        let environment = environment.map(|(name, value)| (string(name.into_vec()), string(value.into_vec())));
        let kept = Kept {
            words,
            directory: string(command.directory.unwrap_or_default().into_vec()),
            is_at_terminal: command.terminal.is_some(),
        };
        let begun = begin(name, &kept, environment, command.stdin, command.terminal);
        let (session, outputs) = begun.map_err(|error| {
            let message = bounded_sentence(format!("cannot start {program:?}: {error}"));
            News::Ended(Outcome::NotExecutable { message })
        })?;
        self.shims.push(session.shim);
        let input = session.stdin.as_ref().map_or(NO_INPUT, Stdin::state);
        self.open.push(session);
        Ok((input, outputs))
    }

    /// Passes input, or its end, to a session; returns how far it has come.
    pub(crate) fn change_input(&mut self, name: &str, change: impl FnOnce(&mut Stdin)) -> Option<InputState> {
        self.find(name)?.stdin.as_mut()?.changed_by(true, change)
    }

    /// Changes the size of a session's terminal.
    pub(crate) fn resize(&mut self, name: &str, size: WindowSize) {
        if let Some(terminal) = self.find(name).and_then(|session| session.terminal.as_ref()) {
            terminal.resize(size);
        }
    }

    /// Closes a session that no client wants anymore.
    pub(crate) fn close(&mut self, name: &str, now: Moment) {
        if let Some(session) = self.find(name) {
            session.close(now);
        }
        self.forget();
    }

    /// Closes all sessions.
    pub(crate) fn close_all(&mut self, now: Moment) {
        self.open.iter_mut().for_each(|session| session.close(now));
        self.forget();
    }

    /// Hangs up all sessions, because the program has ended. Their streams stay open for their last output.
    pub(crate) fn hang_up(&mut self) {
        self.open.iter_mut().for_each(Session::hang_up);
    }

    /// Moves streams and reads the reports of shims; returns the news, with the sessions' names.
    pub(crate) fn turn(&mut self) -> Vec<(String, News)> {
        let mut news = Vec::new();
        for session in &mut self.open {
            let input = session
                .stdin
                .as_mut()
                .and_then(|stdin| stdin.changed_by(false, Stdin::write));
            if let Some(terminal) = &mut session.terminal {
                terminal.pump();
            }
            let ended = session.hear();
            if !session.is_closed {
                let name = || session.name.clone();
                news.extend(input.map(|state| (name(), News::Input(state))));
                news.extend(ended.map(|outcome| (name(), News::Ended(outcome))));
            }
        }
        self.forget();
        news
    }

    /// Acts on what is due.
    pub(crate) fn act_on_time(&mut self, now: Moment) {
        for session in &mut self.open {
            if session.kill_at.take_if(|at| now >= *at).is_some() {
                // A process that cannot be signalled ends with PID 1.
                let _ = processes::signal_under(session.shim, libc::SIGKILL);
            }
        }
    }

    /// When something is due.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.open.iter().filter_map(|session| session.kill_at).min()
    }

    /// What to poll.
    pub(crate) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let mut asked = Vec::new();
        for session in &self.open {
            if !session.has_ended {
                asked.push(PollFd::new(&session.report, PollFlags::IN));
            }
            asked.extend(session.stdin.as_ref().and_then(Stdin::poll_fd));
            asked.extend(session.terminal.as_ref().and_then(Terminal::poll_fd));
        }
        asked
    }

    /// The processes below which everything is that sessions have started, and nothing else.
    pub(crate) fn shims(&self) -> &[u32] {
        &self.shims
    }

    /// A child of this process has ended; returns true if it was a shim.
    pub(crate) fn has_ended(&mut self, pid: u32) -> bool {
        let before = self.shims.len();
        self.shims.retain(|shim| *shim != pid);
        self.shims.len() < before
    }

    fn find(&mut self, name: &str) -> Option<&mut Session> {
        self.open.iter_mut().find(|session| session.name == name)
    }

    fn forget(&mut self) {
        self.open.retain(|session| !(session.is_closed && session.has_ended));
    }
}

/// The state of a session without input.
const NO_INPUT: InputState = InputState {
    offset: 0,
    room: 0,
    is_over: true,
};

fn string(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}

fn begin(
    name: &str,
    kept: &Kept,
    environment: impl Iterator<Item = (OsString, OsString)>,
    takes_input: bool,
    size: Option<WindowSize>,
) -> io::Result<(Session, Vec<OwnedFd>)> {
    let (report, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&report)?;
    let mut shim = kept.shim(theirs);
    shim.envs(environment);
    let (mut stdin, mut terminal, mut outputs) = (None, None, Vec::new());
    if let Some(size) = size {
        let (opened, output) = Terminal::open(size)?;
        let slave = || {
            opened
                .slave()
                .map(|slave| slave.as_fd().try_clone_to_owned())
                .transpose()
        };
        for set in [
            std::process::Command::stdin,
            std::process::Command::stdout,
            std::process::Command::stderr,
        ] {
            set(&mut shim, slave()?.map_or_else(Stdio::null, Stdio::from));
        }
        stdin = takes_input.then(|| opened.stdin()).transpose()?;
        terminal = Some(opened);
        outputs.push(output);
    } else {
        if takes_input {
            let (write, read) = Stdin::pipe()?;
            shim.stdin(read);
            stdin = Some(write);
        }
        for set in [std::process::Command::stdout, std::process::Command::stderr] {
            let (read, write) = crate::stdio::pipe()?;
            set(&mut shim, Stdio::from(write));
            outputs.push(read);
        }
    }
    let shim = shim.spawn()?.id();
    let session = Session {
        name: name.to_owned(),
        shim,
        report,
        reported: Vec::new(),
        stdin,
        terminal,
        has_ended: false,
        is_hung_up: false,
        is_closed: false,
        kill_at: None,
    };
    Ok((session, outputs))
}

impl Session {
    fn hang_up(&mut self) {
        if !self.has_ended && !std::mem::replace(&mut self.is_hung_up, true) {
            processes::hang_up_under(self.shim);
        }
    }

    fn close(&mut self, now: Moment) {
        self.hang_up();
        self.is_closed = true;
        (self.stdin, self.terminal) = (None, None);
        if !self.has_ended {
            self.kill_at.get_or_insert(now + HANG_UP_GRACE);
        }
    }

    /// How the command ended; returned once.
    fn hear(&mut self) -> Option<Outcome> {
        while !self.has_ended {
            self.reported.reserve(1024);
            match rustix::io::read(&self.report, spare_capacity(&mut self.reported)) {
                Ok(0) => self.has_ended = true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => self.has_ended = true,
            }
            if self.has_ended {
                self.end_streams();
                return Some(read_report(&self.reported));
            }
        }
        None
    }

    /// Closes the input; output that is already written still moves.
    fn end_streams(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.close();
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.close();
        }
    }
}
