//! Interprets an end: from the exit record, or, if there is none, from the pod.
//!
//! In: an [`AttemptExit`] or a pod. Out: phase, reason and message of the process, or the [`AttemptExit`] that the pod
//! shows. Calls [`foreign`] and [`pod`](super::pod).

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use remoteprocess_api::{AttemptExit, AttemptStatus, ExitSource, Phase, Reason, names};

use super::foreign;
use super::pod::{container, disruption, is_terminal, last_words, terminated};

/// Exit code of a container that SIGKILL ended.
const KILLED: i32 = 137;
/// The requester when the kubelet ends a pod.
pub(super) const KUBELET: &str = "kubelet";

/// The outcome of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) phase: Phase,
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// Decides the outcome of an end. Success requires a verified record of code 0 and no request to stop.
pub(super) fn conclude(exit: &AttemptExit, stop_wanted: bool, disruption: Option<(Reason, String)>) -> Outcome {
    let how = describe(exit);
    let failed = |reason, message| Outcome {
        phase: Phase::Failed,
        reason,
        message,
    };
    if exit.reason == Some(Reason::AgentLost) {
        return failed(Reason::AgentLost, exit.message.clone().unwrap_or(how));
    }
    if let (Some(Reason::DeadlineExceeded), Some(stop)) = (exit.reason, &exit.stop) {
        let why = stop.message.as_deref().unwrap_or("it has run for too long");
        return failed(
            Reason::DeadlineExceeded,
            format!("{why} (spec.deadlines.runSeconds); {how}"),
        );
    }
    if let Some(stop) = &exit.stop {
        let by_kubelet = stop.requested_by == KUBELET && !stop_wanted;
        return match disruption {
            Some((reason, why)) if by_kubelet => failed(reason, format!("{why}; {how}")),
            None if by_kubelet => failed(Reason::Interrupted, format!("the pod was deleted; {how}")),
            _ => failed(Reason::Stopped, stopped_sentence(exit, &how)),
        };
    }
    let verified = exit.source == ExitSource::Entrypoint;
    if verified && exit.code == Some(0) && exit.signal.is_none() {
        return Outcome {
            phase: Phase::Succeeded,
            reason: Reason::Completed,
            message: how,
        };
    }
    if let Some(reason) = exit.reason.filter(|reason| *reason != Reason::Completed) {
        let stopped = stop_wanted && !verified;
        let message = exit.message.clone().unwrap_or(how);
        return failed(if stopped { Reason::Stopped } else { reason }, message);
    }
    let message = match &exit.message {
        Some(message) => format!("{how}: {message}"),
        None => how,
    };
    // The end is not known, or it is an unverified code 0, which proves no success.
    failed(Reason::Interrupted, message)
}

fn describe(exit: &AttemptExit) -> String {
    match (&exit.signal, exit.code) {
        (Some(signal), _) => format!("the program was ended by {signal}"),
        (None, Some(code)) => format!("the program ended with code {code}"),
        (None, None) => "how the program ended is not known".into(),
    }
}

fn stopped_sentence(exit: &AttemptExit, how: &str) -> String {
    let stop = exit.stop.clone().unwrap_or_default();
    let by = if stop.requested_by.is_empty() {
        String::new()
    } else {
        format!(" by {}", stop.requested_by)
    };
    let why = stop.message.map(|message| format!(" ({message})")).unwrap_or_default();
    let end = match (exit.source, &exit.message) {
        (ExitSource::None, Some(message)) => message.as_str(),
        _ => how,
    };
    format!("stopped{by}{why}; {end}")
}

/// The end according to the pod, once the user's container or the whole pod has ended.
pub(super) fn of_pod(pod: &Pod, record: &AttemptStatus) -> Option<AttemptExit> {
    let main = container(pod, names::CONTAINER_MAIN).and_then(|main| main.state.as_ref()?.terminated.as_ref());
    if main.is_none() && !is_terminal(pod) {
        return None;
    }
    let disruption = disruption(pod);
    let Some(main) = main else {
        let (reason, message) = disruption.unwrap_or_else(|| without_program(pod));
        let (reason, message) = (Some(reason), Some(message));
        return Some(AttemptExit {
            source: ExitSource::None,
            reason,
            message,
            ..AttemptExit::default()
        });
    };
    let (reason, message) = disruption.unwrap_or_else(|| (reason_of_kubelet(main), sentence_of_kubelet(main, record)));
    Some(AttemptExit {
        code: Some(main.exit_code).filter(|_| !never_ran(main) && !is_lost(main)),
        source: ExitSource::Kubelet,
        reason: Some(reason),
        message: Some(message),
        ..AttemptExit::default()
    })
}

/// The end of an attempt whose output is sealed without an exit record: the agent saw the program's container end and
/// does not know how.
pub(super) fn unreported(record: &AttemptStatus) -> Option<AttemptExit> {
    record.output.as_ref()?;
    Some(AttemptExit {
        source: ExitSource::None,
        reason: Some(Reason::Interrupted),
        message: Some("the program's container ended, and its exit was not reported".into()),
        ..AttemptExit::default()
    })
}

fn reason_of_kubelet(main: &ContainerStateTerminated) -> Reason {
    match main.reason.as_deref() {
        Some("OOMKilled") if main.exit_code == KILLED => Reason::OOMKilled,
        _ if never_ran(main) => Reason::CreateContainer,
        // An unverified code 0 proves no success.
        _ if main.exit_code == 0 || is_lost(main) => Reason::Interrupted,
        _ => Reason::NonZeroExit,
    }
}

/// The runtime could not start the container (containerd: `StartError`; kubelet: `ContainerCannotRun`).
fn never_ran(main: &ContainerStateTerminated) -> bool {
    matches!(main.reason.as_deref(), Some("StartError" | "ContainerCannotRun"))
}

/// The kubelet lost the container and made up the code (kubelet: `ContainerReasonStatusUnknown`).
fn is_lost(main: &ContainerStateTerminated) -> bool {
    main.reason.as_deref() == Some("ContainerStatusUnknown")
}

fn sentence_of_kubelet(main: &ContainerStateTerminated, record: &AttemptStatus) -> String {
    let end = terminated(main);
    if never_ran(main) {
        let why = main
            .message
            .as_deref()
            .map(last_words)
            .filter(|words| !words.is_empty());
        let why = why.unwrap_or_else(|| "the runtime does not say why".into());
        return format!("the program's container could not be started: {why}");
    }
    let unknown = match (record.granted_at, record.started_at) {
        (None, _) => return format!("the program's container ended {end}"),
        (Some(_), None) => "whether the program was started was not reported",
        (Some(_), Some(_)) => "the program's end was not reported",
    };
    format!("{unknown}; by the kubelet's record its container ended {end}")
}

/// Why a pod has ended before the program's container.
fn without_program(pod: &Pod) -> (Reason, String) {
    if let Some((name, end)) = foreign::failed_init_container(pod) {
        let end = terminated(end);
        let message = format!("the init container {name}, which is not ours, ended {end}");
        return (Reason::ForeignContainer, message);
    }
    let status = pod.status.as_ref();
    let said = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone()));
    let message = said.unwrap_or_else(|| "the pod ended before its containers ran".into());
    (Reason::Interrupted, message)
}
