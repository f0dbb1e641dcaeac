//! What the book has about one process.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::cursor::Cursor;
use super::super::view::View;
use super::super::worker::{Problem, Signs};
use crate::backoff::Backoff;

/// A process that has events to send, or will have.
pub(super) struct Entry {
    name: String,
    pub(super) seen: Seen,
    pub(super) state: State,
    pub(super) backoff: Backoff,
    pub(super) problem: Option<Problem>,
    /// Of its last worker.
    pub(super) signs: Arc<Signs>,
    /// What comes next is output, if there is any.
    pub(super) is_reading: bool,
    /// It has an event that is not sent, or output that is not read.
    pub(super) is_behind: bool,
    /// The destination has not taken its last event.
    pub(super) is_suspect: bool,
    /// When it was seen first.
    since: Timestamp,
}

/// What happens with it.
pub(super) enum State {
    /// Nothing, until it changes or this time.
    Waits(Option<Instant>),
    /// A worker sends its events.
    Works(u64, CancellationToken),
    /// All is sent; it stays until the watch shows that this is noted, so that an older state is not taken for news.
    Done,
}

/// What was seen of it.
pub(super) enum Seen {
    /// Its last state, and how far its events are sent.
    Kept(Box<Kept>),
    /// There was no room for it: its worker reads it again. With the cursor, if that is not the one in the annotation.
    Dropped(Option<Box<str>>),
}

/// A state that is in memory: some 8 KiB.
pub(super) struct Kept {
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) cursor: Cursor,
    pub(super) noted: Cursor,
    /// The permission to stay while no worker needs it.
    pub(super) seat: Option<OwnedSemaphorePermit>,
}

impl Entry {
    pub(super) fn new(name: String, seen: Seen) -> Self {
        Self {
            name,
            seen,
            state: State::Waits(None),
            backoff: Backoff::default(),
            problem: None,
            signs: Arc::default(),
            is_reading: false,
            is_behind: false,
            is_suspect: false,
            since: Timestamp::now(),
        }
    }

    /// What keeps its events, unless its worker shows that this is over.
    pub(super) fn problem(&self) -> Option<&Problem> {
        let is_well = matches!(self.state, State::Works(..)) && self.signs.is_well.load(Ordering::Relaxed);
        self.problem.as_ref().filter(|_| !is_well)
    }

    /// Its last state, if that is kept.
    pub(super) fn view(&self) -> Option<Arc<View>> {
        let Seen::Kept(kept) = &self.seen else { return None };
        let view = kept.view.borrow().clone();
        (!view.is_unread).then_some(view)
    }

    /// Whether the object is gone. The state of one that is gone is kept.
    pub(super) fn is_deleted(&self) -> bool {
        matches!(&self.seen, Seen::Kept(kept) if kept.view.borrow().is_deleted)
    }

    /// Whether its last state says that all its events are sent.
    pub(super) fn is_noted(&self) -> bool {
        self.view().is_some_and(|view| view.noted().is_finished())
    }

    /// Notes a state, unless a newer one is known.
    pub(super) fn show(&mut self, mut view: View) {
        view.since = Some(self.since);
        let view = Arc::new(view);
        match &mut self.seen {
            Seen::Kept(kept) => {
                // It was not known until now how far its events are sent. Its worker may end before it knows that, too.
                let former = kept.view.borrow().clone();
                if former.is_unread {
                    kept.noted = view.noted();
                    if former.cursor.is_none() {
                        kept.cursor = kept.noted.clone();
                    }
                }
                kept.view.send_if_modified(|shown| {
                    let is_news = view.is_deleted || !view.is_older_than(shown);
                    if is_news {
                        *shown = view;
                    }
                    is_news
                });
            }
            Seen::Dropped(moved) => {
                let noted = view.noted();
                let moved = moved.as_deref().map(|text| Cursor::read(Some(text), &view.uid()));
                self.seen = Seen::Kept(Box::new(Kept {
                    cursor: moved.unwrap_or_else(|| noted.clone()),
                    noted,
                    view: watch::Sender::new(view),
                    seat: None,
                }));
            }
        }
    }

    /// What a worker needs; one that is not kept is to be read first.
    pub(super) fn keep(&mut self, uid: &str) -> Option<&Kept> {
        if let Seen::Dropped(moved) = &self.seen {
            let moved = moved.as_deref().map(str::to_owned);
            self.show(View::unread(&self.name, uid, moved));
        }
        match &self.seen {
            Seen::Kept(kept) => Some(kept),
            Seen::Dropped(_) => None,
        }
    }

    /// Forgets the state, and keeps what cannot be read again.
    pub(super) fn drop_view(&mut self) {
        let Seen::Kept(kept) = &self.seen else { return };
        let view = kept.view.borrow().clone();
        let moved = if view.is_unread {
            view.cursor.clone()
        } else {
            (kept.cursor != view.noted()).then(|| kept.cursor.to_text())
        };
        self.seen = Seen::Dropped(moved.map(Into::into));
    }
}
