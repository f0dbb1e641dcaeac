//! How the end of a process is reported on the wire.

use remoteprocess_entrypoint::message::{Exited, Outcome, StopCause, Usage};
use remoteprocess_proto::v1::exit::{Outcome as Wire, Source};
use remoteprocess_proto::v1::{self, Reason};

use crate::process::exec::End;
use crate::process::facts::{Closed, Ending, Facts};
use crate::process::machine::REQUESTED_BY;
use crate::spool::{Offsets, Seals, StreamSeal};

/// Messages of ends that the entrypoint or the kernel brought about.
const AGENT_LOST: &str = "no agent was there for too long";
const DEADLINE: &str = "it ran for longer than it may";
const OOM: &str = "the kernel killed the program because memory ran out";

/// The last frame, once everything for it is known: the exit, the seals of the whole output, and how many bytes of it
/// were `lost` because there was no room.
pub fn frame(facts: &Facts, seals: Option<&Seals>, lost: Offsets) -> Option<v1::Exit> {
    let (ending, closed, seals) = (facts.ending.as_ref()?, facts.closed?, seals?);
    let mut exit = match ending {
        Ending::Reported(exited) => reported(exited, facts),
        Ending::Lost { at_unix_nanos } => unreported(*at_unix_nanos),
        Ending::Cancelled { at_unix_nanos } => cancelled(*at_unix_nanos, facts),
    };
    exit.sealed = closed == Closed::Whole;
    exit.started_unix_nanos = facts.started.map_or(0, |started| started.at_unix_nanos);
    exit.seal = Some(v1::Seal {
        stdout: Some(stream_seal(&seals.stdout, lost.stdout)),
        stderr: Some(stream_seal(&seals.stderr, lost.stderr)),
        reason: closed.reason().into(),
    });
    Some(exit)
}

fn stream_seal(seal: &StreamSeal, dropped_bytes: u64) -> v1::StreamSeal {
    v1::StreamSeal {
        bytes: seal.bytes,
        sha256: seal.sha256.to_vec().into(),
        dropped_bytes,
        checksum: Some(seal.checksum),
    }
}

fn unreported(at_unix_nanos: i64) -> v1::Exit {
    v1::Exit {
        outcome: Wire::Unknown.into(),
        source: Source::None.into(),
        reason: Reason::Interrupted.into(),
        message: "the user's container ended without a report".to_owned(),
        finished_unix_nanos: at_unix_nanos,
        ..v1::Exit::default()
    }
}

/// The exit of a program that was stopped before it was launched.
fn cancelled(at_unix_nanos: i64, facts: &Facts) -> v1::Exit {
    v1::Exit {
        outcome: Wire::Unknown.into(),
        source: Source::None.into(),
        reason: Reason::Stopped.into(),
        message: "stopped before the program was started; it has not run".to_owned(),
        stop: stop(Some(StopCause::Requested), facts),
        finished_unix_nanos: at_unix_nanos,
        ..v1::Exit::default()
    }
}

fn outcome(outcome: &Outcome) -> (Wire, i32) {
    match outcome {
        Outcome::Signal(number) => (Wire::Signal, *number),
        Outcome::Code(_) | Outcome::NotFound { .. } | Outcome::NotExecutable { .. } => {
            (Wire::Code, outcome.exit_code())
        }
    }
}

/// How a further command ended.
pub fn of_session(end: &End) -> v1::Exit {
    let ended = match end {
        End::Known(ended) => ended,
        End::Lost(why) | End::Refused(why) => {
            return v1::Exit {
                outcome: Wire::Unknown.into(),
                source: Source::None.into(),
                reason: Reason::SessionLost.into(),
                message: why.clone(),
                ..v1::Exit::default()
            };
        }
    };
    let (outcome, value) = outcome(ended);
    let (reason, message) = reason_of(ended);
    v1::Exit {
        outcome: outcome.into(),
        value,
        source: Source::Entrypoint.into(),
        reason: reason.into(),
        message,
        ..v1::Exit::default()
    }
}

fn reported(exited: &Exited, facts: &Facts) -> v1::Exit {
    // Without `..`: a field that is added to the report does not compile until it has a place here.
    let Exited {
        outcome: ended,
        at_unix_nanos,
        usage,
        leftovers,
        oom_kills,
        is_oom: _,
        stop: cause,
    } = exited;
    let Usage {
        user_micros,
        system_micros,
        max_rss_bytes,
        peak_memory_bytes,
        read_bytes,
        written_bytes,
    } = *usage;
    let (outcome, value) = outcome(ended);
    let (reason, message) = reason(exited);
    v1::Exit {
        outcome: outcome.into(),
        value,
        source: Source::Entrypoint.into(),
        reason: reason.into(),
        message,
        stop: stop(*cause, facts),
        usage: Some(v1::Usage {
            user_micros,
            system_micros,
            peak_memory_bytes: max_rss_bytes,
            container_peak_memory_bytes: peak_memory_bytes,
            read_bytes,
            written_bytes,
        }),
        finished_unix_nanos: (*at_unix_nanos).try_into().unwrap_or(i64::MAX),
        leftovers: *leftovers,
        oom_kills: *oom_kills,
        ..v1::Exit::default()
    }
}

