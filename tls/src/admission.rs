use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Why a connection was refused or cut before it could make a call. For metrics; the peer only sees its connection end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Newer connections without a proven identity needed its place, and it was the oldest of its source, or had sent the
    /// most.
    Displaced,
    /// Its handshake took too long.
    Slow,
    /// It sent more bytes than a handshake needs.
    TooLarge,
    /// Its handshake failed, or its certificate is not one of ours.
    Untrusted,
    /// Its certificate is one of ours, but of a role that has no business on this listener.
    WrongRole,
    /// Its identity has reached its number of connections.
    Identity,
    /// The listener has reached its number of connections.
    Full,
}

impl Refusal {
    /// A fixed word for metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Displaced => "Displaced",
            Self::Slow => "HandshakeTimeout",
            Self::TooLarge => "HandshakeTooLarge",
            Self::Untrusted => "HandshakeFailed",
            Self::WrongRole => "WrongRole",
            Self::Identity => "IdentityLimit",
            Self::Full => "ConnectionLimit",
        }
    }
}

/// The connections of peers that have proven nothing yet. A new one always gets a place: it displaces the oldest
/// connection of the source that has the most, so that a flood displaces itself.
#[derive(Clone, Default)]
pub(crate) struct Unproven {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    entered: u64,
    total: usize,
    /// What all of them have sent.
    bytes: usize,
    sources: HashMap<IpAddr, VecDeque<Waiting>>,
}

struct Waiting {
    number: u64,
    /// What it has sent.
    bytes: usize,
    displaced: CancellationToken,
}

/// The place of one connection; dropping it frees the place.
pub(crate) struct Place {
    queue: Arc<Mutex<Queue>>,
    source: IpAddr,
    number: u64,
    displaced: CancellationToken,
}

/// Counts what one connection sends until it has proven who it is.
pub(crate) struct Meter {
    queue: Arc<Mutex<Queue>>,
    source: IpAddr,
    number: u64,
    of_all: usize,
}

impl Unproven {
    /// Admits one more connection of `source`. At most `limit` remain in total, and `per_source` of one source.
    pub(crate) fn enter(&self, source: IpAddr, limit: usize, per_source: usize) -> Place {
        let (source, displaced) = (network(source), CancellationToken::new());
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue
            .sources
            .get(&source)
            .is_some_and(|of_it| of_it.len() >= per_source)
        {
            queue.displace(source);
        } else if queue.total >= limit
            && let Some(largest) = queue.largest()
        {
            queue.displace(largest);
        }
        queue.entered += 1;
        queue.total += 1;
        let number = queue.entered;
        queue.sources.entry(source).or_default().push_back(Waiting {
            number,
            bytes: 0,
            displaced: displaced.clone(),
        });
        Place {
            queue: self.queue.clone(),
            source,
            number,
            displaced,
        }
    }
}

impl Queue {
    /// The source with the most connections; among equals the one that has waited longest.
    fn largest(&self) -> Option<IpAddr> {
        let oldest = |of_it: &VecDeque<Waiting>| of_it.front().map_or(u64::MAX, |first| first.number);
        self.sources
            .iter()
            .max_by_key(|(_, of_it)| (of_it.len(), std::cmp::Reverse(oldest(of_it))))
            .map(|(source, _)| *source)
    }

    fn displace(&mut self, source: IpAddr) {
        let oldest = self.sources.get(&source).and_then(|of_it| of_it.front());
        if let Some(number) = oldest.map(|oldest| oldest.number)
            && let Some(gone) = self.remove(source, number)
        {
            gone.displaced.cancel();
        }
    }

    /// Counts bytes of a connection, for as long as it has its place. Beyond `limit` bytes of all, the connection that has
    /// sent the most loses its place, of the source that has sent the most.
    fn count(&mut self, (source, number): (IpAddr, u64), bytes: usize, limit: usize) {
        let of_it = self.sources.get_mut(&source).into_iter().flatten();
        let Some(waiting) = of_it.into_iter().find(|waiting| waiting.number == number) else {
            return;
        };
        waiting.bytes += bytes;
        self.bytes += bytes;
        while self.bytes > limit {
            let Some((source, number)) = self.heaviest() else {
                return;
            };
            if let Some(gone) = self.remove(source, number) {
                gone.displaced.cancel();
            }
        }
    }

    /// The connection that has sent the most, of the source that has sent the most.
    fn heaviest(&self) -> Option<(IpAddr, u64)> {
        let of_source = |of_it: &VecDeque<Waiting>| of_it.iter().map(|waiting| waiting.bytes).sum::<usize>();
        let (source, of_it) = self.sources.iter().max_by_key(|(_, of_it)| of_source(of_it))?;
        let heaviest = of_it.iter().max_by_key(|waiting| waiting.bytes)?;
        Some((*source, heaviest.number))
    }

