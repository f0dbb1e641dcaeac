//! The end of what is followed, or a signal that tells us to go before.

use std::sync::Arc;

use remoteprocess_proto::v1::{Exit, ProcessKey};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, stop};
use crate::command::sequel::{self, Sequel};
use crate::connect::{Cluster, Relay};
use crate::follow::{self, Follower};

/// The signals that end us.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on they are ours.
    pub(super) fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}

/// How it came to its end.
pub(super) enum Ending {
    /// The process has ended, or cannot be followed.
    Followed(Box<Result<Option<Exit>, follow::Error>>),
    /// A signal told us to go.
    Left(u8),
}

/// Follows it to its end. The first Ctrl-C asks the process to stop.
pub(super) async fn until_end(
    cluster: &Arc<Cluster>,
    follower: &mut Follower<'_, Relay>,
    key: &ProcessKey,
    (sequel, is_quiet): (Option<&Sequel>, bool),
    mut signals: Signals,
) -> Ending {
    let output = follower.output;
    let mut following = std::pin::pin!(sequel::follow(follower, sequel, is_quiet));
    let mut is_stopping = false;
    loop {
        let number = tokio::select! {
            result = &mut following => return Ending::Followed(Box::new(result)),
            number = signals.next() => number,
        };
        if number != 2 || is_stopping {
            return Ending::Left(number);
        }
        is_stopping = true;
        output.answer(&format!("stopping {}; Ctrl-C again leaves it to itself", key.name));
        let (cluster, key) = (cluster.clone(), key.clone());
        tokio::spawn(async move {
            let manner = stop::Manner {
                message: "Ctrl-C".to_owned(),
                ..stop::Manner::default()
            };
            if let Err(failure) = stop::ask(&cluster, &key, &manner).await {
                eprint!(
                    "{}",
                    crate::output::prefixed(&format!("cannot stop {}: {}", key.name, failure.text))
                );
            }
        });
    }
}