/// Why the process ended, and a message if there is one. The only place that derives it from the entrypoint's report.
fn reason(exited: &Exited) -> (Reason, String) {
    let by_itself = reason_of(&exited.outcome);
    match (&exited.outcome, exited.stop) {
        (Outcome::NotFound { .. } | Outcome::NotExecutable { .. }, _) => by_itself,
        (_, Some(StopCause::AgentLost)) => (Reason::AgentLost, AGENT_LOST.to_owned()),
        (_, Some(StopCause::Deadline)) => (Reason::DeadlineExceeded, DEADLINE.to_owned()),
        (_, Some(StopCause::Requested | StopCause::Terminated)) => (Reason::Stopped, String::new()),
        (_, None) if exited.is_oom => (Reason::OomKilled, OOM.to_owned()),
        (Outcome::Signal(_) | Outcome::Code(_), None) => (by_itself.0, with_oom(by_itself.1, exited)),
    }
}

/// The reason that a program's own end shows.
fn reason_of(outcome: &Outcome) -> (Reason, String) {
    match outcome {
        Outcome::NotFound { message } => (Reason::CommandNotFound, message.clone()),
        Outcome::NotExecutable { message } => (Reason::CommandNotExecutable, message.clone()),
        Outcome::Signal(number) => (Reason::Signaled, format!("ended by signal {number}")),
        Outcome::Code(0) => (Reason::Completed, String::new()),
        Outcome::Code(code) => (Reason::NonZeroExit, format!("exit code {code}")),
    }
}

/// Names the descendants that the kernel killed: the program may have ended because of that.
fn with_oom(sentence: String, exited: &Exited) -> String {
    let killed = match exited.oom_kills {
        0 => return sentence,
        1 => "the kernel killed one of its processes because memory ran out".to_owned(),
        many => format!("the kernel killed {many} of its processes because memory ran out"),
    };
    match sentence.as_str() {
        "" => killed,
        _ => format!("{sentence}; {killed}"),
    }
}

fn stop(cause: Option<StopCause>, facts: &Facts) -> Option<v1::exit::Stop> {
    match (cause?, &facts.stop) {
        (StopCause::Requested, Some(stop)) => Some(v1::exit::Stop {
            requested_by: stop.requested_by.clone(),
            message: stop.message.clone(),
        }),
        (StopCause::Requested, None) => Some(v1::exit::Stop::default()),
        (StopCause::Terminated, _) => Some(v1::exit::Stop {
            requested_by: "kubelet".to_owned(),
            message: "the pod was ended".to_owned(),
        }),
        (StopCause::Deadline, Some(stop)) if stop.cause == StopCause::Deadline => Some(v1::exit::Stop {
            requested_by: stop.requested_by.clone(),
            message: stop.message.clone(),
        }),
        (StopCause::Deadline, _) => Some(v1::exit::Stop {
            requested_by: REQUESTED_BY.to_owned(),
            message: "the agent did not stop it in time".to_owned(),
        }),
        (StopCause::AgentLost, _) => Some(v1::exit::Stop {
            requested_by: "entrypoint".to_owned(),
            message: AGENT_LOST.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(outcome: Outcome) -> Exited {
        Exited {
            outcome,
            at_unix_nanos: 5,
            usage: Usage::default(),
            leftovers: 0,
            oom_kills: 0,
            is_oom: false,
            stop: None,
        }
    }

    fn told(exited: Exited, closed: Closed) -> v1::Exit {
        let seal = StreamSeal {
            bytes: 0,
            sha256: [0; 32],
            checksum: 0,
        };
        let seals = Seals {
            stdout: seal.clone(),
            stderr: seal,
        };
        let facts = Facts {
            ending: Some(Ending::Reported(exited)),
            closed: Some(closed),
            ..Facts::default()
        };
        frame(&facts, Some(&seals), Offsets::default()).unwrap()
    }

    #[test]
    fn the_exit_is_not_reported_before_everything_is_known() {
        let facts = Facts {
            ending: Some(Ending::Lost { at_unix_nanos: 1 }),
            ..Facts::default()
        };
        assert!(frame(&facts, None, Offsets::default()).is_none());
    }

    #[test]
    fn codes_and_signals_keep_their_numbers() {
        let exit = told(exited(Outcome::Code(7)), Closed::Whole);
        assert_eq!(
            (exit.outcome(), exit.value, exit.reason()),
            (Wire::Code, 7, Reason::NonZeroExit)
        );
        assert!(exit.sealed);
        let exit = told(exited(Outcome::Signal(15)), Closed::PipeHeld);
        assert_eq!(
            (exit.outcome(), exit.value, exit.reason()),
            (Wire::Signal, 15, Reason::Signaled)
        );
        assert!(!exit.sealed);
        let message = "no such program".to_owned();
        let exit = told(exited(Outcome::NotFound { message }), Closed::Whole);
        assert_eq!((exit.value, exit.reason()), (127, Reason::CommandNotFound));
    }

    #[test]
    fn a_plain_sigkill_is_not_called_oom() {
        let plain = told(exited(Outcome::Signal(9)), Closed::Whole);
        assert_eq!(plain.reason(), Reason::Signaled);
        let mut oom = exited(Outcome::Signal(9));
        (oom.oom_kills, oom.is_oom) = (1, true);
        assert_eq!(told(oom, Closed::Whole).reason(), Reason::OomKilled);
        for (outcome, reason) in [
            (Outcome::Code(0), Reason::Completed),
            (Outcome::Code(137), Reason::NonZeroExit),
            (Outcome::Signal(9), Reason::Signaled),
        ] {
            let mut child = exited(outcome);
            child.oom_kills = 1;
            let child = told(child, Closed::Whole);
            assert_eq!((child.reason(), child.oom_kills), (reason, 1));
            assert!(child.message.contains("because memory ran out"), "{}", child.message);
        }
    }
}