    fn remove(&mut self, source: IpAddr, number: u64) -> Option<Waiting> {
        let of_it = self.sources.get_mut(&source)?;
        let position = of_it.iter().position(|waiting| waiting.number == number)?;
        let gone = of_it.remove(position);
        if of_it.is_empty() {
            self.sources.remove(&source);
        }
        self.total -= 1;
        self.bytes -= gone.as_ref().map_or(0, |gone| gone.bytes);
        gone
    }
}

impl Place {
    /// Counts what this connection sends. All connections together may send `of_all` bytes.
    pub(crate) fn meter(&self, of_all: usize) -> Meter {
        Meter {
            queue: self.queue.clone(),
            source: self.source,
            number: self.number,
            of_all,
        }
    }

    /// Ends when other connections have taken this place.
    pub(crate) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Meter {
    /// The connection has sent this.
    pub(crate) fn count(&self, bytes: usize) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.count((self.source, self.number), bytes, self.of_all);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.remove(self.source, self.number);
    }
}

/// What counts as one source: an IPv4 address, or the /64 network of an IPv6 address, because one host has all of that.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Counts the places of each key, so that no key takes all.
pub(crate) struct Counts<K> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

/// One place of a key; dropping it frees the place.
pub(crate) struct Counted<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { counts: Arc::default() }
    }
}

impl<K: Clone + Eq + Hash> Counts<K> {
    /// Takes one more place for `key`, unless it already has `limit`.
    pub(crate) fn admit(&self, key: K, limit: usize) -> Option<Counted<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&key).copied().unwrap_or_default();
        if count >= limit {
            return None;
        }
        counts.insert(key.clone(), count + 1);
        Some(Counted {
            counts: self.counts.clone(),
            key,
        })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn is_displaced(place: &Place) -> bool {
        place.displaced.is_cancelled()
    }

    #[test]
    fn a_key_has_its_share_and_gets_it_back() {
        let counts = Counts::default();
        let first = counts.admit("one", 2).expect("room");
        let _second = counts.admit("one", 2).expect("room");
        assert!(counts.admit("one", 2).is_none());
        assert!(counts.admit("other", 2).is_some());
        drop(first);
        assert!(counts.admit("one", 2).is_some());
        assert_eq!(
            counts.counts.lock().expect("no panic before").len(),
            1,
            "keys without any are forgotten"
        );
    }

    #[test]
    fn the_oldest_of_a_source_makes_room() {
        let unproven = Unproven::default();
        let other = unproven.enter(host(2), 10, 2);
        let (first, second) = (unproven.enter(host(1), 10, 2), unproven.enter(host(1), 10, 2));
        let third = unproven.enter(host(1), 10, 2);
        assert!(is_displaced(&first));
        assert!([&second, &third, &other].into_iter().all(|place| !is_displaced(place)));
        drop(second);
        let _fourth = unproven.enter(host(1), 10, 2);
        assert!(!is_displaced(&third), "there was room");
    }

    #[test]
    fn a_flood_displaces_itself() {
        let unproven = Unproven::default();
        let honest = unproven.enter(host(1), 8, 4);
        let flood: Vec<_> = (0..100).map(|i| unproven.enter(host(2 + i % 3), 8, 4)).collect();
        assert_eq!(flood.iter().filter(|place| !is_displaced(place)).count(), 7);
        assert!(!is_displaced(&honest), "of all sources it has the fewest");
        drop((honest, flood));
        let queue = unproven.queue.lock().expect("no panic before");
        assert_eq!((queue.total, queue.sources.len()), (0, 0));
    }

    #[test]
    fn large_handshakes_displace_each_other() {
        let unproven = Unproven::default();
        let honest: Vec<_> = (0..4).map(|_| unproven.enter(host(1), 100, 50)).collect();
        honest.iter().for_each(|place| place.meter(1000).count(50));
        let flood: Vec<_> = (0..40).map(|i| unproven.enter(host(2 + i % 3), 100, 50)).collect();
        for place in &flood {
            place.meter(1000).count(99);
            place.meter(1000).count(1);
        }
        assert_eq!(flood.iter().filter(|place| !is_displaced(place)).count(), 8);
        assert!(
            honest.iter().all(|place| !is_displaced(place)),
            "their source has sent less"
        );
        flood[0].meter(1000).count(500);
        drop((honest, flood));
        let queue = unproven.queue.lock().expect("no panic before");
        assert_eq!((queue.total, queue.bytes), (0, 0));
    }

    #[test]
    fn one_host_is_one_source() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::2:0:0:1")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:10.0.0.1")), host(1));
    }
}
