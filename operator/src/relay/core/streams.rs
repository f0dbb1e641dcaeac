//! The open streams of users: how many there are, and whose readers take nothing.
//!
//! A stream whose reader takes nothing holds up to half a MiB: what waits for the reader, and what HTTP/2 and TLS hold of
//! it. All together may hold so much only for a limited number of them. Beyond it, the user with the most such streams
//! loses the oldest one. Nothing is lost: the reader continues by offset on another connection.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::authorize::Caller;
use crate::authority::metrics::count_refusal;
use crate::relay::error::Error;

/// Bytes in the batches of one user's streams together, while the user has at most [`BYTES`] / [`SMALLEST`] streams. Each
/// stream has a few batches at a time.
const BYTES: usize = 4 << 20;
/// The smallest batch, in bytes.
const SMALLEST: usize = 4 << 10;

/// A user's name, which can be long, as its SHA-256.
type User = [u8; 32];

/// The streams of a replica. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Streams {
    state: Arc<Mutex<State>>,
    limits: Limits,
}

/// How many streams a replica has at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open streams of one user.
    pub of_a_user: usize,
    /// Open streams of all users.
    pub of_all: usize,
    /// Streams whose readers take nothing.
    pub stalled: usize,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<User, usize>,
    all: usize,
    /// In the order in which their readers stopped.
    stalled: VecDeque<(User, Arc<Notify>)>,
}

/// One open stream; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    streams: Streams,
    /// `None` for another replica, which limits its users itself.
    user: Option<User>,
    displaced: Arc<Notify>,
}

/// A stream is stalled until this is dropped.
pub(crate) struct Stall<'a>(&'a Open);

impl Default for Limits {
    fn default() -> Self {
        Self {
            of_a_user: 2048,
            of_all: 4096,
            stalled: 128,
        }
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Streams {
    /// With these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            state: Arc::default(),
            limits,
        }
    }

    /// Counts a new stream.
    ///
    /// # Errors
    /// When its user, or all users together, have too many.
    pub(crate) fn open(&self, caller: &Caller) -> Result<Open, Error> {
        let user = match caller {
            Caller::User(caller) => Some(Sha256::digest(&caller.user.name).into()),
            Caller::Replica(_) => None,
        };
        if let Some(user) = user {
            self.count(user)?;
        }
        Ok(Open {
            streams: self.clone(),
            user,
            displaced: Arc::default(),
        })
    }

    /// Number of open streams, and how many of them are stalled.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> [usize; 2] {
        let state = self.lock();
        [state.all, state.stalled.len()]
    }

    fn count(&self, user: User) -> Result<(), Error> {
        let Limits { of_a_user, of_all, .. } = self.limits;
        let mut state = self.lock();
        let own = state.open.get(&user).copied().unwrap_or_default();
        let refusal = if own >= of_a_user {
            format!("you have {own} open streams at this replica; close some of them")
        } else if state.all >= of_all {
            format!("this replica serves {} streams; try again later", state.all)
        } else {
            state.all += 1;
            state.open.insert(user, own + 1);
            return Ok(());
        };
        count_refusal("main", "TooManyStreams");
        Err(Error::unavailable(refusal))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out the stalled stream that has to make room: the oldest of the user who has the most.
    fn displace(&mut self) -> Option<Arc<Notify>> {
        let mut of = HashMap::<&User, usize>::new();
        for (user, _) in &self.stalled {
            *of.entry(user).or_default() += 1;
        }
        let most = of.values().max().copied()?;
        let oldest = self.stalled.iter().position(|(user, _)| of[user] == most)?;
        self.stalled.remove(oldest).map(|(_, displaced)| displaced)
    }
}

impl Open {
    /// Size of the next batch for its reader, at most `most` bytes: the more streams the user has, the smaller.
    pub(crate) fn batch(&self, most: usize) -> usize {
        let of_user = |user| self.streams.lock().open.get(&user).copied();
        let own = self.user.and_then(of_user).unwrap_or(1).max(1);
        (BYTES / own).clamp(SMALLEST.min(most), most)
    }

