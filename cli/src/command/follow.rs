//! Follows a process, possibly with input, until its end or until the user leaves.

use std::sync::Arc;

use remoteprocess_client::{Cluster, Follower, Ledger, Relay, output as follow, stream};
use remoteprocess_proto::v1::Exit;
use tokio::signal::unix::{Signal, SignalKind};

use super::next_attempt::{self, NextAttempt};
use super::stop;
use crate::exit::{self, Verdict};
use crate::failure::Failure;
use crate::interact::{self, DetachKeys, Event, Interaction, signals};
use crate::output::{Output, complain};
use crate::progress::Messages;

/// Number of SIGINT.
const INTERRUPT: u8 = 2;

/// The signals that end this program before the process ends.
pub struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// Receives the signals from now on. A signal that was ignored at the start stays ignored: `nohup` and `&` in a
    /// script (POSIX, XCU 2.11) require that.
    pub fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signals::listen(SignalKind::interrupt())?,
            terminate: signals::listen(SignalKind::terminate())?,
            hangup: signals::listen(SignalKind::hangup())?,
        })
    }

    /// The number of the next signal.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            () = signals::received(&mut self.interrupt) => INTERRUPT,
            () = signals::received(&mut self.terminate) => 15,
            () = signals::received(&mut self.hangup) => 1,
        }
    }
}

/// The end of the stream, and whether the input could not be passed on; the reason for that was already printed.
pub type Followed = (Result<Option<Exit>, follow::Error>, bool);

/// The meaning of Ctrl-C.
pub enum OnInterrupt<'a> {
    /// Request that the process stops; a second one leaves.
    Stop(&'a Arc<Cluster>),
    /// Leave.
    Leave,
}

/// What may end following on this side.
pub struct Leaving<'a> {
    /// The input of the process.
    pub interaction: Interaction,
    /// Signals to this program.
    pub signals: Signals,
    /// The meaning of Ctrl-C.
    pub on_interrupt: OnInterrupt<'a>,
}

/// Prints once how to leave, if each key goes to the process.
pub async fn say_how_to_leave(
    output: &Output,
    name: &str,
    keys: &DetachKeys,
    is_raw: bool,
) -> Result<(), crate::output::Error> {
    if !is_raw || keys.is_empty() {
        return Ok(());
    }
    output.line(&format!("{keys} leaves {name} running")).await
}

/// Follows until the end of the stream; then the terminal is restored.
///
/// # Errors
/// The user leaves, or can no longer write to a terminal that has no other use: our exit code, and what to print.
pub async fn until_end(
    follower: &mut Follower<Relay, Output, Messages>,
    next_attempt: (Option<&NextAttempt>, bool),
    mut leaving: Leaving<'_>,
) -> Result<Followed, Verdict> {
    let ending = follow(follower, next_attempt, &mut leaving).await;
    follower.sink.restore().await;
    leaving.interaction.leave().await;
    ending
}

