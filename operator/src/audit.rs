//! The audit log: one line for each action and each refusal, with who, on which attempt, by which certificate and from
//! where.
//!
//! Lines have the target `audit`, and `remoteprocess_runtime` keeps them apart from the log. What a line can contain is
//! decided here: names and fixed words, never an argument, input or output, a message or a secret.

use std::borrow::Cow;
use std::net::IpAddr;

use remoteprocess_api::{sanitize::plain, signal};
use remoteprocess_tls::User;

/// Groups of a user that are named.
const GROUPS: usize = 16;
/// Characters of one name.
const NAME: usize = 256;
/// Characters of one group.
const GROUP: usize = 64;

/// The connection of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The address of its peer, if it is known.
    pub source: Option<IpAddr>,
    /// Serial number of the certificate of its peer, or empty.
    pub serial: String,
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action<'a> {
    /// A user got a certificate.
    Login,
    /// An agent got a certificate.
    Enroll,
    /// A user opened the input of a process.
    OpenInput(Input),
    /// A user started a command in the container, or joined it again.
    Exec {
        /// Joined again.
        resumes: bool,
    },
    /// A user sent a signal.
    Signal(i32),
    /// A stop was requested, through the relay or in the object.
    Stop,
    /// The program was paused.
    Pause,
    /// The program was resumed.
    Resume,
    /// A step of a rotation of the CA was taken.
    RotateCa(&'a str),
}

/// How the input was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input {
    /// For the first time.
    Opens,
    /// After a connection was lost.
    Continues,
    /// From another user.
    TakesOver,
}

/// Who did something, and to what. Fields that are empty are left out.
#[derive(Debug, Default)]
pub(crate) struct Audit<'a> {
    /// Name of the user.
    pub user: &'a str,
    /// Groups of the user.
    pub groups: &'a [String],
    /// Who requested it according to the object: a field manager, and not proven.
    pub requested_by: &'a str,
    /// Namespace of the object.
    pub namespace: &'a str,
    /// Name of the object.
    pub name: &'a str,
    /// UID of the process.
    pub uid: &'a str,
    /// The attempt.
    pub attempt: u32,
    /// Serial number of the certificate: of the caller, or the one that was issued.
    pub serial: &'a str,
    /// The address of the caller.
    pub source: Option<IpAddr>,
}

impl Action<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Enroll => "enroll",
            Self::OpenInput(_) => "attach",
            Self::Exec { .. } => "exec",
            Self::Signal(_) => "signal",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::RotateCa(_) => "rotate-ca",
        }
    }

    fn detail(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::OpenInput(Input::Opens) | Self::Exec { resumes: false } => "opens".into(),
            Self::OpenInput(Input::Continues) | Self::Exec { resumes: true } => "continues".into(),
            Self::OpenInput(Input::TakesOver) => "takes over".into(),
            Self::Signal(number) => signal::name(*number).into(),
            Self::RotateCa(step) => (*step).into(),
            Self::Login | Self::Enroll | Self::Stop | Self::Pause | Self::Resume => return None,
        })
    }
}

impl<'a> Audit<'a> {
    /// A line about a user.
    pub(crate) fn by(user: &'a User) -> Self {
        Self {
            user: &user.name,
            groups: &user.groups,
            ..Self::default()
        }
    }

    /// Records an action.
    pub(crate) fn write(&self, action: Action<'_>) {
        tracing::info!(
            target: "audit",
            action = action.name(),
            detail = action.detail().as_deref(),
            user = bounded(self.user),
            groups = self.groups(),
            requested_by = bounded(self.requested_by),
            namespace = bounded(self.namespace),
            name = bounded(self.name),
            uid = bounded(self.uid),
            attempt = self.attempt(),
            serial = bounded(self.serial),
            source = self.source.map(tracing::field::display),
            "audit"
        );
    }

