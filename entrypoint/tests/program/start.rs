//! What is started, how, and which message is reported if it cannot be.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use remoteprocess_entrypoint::message::{Outcome, ToEntrypoint};
use rstest::rstest;

use crate::agent::{Entrypoint, Mode, Order, pipe_name};

#[rstest]
fn the_exit_code_is_the_program_s(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
    #[values(0, 7, 255)] code: i32,
) {
    let mut entrypoint = Entrypoint::shell(mode, &format!("exit {code}"));
    let agent = entrypoint.launch();
    if mode == Mode::Namespace {
        assert_eq!(agent.pid, 1);
    }
    let finished = agent.finish();
    assert_eq!(finished.exited.outcome, Outcome::Code(code));
    assert_eq!((finished.exited.leftovers, finished.stop()), (0, None));
    assert_eq!(entrypoint.code(), code);
}

#[rstest]
fn a_signal_is_distinguished_from_a_code(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
    #[values(libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV)] number: i32,
) {
    let mut entrypoint = Entrypoint::shell(mode, &format!("kill -{number} $$"));
    let finished = entrypoint.launch().finish();
    assert_eq!(finished.exited.outcome, Outcome::Signal(number));
    assert_eq!(entrypoint.code(), 128 + number);
}

fn refused(command: &str, prepare: impl FnOnce(&Entrypoint)) -> (Outcome, i32) {
    let mut entrypoint = Entrypoint::start(Mode::Subreaper, &[command]);
    prepare(&entrypoint);
    let (agent, exited) = entrypoint.launch_what_cannot_start();
    assert!(agent.pipes.is_empty());
    agent.send(&ToEntrypoint::Recorded);
    (exited.outcome, entrypoint.code())
}

#[test]
fn a_program_that_is_not_there_is_not_found() {
    let (outcome, code) = refused("no-such-program", |_| {});
    let Outcome::NotFound { message } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(message.starts_with("cannot start \"no-such-program\": not found in PATH ("));
    assert_eq!(code, 127);
    let (outcome, code) = refused("/no/such/program", |_| {});
    let Outcome::NotFound { message } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(message, "cannot start \"/no/such/program\": no such file");
    assert_eq!(code, 127);
}

#[test]
fn a_directory_is_not_executable() {
    let (outcome, code) = refused("/tmp", |_| {});
    let message = "cannot start \"/tmp\": it is a directory".to_owned();
    assert_eq!((outcome, code), (Outcome::NotExecutable { message }, 126));
}

#[rstest]
#[case(0o644, "#!/bin/sh\n", 126, "not executable (mode 0644)")]
#[case(0o755, "echo hello\n", 126, "a script needs a first line such as #!/bin/sh")]
#[case(0o755, "", 126, "it is empty")]
#[case(0o755, "#!/no/interpreter -e\n", 127, "interpreter \"/no/interpreter\" is missing")]
#[case(0o755, "#!/bin/sh\r\n", 127, "ends with a carriage return")]
fn the_sentence_says_what_is_wrong_with_a_file(
    #[case] mode: u32,
    #[case] content: &str,
    #[case] expected_code: i32,
    #[case] sentence: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tool");
    fs::write(&file, content).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    let (outcome, code) = refused(file.to_str().unwrap(), |_| {});
    let (Outcome::NotFound { message } | Outcome::NotExecutable { message }) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(message.contains(sentence), "{message}");
    assert_eq!(code, expected_code);
}

#[rstest]
fn the_program_starts_clean(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    // The shell itself reads it: it blocks signals while it starts another program.
    let script = "echo $0 $1; while read -r name value; do \
                  case $name in SigBlk:|SigIgn:) echo $name $value;; esac; \
                  done < /proc/$$/status; \
                  cut -d' ' -f1,5 /proc/$$/stat; echo \"$WORK $MINE\"; pwd";
    let command = ["dash", "-c", script, "zero", "-x"];
    let directory = tempfile::tempdir().unwrap();
    let entrypoint = Entrypoint::configured(mode, &[], &command, |command| {
        command.env("MINE", "a b").current_dir(directory.path());
    });
    let finished = entrypoint.launch().finish();
    let lines: Vec<&str> = finished.text().lines().collect();
    assert_eq!(lines[0], "zero -x");
    assert_eq!(signals(lines[1], "SigBlk: "), 0);
    assert_eq!(signals(lines[2], "SigIgn: "), 0);
    let (pid, group) = lines[3].split_once(' ').unwrap();
    assert_eq!(pid, group, "leads its group");
    assert_eq!(lines[4], format!("{} a b", entrypoint.directory.path().display()));
    assert_eq!(lines[5], directory.path().to_str().unwrap());
}

