//! A token bucket for each source address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

/// Calls at once. A node whose network hides its pods behind one address may start all of its pods together.
const BURST: f64 = 250.0;

/// Calls per second after that.
const PER_SECOND: f64 = 20.0;

/// Sources kept at a time; beyond that all unknown sources share one bucket.
const CAPACITY: usize = 16 * 1024;

/// Limits the calls of each source.
#[derive(Default)]
pub(super) struct RateLimit {
    buckets: Mutex<HashMap<Option<IpAddr>, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RateLimit {
    /// Whether `source` may call at `now`; calls without a known source share one bucket.
    pub fn admit(&self, source: Option<IpAddr>, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CAPACITY {
            buckets.retain(|_, bucket| bucket.filled(now) < BURST);
        }
        let is_known = buckets.len() < CAPACITY || buckets.contains_key(&source);
        let bucket = buckets
            .entry(source.filter(|_| is_known))
            .or_insert(Bucket { tokens: BURST, at: now });
        let tokens = bucket.filled(now);
        let is_admitted = tokens >= 1.0;
        *bucket = Bucket {
            tokens: if is_admitted { tokens - 1.0 } else { tokens },
            at: now,
        };
        is_admitted
    }
}

impl Bucket {
    fn filled(&self, now: Instant) -> f64 {
        (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_admitted_and_then_a_rate() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        let (one, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        assert_eq!((0..1000).filter(|_| limit.admit(one, now)).count(), 250);
        assert!(limit.admit(other, now), "others are not concerned");
        let later = now + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| limit.admit(one, later)).count(), 40);
    }

    #[test]
    fn memory_is_bounded() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        for number in 0..20_000_u32 {
            limit.admit(Some(IpAddr::from(number.to_be_bytes())), now);
        }
        assert!(limit.buckets.lock().expect("no panic before").len() <= CAPACITY + 1);
    }
}
