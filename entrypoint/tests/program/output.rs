//! Output: exact, separate or merged, and when it ends.

use remoteprocess_entrypoint::message::{MAX_ECHO_BYTES, Outcome, Stream, Target, ToEntrypoint};
use rstest::rstest;

use crate::agent::{Entrypoint, Mode, Order, is_at_end};

#[rstest]
fn both_streams_are_apart_and_exact(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = r#"i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done
                    printf 'a\r\nb\0c' >&2"#;
    let finished = Entrypoint::shell(mode, script).launch().finish();
    let every_byte: Vec<u8> = (0..=255).collect();
    assert_eq!(finished.stdout, every_byte);
    assert_eq!(finished.stderr, b"a\r\nb\0c");
}

#[test]
fn merged_output_keeps_its_order() {
    let script = "i=0; while [ $i -lt 500 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";
    let entrypoint = Entrypoint::shell(Mode::Subreaper, script);
    let finished = entrypoint
        .launch_as(&Order {
            merge: true,
            ..Order::default()
        })
        .finish();
    let expected: String = (0..500).map(|i| format!("o{i}\ne{i}\n")).collect();
    assert_eq!(finished.text(), expected);
}

#[rstest]
fn dev_stdout_and_dev_stderr_work(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "echo one > /dev/stdout; echo two > /dev/stderr; echo three >> /proc/self/fd/1";
    let finished = Entrypoint::shell(mode, script).launch().finish();
    assert_eq!(finished.text(), "one\nthree\n");
    assert_eq!(finished.stderr, b"two\n");
}

#[test]
fn dev_stdout_works_for_a_program_that_drops_its_user_id() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: there is no user id to drop");
        return;
    }
    let script = "setpriv --reuid=12345 --regid=12345 --clear-groups \
                  sh -c 'echo one > /dev/stdout; echo two > /dev/stderr'";
    let finished = Entrypoint::shell(Mode::Subreaper, script).launch().finish();
    assert_eq!((finished.text(), &finished.stderr[..]), ("one\n", &b"two\n"[..]));
}

#[rstest]
fn a_program_that_closes_everything_still_runs_to_its_end(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "exec 0<&- 1>&- 2>&-; while [ ! -e $WORK/go ]; do sleep 0.02; done; exit 3";
    let mut entrypoint = Entrypoint::shell(mode, script);
    let mut agent = entrypoint.launch();
    assert_eq!(agent.signal(libc::SIGCONT, Target::Main), None);
    assert!(
        agent.pipes.iter().all(|pipe| !is_at_end(pipe)),
        "no end before the program's"
    );
    std::fs::write(entrypoint.path("go"), "").unwrap();
    let finished = agent.finish();
    assert_eq!(finished.exited.outcome, Outcome::Code(3));
    assert_eq!(entrypoint.code(), 3);
}

#[test]
fn echo_goes_to_the_container_s_own_streams() {
    let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "echo captured");
    let (own_out, own_error) = entrypoint.own_output();
    let agent = entrypoint.launch();
    let echo = |stream, bytes: &[u8]| ToEntrypoint::Echo {
        stream,
        bytes: bytes.to_vec(),
    };
    agent.send(&echo(Stream::Stdout, b"out\0"));
    agent.send(&echo(Stream::Stderr, b"error"));
    assert_eq!(agent.finish().text(), "captured\n");
    assert_eq!(entrypoint.code(), 0);
    assert_eq!(own_out.bytes(), b"out\0");
    assert_eq!(own_error.bytes(), b"error");
}

#[test]
fn echo_that_is_not_read_blocks_nothing() {
    let mut entrypoint = Entrypoint::shell(Mode::Subreaper, "echo up; sleep 60");
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    let bytes = vec![b'x'; MAX_ECHO_BYTES];
    for _ in 0..20 {
        agent.send(&ToEntrypoint::Echo {
            stream: Stream::Stdout,
            bytes: bytes.clone(),
        });
    }
    assert_eq!(agent.signal(libc::SIGTERM, Target::Main), None);
    let finished = agent.finish();
    assert_eq!(finished.exited.outcome, Outcome::Signal(libc::SIGTERM));
    assert_eq!(entrypoint.wait().code(), Some(143));
    let (own_out, _) = entrypoint.own_output();
    let kept = own_out.bytes();
    assert!((4096..=65536).contains(&kept.len()), "what fitted: {}", kept.len());
    assert!(kept.iter().all(|byte| *byte == b'x'));
}

#[rstest]
fn what_a_child_writes_just_after_the_program_s_end_is_kept(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "(while kill -0 $$ 2>/dev/null; do :; done; echo late) & echo early; exit 4";
    let finished = Entrypoint::shell(mode, script).launch().finish();
    assert_eq!(finished.text(), "early\nlate\n");
    assert_eq!(
        (finished.exited.outcome, finished.exited.leftovers),
        (Outcome::Code(4), 0)
    );
}

#[rstest]
fn what_a_leftover_says_when_terminated_is_kept(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "sh -c 'trap \"echo bye; exit\" TERM; echo armed; \
                  while :; do sleep 0.05; done' & \
                  while [ ! -e $WORK/go ]; do sleep 0.02; done";
    let entrypoint = Entrypoint::shell(mode, script);
    let agent = entrypoint.launch();
    agent.await_line("armed");
    std::fs::write(entrypoint.path("go"), "").unwrap();
    let finished = agent.finish();
    assert_eq!(finished.text(), "bye\n");
    assert_eq!(finished.exited.outcome, Outcome::Code(0));
    assert!(finished.exited.leftovers >= 1);
}
