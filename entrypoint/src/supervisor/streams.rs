//! The program's input and output, as far as this process handles them.

use std::os::fd::OwnedFd;

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::message::{FromEntrypoint, Launch, Outcome};
use rustix::io::fcntl_dupfd_cloexec;

use super::Supervisor;
use crate::clock::Moment;
use crate::launch::{self, ChildStdio};
use crate::stdin::Stdin;
use crate::stdin_file;
use crate::terminal::Terminal;

impl Supervisor {
    /// Starts the program with the requested streams.
    pub(super) fn start(&mut self, order: &Launch) -> Result<u32, Outcome> {
        let file = self.open_stdin_file(order)?;
        let stdio = self
            .open_streams(order, file)
            .map_err(|error| launch::no_pipes(&self.arguments.command, &error))?;
        launch::start(&self.arguments.command, stdio)
    }

    fn open_stdin_file(&self, order: &Launch) -> Result<Option<OwnedFd>, Outcome> {
        let path = &self.arguments.stdin_file;
        let file = order.stdin_from_file.then(|| stdin_file::open(path)).transpose();
        file.map_err(|error| launch::no_input(&self.arguments.command, path, &error))
    }

    fn open_streams(&mut self, order: &Launch, file: Option<OwnedFd>) -> std::io::Result<ChildStdio> {
        if let Some(size) = order.terminal {
            let (terminal, output) = Terminal::open(self.window.unwrap_or(size))?;
            self.pipes = vec![output];
            if order.stdin {
                self.stdin = Some(terminal.stdin()?);
            }
            let slave = terminal
                .slave()
                .map(|slave| fcntl_dupfd_cloexec(slave, 3))
                .transpose()?;
            self.terminal = Some(terminal);
            return Ok(slave.map_or(ChildStdio::Inherited, ChildStdio::Terminal));
        }
        self.pipes = self.stdio.redirect(order.merge)?;
        if let Some(file) = file {
            return Ok(ChildStdio::Input(file));
        }
        if !order.stdin {
            return Ok(ChildStdio::Inherited);
        }
        let (stdin, read) = Stdin::pipe()?;
        self.stdin = Some(stdin);
        Ok(ChildStdio::Input(read))
    }

    /// Writes input that waits, and moves a terminal's output.
    pub(super) fn move_streams(&mut self, now: Moment) {
        self.change_input(now, false, Stdin::write);
        if let Some(terminal) = &mut self.terminal {
            terminal.pump();
        }
    }

    pub(super) fn take_input(&mut self, offset: u64, bytes: &[u8], now: Moment) {
        self.change_input(now, true, |stdin| stdin.take(offset, bytes));
    }

    pub(super) fn end_input(&mut self, offset: u64, now: Moment) {
        self.change_input(now, true, |stdin| stdin.end(offset));
    }

    /// Tells the agent what has changed; with `is_asked`, also if nothing has.
    fn change_input(&mut self, now: Moment, is_asked: bool, change: impl FnOnce(&mut Stdin)) {
        let stdin = self.stdin.as_mut();
        if let Some(state) = stdin.and_then(|stdin| stdin.changed_by(is_asked, change)) {
            self.send(FromEntrypoint::Input(state), now);
        }
    }

    /// Also works before the launch: then for the terminal that will be created.
    pub(super) fn resize(&mut self, size: WindowSize) {
        self.window = Some(size);
        if let Some(terminal) = &self.terminal {
            terminal.resize(size);
        }
    }

    /// Nothing of the program is left: output that is already written still moves, no input goes in.
    pub(super) fn close_streams(&mut self) {
        self.stdio.restore();
        if let Some(stdin) = &mut self.stdin {
            stdin.close();
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.close();
        }
    }

    /// The program was never started.
    pub(super) fn drop_streams(&mut self) {
        self.pipes.clear();
        self.stdin = None;
        self.terminal = None;
    }
}