/// Without the signals that belong to the C library, which a program cannot change.
fn signals(line: &str, name: &str) -> u64 {
    let mask = u64::from_str_radix(line.strip_prefix(name).unwrap(), 16).unwrap();
    mask & !(0b111 << 31)
}

#[rstest]
fn the_program_gets_the_pipes_and_no_other_descriptor_of_the_entrypoint(
    #[values(Mode::Subreaper, Mode::Namespace)] mode: Mode,
) {
    let entrypoint = Entrypoint::shell(mode, "readlink /proc/$$/fd/*");
    let own = entrypoint.own_pipe_names();
    let agent = entrypoint.launch();
    let pipes: Vec<String> = agent.pipes.iter().map(pipe_name).collect();
    let finished = agent.finish();
    let open: Vec<&str> = finished.text().lines().collect();
    assert!(
        own.iter().all(|pipe| !open.contains(&pipe.as_str())),
        "{own:?} in {open:?}"
    );
    for pipe in &pipes {
        assert_eq!(
            open.iter().filter(|name| *name == pipe).count(),
            1,
            "{pipe} in {open:?}"
        );
    }
    assert!(
        !open.iter().any(|name| name.starts_with("anon_inode:[signalfd")),
        "{open:?}"
    );
}

#[rstest]
fn a_launch_after_a_launch_runs_nothing(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let mut entrypoint = Entrypoint::shell(mode, "echo run >> $WORK/runs; echo up; sleep 60");
    let agent = entrypoint.launch();
    agent.await_line("up");
    let launch = Order::default().message();
    agent.send(&launch);
    agent.send(&launch);
    agent.stop(Duration::from_secs(60));
    let mut agent = agent;
    let exited = agent.exited();
    assert_eq!(exited.outcome, Outcome::Signal(libc::SIGTERM));
    agent.send(&launch);
    agent.send(&ToEntrypoint::Recorded);
    assert_eq!(entrypoint.code(), 143);
    assert_eq!(fs::read_to_string(entrypoint.path("runs")).unwrap(), "run\n");
}

#[test]
fn a_process_other_than_1_refuses() {
    let program = env!("CARGO_BIN_EXE_entrypoint");
    let output = std::process::Command::new(program)
        .args(["--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("NotPID1: must be process 1")
    );
}

#[rstest]
fn without_an_agent_it_gives_up(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let options = ["--agent-wait-millis", "200"];
    let mut entrypoint = Entrypoint::configured(mode, &options, &["sh", "-c", "echo run >> $WORK/runs"], |_| {});
    entrypoint.listener = None;
    let (_, stderr) = entrypoint.own_output();
    assert_eq!(entrypoint.code(), 125);
    assert!(stderr.text().contains("no agent answered on "));
    assert!(!entrypoint.path("runs").exists());
}

#[test]
fn an_agent_that_comes_late_is_found() {
    let mut entrypoint = Entrypoint::start(Mode::Subreaper, &["true"]);
    entrypoint.listener = None;
    fs::remove_file(entrypoint.path("socket")).unwrap();
    entrypoint.listen_again();
    assert_eq!(entrypoint.launch().finish().exited.outcome, Outcome::Code(0));
}

/// Also with no new privileges, as Pod Security `restricted` requires.
#[test]
fn any_user_id_will_do_and_the_program_cannot_look_into_the_entrypoint() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: runs as this user only, as all other tests do");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let (binary, socket) = (directory.path().join("entrypoint"), directory.path().join("socket"));
    // Another process copies it: a child that another test forks in the meantime would hold it open for writing.
    let copy = ["-p", env!("CARGO_BIN_EXE_entrypoint"), binary.to_str().unwrap()];
    assert!(std::process::Command::new("cp").args(copy).status().unwrap().success());
    let script = "id -u; ls /proc/$PPID/fd 2>&1 || echo hidden; echo direct > /dev/stdout";
    let entrypoint = Entrypoint::configured(Mode::Subreaper, &[], &["true"], |command| {
        *command = std::process::Command::new("setpriv");
        command.args(["--reuid=12345", "--regid=12345", "--clear-groups", "--no-new-privs"]);
        command.arg(&binary).args(["--subreaper", "--socket"]).arg(&socket);
        command.args(["--", "sh", "-c", script]);
    });
    let mut entrypoint = entrypoint;
    entrypoint.listener = Some(remoteprocess_entrypoint::socket::Listener::bind(&socket).unwrap());
    let finished = entrypoint.launch().finish();
    let text = finished.text();
    assert!(text.starts_with("12345\n"), "{text}");
    assert!(text.contains("Permission denied") && text.contains("hidden"), "{text}");
    assert!(text.ends_with("direct\n"), "{text}");
}
