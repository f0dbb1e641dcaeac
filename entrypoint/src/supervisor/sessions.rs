//! Further commands beside the program. The program's end does not depend on them.

use remoteprocess_entrypoint::message::FromEntrypoint;
use remoteprocess_entrypoint::session::{Command, News, Order};

use super::Supervisor;
use crate::clock::Moment;
use crate::phase::Phase;
use crate::processes;
use crate::stdin::Stdin;

impl Supervisor {
    pub(super) fn order_session(&mut self, session: String, order: Order, now: Moment) {
        let state = match order {
            Order::Start(command) => return self.start_session(session, command, now),
            Order::Input { offset, bytes } => self
                .sessions
                .change_input(&session, |stdin: &mut Stdin| stdin.take(offset, &bytes)),
            Order::EndInput { offset } => self.sessions.change_input(&session, |stdin| stdin.end(offset)),
            Order::Resize(size) => return self.sessions.resize(&session, size),
            Order::Close => return self.sessions.close(&session, now),
        };
        if let Some(state) = state {
            self.tell_of_session(session, News::Input(state), now);
        }
    }

    fn start_session(&mut self, session: String, command: Command, now: Moment) {
        let started = match &self.phase {
            Phase::Waiting => Err(News::Refused("the program has not been started".into())),
            _ if !self.is_going_on() => Err(News::Refused("the program has ended".into())),
            _ => self.sessions.start(&session, command),
        };
        match started {
            Ok((input, outputs)) => {
                let news = News::Started(input);
                let message = FromEntrypoint::Session { session, news };
                self.link.send_with(message, outputs, now, &self.pipes);
            }
            Err(news) => self.tell_of_session(session, news, now),
        }
    }

    pub(super) fn move_sessions(&mut self, now: Moment) {
        for (session, news) in self.sessions.turn() {
            self.tell_of_session(session, news, now);
        }
    }

    fn tell_of_session(&mut self, session: String, news: News, now: Moment) {
        self.send(FromEntrypoint::Session { session, news }, now);
    }

    /// Whether only processes of sessions are left: the program and its leftovers have ended.
    pub(super) fn only_sessions_are_left(&self) -> bool {
        let shims = self.sessions.shims();
        matches!(self.phase, Phase::Sweeping { .. })
            && !shims.is_empty()
            && processes::descendants_but(shims).is_empty()
    }
}
