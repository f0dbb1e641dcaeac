//! A minimal agent, and the entrypoint under it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use remoteprocess_entrypoint::input::{InputState, WindowSize};
use remoteprocess_entrypoint::message::{
    Exited, FromEntrypoint, Launch, Leftovers, PROTOCOL_VERSION, Resume, Secret, StopCause, Target, ToEntrypoint,
};
use remoteprocess_entrypoint::socket::{Connection, Listener};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::time::Timespec;

/// How long to wait for something that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const SECRET: Secret = Secret([42; 32]);

/// How the entrypoint runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As an ordinary process that adopts its orphans.
    Subreaper,
    /// As process 1 of a new PID namespace.
    Namespace,
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Everything that a thread reads from a descriptor up to its end.
pub(crate) struct Output(Receiver<Vec<u8>>);

impl Output {
    pub(crate) fn of(source: impl Into<OwnedFd>) -> Self {
        let (sender, receiver) = channel();
        let mut file = File::from(source.into());
        thread::spawn(move || {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let _ = sender.send(bytes);
        });
        Self(receiver)
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.recv_timeout(DEADLINE).expect("the end of the output in time")
    }

    pub(crate) fn text(self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }
}

/// The values of `Launch`, unless a test sets others.
pub(crate) struct Order {
    pub merge: bool,
    pub stop_grace: Duration,
    pub agent_lost: Duration,
    pub leftovers: Leftovers,
    pub run: Option<Duration>,
    pub pause_stops_clock: bool,
    pub stdin: bool,
    pub stdin_from_file: bool,
    pub terminal: Option<WindowSize>,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            merge: false,
            stop_grace: Duration::from_secs(60),
            agent_lost: Duration::from_secs(600),
            leftovers: Leftovers::Kill,
            run: None,
            pause_stops_clock: false,
            stdin: false,
            stdin_from_file: false,
            terminal: None,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap()
}

impl Order {
    pub(crate) fn message(&self) -> ToEntrypoint {
        ToEntrypoint::Launch(Launch {
            merge: self.merge,
            stop_signal: libc::SIGTERM,
            stop_grace_millis: millis(self.stop_grace),
            agent_lost_millis: millis(self.agent_lost),
            leftovers: self.leftovers,
            run_deadline: self.run,
            pause_stops_clock: self.pause_stops_clock,
            stdin: self.stdin,
            stdin_from_file: self.stdin_from_file,
            terminal: self.terminal,
        })
    }
}

/// An entrypoint and the place where it looks for its agent.
pub(crate) struct Entrypoint {
    pub directory: tempfile::TempDir,
    pub listener: Option<Listener>,
    child: Child,
}

impl Entrypoint {
    pub(crate) fn start(mode: Mode, command: &[&str]) -> Self {
        Self::configured(mode, &[], command, |_| {})
    }

    pub(crate) fn shell(mode: Mode, script: &str) -> Self {
        Self::start(mode, &["sh", "-c", script])
    }

