//! An object in the cache. There may be thousands of processes that have ended, and they are read rarely, so each of them
//! is kept as compressed JSON: a tenth of the memory.

use std::sync::Arc;

use remoteprocess_api::RemoteProcess;

/// The largest object that is kept compressed, in bytes of JSON: a reader may decode it at each change of any object.
const LARGEST: usize = 64 << 10;
/// Level of zstd.
const LEVEL: i32 = 3;

/// An object; cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// As it is used.
    Whole(Arc<RemoteProcess>),
    /// Compressed JSON, and how many bytes it has without compression.
    Packed(Arc<[u8]>, usize),
}

impl Kept {
    /// Compresses what has ended.
    pub(super) fn new(process: Arc<RemoteProcess>) -> Self {
        let packed = process.is_final().then(|| pack(&process)).flatten();
        packed.unwrap_or(Self::Whole(process))
    }

    /// The object. Each call for a compressed one makes another copy, in some 50 µs.
    pub(super) fn whole(&self) -> Option<Arc<RemoteProcess>> {
        match self {
            Self::Whole(process) => Some(process.clone()),
            Self::Packed(packed, size) => {
                let json = zstd::bulk::decompress(packed, *size).ok()?;
                Some(Arc::new(serde_json::from_slice(&json).ok()?))
            }
        }
    }
}

fn pack(process: &RemoteProcess) -> Option<Kept> {
    let json = serde_json::to_vec(process).ok()?;
    if json.len() > LARGEST {
        return None;
    }
    let packed = zstd::bulk::compress(&json, LEVEL).ok()?;
    Some(Kept::Packed(packed.into(), json.len()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A process as the API server sends it, with this phase.
    fn process(phase: &str, argument: &str) -> Value {
        let condition = |kind: &str| {
            json!({
                "type": kind, "status": "True", "reason": "Completed", "observedGeneration": 1,
                "message": "the program ended with exit code 0", "lastTransitionTime": "2026-01-01T00:01:31Z",
            })
        };
        let conditions = ["Finished", "Succeeded", "OutputSealed"].map(condition);
        let stream = json!({"bytes": 17, "sha256": "ab".repeat(32)});
        json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {
                "name": "hello", "namespace": "team", "uid": "0c1d", "resourceVersion": "17", "generation": 1,
                "labels": {"app": "hello"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "image": "busybox", "command": ["echo", argument], "env": [{"name": "A", "value": "b"}],
                "resources": {"limits": {"memory": "1Gi"}}, "pod": {"nodeSelector": {"a": "b"}},
            },
            "status": {
                "phase": phase, "reason": "Completed", "attempt": 1, "exitCode": 0,
                "conditions": conditions,
                "attempts": [{
                    "number": 1, "podUid": "1d0c", "grantedAt": "2026-01-01T00:00:01.123456Z",
                    "exit": {"code": 0, "source": "Entrypoint", "reason": "Completed"},
                    "usage": {"cpuSeconds": 1.25, "peakMemoryBytes": 1, "readBytes": 0, "writtenBytes": 0},
                    "output": {"stdout": stream, "stderr": stream, "sealed": true},
                }],
            },
        })
    }

    fn kept(object: Value) -> (Arc<RemoteProcess>, Kept) {
        let process: Arc<RemoteProcess> = Arc::new(serde_json::from_value(object).unwrap());
        (process.clone(), Kept::new(process))
    }

    #[test]
    fn what_has_ended_is_small_and_loses_nothing() {
        let (process, kept) = kept(process("Succeeded", "hello"));
        let Kept::Packed(packed, size) = &kept else {
            panic!("it is whole");
        };
        assert!(packed.len() * 2 < *size, "{} of {size} bytes", packed.len());
        let value = |process: &RemoteProcess| serde_json::to_value(process).unwrap();
        assert_eq!(value(&kept.whole().unwrap()), value(&process));
    }

    #[test]
    fn what_runs_or_is_large_stays_as_it_is() {
        for object in [process("Running", "hello"), process("Failed", &"x".repeat(LARGEST))] {
            let (process, kept) = kept(object);
            assert!(Arc::ptr_eq(&kept.whole().unwrap(), &process));
        }
    }
}
