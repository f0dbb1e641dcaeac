//! A process that has ended: its object as controller and relay leave it.

use anyhow::Result;
use serde_json::{Value, json};

use super::LABEL;
use crate::proxy::Proxy;

/// When all of them began and ended.
const TIMES: [&str; 3] = [
    "2026-01-01T00:00:00.123456Z",
    "2026-01-01T00:00:01.234567Z",
    "2026-01-01T00:01:31.345678Z",
];

/// Creates one and writes its final status.
pub(super) fn create(proxy: &Proxy, namespace: &str, number: usize) -> Result<()> {
    let path = format!("/apis/remoteprocess.dev/v1alpha1/namespaces/{namespace}/remoteprocesses");
    let name = format!("finished-{number}");
    let object = json!({
        "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
        "metadata": {"name": name, "labels": {LABEL: "finished", "app.kubernetes.io/part-of": "bench"}},
        "spec": {
            "image": "registry.example.com/team/batch:2026.01.01",
            "command": ["/usr/local/bin/batch"], "args": ["--input", format!("s3://bucket/part-{number}"), "--verbose"],
            "env": [{"name": "PART", "value": number.to_string()}, {"name": "LOG", "value": "info"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "deadlines": {"runSeconds": 3600},
        },
    });
    proxy.create(&path, &object)?;
    proxy.merge(
        &format!("{path}/{name}/status"),
        &json!({"status": status(&name, number)}),
    )
}

/// The status after one attempt that ended with code 0.
fn status(name: &str, number: usize) -> Value {
    let [begun, started, ended] = TIMES;
    let condition = |kind: &str, reason: &str, at: &str| {
        json!({
            "type": kind, "status": "True", "reason": reason, "observedGeneration": 1,
            "message": "the program ended with exit code 0", "lastTransitionTime": at,
        })
    };
    let stream = |bytes: usize| json!({"bytes": bytes, "sha256": format!("{bytes:064x}")});
    json!({
        "phase": "Succeeded", "reason": "Completed", "message": "the program ended with exit code 0",
        "observedGeneration": 1, "exitCode": 0, "attempt": 1,
        "startedAt": started, "finishedAt": ended, "duration": "1m30s",
        "conditions": [
            condition("Scheduled", "Scheduled", begun),
            condition("Started", "Started", started),
            condition("Finished", "Completed", ended),
            condition("Succeeded", "Completed", ended),
            condition("Ready", "Completed", ended),
            condition("OutputSealed", "Sealed", ended),
        ],
        "output": {"stdoutBytes": number, "stderrBytes": 0},
        "attempts": [{
            "number": 1, "podName": format!("{name}-0a1b2c3d"), "podUid": format!("00000000-0000-4000-8000-{number:012}"),
            "node": "worker-1", "begunAt": begun, "relay": "remoteprocess-operator-0123456789-abcde",
            "grantedAt": started, "startedAt": started, "finishedAt": ended, "runSeconds": 3600,
            "exit": {"code": 0, "source": "Entrypoint", "reason": "Completed"},
            "usage": {"cpuSeconds": 1.25, "peakMemoryBytes": 52_428_800, "readBytes": 0, "writtenBytes": 4096},
            "output": {"stdout": stream(number), "stderr": stream(0), "sealed": true},
        }],
    })
}