    pub(crate) fn configured(
        mode: Mode,
        options: &[&str],
        command: &[&str],
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = Some(Listener::bind(&socket).unwrap());
        let mut run = under(mode, Path::new(env!("CARGO_BIN_EXE_entrypoint")));
        run.arg("--socket").arg(&socket);
        run.arg("--stdin-file").arg(directory.path().join("stdin"));
        run.args(options).arg("--").args(command);
        run.env("WORK", directory.path());
        run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        configure(&mut run);
        let child = run.spawn().unwrap();
        Self {
            directory,
            listener,
            child,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The container's own stdout and stderr, up to the end of the entrypoint.
    pub(crate) fn own_output(&mut self) -> (Output, Output) {
        let (out, error) = (self.child.stdout.take().unwrap(), self.child.stderr.take().unwrap());
        (Output::of(OwnedFd::from(out)), Output::of(OwnedFd::from(error)))
    }

    /// The container's own stdout and stderr as `/proc` names them.
    pub(crate) fn own_pipe_names(&self) -> [String; 2] {
        let (out, error) = (self.child.stdout.as_ref(), self.child.stderr.as_ref());
        [pipe_name(out.unwrap()), pipe_name(error.unwrap())]
    }

    pub(crate) fn listen_again(&mut self) {
        self.listener = Some(Listener::bind(&self.path("socket")).unwrap());
    }

    /// The next connection and its first message.
    pub(crate) fn accept(&self) -> Agent {
        let listener = self.listener.as_ref().unwrap();
        let mut asked = [PollFd::new(listener, PollFlags::IN)];
        let deadline = Timespec::try_from(DEADLINE).unwrap();
        assert_eq!(poll(&mut asked, Some(&deadline)), Ok(1), "a connection in time");
        let connection = listener.accept().unwrap();
        set_socket_timeout(&connection, Timeout::Recv, Some(DEADLINE)).unwrap();
        let mut agent = Agent {
            connection,
            resume: None,
            pid: 0,
            pipes: Vec::new(),
            first_input: None,
        };
        let FromEntrypoint::Hello { version, pid, resume } = agent.receive() else {
            panic!("the first packet is a Hello");
        };
        assert_eq!(version, PROTOCOL_VERSION);
        agent.resume = resume;
        agent.pid = pid;
        agent
    }

    pub(crate) fn welcome(&self) -> Agent {
        let agent = self.accept();
        agent.send(&ToEntrypoint::Welcome {
            version: PROTOCOL_VERSION,
            secret: SECRET,
        });
        agent
    }

    pub(crate) fn launch(&self) -> Agent {
        self.launch_as(&Order::default())
    }

    /// Accepts, launches, and receives the pipes.
    pub(crate) fn launch_as(&self, order: &Order) -> Agent {
        let mut agent = self.welcome();
        assert_eq!(agent.resume, None);
        agent.send(&order.message());
        agent.first_input = agent.launched();
        assert_eq!(agent.first_input.is_some(), order.stdin);
        let is_one = order.merge || order.terminal.is_some();
        assert_eq!(agent.pipes.len(), if is_one { 1 } else { 2 });
        agent
    }

    /// Accepts and launches what cannot be started.
    pub(crate) fn launch_what_cannot_start(&self) -> (Agent, Exited) {
        let mut agent = self.welcome();
        agent.send(&Order::default().message());
        let exited = agent.exited();
        (agent, exited)
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the end of the entrypoint", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn code(&mut self) -> i32 {
        self.wait().code().expect("a code")
    }
}

impl Drop for Entrypoint {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn under(mode: Mode, program: &Path) -> Command {
    match mode {
        Mode::Subreaper => {
            let mut command = Command::new(program);
            command.arg("--subreaper");
            command
        }
        Mode::Namespace => {
            let mut command = Command::new("unshare");
            if !rustix::process::geteuid().is_root() {
                command.args(["--user", "--map-root-user"]);
            }
            command
                .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
                .arg(program);
            command
        }
    }
}

/// One connection.
pub(crate) struct Agent {
    pub connection: Connection,
    pub resume: Option<Resume>,
    /// The entrypoint's process id in its own namespace.
    pub pid: u32,
    /// The descriptors of the last packets that had any.
    pub pipes: Vec<OwnedFd>,
    pub first_input: Option<InputState>,
}

impl Agent {
    pub(crate) fn send(&self, message: &ToEntrypoint) {
        self.connection.send(message, &[]).unwrap();
    }

    pub(crate) fn receive(&mut self) -> FromEntrypoint {
        let (message, descriptors) = self.connection.receive().unwrap().expect("a message");
        if !descriptors.is_empty() {
            self.pipes = descriptors;
        }
        message
    }

    /// Receives the launch; returns how far the input has come.
    pub(crate) fn launched(&mut self) -> Option<InputState> {
        match self.receive() {
            FromEntrypoint::Launched { input, .. } => input,
            other => panic!("not the launch: {other:?}"),
        }
    }

    /// The input state that came with the launch.
    pub(crate) fn first_input(&self) -> InputState {
        self.first_input.unwrap()
    }

    pub(crate) fn input(&mut self) -> InputState {
        match self.receive() {
            FromEntrypoint::Input(state) => state,
            other => panic!("not the input: {other:?}"),
        }
    }

    /// Sends bytes at their offset, as the program reads them.
    pub(crate) fn feed(&mut self, mut state: InputState, bytes: &[u8]) -> InputState {
        let end = state.offset + bytes.len() as u64;
        let begin = state.offset;
        while state.offset < end {
            while state.room == 0 {
                assert!(!state.is_over, "nobody reads");
                state = self.input();
            }
            let from = usize::try_from(state.offset - begin).unwrap();
            let to = bytes.len().min(from + state.room as usize);
            let (offset, bytes) = (state.offset, bytes[from..to].to_vec());
            self.send(&ToEntrypoint::Input { offset, bytes });
            state = self.input();
        }
        state
    }

    pub(crate) fn end_input(&mut self, offset: u64) {
        self.send(&ToEntrypoint::EndInput { offset });
        while !self.input().is_over {}
    }

    /// Whether the entrypoint disconnected; earlier messages do not matter.
    pub(crate) fn is_hung_up(&self) -> bool {
        while let Ok(Some(_)) = self.connection.receive::<FromEntrypoint>() {}
        matches!(self.connection.receive::<FromEntrypoint>(), Ok(None))
    }

    pub(crate) fn exited(&mut self) -> Exited {
        match self.receive() {
            FromEntrypoint::Exited(exited) => exited,
            other => panic!("not the exit: {other:?}"),
        }
    }

    /// The answer to a request.
    pub(crate) fn done(&mut self, request: &str) -> Option<String> {
        match self.receive() {
            FromEntrypoint::Done { request: done, error } if done == request => error,
            other => panic!("not the answer: {other:?}"),
        }
    }

    pub(crate) fn signal(&mut self, number: i32, target: Target) -> Option<String> {
        static REQUESTS: AtomicU32 = AtomicU32::new(0);
        let request = format!("signal {}", REQUESTS.fetch_add(1, Ordering::Relaxed));
        self.signal_as(&request, number, target)
    }

    pub(crate) fn signal_as(&mut self, request: &str, number: i32, target: Target) -> Option<String> {
        self.send(&ToEntrypoint::Signal {
            request: request.into(),
            number,
            target,
        });
        self.done(request)
    }

    pub(crate) fn pause(&mut self, request: &str, paused: bool) -> Option<String> {
        self.send(&ToEntrypoint::Pause {
            request: request.into(),
            paused,
        });
        self.done(request)
    }

    pub(crate) fn stop(&self, grace: Duration) {
        self.send(&ToEntrypoint::Stop {
            signal: libc::SIGTERM,
            grace_millis: millis(grace),
            cause: StopCause::Requested,
        });
    }

    /// The entrypoint's process id as this process sees it.
    pub(crate) fn peer(&self) -> i32 {
        socket_peercred(&self.connection).unwrap().pid.as_raw_nonzero().get()
    }

    pub(crate) fn send_signal_to_peer(&self, number: i32) {
        let pid = nix::unistd::Pid::from_raw(self.peer());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(number).unwrap()).unwrap();
    }

    /// How many bytes can be read from stdout now.
    pub(crate) fn pending(&self) -> usize {
        usize::try_from(rustix::io::ioctl_fionread(&self.pipes[0]).unwrap()).unwrap()
    }

    /// Reads from stdout up to and including this line.
    pub(crate) fn await_line(&self, line: &str) {
        let mut seen = Vec::new();
        let wanted = format!("{line}\n");
        while !seen.ends_with(wanted.as_bytes()) {
            let mut asked = [PollFd::new(&self.pipes[0], PollFlags::IN)];
            let deadline = Timespec::try_from(DEADLINE).unwrap();
            assert_eq!(poll(&mut asked, Some(&deadline)), Ok(1), "{line:?} in time");
            let mut byte = [0];
            let read = rustix::io::read(&self.pipes[0], &mut byte).unwrap();
            assert_eq!(read, 1, "{line:?} before the end");
            seen.push(byte[0]);
        }
    }

    /// Reads all output, receives the exit, and confirms it.
    pub(crate) fn finish(mut self) -> Finished {
        let mut outputs: Vec<Output> = self.pipes.drain(..).map(Output::of).collect();
        let exited = self.exited();
        let mut next = || {
            if outputs.is_empty() {
                Vec::new()
            } else {
                outputs.remove(0).bytes()
            }
        };
        let (stdout, stderr) = (next(), next());
        self.send(&ToEntrypoint::Recorded);
        Finished { stdout, stderr, exited }
    }
}

/// One whole run.
pub(crate) struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Exited,
}

impl Finished {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn stop(&self) -> Option<StopCause> {
        self.exited.stop
    }
}

/// Process ids and states of the children of a process.
pub(crate) fn children(parent: i32) -> Vec<(i32, char)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(')') else {
            continue;
        };
        let mut fields = tail.split_whitespace();
        let state = fields.next().and_then(|state| state.chars().next());
        if fields.next().and_then(|field| field.parse().ok()) == Some(parent) {
            let pid = head.split_whitespace().next().unwrap().parse().unwrap();
            found.push((pid, state.unwrap()));
        }
    }
    found
}

/// Whether the descriptor is at its end, that is: no process can write to it anymore.
pub(crate) fn is_at_end(pipe: &OwnedFd) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    asked[0].revents().contains(PollFlags::HUP)
}

/// A descriptor as `/proc/PID/fd` shows it.
pub(crate) fn pipe_name(descriptor: &impl AsFd) -> String {
    format!("pipe:[{}]", rustix::fs::fstat(descriptor).unwrap().st_ino)
}
