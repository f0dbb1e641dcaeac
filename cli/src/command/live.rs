//! A process that is followed and perhaps written into: until its end, or until somebody here leaves.

use std::sync::Arc;

use remoteprocess_proto::v1::Exit;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::sequel::{self, Sequel};
use super::{Failure, stop};
use crate::connect::{Cluster, Relay};
use crate::exit::{self, Verdict};
use crate::follow::{self, Follower, Ledger};
use crate::interact::{self, Event, Interaction};
use crate::output::prefixed;

/// Number of SIGINT.
const INTERRUPT: u8 = 2;

/// What ends this program before the process does.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on they come here.
    ///
    /// # Errors
    /// The system has no room for them.
    pub fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next one.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPT,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}

/// How it went.
pub enum Ending {
    /// To the end of the stream.
    Followed(Box<Result<Option<Exit>, follow::Error>>),
    /// Somebody here left, or can write no more at a terminal that has no other use.
    Left {
        /// Our exit code.
        code: u8,
        /// What to say.
        sentence: String,
    },
}

/// What Ctrl-C means.
pub enum OnInterrupt<'a> {
    /// The process is asked to stop; a second one leaves.
    Stop(&'a Arc<Cluster>),
    /// Leave.
    Leave,
}

/// What may end it from here.
pub struct Leaving<'a> {
    /// What is written into it.
    pub interaction: Interaction,
    /// What comes from the system.
    pub signals: Signals,
    /// What Ctrl-C means.
    pub on_interrupt: OnInterrupt<'a>,
}

/// Follows until the process has ended or somebody leaves; then the terminal is as it was.
pub async fn until_end(
    follower: &mut Follower<'_, Relay>,
    sequel: (Option<&Sequel>, bool),
    mut leaving: Leaving<'_>,
) -> Ending {
    let ending = follow(follower, sequel, &mut leaving).await;
    leaving.interaction.leave().await;
    ending
}

async fn follow(
    follower: &mut Follower<'_, Relay>,
    (sequel, is_quiet): (Option<&Sequel>, bool),
    leaving: &mut Leaving<'_>,
) -> Ending {
    let Leaving {
        interaction,
        signals,
        on_interrupt,
    } = leaving;
    let output = follower.output;
    let key = follower.ledger.process().clone();
    let name = &key.name;
    let flags = if interaction.is_raw() { " -it" } else { "" };
    let again = format!("{name} is left to itself. See it again: rproc attach{flags} {name}");
    let left = |code, sentence| Ending::Left { code, sentence };
    let mut following = std::pin::pin!(sequel::follow(follower, sequel, is_quiet));
    let mut is_stopping = false;
    loop {
        let number = tokio::select! {
            result = &mut following => return Ending::Followed(Box::new(result)),
            event = interaction.next() => match event {
                Event::Detached => return left(0, again),
                Event::Interrupted => INTERRUPT,
                Event::Lost(error) if has_ended(&error) => continue,
                Event::Lost(error) => {
                    let sentence = format!("cannot write into {name}: {error}");
                    if interaction.is_raw() {
                        return left(exit::UNKNOWN, format!("{sentence}\n{again}"));
                    }
                    output.answer(&sentence);
                    continue;
                }
            },
            number = signals.next() => number,
        };
        let OnInterrupt::Stop(cluster) = on_interrupt else {
            return left(128 + number, again);
        };
        if number != INTERRUPT || is_stopping {
            return left(128 + number, again);
        }
        is_stopping = true;
        output.answer(&format!("stopping {name}; Ctrl-C again leaves it to itself"));
        let (cluster, key) = (Arc::clone(cluster), key.clone());
        tokio::spawn(async move {
            let manner = stop::Manner {
                message: "Ctrl-C".to_owned(),
                ..stop::Manner::default()
            };
            if let Err(failure) = stop::ask(&cluster, &key, &manner).await {
                eprint!("{}", prefixed(&format!("cannot stop {}: {}", key.name, failure.text)));
            }
        });
    }
}

/// The agent's or the relay's word for an end that the output tells as well.
fn has_ended(error: &interact::Error) -> bool {
    matches!(error, interact::Error::Relay(status)
        if status.code() == tonic::Code::FailedPrecondition && status.message().ends_with("has ended"))
}

/// The verdict on what was followed; a closed pipe is no verdict.
///
/// # Errors
/// The output could not be written.
pub fn conclude(
    ledger: &Ledger,
    name: &str,
    ended: Result<Option<Exit>, follow::Error>,
) -> Result<(Option<Exit>, Verdict), Failure> {
    let unknown = |sentence| Verdict {
        code: exit::UNKNOWN,
        sentence: Some(sentence),
    };
    match ended {
        Ok(Some(exit)) => {
            let verdict = exit::judge(name, &exit, ledger);
            Ok((Some(exit), verdict))
        }
        Ok(None) => Ok((
            None,
            unknown(format!(
                "the stream of {name} ended without its exit. See: rproc describe {name}"
            )),
        )),
        Err(follow::Error::Output(error)) => Err(error.into()),
        Err(error) => {
            let sentence = format!(
                "cannot follow {name}: {}\nThe process itself is not touched. See: rproc describe {name}",
                Failure::from(error).text
            );
            Ok((None, unknown(sentence)))
        }
    }
}
