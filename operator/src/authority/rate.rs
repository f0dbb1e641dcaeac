//! A token bucket for each source of calls.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

/// Maximum number of sources; beyond that all unknown sources share one bucket.
const CAPACITY: usize = 16 * 1024;

/// Limits the calls of each source.
pub struct RateLimit<K> {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<Option<K>, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Clone + Eq + Hash> RateLimit<K> {
    /// Admits `burst` calls of a source at once, and `per_second` after that.
    pub fn new(burst: f64, per_second: f64) -> Self {
        Self {
            burst,
            per_second,
            buckets: Mutex::default(),
        }
    }

    /// Whether `source` may call at `now`.
    pub fn admit(&self, source: K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CAPACITY {
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.burst);
        }
        let source = Some(source);
        let is_known = buckets.len() < CAPACITY || buckets.contains_key(&source);
        let full = Bucket {
            tokens: self.burst,
            at: now,
        };
        let bucket = buckets.entry(source.filter(|_| is_known)).or_insert(full);
        let tokens = self.filled(*bucket, now);
        let is_admitted = tokens >= 1.0;
        *bucket = Bucket {
            tokens: if is_admitted { tokens - 1.0 } else { tokens },
            at: now,
        };
        is_admitted
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + since * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;

    #[test]
    fn a_burst_is_admitted_and_then_a_rate() {
        let (limit, now) = (RateLimit::new(250.0, 20.0), Instant::now());
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert_eq!((0..1000).filter(|_| limit.admit(one, now)).count(), 250);
        assert!(limit.admit(other, now), "others are not concerned");
        let later = now + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| limit.admit(one, later)).count(), 40);
    }

    #[test]
    fn memory_is_bounded() {
        let (limit, now) = (RateLimit::new(250.0, 20.0), Instant::now());
        for number in 0..20_000_u32 {
            limit.admit(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(limit.buckets.lock().expect("no panic before").len() <= CAPACITY + 1);
    }
}