async fn follow(
    follower: &mut Follower<Relay, Output, Messages>,
    (next_attempt, is_quiet): (Option<&NextAttempt>, bool),
    leaving: &mut Leaving<'_>,
) -> Result<Followed, Verdict> {
    let Leaving {
        interaction,
        signals,
        on_interrupt,
    } = leaving;
    let output = follower.sink.clone();
    let key = follower.ledger.process().clone();
    let name = &key.name;
    let flags = if interaction.is_raw() { " -it" } else { "" };
    let again = format!("Detached; {name} keeps running. Reattach with: rproc attach{flags} {name}");
    let left = |code, message| {
        let message = Some(message);
        Err(Verdict { code, message })
    };
    let mut following = std::pin::pin!(next_attempt::follow(follower, next_attempt, is_quiet));
    let mut is_stopping = false;
    let mut is_input_lost = false;
    loop {
        let number = tokio::select! {
            result = &mut following => return Ok((result, is_input_lost)),
            event = interaction.next() => match event {
                Event::Detached => return left(0, again),
                Event::Interrupted => INTERRUPT,
                Event::Lost(error) if has_ended(&error) => continue,
                Event::Lost(error) => {
                    let message = format!("cannot write into {name}: {error}{}", way_out(&error, name));
                    if interaction.is_raw() {
                        return left(exit::UNKNOWN, format!("{message}\n{again}"));
                    }
                    output.answer(&message);
                    is_input_lost = true;
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
        output.answer(&format!("stopping {name}; press Ctrl-C again to detach"));
        let (cluster, key) = (Arc::clone(cluster), key.clone());
        tokio::spawn(async move {
            let manner = stop::Manner {
                message: "Ctrl-C".to_owned(),
                ..stop::Manner::default()
            };
            if let Err(failure) = stop::ask(&cluster, &key, &manner).await {
                complain(&format!("cannot stop {}: {}", key.name, failure.text));
            }
        });
    }
}

/// What to do if another writer has the input.
fn way_out(error: &interact::Error, name: &str) -> String {
    use tonic::Code;
    match error {
        interact::Error::Stream(stream::Error::Relay(status))
            if matches!(status.code(), Code::ResourceExhausted | Code::Aborted) =>
        {
            format!(". To write instead of the other: rproc attach -i --take-over {name}")
        }
        _ => String::new(),
    }
}

/// Whether this is the agent's or the relay's error for an end that the output reports as well.
fn has_ended(error: &interact::Error) -> bool {
    matches!(error, interact::Error::Stream(stream::Error::Relay(status)) if status.code() == tonic::Code::OutOfRange)
}

/// The exit code for what was followed, unless the output pipe was closed. If input was not passed on, it is never a
/// success.
pub fn conclude(
    ledger: &Ledger,
    name: &str,
    (ended, is_input_lost): Followed,
) -> Result<(Option<Exit>, Verdict), Failure> {
    let (exit, verdict) = verdict(ledger, name, ended)?;
    if !is_input_lost || verdict.code == exit::UNKNOWN {
        return Ok((exit, verdict));
    }
    let how = exit
        .as_ref()
        .map_or_else(|| format!("{name} ended"), |exit| exit::ended(name, exit));
    let verdict = Verdict {
        code: exit::UNKNOWN,
        message: Some(format!("{how}, but not all of the input was handed over")),
    };
    Ok((exit, verdict))
}

fn verdict(
    ledger: &Ledger,
    name: &str,
    ended: Result<Option<Exit>, follow::Error>,
) -> Result<(Option<Exit>, Verdict), Failure> {
    let unknown = |message| Verdict {
        code: exit::UNKNOWN,
        message: Some(message),
    };
    match ended {
        Ok(Some(exit)) => {
            let verdict = exit::verdict(name, &exit, ledger);
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
            let message = format!(
                "cannot follow {name}: {}\nThe process itself is not touched. See: rproc describe {name}",
                Failure::from(error).text
            );
            Ok((None, unknown(message)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_learns_how_to_take_over() {
        let held = stream::Error::Relay(tonic::Status::resource_exhausted("alice writes into it")).into();
        assert!(way_out(&held, "job").ends_with("rproc attach -i --take-over job"));
        let gone = stream::Error::Relay(tonic::Status::failed_precondition("job has ended")).into();
        assert_eq!(way_out(&gone, "job"), "");
    }

    #[test]
    fn an_end_is_recognized_by_the_code_and_not_by_the_text() {
        let relay = |status| has_ended(&interact::Error::Stream(stream::Error::Relay(status)));
        assert!(relay(tonic::Status::out_of_range("in other words")));
        assert!(!relay(tonic::Status::failed_precondition(
            "the standard input has ended"
        )));
    }

    #[test]
    fn input_that_was_not_handed_over_is_never_a_success() {
        use remoteprocess_proto::v1::exit::Outcome;
        let exit = Exit {
            outcome: Outcome::Code.into(),
            sealed: true,
            ..Exit::default()
        };
        let ledger = Ledger::new(follow::Want::default());
        let conclude = |is_lost| conclude(&ledger, "job", (Ok(Some(exit.clone())), is_lost)).unwrap().1;
        assert_eq!(conclude(false).code, 0);
        assert_eq!(conclude(true).code, exit::UNKNOWN);
        assert_eq!(
            conclude(true).message.unwrap(),
            "job exited with code 0, but not all of the input was handed over"
        );
    }
}
