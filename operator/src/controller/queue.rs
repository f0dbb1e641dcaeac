//! Which process is reconciled next. Namespaces take turns, so the objects of one namespace do not delay those of
//! others, and objects of one namespace come in the order of their changes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Instant;

use kube::Resource;
use kube::runtime::reflector::ObjectRef;

/// Something that waits for its turn.
pub(super) trait Key: Clone + Eq + Hash {
    /// Keys of one namespace share its turns.
    fn namespace(&self) -> &str;
}

impl<K: Resource<DynamicType = ()> + Clone> Key for ObjectRef<K> {
    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

/// The queue of the controller. It reads no clock and starts nothing.
pub(super) struct Queue<K> {
    limits: Limits,
    /// What is ready, by namespace; no entry is empty.
    ready: HashMap<String, VecDeque<K>>,
    /// The namespaces of `ready`. The one in front has waited longest for its turn.
    turns: VecDeque<String>,
    /// All of `ready`: each key waits once.
    waiting: HashSet<K>,
    /// What runs, and whether it has changed since it began.
    running: HashMap<K, bool>,
    /// How many run in each namespace; no entry is zero.
    busy: HashMap<String, usize>,
    /// What waits for its time, in order. The number makes each entry unique.
    due: BTreeMap<(Instant, u64), K>,
    times: HashMap<K, (Instant, u64)>,
    scheduled: u64,
}

/// How many keys run at the same time.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) all: usize,
    /// Less than `all`: what runs long in one namespace leaves room for others.
    pub(super) of_one_namespace: usize,
}

