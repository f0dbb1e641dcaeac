//! Who may write to the program, and how far its input has come. Without I/O.

use std::time::Duration;

use remoteprocess_entrypoint::input::InputState;
use remoteprocess_entrypoint::run_clock::Moment;
use serde::{Deserialize, Serialize};

/// A writer whose connection broke has this long to return before another writer can get the input without taking it
/// over.
const GRACE: Duration = Duration::from_secs(30);

/// The writer that has the input, until another has it. Kept on the spool: whichever agent a returning writer meets,
/// that agent must know whether another writer came in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The writer's name for itself, the same over all its connections.
    pub session: String,
    /// The user behind it.
    pub user: String,
}

/// A request for the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// As in [`Lease`].
    pub lease: Lease,
    /// The writer has had the input before.
    pub resume: bool,
    /// Take it away from the current writer.
    pub take_over: bool,
}

/// Why the input was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The spec declares neither input nor a terminal.
    #[error("the process has neither input nor a terminal: neither spec.stdin nor spec.tty is set")]
    None,
    /// The spec names another source of the input.
    #[error(
        "the standard input of the process is a key of a ConfigMap or Secret (spec.stdinFrom), so no client can write \
         into it"
    )]
    File,
    /// There is no reader.
    #[error("the program has ended")]
    Ended,
    /// Another writer has it.
    #[error("{0} is writing into the process")]
    Held(String),
    /// Another writer has taken it over.
    #[error("{0} has taken over the input of the process")]
    TakenOver(String),
    /// The agent ends.
    #[error("the agent is ending")]
    Leaving,
}

/// What writers can see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Number of the stream that has the input.
    pub writer: u64,
    /// The user behind it.
    pub user: String,
    /// Why no client can write, as the launch showed.
    pub refused: Option<InputError>,
    /// How far the input has come; unknown while an entrypoint that has launched is away.
    pub state: Option<InputState>,
}

/// The input, as the conversation keeps it.
#[derive(Debug)]
pub struct Input {
    lease: Option<Lease>,
    /// When its writer left without letting go; absent while it is there, or has let go.
    left_at: Option<Moment>,
    has_writer: bool,
    view: View,
}

impl Input {
    /// Continues from what an earlier agent left. The writer has lost its connection with that agent.
    pub fn new(lease: Option<Lease>, was_launched: bool, now: Moment) -> Self {
        Self {
            left_at: lease.is_some().then_some(now),
            has_writer: false,
            view: View {
                writer: 0,
                user: String::new(),
                refused: None,
                state: (!was_launched).then(InputState::default),
            },
            lease,
        }
    }

    /// The current view for writers.
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// No client can write.
    pub fn refuse(&mut self, why: InputError) {
        self.view.refused = Some(why);
    }

    /// Decides on an opening. If the writer is new, its lease is returned, and must be stored before the writer is
    /// told.
    pub fn open(&mut self, opening: Opening, now: Moment) -> Result<Option<Lease>, InputError> {
        let Opening {
            lease,
            resume,
            take_over,
        } = opening;
        if let Some(why) = &self.view.refused {
            return Err(why.clone());
        }
        let is_new = self.lease.as_ref().is_none_or(|known| known.session != lease.session);
        if let Some(known) = self.lease.as_ref().filter(|_| is_new) {
            if resume {
                return Err(InputError::TakenOver(known.user.clone()));
            }
            let is_awaited = self.left_at.is_some_and(|left| now < left + GRACE);
            if !take_over && (self.has_writer || is_awaited) {
                return Err(InputError::Held(known.user.clone()));
            }
        }
        self.view.writer += 1;
        self.view.user.clone_from(&lease.user);
        self.has_writer = true;
        self.left_at = None;
        self.lease = Some(lease.clone());
        Ok(is_new.then_some(lease))
    }

    /// A stream has ended: the writer let go, or the connection broke.
    pub fn leave(&mut self, writer: u64, has_let_go: bool, now: Moment) {
        if writer == self.view.writer && self.has_writer {
            self.has_writer = false;
            self.left_at = (!has_let_go).then_some(now);
        }
    }

    /// Sets how far it has come, as the entrypoint reports; `None` when that is gone.
    pub fn set(&mut self, state: Option<InputState>) {
        self.view.state = state;
    }

    /// There is no reader anymore.
    pub fn end(&mut self) {
        let offset = self.view.state.map_or(0, |state| state.offset);
        self.view.state = Some(InputState {
            offset,
            room: 0,
            is_over: true,
        });
    }

    /// Whether this writer may send something for this offset now. Each is sent once: there is no room for more until
    /// the entrypoint has answered.
    pub fn claim(&mut self, writer: u64, offset: u64) -> bool {
        match &mut self.view.state {
            Some(state) if writer == self.view.writer && state.room > 0 && state.offset == offset => {
                state.room = 0;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Duration::from_secs(1000);

    fn opening(session: &str) -> Opening {
        Opening {
            lease: Lease {
                session: session.into(),
                user: format!("user of {session}"),
            },
            resume: false,
            take_over: false,
        }
    }

    fn resuming(session: &str) -> Opening {
        Opening {
            resume: true,
            ..opening(session)
        }
    }

    fn taking_over(session: &str) -> Opening {
        Opening {
            take_over: true,
            ..opening(session)
        }
    }

    #[test]
    fn one_writes_and_others_hear_who() {
        let mut input = Input::new(None, false, NOW);
        assert!(input.open(opening("a"), NOW).unwrap().is_some());
        let held = Err(InputError::Held("user of a".into()));
        assert_eq!(input.open(opening("b"), NOW), held);
        // The writer's second connection takes the place of the first.
        assert_eq!((input.open(resuming("a"), NOW), input.view().writer), (Ok(None), 2));
        assert!(input.open(taking_over("b"), NOW).unwrap().is_some());
        assert_eq!(
            input.open(resuming("a"), NOW),
            Err(InputError::TakenOver("user of b".into()))
        );
    }

    #[test]
    fn a_writer_that_is_cut_off_is_waited_for_and_one_that_lets_go_is_not() {
        let mut input = Input::new(None, false, NOW);
        input.open(opening("a"), NOW).unwrap();
        input.leave(1, false, NOW);
        assert!(input.open(opening("b"), NOW + GRACE - Duration::from_secs(1)).is_err());
        assert!(input.open(opening("b"), NOW + GRACE).is_ok());
        input.leave(1, true, NOW);
        assert!(
            input.open(opening("c"), NOW + GRACE).is_err(),
            "an earlier writer's end says nothing"
        );
        input.leave(2, true, NOW);
        assert!(input.open(opening("c"), NOW + GRACE).is_ok());
    }

    #[test]
    fn an_agent_that_comes_back_knows_the_writer() {
        let lease = opening("a").lease;
        let mut input = Input::new(Some(lease), true, NOW);
        assert_eq!(input.view().state, None, "the entrypoint knows how far it has come");
        assert!(input.open(opening("b"), NOW).is_err());
        assert_eq!(input.open(resuming("a"), NOW), Ok(None));
    }

    #[test]
    fn what_is_sent_is_sent_once_and_by_the_writer() {
        let mut input = Input::new(None, false, NOW);
        input.open(opening("a"), NOW).unwrap();
        assert!(!input.claim(1, 0), "nothing is launched");
        let state = InputState {
            offset: 5,
            room: 10,
            is_over: false,
        };
        input.set(Some(state));
        assert!(!input.claim(1, 0) && !input.claim(2, 5));
        assert!(input.claim(1, 5) && !input.claim(1, 5));
    }
}
