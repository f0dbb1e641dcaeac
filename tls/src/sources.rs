use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts the connections of each source, so that one source cannot take all slots.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of a source; dropping it makes room.
pub(crate) struct Admission {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    /// Takes one more connection of `source`, unless it has `limit` already.
    pub fn admit(&self, source: IpAddr, limit: usize) -> Option<Admission> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Admission {
            sources: self.clone(),
            source,
        })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.sources.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_and_gets_it_back() {
        let sources = Sources::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = sources.admit(one, 2).expect("room");
        let _second = sources.admit(one, 2).expect("room");
        assert!(sources.admit(one, 2).is_none());
        assert!(sources.admit(other, 2).is_some());
        drop(first);
        assert!(sources.admit(one, 2).is_some());
        assert_eq!(
            sources.counts.lock().expect("no panic before").len(),
            1,
            "nothing is kept of who left"
        );
    }
}
