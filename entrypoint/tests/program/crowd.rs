//! Many processes, and how fast: reaped, terminated, killed. Debian's `tini` is the reference.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use remoteprocess_entrypoint::message::Outcome;
use rstest::rstest;

use crate::agent::{Entrypoint, Mode, children, eventually};

/// What must happen in time does so in one of four tries, because a busy machine delays everything.
fn in_time(attempt: impl Fn() -> (bool, String)) {
    let mut late = Vec::new();
    while late.len() < 4 {
        match attempt() {
            (true, _) => return,
            (false, when) => late.push(when),
        }
    }
    panic!("too late: {late:?}");
}

/// 500 grandchildren whose parents end before them, and which end when the file exists.
const ORPHANS: &str =
    "i=0; while [ $i -lt 500 ]; do ( (while [ ! -e $WORK/go ]; do sleep 0.3; done) & ); i=$((i+1)); done
    echo up; exec sleep 600";

#[rstest]
fn five_hundred_orphans_leave_no_zombie(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    in_time(|| time_of_zombies(mode));
}

fn time_of_zombies(mode: Mode) -> (bool, String) {
    let entrypoint = Entrypoint::shell(mode, ORPHANS);
    let agent = entrypoint.launch();
    agent.await_line("up");
    let orphans = || children(agent.peer()).len() - 1;
    eventually("all are adopted", || orphans() >= 500);
    std::fs::write(entrypoint.path("go"), "").unwrap();
    eventually("all have ended", || {
        children(agent.peer()).iter().filter(|(_, state)| *state != 'Z').count() == 1
    });
    let ended = Instant::now();
    eventually("none is left", || orphans() == 0);
    let elapsed = ended.elapsed();
    agent.stop(Duration::from_secs(60));
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGTERM));
    (elapsed < Duration::from_secs(1), format!("{elapsed:?}"))
}

/// Seconds since the machine started; shells can read them as well without starting a process.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// The members of a group print when TERM arrived, to a hundredth of a second.
#[rstest]
fn term_reaches_the_whole_group_within_a_tenth_of_a_second(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    in_time(|| time_of_term(mode));
}

fn time_of_term(mode: Mode) -> (bool, String) {
    let script = "i=0; while [ $i -lt 20 ]; do
            sh -c 'trap \"read up idle < /proc/uptime; echo \\$up; exit\" TERM; echo x >> $WORK/up
                while :; do read line; done < $WORK/never' &
            i=$((i+1))
        done; wait";
    let entrypoint = Entrypoint::shell(mode, script);
    // Nothing writes to it: readers wait without a child that would have to end first.
    let made = Command::new("mkfifo").arg(entrypoint.path("never")).status().unwrap();
    assert!(made.success());
    let agent = entrypoint.launch();
    let _held = std::fs::File::options()
        .read(true)
        .write(true)
        .open(entrypoint.path("never"))
        .unwrap();
    let up = entrypoint.path("up");
    eventually("all are there", || {
        std::fs::read_to_string(&up).is_ok_and(|text| text.lines().count() == 20)
    });
    let sent = uptime();
    agent.stop(Duration::from_secs(60));
    let finished = agent.finish();
    let times: Vec<f64> = finished.text().lines().map(|line| line.parse().unwrap()).collect();
    let last = times.iter().copied().fold(0.0, f64::max);
    assert_eq!(times.len(), 20);
    (last - sent <= 0.1, format!("{} s", last - sent))
}

#[rstest]
fn kill_comes_at_the_grace(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    in_time(|| time_of_kill(mode));
}

fn time_of_kill(mode: Mode) -> (bool, String) {
    let script =
        "trap '' TERM; sh -c \"trap '' TERM; echo up; while :; do sleep 0.02; done\" & wait; while :; do sleep 1; done";
    let entrypoint = Entrypoint::shell(mode, script);
    let agent = entrypoint.launch();
    agent.await_line("up");
    let start = Instant::now();
    agent.stop(Duration::from_secs(2));
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGKILL));
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(2), "{elapsed:?}");
    (elapsed < Duration::from_millis(2500), format!("{elapsed:?}"))
}

/// Exit code of the same script under both, each as process 1 of a namespace of its own.
fn codes(script: &str) -> (i32, i32) {
    let mut tini = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        tini.args(["--user", "--map-root-user"]);
    }
    tini.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "tini",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let theirs = tini.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let mut entrypoint = Entrypoint::shell(Mode::Namespace, script);
    entrypoint.launch().finish();
    (entrypoint.code(), theirs.code().unwrap())
}

#[test]
fn endings_are_those_of_tini() {
    if !Path::new("/usr/bin/tini").exists() {
        println!("SKIPPED: no tini here (apt-get install tini)");
        return;
    }
    let orphans = "i=0; while [ $i -lt 100 ]; do (sh -c 'exit 1' &); i=$((i+1)); done; sleep 0.3
        test \"$(ps -o stat= | grep -c Z)\" = 0 && exit 21; exit 22";
    for script in [
        "exit 0",
        "exit 1",
        "exit 126",
        "exit 127",
        "exit 255",
        "kill -HUP $$",
        "kill -INT $$",
        "kill -KILL $$",
        "kill -USR1 $$",
        "kill -SEGV $$",
        "kill -TERM $$",
        "kill -TERM 1; sleep 60",
        "(sleep 60 &) ; exit 3",
        orphans,
    ] {
        let (ours, theirs) = codes(script);
        assert_eq!(ours, theirs, "{script}");
    }
}