impl<K: Key> Queue<K> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ready: HashMap::new(),
            turns: VecDeque::new(),
            waiting: HashSet::new(),
            running: HashMap::new(),
            busy: HashMap::new(),
            due: BTreeMap::new(),
            times: HashMap::new(),
            scheduled: 0,
        }
    }

    /// The key has changed: it is ready now, or again as soon as it no longer runs.
    pub(super) fn add(&mut self, key: K) {
        if let Some(time) = self.times.remove(&key) {
            self.due.remove(&time);
        }
        if let Some(has_changed) = self.running.get_mut(&key) {
            *has_changed = true;
            return;
        }
        if !self.waiting.insert(key.clone()) {
            return;
        }
        let namespace = key.namespace();
        if let Some(ready) = self.ready.get_mut(namespace) {
            ready.push_back(key);
        } else {
            self.turns.push_back(namespace.to_owned());
            self.ready.insert(namespace.to_owned(), VecDeque::from([key]));
        }
    }

    /// Takes the next key: of the namespace with the fewest running ones, and of those the one that has waited longest.
    /// Call [`Queue::done`] when it has run.
    pub(super) fn next(&mut self) -> Option<K> {
        if self.running.len() >= self.limits.all {
            return None;
        }
        let busy = |namespace: &String| self.busy.get(namespace).copied().unwrap_or_default();
        // At most `all` namespaces are busy, so an idle one is near the front, and without one there are few to compare.
        let idle = self.turns.iter().position(|namespace| busy(namespace) == 0);
        let turn = idle.or_else(|| {
            let turns = self.turns.iter().enumerate();
            let (busy, turn) = turns.map(|(turn, namespace)| (busy(namespace), turn)).min()?;
            (busy < self.limits.of_one_namespace).then_some(turn)
        })?;
        let namespace = self.turns.remove(turn)?;
        let ready = self.ready.get_mut(&namespace)?;
        let key = ready.pop_front()?;
        if ready.is_empty() {
            self.ready.remove(&namespace);
        } else {
            self.turns.push_back(namespace.clone());
        }
        self.waiting.remove(&key);
        self.running.insert(key.clone(), false);
        *self.busy.entry(namespace).or_default() += 1;
        Some(key)
    }

    /// The key no longer runs. It is ready again if it has changed meanwhile, and otherwise at this time, if any.
    pub(super) fn done(&mut self, key: K, again: Option<Instant>) {
        let Some(has_changed) = self.running.remove(&key) else {
            return;
        };
        if let Some(busy) = self.busy.get_mut(key.namespace()) {
            *busy -= 1;
            if *busy == 0 {
                self.busy.remove(key.namespace());
            }
        }
        if has_changed {
            self.add(key);
        } else if let Some(at) = again {
            self.scheduled += 1;
            self.times.insert(key.clone(), (at, self.scheduled));
            self.due.insert((at, self.scheduled), key);
        }
    }

    /// Makes everything ready whose time has come.
    pub(super) fn release(&mut self, now: Instant) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.get().clone();
            self.add(key);
        }
    }

    /// When [`Queue::release`] has something to do.
    pub(super) fn next_release(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A namespace, and a name in it.
    type Named = (&'static str, u32);

    impl Key for Named {
        fn namespace(&self) -> &str {
            self.0
        }
    }

    fn queue(all: usize, of_one_namespace: usize) -> Queue<Named> {
        Queue::new(Limits { all, of_one_namespace })
    }

    fn take(queue: &mut Queue<Named>, count: usize) -> Vec<Named> {
        std::iter::from_fn(|| queue.next()).take(count).collect()
    }

    #[test]
    fn ten_thousand_objects_of_one_namespace_delay_another_by_one_turn() {
        let mut queue = queue(4, 3);
        (0..10_000).for_each(|name| queue.add(("bad", name)));
        assert_eq!(take(&mut queue, 9).len(), 3, "one place stays free");
        queue.add(("good", 0));
        assert_eq!(queue.next(), Some(("good", 0)), "it takes the free place");
        queue.add(("good", 1));
        assert_eq!(queue.next(), None);
        queue.done(("bad", 0), None);
        assert_eq!(queue.next(), Some(("good", 1)), "it is the next one");
        queue.done(("good", 0), None);
        assert_eq!(queue.next(), Some(("bad", 3)));
    }

    #[test]
    fn namespaces_take_turns_and_keys_keep_their_order() {
        let mut queue = queue(9, 9);
        for key in [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2), ("a", 1)] {
            queue.add(key);
        }
        let order = [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("a", 3)];
        assert_eq!(take(&mut queue, 9), order, "and each comes once");
    }

    #[test]
    fn a_change_during_the_run_leads_to_another_run_and_never_to_two_at_once() {
        let mut queue = queue(9, 9);
        let later = Instant::now() + Duration::from_secs(60);
        queue.add(("a", 1));
        assert_eq!(queue.next(), Some(("a", 1)));
        queue.add(("a", 1));
        queue.add(("a", 1));
        assert_eq!(queue.next(), None, "it runs");
        queue.done(("a", 1), Some(later));
        assert_eq!(queue.next(), Some(("a", 1)));
        assert_eq!(queue.next_release(), None, "the change came first");
        queue.done(("a", 1), None);
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn what_is_scheduled_comes_at_its_time_or_with_a_change_and_once() {
        let mut queue = queue(9, 9);
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        for (name, again) in [(1, 20), (2, 10), (3, 10)] {
            queue.add(("a", name));
            queue.next();
            queue.done(("a", name), Some(at(again)));
        }
        assert_eq!(queue.next_release(), Some(at(10)));
        queue.release(at(9));
        assert_eq!(queue.next(), None);
        queue.add(("a", 3));
        assert_eq!(queue.next(), Some(("a", 3)), "it has changed before");
        queue.release(at(10));
        assert_eq!(take(&mut queue, 9), [("a", 2)]);
        queue.release(at(20));
        assert_eq!(take(&mut queue, 9), [("a", 1)]);
        assert_eq!(queue.next_release(), None);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_limit_is_exceeded(
            steps in proptest::collection::vec((0..4_usize, 0..3_usize, 0..3_u32), 1..200),
        ) {
            let (mut queue, mut running, mut owed) = (queue(4, 2), Vec::<Named>::new(), HashSet::new());
            let (now, namespaces) = (Instant::now(), ["a", "b", "c"]);
            let begin = |queue: &mut Queue<Named>, running: &mut Vec<Named>, owed: &mut HashSet<Named>| {
                while let Some(key) = queue.next() {
                    assert!(!running.contains(&key), "{key:?} runs twice");
                    owed.remove(&key);
                    running.push(key);
                }
            };
            for (step, namespace, name) in steps {
                let key = (namespaces[namespace], name);
                match step {
                    0 | 1 => {
                        queue.add(key);
                        owed.insert(key);
                    }
                    2 if !running.is_empty() => {
                        let ended = running.remove(name as usize % running.len());
                        queue.done(ended, (namespace > 0).then_some(now));
                        if namespace > 0 {
                            owed.insert(ended);
                        }
                    }
                    _ => queue.release(now),
                }
                begin(&mut queue, &mut running, &mut owed);
                prop_assert!(running.len() <= 4);
                for of in namespaces {
                    prop_assert!(running.iter().filter(|key| key.0 == of).count() <= 2);
                }
            }
            while !running.is_empty() || queue.next_release().is_some() {
                running.drain(..).for_each(|ended| queue.done(ended, None));
                queue.release(now);
                begin(&mut queue, &mut running, &mut owed);
            }
            prop_assert!(owed.is_empty(), "{owed:?} never ran");
            prop_assert!(queue.busy.is_empty() && queue.waiting.is_empty() && queue.times.is_empty());
        }
    }
}
