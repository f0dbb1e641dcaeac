//! Reports in the object's conditions what holds the output up: a full spool, or an archive that takes nothing.
//!
//! A short delay is normal and not worth a write; one that lasts is written once when it begins and once when it is
//! over.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::{ConditionType, OutputReason};
use tokio::sync::watch;
use tokio::time::timeout;

use super::LiveAttempt;

/// How long a delay must last before it is reported.
const HOLD: Duration = Duration::from_secs(5);

/// A condition to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputCondition {
    /// Its type.
    pub kind: ConditionType,
    /// Whether it holds now. A condition that does not hold is written only if the status contains it.
    pub is_true: bool,
    /// Why.
    pub reason: OutputReason,
    /// Cause, object, remedy.
    pub message: String,
}

/// Why no output comes in.
#[derive(Clone, Copy, PartialEq)]
enum Hindrance {
    /// The spool of this many bytes is full.
    Spool(u64),
    /// The agent sent this.
    Refused(&'static str),
}

impl Hindrance {
    fn describe(self) -> (OutputReason, String) {
        match self {
            Self::Spool(size) => (
                OutputReason::SpoolFull,
                format!(
                    "the program is held back: the pod's spool of {size} bytes is full of output that the archive does \
                     not hold. See ArchiveUnavailable, or choose a larger spec.output.spoolSize or another \
                     spec.output.whenFull"
                ),
            ),
            Self::Refused(what) => (
                OutputReason::InvalidOutput,
                format!(
                    "the operator takes no more output from the pod of this attempt, because its agent sent {what}. \
                     What was taken before is safe. The agent is not the one of this installation: see who can change \
                     pods in this namespace"
                ),
            ),
        }
    }
}

/// Reports both; never returns.
pub(super) async fn run(live: &LiveAttempt) {
    tokio::join!(
        tell(
            live,
            live.observed.subscribe(),
            |observed| observed
                .refused
                .map(Hindrance::Refused)
                .or(observed.blocked.map(Hindrance::Spool)),
            ConditionType::OutputBlocked,
            Hindrance::describe
        ),
        tell(
            live,
            live.unavailable.subscribe(),
            |unavailable| *unavailable,
            ConditionType::ArchiveUnavailable,
            |cause| (cause.reason(), cause.sentence().to_owned())
        ),
    );
    std::future::pending().await
}

/// Writes each cause that lasts, and its end.
async fn tell<S, T: Copy + PartialEq>(
    live: &LiveAttempt,
    mut causes: watch::Receiver<S>,
    of: impl Fn(&S) -> Option<T>,
    kind: ConditionType,
    describe: impl Fn(T) -> (OutputReason, String),
) {
    // Unknown: an earlier home may have left a condition that does not hold anymore.
    let mut told: Option<Option<T>> = None;
    let mut since = Timestamp::now();
    while let Some(cause) = lasting(&mut causes, &of, told).await {
        let begun = Timestamp::now() - SignedDuration::try_from(HOLD).unwrap_or_default();
        let notice = match cause {
            Some(cause) => {
                if told.flatten().is_none() {
                    since = begun;
                }
                let (reason, message) = describe(cause);
                OutputCondition {
                    kind,
                    is_true: true,
                    reason,
                    message,
                }
            }
            None => OutputCondition {
                kind,
                is_true: false,
                reason: OutputReason::Resolved,
                message: match told.flatten() {
                    Some(_) => format!("was True from {since:.0} to {begun:.0}"),
                    None => format!("ended by {begun:.0}, when another replica became the home"),
                },
            },
        };
        live.note(&notice).await;
        told = Some(cause);
    }
}

/// The next cause that differs from the reported one and has lasted; `None` when the live attempt is gone.
async fn lasting<S, T: Copy + PartialEq>(
    causes: &mut watch::Receiver<S>,
    of: impl Fn(&S) -> Option<T>,
    told: Option<Option<T>>,
) -> Option<Option<T>> {
    loop {
        let cause = of(&*causes.wait_for(|now| told != Some(of(now))).await.ok()?);
        if timeout(HOLD, causes.wait_for(|now| of(now) != cause)).await.is_err() {
            return Some(cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_lasting_states_are_reported() {
        let (sender, mut causes) = watch::channel(None);
        let flicker = async {
            for _ in 0..10 {
                sender.send_replace(Some(1));
                tokio::time::sleep(HOLD / 2).await;
                sender.send_replace(None);
                tokio::time::sleep(HOLD / 2).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            cause = lasting(&mut causes, |now| *now, Some(None)) => panic!("{cause:?} did not last"),
            () = async { timeout(HOLD * 30, flicker).await.unwrap_err(); } => {}
        }
        sender.send_replace(Some(2));
        assert_eq!(lasting(&mut causes, |now| *now, Some(None)).await, Some(Some(2)));
        sender.send_replace(None);
        assert_eq!(lasting(&mut causes, |now| *now, Some(Some(2))).await, Some(None));
        drop(sender);
        assert_eq!(lasting(&mut causes, |now| *now, Some(None)).await, None);
    }
}
