//! A peer on the socket that is broken or malicious.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use remoteprocess_entrypoint::message::{Outcome, Secret, ToEntrypoint, encode};
use rstest::rstest;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::agent::{Agent, Entrypoint, Mode};

fn packets() -> Vec<Vec<u8>> {
    let wrong_version = ToEntrypoint::Welcome {
        version: 99,
        secret: Secret([0; 32]),
    };
    let mut trailing = encode(&ToEntrypoint::Recorded).unwrap();
    trailing.push(1);
    vec![
        vec![0xff; 40],
        vec![0; 1],
        vec![0x55; 100_000],
        // An echo whose length is wrong.
        vec![6, 0, 0xff, 0xff, 0xff, 0xff, 0x0f],
        trailing,
        encode(&wrong_version).unwrap(),
    ]
}

fn throw(agent: &Agent, packet: &[u8]) {
    let sent = rustix::net::send(&agent.connection, packet, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, packet.len());
}

#[test]
fn garbage_instead_of_a_welcome_is_hung_up_on() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "exit 8");
    for packet in packets() {
        let agent = entrypoint.accept();
        throw(&agent, &packet);
        assert!(agent.is_hung_up());
    }
    assert_eq!(entrypoint.launch().finish().exited.outcome, Outcome::Code(8));
}

#[test]
fn nothing_is_obeyed_before_a_welcome() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "exit 8");
    for message in [crate::agent::Order::default().message(), ToEntrypoint::Recorded] {
        let agent = entrypoint.accept();
        agent.send(&message);
        assert!(agent.is_hung_up());
    }
    assert_eq!(entrypoint.launch().finish().exited.outcome, Outcome::Code(8));
}

#[rstest]
fn garbage_while_the_program_runs_does_not_touch_it(#[values(Mode::Subreaper, Mode::Namespace)] mode: Mode) {
    let script = "trap 'exit 8' USR1; echo up; while :; do sleep 0.02; done";
    let mut entrypoint = Entrypoint::shell(mode, script);
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    for packet in packets() {
        throw(&agent, &packet);
        assert!(agent.is_hung_up());
        agent = entrypoint.welcome();
        agent.receive();
    }
    let target = remoteprocess_entrypoint::message::Target::Main;
    assert_eq!(agent.signal(libc::SIGUSR1, target), None);
    assert_eq!(agent.finish().exited.outcome, Outcome::Code(8));
    assert_eq!(entrypoint.code(), 8);
}

#[test]
fn unexpected_descriptors_are_closed() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "echo up; sleep 60");
    let mut agent = entrypoint.launch();
    agent.await_line("up");
    let (read, write) = rustix::pipe::pipe().unwrap();
    for count in [1, 4, 50] {
        let mut space = [MaybeUninit::uninit(); 1024];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = vec![write.as_fd(); count];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let packet = encode(&ToEntrypoint::Recorded).unwrap();
        sendmsg(
            &agent.connection,
            &[IoSlice::new(&packet)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    }
    assert!(agent.is_hung_up(), "50 are too many");
    agent = entrypoint.welcome();
    agent.receive();
    drop(write);
    assert_eq!(rustix::io::read(&read, &mut [0; 1]).unwrap(), 0, "no copy is left");
    agent.stop(Duration::from_secs(60));
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGTERM));
}

#[test]
fn an_agent_that_asks_and_never_reads_is_not_read_for_ever() {
    let entrypoint = Entrypoint::shell(Mode::Subreaper, "echo up; sleep 60");
    let agent = entrypoint.launch();
    agent.await_line("up");
    agent.connection.set_nonblocking(true).unwrap();
    let signal = ToEntrypoint::Signal {
        request: "again".into(),
        number: libc::SIGCONT,
        target: remoteprocess_entrypoint::message::Target::Main,
    };
    crate::agent::eventually("it stops reading", || {
        (0..10_000).any(|_| agent.connection.send(&signal, &[]).is_err())
    });
    drop(agent);
    let mut agent = entrypoint.welcome();
    agent.receive();
    agent.stop(Duration::from_secs(60));
    assert_eq!(agent.finish().exited.outcome, Outcome::Signal(libc::SIGTERM));
}
