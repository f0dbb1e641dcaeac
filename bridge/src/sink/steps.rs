//! What comes next for a process: decided from what is known about it and from the cursor. Pure. Nothing is remembered
//! besides the cursor, so transitions that happened while the bridge was away are found again in the status.

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::Phase;
use remoteprocess_api::sink::{OutputStream, SinkOutput};
use remoteprocess_api::status::AttemptStatus;

use super::cursor::{Cursor, Mark, Unsent};
use super::events::Author;
use super::view::View;
use crate::outcome::{self, CloudEvent};

/// How long the last event of a process waits for the seal of its output, from its end on, or from when the bridge saw it
/// first: a bridge that was away must not leave out what is still to come.
const SEAL_WAIT: SignedDuration = SignedDuration::from_secs(60);
/// Most ranges of output in the event about a process that is gone.
const MAX_UNSENT: usize = 32;

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send an event, and then note it in the cursor.
    Send(Box<CloudEvent>, Note),
    /// Send the output of this attempt, to its end, and then pass [`Mark::output`].
    Read(u32),
    /// The process is gone, and the output of this attempt with it: [`Planner::skip`] it.
    Skip(u32),
    /// Note that the last event does not wait for the seal any more.
    GiveUp,
    /// Wait for a change, and at most until this time.
    Wait(Option<Timestamp>),
    /// Nothing is left to send.
    Done,
}

/// What an event means for the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A transition is sent.
    Passed(Mark),
    /// A pause of this attempt since this time was told.
    Paused(u32, i64),
    /// Its end was told.
    Resumed,
    /// It was told that this attempt is being stopped.
    Stopping(u32),
}

impl Note {
    /// Notes it.
    pub fn apply(self, cursor: &mut Cursor) {
        match self {
            Self::Passed(mark) => cursor.pass(mark),
            Self::Paused(attempt, since) => cursor.paused = Some((attempt, since)),
            Self::Resumed => cursor.paused = None,
            Self::Stopping(attempt) => cursor.stopping = Some(attempt),
        }
    }
}

/// Decides what comes next.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Makes the events.
    pub author: Author,
    /// The output to send.
    pub output: Option<SinkOutput>,
}

impl Planner {
    /// What comes next for a process.
    pub fn next(&self, view: &View, cursor: &Cursor, now: Timestamp) -> Step {
        if cursor.is_finished() {
            return Step::Done;
        }
        match self.transition(view, cursor, now) {
            // Whatever is left to tell of the past comes first.
            Step::Send(event, note) => Step::Send(event, note),
            other => self.present(view, cursor).unwrap_or(other),
        }
    }

    /// The first transition behind the cursor.
    fn transition(&self, view: &View, cursor: &Cursor, now: Timestamp) -> Step {
        if cursor.mark < Mark::CREATED {
            return send(self.author.created(view), Note::Passed(Mark::CREATED));
        }
        // The records in the middle of many attempts are not kept. Their output is.
        let begin = cursor.mark.attempt().max(1);
        let found = (begin..=view.latest()).find_map(|number| self.of_attempt(view, cursor, number));
        found.unwrap_or_else(|| self.last(view, cursor, now))
    }

    /// The first step behind the cursor for an attempt; `None` if there is none.
    fn of_attempt(&self, view: &View, cursor: &Cursor, number: u32) -> Option<Step> {
        let (record, is_over) = (view.attempt(number), view.is_over(number));
        let granted = record.and_then(|record| record.granted_at);
        let started = record.and_then(|record| record.started_at);
        if cursor.mark < Mark::starting(number) {
            match granted {
                Some(at) => {
                    let event = self.author.starting(view, number, at);
                    return Some(send(event, Note::Passed(Mark::starting(number))));
                }
                None if is_over || started.is_some() => {}
                None => return Some(Step::Wait(None)),
            }
        }
        if cursor.mark < Mark::started(number) {
            match started {
                Some(at) => {
                    let event = self.author.started(view, number, at);
                    return Some(send(event, Note::Passed(Mark::started(number))));
                }
                None if is_over => {}
                None => return Some(Step::Wait(None)),
            }
        }
        if self.has_output(view, cursor, number) {
            let is_there = !view.is_deleted;
            return Some(if is_there {
                Step::Read(number)
            } else {
                Step::Skip(number)
            });
        }
        if cursor.mark >= Mark::ended(number) {
            return None;
        }
        match record {
            _ if !is_over => Some(Step::Wait(None)),
            // It is not known how the attempt ended, and nobody will find out.
            Some(record) if view.is_deleted && !view.is_final() && record.exit.is_none() => None,
            Some(record) => {
                let event = self.author.attempt_ended(view, record);
                Some(send(event, Note::Passed(Mark::ended(number))))
            }
            None => None,
        }
    }

