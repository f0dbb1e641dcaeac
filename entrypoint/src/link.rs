//! The connection to the agent: reconnected forever, with one greeting each time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use remoteprocess_entrypoint::message::{FromEntrypoint, PROTOCOL_VERSION, Resume, Secret, ToEntrypoint};
use remoteprocess_entrypoint::socket::Connection;
use rustix::event::{PollFd, PollFlags};

use crate::arrival::Arrival;
use crate::clock::Moment;

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_millis(500);

/// When this many answers are unsent, nothing more is read.
const MAX_QUEUED: usize = 64;

/// What came from the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An agent is there; if there was one before, it has the same secret.
    Welcomed,
    /// Any message except the greeting.
    Message(ToEntrypoint),
}

/// Whether an agent is there, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It has welcomed this entrypoint.
    Here(Moment),
    /// There is none.
    Away(Moment),
}

impl Presence {
    /// Whether there is none.
    pub(crate) const fn is_away(self) -> bool {
        matches!(self, Self::Away(_))
    }

    /// When an absence will have been this long.
    pub(crate) fn lost_at(self, patience: Duration) -> Option<Moment> {
        match self {
            Self::Here(_) => None,
            Self::Away(since) => Some(since + patience),
        }
    }
}

/// A message to send.
struct Outgoing {
    message: FromEntrypoint,
    descriptors: Descriptors,
}

/// The descriptors that go with a message.
enum Descriptors {
    None,
    /// The read ends of the program's output, which stay here as well.
    Pipes,
    /// These, which then only the agent has.
    Own(Vec<OwnedFd>),
}

struct Channel {
    connection: Connection,
    queue: VecDeque<Outgoing>,
}

enum State {
    Absent { retry_at: Moment },
    Greeting(Channel),
    Welcomed(Channel),
}

/// The link, up or down. `pipes` in its methods are the read ends of the program's output, empty
/// until it was started.
pub(crate) struct Link {
    path: PathBuf,
    state: State,
    /// While there is no connection.
    arrival: Option<Arrival>,
    secret: Option<Secret>,
    backoff: Duration,
    changed_at: Moment,
}

impl Link {
    /// A link that is down, with the first attempt due.
    pub(crate) fn new(path: PathBuf, now: Moment) -> Self {
        let state = State::Absent { retry_at: now };
        Self {
            arrival: Arrival::watch(&path),
            path,
            state,
            secret: None,
            backoff: FIRST_BACKOFF,
            changed_at: now,
        }
    }

    /// Whether an agent is there; one that has not answered the greeting does not count.
    pub(crate) fn presence(&self) -> Presence {
        match self.state {
            State::Welcomed(_) => Presence::Here(self.changed_at),
            State::Absent { .. } | State::Greeting(_) => Presence::Away(self.changed_at),
        }
    }

    /// When to call `connect_if_due`.
    pub(crate) fn retry_at(&self) -> Option<Moment> {
        match self.state {
            State::Absent { retry_at } => Some(retry_at),
            State::Greeting(_) | State::Welcomed(_) => None,
        }
    }

