//! What runs a program once: ours, a bare pod, a Job.

use anyhow::Result;
use remoteprocess_e2e::{Namespace, glibc};
use serde_json::{Value, json};

use crate::proxy::Proxy;

/// One of them.
pub(crate) struct Contender {
    pub name: &'static str,
    /// As kubectl calls it.
    pub kind: &'static str,
    /// Path of its API below `/api` or `/apis`, and the plural.
    api: (&'static str, &'static str),
    /// Whether an object says that it has ended.
    has_ended: fn(&Value) -> bool,
}

/// Ours first.
pub(crate) const CONTENDERS: [Contender; 3] = [
    Contender {
        name: "RemoteProcess",
        kind: "remoteprocess",
        api: ("/apis/remoteprocess.dev/v1alpha1", "remoteprocesses"),
        has_ended: |object| !object["status"]["finishedAt"].is_null(),
    },
    Contender {
        name: "bare pod",
        kind: "pod",
        api: ("/api/v1", "pods"),
        has_ended: |object| object["status"]["phase"] == "Failed",
    },
    Contender {
        name: "Job",
        kind: "job",
        api: ("/apis/batch/v1", "jobs"),
        has_ended: |object| {
            let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|condition| condition["type"] == "Failed")
        },
    },
];

impl Contender {
    /// Where objects are created.
    pub(crate) fn path(&self, namespace: &Namespace) -> String {
        let (api, plural) = self.api;
        format!("{api}/namespaces/{}/{plural}", namespace.name)
    }

    /// The plural of its objects, as the API server's metrics call the resource.
    pub(crate) fn resource(&self) -> &'static str {
        self.api.1
    }

    /// A program that prints the time of its first instruction and ends with 3.
    pub(crate) fn object(&self, name: &str) -> Value {
        let script = "echo $EPOCHREALTIME; exit 3";
        let container = json!({"image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script]});
        let mut named = container.clone();
        named["name"] = json!("main");
        let pod = json!({"restartPolicy": "Never", "containers": [named]});
        let (version, kind, spec) = match self.kind {
            "remoteprocess" => ("remoteprocess.dev/v1alpha1", "RemoteProcess", container),
            "pod" => ("v1", "Pod", pod),
            _ => ("batch/v1", "Job", json!({"template": {"spec": pod}, "backoffLimit": 0})),
        };
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
    }

    /// How many of its objects say that they have ended.
    pub(crate) fn ended(&self, namespace: &Namespace, proxy: &Proxy) -> Result<usize> {
        let objects = proxy.list(&self.path(namespace))?;
        Ok(objects.iter().filter(|object| (self.has_ended)(object)).count())
    }

    /// Removes all of them, and waits until nothing is left.
    pub(crate) fn remove_all(&self, namespace: &Namespace) -> Result<()> {
        for kind in [self.kind, "pod"] {
            namespace.kubectl(&["delete", kind, "--all", "--wait=true"]).succeed()?;
        }
        Ok(())
    }
}