    /// Whether there is output of an attempt to send: it may have run.
    fn has_output(&self, view: &View, cursor: &Cursor, number: u32) -> bool {
        let may_have_run = |record: &AttemptStatus| record.granted_at.is_some() || record.started_at.is_some();
        self.output.is_some() && cursor.mark < Mark::output(number) && view.attempt(number).is_none_or(may_have_run)
    }

    /// The last event.
    fn last(&self, view: &View, cursor: &Cursor, now: Timestamp) -> Step {
        if view.is_deleted {
            return self.farewell(view, cursor);
        }
        let has_run = view.has_run();
        let is_sealed = has_run && outcome::is_sealed(&view.process) && !cursor.is_unsealed;
        let Some(event) = self.author.finished(view, is_sealed) else {
            return Step::Wait(None);
        };
        // What has not run has no output to seal.
        if is_sealed || cursor.is_unsealed || !has_run {
            return send(event, Note::Passed(Mark::FINISHED));
        }
        match view.ended().unwrap_or_default().saturating_add(SEAL_WAIT) {
            Ok(until) if now < until => Step::Wait(Some(until)),
            _ => Step::GiveUp,
        }
    }

    /// For a process that is gone: how it ended, if that is known, and what is not sent.
    fn farewell(&self, view: &View, cursor: &Cursor) -> Step {
        if cursor.mark < Mark::TOLD {
            let is_sealed = view.has_run() && outcome::is_sealed(&view.process) && !cursor.is_unsealed;
            if let Some(event) = self.author.finished(view, is_sealed) {
                return send(event, Note::Passed(Mark::TOLD));
            }
        }
        let event = self.author.deleted(view, &cursor.unsent);
        send(event, Note::Passed(Mark::FINISHED))
    }

    /// Notes that the rest of the output of an attempt is not sent.
    pub fn skip(&self, cursor: &mut Cursor, attempt: u32) {
        let wanted = [OutputStream::Stdout, OutputStream::Stderr].into_iter();
        for stream in wanted.filter(|stream| self.output.as_ref().is_some_and(|output| output.has(*stream))) {
            let from = cursor.offset(attempt, stream);
            if cursor.unsent.len() < MAX_UNSENT {
                cursor.unsent.push(Unsent { attempt, stream, from });
            }
        }
        cursor.pass(Mark::output(attempt));
    }

    /// Passes output that the relay does not know. What came after a part that was sent is noted as not sent.
    pub fn pass_unknown(&self, cursor: &mut Cursor, attempt: u32) {
        let streams = [OutputStream::Stdout, OutputStream::Stderr];
        if streams.into_iter().any(|stream| cursor.offset(attempt, stream) > 0) {
            self.skip(cursor, attempt);
        } else {
            cursor.pass(Mark::output(attempt));
        }
    }

    /// What a status does not tell afterwards: a pause and its end, and that a stop was requested.
    fn present(&self, view: &View, cursor: &Cursor) -> Option<Step> {
        let number = view.latest();
        if number == 0 || view.is_over(number) {
            return None;
        }
        let is_started = cursor.mark >= Mark::started(number);
        let since = view
            .attempt(number)
            .and_then(|record| record.paused_at)
            .map(Timestamp::as_second);
        let told = cursor
            .paused
            .filter(|(attempt, _)| *attempt == number)
            .map(|(_, since)| since);
        match (told, since) {
            (Some(told), since) if since != Some(told) => {
                return Some(send(self.author.resumed(view, number, told), Note::Resumed));
            }
            (None, Some(since)) if is_started => {
                let event = self.author.paused(view, number, since);
                return Some(send(event, Note::Paused(number, since)));
            }
            _ => {}
        }
        let is_news = is_started && view.phase() == Some(Phase::Stopping) && cursor.stopping != Some(number);
        is_news.then(|| send(self.author.stopping(view, number), Note::Stopping(number)))
    }
}

fn send(event: CloudEvent, note: Note) -> Step {
    Step::Send(Box::new(event), note)
}

#[cfg(test)]
mod tests;
