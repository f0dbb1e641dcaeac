//! A terminal in raw mode is restored in every case: detach keys, signals, a panic, an abrupt end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures::FutureExt;
use remoteprocess_cli::command::exec::until_end;
use remoteprocess_cli::command::follow::Signals;
use remoteprocess_cli::interact::{DEFAULT_DETACH_KEYS, Event, Interaction, Manner};
use remoteprocess_cli::output::{Control, Output, Target};
use remoteprocess_cli::progress::Messages;
use remoteprocess_client::exec::{Exec, Over};
use remoteprocess_client::stream::Local;
use remoteprocess_client::{Dial, DialError};
use remoteprocess_proto::v1::{ExecOpen, ProcessKey};
use rstest::rstest;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, tcgetattr, tcsetattr};
use tonic::transport::Channel;

const MODE: &str = "RPROC_TEST_WAY_OUT";
const DEADLINE: Duration = Duration::from_secs(30);

/// There is no relay; the terminal is restored nevertheless.
struct Nowhere;

impl Dial for Nowhere {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        Err(DialError::Unreachable("nobody is there".to_owned()))
    }

    fn discredit(&mut self) {}
}

/// Not a test by itself: the program that the tests run at a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn program() {
    let Ok(mode) = std::env::var(MODE) else { return };
    if mode == "input" {
        read_input().await;
    }
    let mut signals = Signals::listen().unwrap();
    if mode == "exec" {
        run_command(signals).await;
    }
    let manner = Manner {
        tty: true,
        detach_keys: DEFAULT_DETACH_KEYS.parse().unwrap(),
        take_over: false,
        redraw: true,
    };
    let mut interaction = Interaction::start(Nowhere, ProcessKey::default(), manner).unwrap();
    assert!(interaction.is_raw());
    if mode == "panic" {
        let _ = std::panic::catch_unwind(|| panic!("on purpose"));
        // As if a panic aborts: nothing is dropped.
        std::process::abort();
    }
    if mode == "drop" {
        drop(interaction);
        std::process::exit(3);
    }
    let code = tokio::select! {
        event = interaction.next() => match event {
            Event::Detached => 0,
            Event::Interrupted => 130,
            Event::Lost(_) => 125,
        },
        number = signals.next() => 128 + i32::from(number),
    };
    interaction.leave().await;
    std::process::exit(code);
}

/// Reads standard input as every command does, and reports the result.
async fn read_input() -> ! {
    let (mut interaction, mut said) = Interaction::read(None).unwrap();
    let mut total = 0;
    while let Some(Local::Bytes(bytes)) = said.recv().await {
        total += bytes.len();
    }
    // It is reported before the end.
    let is_lost = interaction.next().now_or_never().is_some();
    eprintln!("total={total} lost={is_lost}");
    std::process::exit(0);
}

/// As `rproc exec -it`.
async fn run_command(signals: Signals) -> ! {
    let sink = || Target::descriptor(std::io::stdout().as_fd(), Control::Watched).unwrap();
    let output = Output::new(sink(), sink());
    let exec = Exec::new(
        Nowhere,
        ExecOpen::default(),
        output.clone(),
        Messages::new("job", true, &output),
    );
    let code = match until_end(exec, (true, true), signals).await {
        Ok(Ok((Over::Left { is_told: false }, code))) => code,
        other => panic!("{other:?}"),
    };
    std::process::exit(code.into());
}

/// Whether the terminal has whole lines, echo, keys that send signals, and new lines as lines.
fn is_cooked(terminal: &OwnedFd) -> bool {
    let modes = tcgetattr(terminal).unwrap();
    let local = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    modes.local_modes.contains(local) && modes.output_modes.contains(OutputModes::OPOST)
}

struct Terminal {
    master: OwnedFd,
    child: Child,
}

impl Terminal {
    fn run(mode: &str) -> Self {
        Self::run_by(&[], mode)
    }

    /// Runs it through these words, as `nohup` or a shell would.
    fn run_by(words: &[&str], mode: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        assert!(is_cooked(&master));
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = || ioctl_tiocgptpeer(&master, flags).unwrap();
        let this = std::env::current_exe().unwrap();
        let mut command = Command::new(words.first().map_or(this.as_os_str(), OsStr::new));
        if !words.is_empty() {
            command.args(&words[1..]).arg(&this);
        }
        let child = command
            .args(["--exact", "program", "--nocapture", "--test-threads=1"])
            .env(MODE, mode)
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        Self { master, child }
    }

    fn is_cooked(&self) -> bool {
        is_cooked(&self.master)
    }

