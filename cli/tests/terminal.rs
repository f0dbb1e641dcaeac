//! A terminal in raw mode is as it was on every way out: detach keys, signals, a panic, an end without a word.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use remoteprocess_cli::command::exec::{Ended, until_end};
use remoteprocess_cli::command::live::Signals;
use remoteprocess_cli::follow::{Dial, DialError, Narrator};
use remoteprocess_cli::interact::{DEFAULT_DETACH_KEYS, Event, Exec, Interaction, Manner};
use remoteprocess_cli::output::{Output, Sink};
use remoteprocess_proto::v1::{ExecOpen, ProcessKey};
use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};
use tonic::transport::Channel;

const MODE: &str = "RPROC_TEST_WAY_OUT";
const DEADLINE: Duration = Duration::from_secs(30);

/// There is no relay: the terminal is restored all the same.
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
        // As where a panic aborts: nothing is dropped.
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

/// As `rproc exec -it`.
async fn run_command(signals: Signals) -> ! {
    let sink = || Sink::descriptor(std::io::stdout().as_fd(), true).unwrap();
    let output = Output::new(sink(), sink());
    let exec = Exec::new(Nowhere, ExecOpen::default(), &output, Narrator::new("job", true));
    let code = match until_end(exec, (true, true), signals).await {
        Ok(Ended::Left(code, false)) => code,
        other => panic!("{other:?}"),
    };
    std::process::exit(code.into());
}

struct Terminal {
    master: OwnedFd,
    child: Child,
}

impl Terminal {
    fn run(mode: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = || ioctl_tiocgptpeer(&master, flags).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "program", "--nocapture", "--test-threads=1"])
            .env(MODE, mode)
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        let terminal = Self { master, child };
        assert!(terminal.is_cooked() || mode == "panic" || mode == "drop");
        terminal
    }

    /// Whole lines, echo, keys that send signals, and new lines as lines.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.master).unwrap();
        let local = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        modes.local_modes.contains(local) && modes.output_modes.contains(OutputModes::OPOST)
    }

    fn wait_until_raw(&self) {
        let end = Instant::now() + DEADLINE;
        while self.is_cooked() {
            assert!(Instant::now() < end, "it does not become raw");
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
    // The first Ctrl-P is none of the two.
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
    // These are for the command.
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
