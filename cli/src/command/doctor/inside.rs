//! What the operator's metrics and the processes of the namespace say about the inside: certificates, archive, agents.

use jiff::{SignedDuration, Timestamp};
use remoteprocess_api::condition::{ConditionType, find};
use remoteprocess_api::{Phase, Reason, RemoteProcess};

use super::{Finding, SOON_LEAF};

/// How long an agent may take until it has a certificate.
const ENROLLING: SignedDuration = SignedDuration::from_secs(60);

/// What the metrics of all replicas say.
pub(super) fn of_metrics(replicas: &[(String, String)], now: Timestamp) -> Vec<Finding> {
    let mut found = vec![leader(replicas)];
    for (pod, text) in replicas {
        found.extend(certificate(pod, text, now));
        if value(text, "remoteprocess_relay_archive_failures_total", "").unwrap_or_default() > 0.0 {
            let message = format!("{pod} could not write to the archive at least once since it started");
            let fix =
                format!("See whether it still fails: rproc get -A, condition ArchiveUnavailable; kubectl logs {pod}");
            found.push(Finding::warning("Archive", message, fix));
        }
    }
    found
}

fn leader(replicas: &[(String, String)]) -> Finding {
    let leading = |(_, text): &&(String, String)| value(text, "remoteprocess_controller_leading", "") == Some(1.0);
    match replicas.iter().filter(leading).count() {
        1 => Finding::ok("Controller", "one replica reconciles"),
        count => {
            let message = format!("{count} of {} replicas reconcile; one should", replicas.len());
            let fix = "If it stays so for a minute: see the Lease remoteprocess-controller and the operator's log";
            Finding::warning("Controller", message, fix)
        }
    }
}

/// The certificate with which a replica serves users and calls agents.
fn certificate(pod: &str, text: &str, now: Timestamp) -> Option<Finding> {
    let end = value(
        text,
        "remoteprocess_certificate_expiry_timestamp_seconds",
        "certificate=\"operator\"",
    )?;
    let end = Timestamp::from_second(end as i64).ok()?;
    let fix = format!("The operator renews it by itself; it cannot. See: kubectl logs {pod}");
    Some(match end.duration_since(now) {
        left if left <= SignedDuration::ZERO => {
            Finding::failed("Certificate", format!("that of {pod} ended at {end:.0}"), Some(&fix))
        }
        left if left <= SOON_LEAF => Finding::warning("Certificate", format!("that of {pod} ends at {end:.0}"), fix),
        _ => Finding::ok("Certificate", format!("that of {pod} is valid until {end:.0}")),
    })
}

/// The value of the series with this name and label, in the text format of OpenMetrics.
fn value(text: &str, name: &str, label: &str) -> Option<f64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let line = lines.find(|rest| rest.starts_with([' ', '{']) && rest.contains(label))?;
    line.split_whitespace().last()?.parse().ok()
}

/// What the processes of a namespace say about the way between the operator and agents, and about the archive.
pub(super) fn of_processes(objects: &[RemoteProcess], now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    let name = |object: &RemoteProcess| object.metadata.name.clone().unwrap_or_default();
    let late: Vec<String> = objects.iter().filter(|object| is_late(object, now)).map(name).collect();
    if let Some(first) = late.first() {
        let message = format!(
            "the agents of {} processes have not reached the operator for a minute, such as that of {first}",
            late.len()
        );
        let fix = format!(
            "Allow connections from the pods of processes to ports 8443 and 8444 of the operator (NetworkPolicy). The \
             agent says why: kubectl logs POD -c rproc-agent, with the pod of: rproc describe {first}"
        );
        found.push(Finding::failed("Agents", message, Some(&fix)));
    }
    let with = |kind: ConditionType| {
        let holds = move |object: &&RemoteProcess| {
            let conditions = object.status.as_ref().map(|status| status.conditions.as_slice());
            find(conditions.unwrap_or_default(), kind).is_some_and(|condition| condition.status == "True")
        };
        objects.iter().filter(holds)
    };
    if let Some(object) = with(ConditionType::ArchiveUnavailable).next() {
        let count = with(ConditionType::ArchiveUnavailable).count();
        let message = format!(
            "the archive takes no output of {count} processes, such as {}: {}",
            name(object),
            message(object, ConditionType::ArchiveUnavailable)
        );
        let fix = "Make room in the store, or correct its credentials and address (docs/operations.md). Output waits in the pods";
        found.push(Finding::failed("Archive", message, Some(fix)));
    }
    if let Some(object) = with(ConditionType::OutputBlocked).next() {
        let message = format!(
            "the program of {} is held back: {}",
            name(object),
            message(object, ConditionType::OutputBlocked)
        );
        let fix = "The operator must reach port 20443 of the pod (NetworkPolicy), and the archive must take output";
        found.push(Finding::warning("Agents", message, fix));
    }
    if found.is_empty() {
        let running = objects
            .iter()
            .filter(|object| phase(object) == Some(Phase::Running))
            .count();
        found.push(Finding::ok(
            "Agents",
            format!("no agent of the namespace is cut off, and the archive takes output; {running} processes run"),
        ));
    }
    found
}