    fn wait_until_raw(&self) {
        let end = Instant::now() + DEADLINE;
        while self.is_cooked() {
            assert!(Instant::now() < end, "it does not become raw");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn wait_until_stopped(&self) {
        let end = Instant::now() + DEADLINE;
        let stat = format!("/proc/{}/stat", self.child.id());
        // The state follows the name (proc_pid_stat(5)).
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            assert!(Instant::now() < end, "it does not stop");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn types(&self, bytes: &[u8]) {
        rustix::io::write(&self.master, bytes).unwrap();
    }

    fn ends(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_detach_keys_leave() {
    let mut terminal = Terminal::run("wait");
    terminal.wait_until_raw();
    // The first Ctrl-P is not part of the sequence.
    terminal.types(b"ls\r\x10x\x10\x11");
    assert_eq!(terminal.ends().code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn ctrl_c_is_ours_until_there_is_a_process() {
    let mut terminal = Terminal::run("wait");
    terminal.wait_until_raw();
    terminal.types(b"\x03");
    assert_eq!(terminal.ends().code(), Some(130));
    assert!(terminal.is_cooked());
}

#[test]
fn ctrl_c_leaves_a_command_that_cannot_be_reached() {
    let mut terminal = Terminal::run("exec");
    terminal.wait_until_raw();
    // These keys are for the command.
    terminal.types(b"ls\r\x10\x11");
    terminal.types(b"\x03");
    assert_eq!(terminal.ends().code(), Some(130));
    assert!(terminal.is_cooked());
}

#[rstest]
#[case(Signal::INT, 130)]
#[case(Signal::TERM, 143)]
#[case(Signal::HUP, 129)]
fn a_signal_leaves(#[values("wait", "exec")] mode: &str, #[case] signal: Signal, #[case] code: i32) {
    let mut terminal = Terminal::run(mode);
    terminal.wait_until_raw();
    kill_process(Pid::from_child(&terminal.child), signal).unwrap();
    assert_eq!(terminal.ends().code(), Some(code));
    assert!(terminal.is_cooked());
}

#[rstest]
#[case(Signal::HUP, "HUP")]
#[case(Signal::INT, "INT")]
#[case(Signal::TERM, "TERM")]
fn nohup_and_a_script_in_the_background_keep_it_going(#[case] signal: Signal, #[case] name: &str) {
    let trap = format!("trap '' {name}; exec \"$0\" \"$@\"");
    let mut terminal = Terminal::run_by(&["sh", "-c", &trap], "wait");
    terminal.wait_until_raw();
    kill_process(Pid::from_child(&terminal.child), signal).unwrap();
    terminal.types(b"\x10\x11");
    assert_eq!(terminal.ends().code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn after_fg_the_terminal_is_raw_again() {
    let mut terminal = Terminal::run("wait");
    let cooked = tcgetattr(&terminal.master).unwrap();
    let pid = Pid::from_child(&terminal.child);
    terminal.wait_until_raw();
    kill_process(pid, Signal::TSTP).unwrap();
    terminal.wait_until_stopped();
    assert!(terminal.is_cooked(), "the shell has its terminal");
    kill_process(pid, Signal::CONT).unwrap();
    terminal.wait_until_raw();
    // Stopped by SIGSTOP, and a shell that sets the terminal itself.
    kill_process(pid, Signal::STOP).unwrap();
    terminal.wait_until_stopped();
    tcsetattr(&terminal.master, OptionalActions::Now, &cooked).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    terminal.wait_until_raw();
    terminal.types(b"\x10\x11");
    assert_eq!(terminal.ends().code(), Some(0));
    assert!(terminal.is_cooked());
}

/// A program that runs `read_input` with this input.
fn reads(input: impl Into<Stdio>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--nocapture", "--test-threads=1"])
        .env(MODE, "input")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn said(child: Child) -> String {
    String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
}

#[test]
fn a_pipe_that_a_neighbor_left_non_blocking_is_read_to_its_end() {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setfl(&read, fcntl_getfl(&read).unwrap() | OFlags::NONBLOCK).unwrap();
    let child = reads(read.try_clone().unwrap());
    let end = Instant::now() + DEADLINE;
    for _ in 0..5 {
        rustix::io::write(&write, &[b'x'; 1000]).unwrap();
        // The next read finds nothing.
        while rustix::io::ioctl_fionread(&read).unwrap() > 0 {
            assert!(Instant::now() < end, "nobody reads it");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    drop(write);
    let said = said(child);
    assert!(said.contains("total=5000 lost=false"), "{said}");
}

#[test]
fn an_input_that_cannot_be_read_is_not_taken_for_its_end() {
    let said = said(reads(File::open("/").unwrap()));
    assert!(said.contains("total=0 lost=true"), "{said}");
}

#[test]
fn a_panic_that_ends_the_program_leaves_nothing_behind() {
    let mut terminal = Terminal::run("panic");
    assert_eq!(terminal.ends().signal(), Some(6));
    assert!(terminal.is_cooked());
}

#[test]
fn an_end_without_a_word_leaves_nothing_behind() {
    let mut terminal = Terminal::run("drop");
    assert_eq!(terminal.ends().code(), Some(3));
    assert!(terminal.is_cooked());
}
