//! The record of an attempt that the status does not keep, from the archive.

use jiff::Timestamp;
use remoteprocess_api::{AttemptStatus, RemoteProcess, RemoteProcessSpec, RemoteProcessStatus};

use super::build_end;
use super::end::exit_to_status;
use crate::relay::archive::Manifest;

/// The record that the status of an attempt's object would have.
pub(crate) fn archived_attempt(manifest: &Manifest) -> AttemptStatus {
    let begun = AttemptStatus {
        number: manifest.attempt,
        pod_uid: Some(manifest.pod_uid.clone()).filter(|uid| !uid.is_empty()),
        ..AttemptStatus::default()
    };
    let Some(exit) = manifest.exit_frame() else {
        return begun;
    };
    let mut process = RemoteProcess::new(&manifest.name, RemoteProcessSpec::default());
    process.status = Some(RemoteProcessStatus {
        attempts: vec![begun.clone()],
        ..RemoteProcessStatus::default()
    });
    let ended = build_end(&process, manifest.attempt, manifest, &[], Timestamp::UNIX_EPOCH);
    let record = ended.and_then(|status| status.attempt(manifest.attempt).cloned());
    let mut record = record.unwrap_or(begun);
    // The controller records an end that the kubelet reported.
    record.exit.get_or_insert_with(|| exit_to_status(&exit));
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archived_attempt_reads_like_one_of_the_status() {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "version": 1, "namespace": "default", "name": "hello", "uid": "0c1d", "attempt": 12, "podUid": "pod-12",
            "sealed": true, "stdoutBytes": 5,
            "exit": {"outcome": "OUTCOME_CODE", "value": 3, "source": "SOURCE_KUBELET", "finishedUnixNanos": 7},
        }))
        .unwrap();
        let record = archived_attempt(&manifest);
        assert_eq!((record.number, record.pod_uid.as_deref()), (12, Some("pod-12")));
        assert_eq!(record.exit.unwrap().code, Some(3));
        assert_eq!(record.finished_at.unwrap().as_nanosecond(), 7);
        let output = record.output.unwrap();
        assert_eq!((output.sealed, output.stdout.bytes), (true, 5));
    }
}