    /// Records that a method was refused. A warning: these lines are folded by user and address, however many peers
    /// there are.
    pub(crate) fn refuse(&self, method: &str, role: Option<&str>, reason: &'static str) {
        tracing::warn!(
            target: "audit",
            action = "refuse",
            method = bounded(method),
            reason,
            role,
            user = bounded(self.user),
            groups = self.groups(),
            namespace = bounded(self.namespace),
            name = bounded(self.name),
            uid = bounded(self.uid),
            attempt = self.attempt(),
            serial = bounded(self.serial),
            source = self.source.map(tracing::field::display),
            "audit"
        );
    }

    fn groups(&self) -> Option<String> {
        let mut groups: Vec<_> = self.groups.iter().take(GROUPS).map(|name| plain(name, GROUP)).collect();
        let more = self.groups.len().saturating_sub(GROUPS);
        if more > 0 {
            groups.push(format!("and {more} more"));
        }
        (!groups.is_empty()).then(|| groups.join(","))
    }

    fn attempt(&self) -> Option<u32> {
        (self.attempt > 0).then_some(self.attempt)
    }
}

fn bounded(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| plain(text, NAME))
}

/// Collects the lines of a test.
#[cfg(test)]
pub(crate) mod lines {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex, Once, PoisonError};

    use tracing::field::{Field, Visit};
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    /// The fields of a line.
    pub(crate) type Line = BTreeMap<&'static str, String>;

    type Collected = Arc<Mutex<Vec<(String, Line)>>>;

    thread_local! {
        static COLLECTED: RefCell<Option<Collected>> = const { RefCell::new(None) };
    }

    /// Everything that is logged while it exists on this thread.
    pub(crate) struct Lines {
        lines: Collected,
    }

    /// One subscriber for all threads: with one per thread, a thread without one that reaches a call site first turns
    /// it off for all of them.
    struct Collector;

    struct Fields(Line);

    impl Lines {
        /// Begins to collect.
        pub(crate) fn collect() -> Self {
            static SUBSCRIBER: Once = Once::new();
            SUBSCRIBER.call_once(|| {
                let subscriber = tracing_subscriber::registry().with(Collector);
                tracing::subscriber::set_global_default(subscriber).expect("no other subscriber");
            });
            let lines = Collected::default();
            COLLECTED.set(Some(lines.clone()));
            Self { lines }
        }

        /// The lines of the audit log.
        pub(crate) fn audit(&self) -> Vec<Line> {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let of_audit = lines.iter().filter(|(target, _)| target == "audit");
            of_audit.map(|(_, line)| line.clone()).collect()
        }

        /// Everything, as text.
        pub(crate) fn text(&self) -> String {
            format!("{:?}", self.lines.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl Drop for Lines {
        fn drop(&mut self) {
            COLLECTED.set(None);
        }
    }

    impl<S: Subscriber> Layer<S> for Collector {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let Some(lines) = COLLECTED.with_borrow(Clone::clone) else {
                return;
            };
            let mut fields = Fields(Line::new());
            event.record(&mut fields);
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push((event.metadata().target().to_owned(), fields.0));
        }
    }

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }

        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name(), value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lines::Lines;
    use super::*;

    #[test]
    fn names_are_bounded_and_cannot_break_a_line() {
        let lines = Lines::collect();
        let user = User {
            name: "x\n\u{202e}".repeat(100_000),
            groups: (0..100_000).map(|number| format!("group\n{number}")).collect(),
            ..User::default()
        };
        Audit::by(&user).write(Action::Login);
        Audit::by(&user).refuse(&"/\n".repeat(100_000), None, "NoRole");
        for line in lines.audit() {
            assert!(
                line.values()
                    .all(|value| value.chars().count() <= (GROUPS + 1) * (GROUP + 1)),
                "{line:?}"
            );
            assert!(
                line.values()
                    .flat_map(|value| value.chars())
                    .all(|c| !c.is_control() && c != '\u{202e}')
            );
            assert!(line["groups"].ends_with("and 99984 more"), "{line:?}");
        }
        assert_eq!(lines.audit().len(), 2);
    }
}
