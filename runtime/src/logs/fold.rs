use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Filter};

/// How long similar lines are counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Similar lines that are written in one window; further ones are only counted.
const LINES: u64 = 30;

/// Kinds of lines that are distinguished in one window. Beyond that, lines from the same place in the code are one
/// kind.
const KINDS: usize = 1024;

/// The target of lines that record an action and its user.
pub(super) const AUDIT: &str = "audit";

/// Characters of a message, or of a peer's name, that are kept for the line that reports folded ones.
const KEPT: usize = 128;

/// Folds repeated lines, so that no peer can flood the log: of similar lines within ten seconds the first 30 are
/// written, and the others are counted. Lines are similar if they come from the same place in the code and name the
/// same `user` or `source`, or, if they name neither, have the same fields. Audit lines are similar if they also name the
/// same `action` and the same `uid`: the first of each is always written, so that no action is hidden in a flood of
/// others.
#[derive(Clone, Default)]
pub(super) struct Fold {
    kinds: Arc<Mutex<HashMap<(Identifier, u64), Kind>>>,
}

struct Kind {
    since: Instant,
    count: u64,
    said: Said,
}

/// Lines that were left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folded {
    pub lines: u64,
    pub message: String,
    pub peer: String,
}

/// The fields of a line that matter here.
#[derive(Default)]
struct Said {
    message: String,
    peer: String,
    /// Of an audit line, what must be the same in similar ones.
    act: DefaultHasher,
    all: DefaultHasher,
}

impl Fold {
    /// Whether to write this line.
    fn admit(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut said = Said::default();
        event.record(&mut said);
        let is_audit = metadata.target() == AUDIT;
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (metadata.callsite(), said.likeness(is_audit));
        if kinds.len() >= KINDS && !kinds.contains_key(&key) {
            // Refusals are warnings. There are as many as strangers like; of actions only as many as users may have.
            if is_audit && *metadata.level() == Level::INFO {
                return true;
            }
            key.1 = 0;
            said.peer.clear();
        }
        let kind = kinds.entry(key).or_insert(Kind {
            since: now,
            count: 0,
            said,
        });
        kind.count += 1;
        kind.count <= LINES
    }

    /// Removes and returns what was folded in the windows that are over at `now`.
    pub(super) fn take(&self, now: Instant) -> Vec<Folded> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let over = kinds.extract_if(|_, kind| now >= kind.since + WINDOW);
        over.filter(|(_, kind)| kind.count > LINES)
            .map(|(_, kind)| Folded {
                lines: kind.count - LINES,
                message: kind.said.message,
                peer: kind.said.peer,
            })
            .collect()
    }
}

impl<S: Subscriber> Filter<S> for Fold {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admit(event, Instant::now())
    }
}

impl Said {
    fn likeness(&self, is_audit: bool) -> u64 {
        if is_audit {
            return self.act.finish();
        }
        if self.peer.is_empty() {
            return self.all.finish();
        }
        let mut peer = DefaultHasher::new();
        self.peer.hash(&mut peer);
        peer.finish()
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.record_str(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let kept = || value.chars().take(KEPT).collect();
        match field.name() {
            "message" => self.message = kept(),
            "action" => value.clone_into(&mut self.message),
            "user" | "source" if self.peer.is_empty() => self.peer = kept(),
            _ => {}
        }
        if matches!(field.name(), "action" | "user" | "source" | "uid") {
            (field.name(), value).hash(&mut self.act);
        }
        (field.name(), value).hash(&mut self.all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::{Layer, Registry, layer::SubscriberExt};

    use super::*;

    /// Counts the lines that are written.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lines(write: impl FnOnce()) -> (usize, Fold) {
        let (lines, fold) = (Lines::default(), Fold::default());
        let subscriber = Registry::default().with(lines.clone().with_filter(fold.clone()));
        tracing::subscriber::with_default(subscriber, write);
        (lines.0.load(Ordering::Relaxed), fold)
    }

    #[test]
    fn a_flood_of_one_peer_is_folded_and_told() {
        let (count, fold) = lines(|| {
            for number in 0..1000 {
                let user = if number % 100 == 0 { "bob" } else { "mallory" };
                tracing::info!(user, number, "refused");
            }
        });
        assert_eq!(count, 30 + 10, "the first ones of each are written");
        assert_eq!(fold.take(Instant::now()), [], "the window is not over");
        let later = Instant::now() + WINDOW;
        let folded = Folded {
            lines: 960,
            message: "refused".into(),
            peer: "mallory".into(),
        };
        assert_eq!(fold.take(later), [folded]);
        assert_eq!(fold.take(later), [], "told once");
    }

    #[test]
    fn different_lines_are_not_folded() {
        let (count, _) = lines(|| {
            for process in 0..500 {
                tracing::info!(process, "an agent enrolled");
            }
        });
        assert_eq!(count, 500);
    }

    #[test]
    fn a_flood_of_one_action_is_folded_and_hides_no_other() {
        let act = |action, user, uid: u32| tracing::info!(target: "audit", action, user, uid, "audit");
        let (count, fold) = lines(|| {
            for _ in 0..500 {
                act("exec", "mallory", 1);
            }
            act("signal", "mallory", 1);
            act("exec", "mallory", 2);
            act("exec", "alice", 1);
        });
        assert_eq!(count, 30 + 3);
        let folded = fold.take(Instant::now() + WINDOW);
        assert_eq!((folded[0].lines, folded[0].message.as_str()), (470, "exec"));
    }

    #[test]
    fn a_flood_of_refusals_of_many_strangers_hides_no_action() {
        let (count, fold) = lines(|| {
            for source in 0..20_000 {
                tracing::warn!(target: "audit", action = "refuse", source, "audit");
            }
            for uid in 0..100 {
                tracing::info!(target: "audit", action = "stop", user = "alice", uid, "audit");
            }
        });
        assert_eq!(count, 1024 + 30 + 100);
        assert!(fold.kinds.lock().expect("no panic before").len() <= KINDS + 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (count, fold) = lines(|| {
            for number in 0..20_000 {
                tracing::warn!(source = number, "refused");
            }
        });
        assert_eq!(count, 1024 + 30);
        assert!(fold.kinds.lock().expect("no panic before").len() <= KINDS + 1);
    }
}