fn phase(object: &RemoteProcess) -> Option<Phase> {
    object.status.as_ref()?.phase
}

fn message(object: &RemoteProcess, kind: ConditionType) -> String {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice());
    let condition = find(conditions.unwrap_or_default(), kind);
    condition
        .map(|condition| format!("{} ({})", condition.message, condition.reason))
        .unwrap_or_default()
}

/// Whether an agent runs and has no certificate, for too long.
fn is_late(object: &RemoteProcess, now: Timestamp) -> bool {
    let Some(status) = &object.status else { return false };
    let scheduled = find(&status.conditions, ConditionType::Scheduled).filter(|condition| condition.status == "True");
    status.reason == Some(Reason::Enrolling)
        && scheduled.is_some_and(|condition| now.duration_since(condition.last_transition_time.0) > ENROLLING)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Grade;
    use super::*;

    fn process(status: serde_json::Value) -> RemoteProcess {
        serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "build"}, "spec": {"image": "i", "command": ["x"]}, "status": status,
        }))
        .unwrap()
    }

    fn condition(kind: &str, reason: &str, at: &str) -> serde_json::Value {
        json!([{"type": kind, "status": "True", "reason": reason, "message": "No space left", "lastTransitionTime": at}])
    }

    #[test]
    fn an_agent_that_does_not_reach_the_operator_is_found() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let enrolling = |at: &str| {
            let conditions = condition("Scheduled", "Scheduled", at);
            process(json!({"phase": "Starting", "reason": "Enrolling", "conditions": conditions}))
        };
        let grades = |objects: &[RemoteProcess]| {
            let found = of_processes(objects, now);
            found
                .iter()
                .map(|finding| (finding.check, finding.result))
                .collect::<Vec<_>>()
        };
        assert_eq!(grades(&[enrolling("2026-01-01T00:09:30Z")]), [("Agents", Grade::Ok)]);
        assert_eq!(
            grades(&[enrolling("2026-01-01T00:01:00Z")]),
            [("Agents", Grade::Failed)]
        );
        let full = condition("ArchiveUnavailable", "StoreFull", "2026-01-01T00:00:00Z");
        let full = process(json!({"phase": "Running", "conditions": full}));
        let found = of_processes(&[full], now);
        assert_eq!((found[0].check, found[0].result), ("Archive", Grade::Failed));
        assert!(
            found[0].message.contains("No space left (StoreFull)"),
            "{}",
            found[0].message
        );
    }

    #[test]
    fn the_metrics_of_the_replicas_are_judged() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let text = |leading: u8, end: i64, failures: u8| {
            format!(
                "# TYPE x gauge\nremoteprocess_controller_leading {leading}\n\
                 remoteprocess_certificate_expiry_timestamp_seconds{{certificate=\"ca\"}} 5\n\
                 remoteprocess_certificate_expiry_timestamp_seconds{{certificate=\"operator\"}} {end}\n\
                 remoteprocess_relay_archive_failures_total {failures}\n# EOF\n"
            )
        };
        let grades = |texts: &[String]| {
            let replicas: Vec<_> = texts.iter().map(|text| ("pod".to_owned(), text.clone())).collect();
            let found = of_metrics(&replicas, now);
            found
                .iter()
                .map(|finding| (finding.check, finding.result))
                .collect::<Vec<_>>()
        };
        let good = text(1, 2_000_000, 0);
        assert_eq!(
            grades(std::slice::from_ref(&good)),
            [("Controller", Grade::Ok), ("Certificate", Grade::Ok)]
        );
        assert_eq!(grades(&[good.clone(), good])[0].1, Grade::Warning, "two leaders");
        assert_eq!(
            grades(&[text(0, 999_999, 1)]),
            [
                ("Controller", Grade::Warning),
                ("Certificate", Grade::Failed),
                ("Archive", Grade::Warning)
            ]
        );
        assert_eq!(grades(&[text(1, 1_000_060, 0)])[1].1, Grade::Warning);
    }
}