    /// What to poll: the connection, or the arrival of an agent.
    pub(crate) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let Some(channel) = self.channel() else {
            return Some(PollFd::new(self.arrival.as_ref()?, PollFlags::IN));
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, channel.queue.len() < MAX_QUEUED);
        flags.set(PollFlags::OUT, !channel.queue.is_empty());
        Some(PollFd::new(&channel.connection, flags))
    }

    /// Connects and sends `Hello`, if it is time to, or if an agent's socket has appeared.
    pub(crate) fn connect_if_due(&mut self, now: Moment, pipes: &[OwnedFd]) {
        let Some(at) = self.retry_at() else { return };
        let has_come = self.arrival.as_ref().is_some_and(Arrival::has_come);
        if now < at && !has_come {
            return;
        }
        match self.connect() {
            Ok(connection) => {
                self.arrival = None;
                let queue = VecDeque::from([self.hello(pipes)]);
                self.state = State::Greeting(Channel { connection, queue });
                self.flush(now, pipes);
            }
            Err(error) => {
                let is_nobody = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
                if is_nobody && self.arrival.is_some() {
                    // The watch reports it. Another look is needed only with a runtime that does not pass events on
                    // between containers.
                    self.backoff = LAST_BACKOFF;
                }
                self.retry_later(now);
            }
        }
    }

    fn connect(&self) -> io::Result<Connection> {
        let connection = Connection::connect(&self.path)?;
        connection.set_nonblocking(true)?;
        Ok(connection)
    }

    fn hello(&self, pipes: &[OwnedFd]) -> Outgoing {
        let launched = !pipes.is_empty();
        let resume = self.secret.map(|secret| Resume { secret, launched });
        let version = PROTOCOL_VERSION;
        let message = FromEntrypoint::Hello {
            version,
            pid: std::process::id(),
            resume,
        };
        let descriptors = match launched && self.secret.is_some() {
            true => Descriptors::Pipes,
            false => Descriptors::None,
        };
        Outgoing { message, descriptors }
    }

    /// Sends a message now, or as soon as there is room. Without an agent it is dropped: what an agent must know is
    /// sent again after `Welcomed`.
    pub(crate) fn send(&mut self, message: FromEntrypoint, with_pipes: bool, now: Moment, pipes: &[OwnedFd]) {
        let descriptors = if with_pipes {
            Descriptors::Pipes
        } else {
            Descriptors::None
        };
        self.queue(Outgoing { message, descriptors }, now, pipes);
    }

    /// As [`Self::send`], with descriptors that this process does not keep.
    pub(crate) fn send_with(&mut self, message: FromEntrypoint, own: Vec<OwnedFd>, now: Moment, pipes: &[OwnedFd]) {
        let descriptors = Descriptors::Own(own);
        self.queue(Outgoing { message, descriptors }, now, pipes);
    }

    fn queue(&mut self, outgoing: Outgoing, now: Moment, pipes: &[OwnedFd]) {
        if let State::Welcomed(channel) = &mut self.state {
            channel.queue.push_back(outgoing);
            self.flush(now, pipes);
        }
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self, now: Moment, pipes: &[OwnedFd]) {
        let (State::Greeting(channel) | State::Welcomed(channel)) = &mut self.state else {
            return;
        };
        while let Some(outgoing) = channel.queue.front() {
            let descriptors = match &outgoing.descriptors {
                Descriptors::None => &[],
                Descriptors::Pipes => pipes,
                Descriptors::Own(own) => &own[..],
            };
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match channel.connection.send(&outgoing.message, &descriptors) {
                Ok(()) => drop(channel.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What the agent sent before it left may still be readable, but a queue that cannot be sent is of no
                // use.
                Err(_) => return self.hang_up(now),
            }
        }
    }

    /// The next message of the agent; `None` if there is none now. A peer that violates the protocol is disconnected.
    pub(crate) fn receive(&mut self, now: Moment) -> Option<Event> {
        let channel = self.channel().filter(|channel| channel.queue.len() < MAX_QUEUED)?;
        match channel.connection.receive::<ToEntrypoint>() {
            Ok(Some((message, _))) => {
                let event = self.accept(message, now);
                if event.is_none() {
                    self.hang_up(now);
                }
                event
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok(None) | Err(_) => {
                self.hang_up(now);
                None
            }
        }
    }

    /// The event of a message, if the message is allowed now.
    fn accept(&mut self, message: ToEntrypoint, now: Moment) -> Option<Event> {
        let greeting = matches!(self.state, State::Greeting(_));
        match message {
            ToEntrypoint::Welcome { version, secret } if greeting => {
                let known = self.secret.is_none_or(|ours| ours == secret);
                (version == PROTOCOL_VERSION && known).then(|| self.welcomed(secret, now))
            }
            ToEntrypoint::Welcome { .. } => None,
            other => (!greeting).then_some(Event::Message(other)),
        }
    }

    fn welcomed(&mut self, secret: Secret, now: Moment) -> Event {
        self.secret = Some(secret);
        self.backoff = FIRST_BACKOFF;
        self.changed_at = now;
        let state = std::mem::replace(&mut self.state, State::Absent { retry_at: now });
        if let State::Greeting(channel) | State::Welcomed(channel) = state {
            self.state = State::Welcomed(channel);
        }
        Event::Welcomed
    }

    fn channel(&self) -> Option<&Channel> {
        match &self.state {
            State::Absent { .. } => None,
            State::Greeting(channel) | State::Welcomed(channel) => Some(channel),
        }
    }

    fn hang_up(&mut self, now: Moment) {
        if matches!(self.state, State::Welcomed(_)) {
            self.changed_at = now;
        }
        self.retry_later(now);
    }

    fn retry_later(&mut self, now: Moment) {
        self.arrival = self.arrival.take().or_else(|| Arrival::watch(&self.path));
        self.state = State::Absent {
            retry_at: now + self.backoff,
        };
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_entrypoint::socket::Listener;

    use super::*;

    const NOW: Moment = Duration::from_secs(9);

    fn welcome(byte: u8) -> ToEntrypoint {
        ToEntrypoint::Welcome {
            version: PROTOCOL_VERSION,
            secret: Secret([byte; 32]),
        }
    }

    struct Fixture {
        _directory: tempfile::TempDir,
        listener: Listener,
        link: Link,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("s");
            let listener = Listener::bind(&path).unwrap();
            Self {
                _directory: directory,
                listener,
                link: Link::new(path, NOW),
            }
        }

        fn greet(&mut self, answer: &ToEntrypoint) -> (Connection, FromEntrypoint, Option<Event>) {
            let due = self.link.retry_at().unwrap();
            self.link.connect_if_due(due, &[]);
            let agent = self.listener.accept().unwrap();
            let (hello, _) = agent.receive().unwrap().unwrap();
            agent.send(answer, &[]).unwrap();
            let event = self.link.receive(due);
            (agent, hello, event)
        }
    }

    #[test]
    fn the_secret_of_the_first_welcome_is_shown_and_asked_for_later() {
        let mut fixture = Fixture::new();
        let (agent, hello, event) = fixture.greet(&welcome(1));
        assert!(matches!(hello, FromEntrypoint::Hello { resume: None, .. }));
        assert_eq!(event, Some(Event::Welcomed));
        drop(agent);
        assert_eq!(fixture.link.receive(NOW), None);
        let (_agent, hello, event) = fixture.greet(&welcome(2));
        let resume = Some(Resume {
            secret: Secret([1; 32]),
            launched: false,
        });
        assert!(matches!(hello, FromEntrypoint::Hello { resume: r, .. } if r == resume));
        assert_eq!(event, None);
        assert!(matches!(fixture.link.presence(), Presence::Away(_)));
        let (_agent, _, event) = fixture.greet(&welcome(1));
        assert_eq!(event, Some(Event::Welcomed));
    }

    #[test]
    fn nothing_is_taken_from_a_peer_that_does_not_greet_or_greets_twice() {
        let mut fixture = Fixture::new();
        let (_agent, _, event) = fixture.greet(&ToEntrypoint::Recorded);
        assert_eq!(event, None);
        let (agent, _, event) = fixture.greet(&welcome(1));
        assert_eq!(event, Some(Event::Welcomed));
        agent.send(&welcome(1), &[]).unwrap();
        assert_eq!(fixture.link.receive(NOW), None);
        assert_eq!(fixture.link.presence(), Presence::Away(NOW));
    }

    #[test]
    fn another_version_is_refused() {
        let mut fixture = Fixture::new();
        let other = ToEntrypoint::Welcome {
            version: PROTOCOL_VERSION + 1,
            secret: Secret([0; 32]),
        };
        assert_eq!(fixture.greet(&other).2, None);
    }

    #[test]
    fn an_agent_that_comes_is_met_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut link = Link::new(path.clone(), NOW);
        link.connect_if_due(NOW, &[]);
        assert_eq!(
            link.retry_at(),
            Some(NOW + LAST_BACKOFF),
            "there is nothing to look for"
        );
        assert!(link.poll_fd().is_some());
        let listener = Listener::bind(&path).unwrap();
        link.connect_if_due(NOW, &[]);
        assert_eq!(link.retry_at(), None);
        assert!(
            listener
                .accept()
                .unwrap()
                .receive::<FromEntrypoint>()
                .unwrap()
                .is_some()
        );
        assert!(link.arrival.is_none(), "a watch is not kept");
    }

    #[test]
    fn attempts_back_off_and_restart_after_a_welcome() {
        let mut fixture = Fixture::new();
        let (path, mut now) = (fixture.link.path.clone(), NOW);
        // In a directory that cannot be watched.
        fixture.link.path = PathBuf::from("/absent/socket");
        fixture.link.arrival = None;
        let mut waits = Vec::new();
        for _ in 0..7 {
            fixture.link.connect_if_due(now, &[]);
            let next = fixture.link.retry_at().unwrap();
            waits.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(waits, [20, 40, 80, 160, 320, 500, 500]);
        fixture.link.path = path;
        fixture.greet(&welcome(1));
        assert_eq!(fixture.link.backoff, FIRST_BACKOFF);
    }
}