    /// Its reader takes nothing until the answer is dropped. Another stream, or this one, may have to end for it.
    pub(crate) fn stall(&self) -> Stall<'_> {
        if let Some(user) = self.user {
            let mut state = self.streams.lock();
            state.stalled.push_back((user, self.displaced.clone()));
            if state.stalled.len() > self.streams.limits.stalled
                && let Some(displaced) = state.displace()
            {
                count_refusal("main", "Stalled");
                displaced.notify_one();
            }
        }
        Stall(self)
    }

    /// Returns when the stream has to end, because its reader takes nothing and others need the memory.
    pub(crate) async fn displaced(&self) -> Error {
        self.displaced.notified().await;
        let most = self.streams.limits.stalled;
        Error::unavailable(format!(
            "more than {most} readers of this replica take nothing, and you have the most of them; continue where you are"
        ))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(user) = self.user else { return };
        let mut state = self.streams.lock();
        state.all = state.all.saturating_sub(1);
        if let Some(open) = state.open.get_mut(&user) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                state.open.remove(&user);
            }
        }
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        let mut state = self.0.streams.lock();
        state
            .stalled
            .retain(|(_, displaced)| !Arc::ptr_eq(displaced, &self.0.displaced));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use remoteprocess_tls::User as TlsUser;

    use super::*;
    use crate::relay::core::authorize::UserCaller;

    fn limits(of_a_user: usize, of_all: usize, stalled: usize) -> Limits {
        Limits {
            of_a_user,
            of_all,
            stalled,
        }
    }

    fn user(name: &str) -> Caller {
        let user = TlsUser {
            name: name.to_owned(),
            ..TlsUser::default()
        };
        Caller::User(UserCaller {
            user,
            ..UserCaller::default()
        })
    }

    #[test]
    fn the_streams_of_one_user_and_of_all_are_limited() {
        let streams = Streams::new(limits(2, 3, 8));
        let (alice, bob) = (user("alice"), user("bob"));
        let [first, _second] = [(); 2].map(|()| streams.open(&alice).unwrap());
        let refused = streams.open(&alice).unwrap_err();
        assert!(refused.message.contains("you have 2 open streams"), "{refused}");
        let _third = streams.open(&bob).unwrap();
        let refused = streams.open(&bob).unwrap_err();
        assert!(refused.message.contains("serves 3 streams"), "{refused}");
        assert!(refused.is_unavailable());
        drop(first);
        streams.open(&bob).unwrap();
        assert_eq!(streams.counts(), [2, 0]);
        assert_eq!(streams.lock().open.len(), 2);
    }

    #[test]
    fn many_streams_of_a_user_have_small_batches() {
        let (streams, most) = (Streams::default(), 64 << 10);
        let batches = |open: &[Open]| open.iter().map(|open| open.batch(most)).sum::<usize>();
        let few: Vec<Open> = (0..64).map(|_| streams.open(&user("alice")).unwrap()).collect();
        assert_eq!(batches(&few), 64 * most);
        let many: Vec<Open> = (0..1000).map(|_| streams.open(&user("mallory")).unwrap()).collect();
        assert!(batches(&many) <= BYTES);
        let more: Vec<Open> = (0..1000).map(|_| streams.open(&user("mallory")).unwrap()).collect();
        assert!(more.iter().all(|open| open.batch(most) == SMALLEST));
        assert_eq!(few[0].batch(most), most);
    }

    #[test]
    fn the_user_with_the_most_stalled_readers_loses_the_oldest() {
        let streams = Streams::new(limits(100, 100, 3));
        let quiet = streams.open(&user("alice")).unwrap();
        let _quiet = quiet.stall();
        let greedy: Vec<Open> = (0..5).map(|_| streams.open(&user("mallory")).unwrap()).collect();
        let stalls: Vec<Stall<'_>> = greedy.iter().map(Open::stall).collect();
        let displaced = |open: &Open| open.displaced().now_or_never();
        assert!(displaced(&quiet).is_none());
        let lost: Vec<bool> = greedy.iter().map(|open| displaced(open).is_some()).collect();
        assert_eq!(lost, [true, true, true, false, false]);
        drop(stalls);
        // One that takes again is none of them.
        let _again = greedy[4].stall();
        assert!(displaced(&greedy[4]).is_none());
        assert_eq!(streams.counts(), [6, 2]);
    }
}
