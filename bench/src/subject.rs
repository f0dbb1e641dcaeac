//! A container in which the writer runs: of a RemoteProcess, or of a plain pod.

use std::env;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use remoteprocess_e2e::{Namespace, glibc, until};
use serde_json::json;

/// Opens the writer's gate.
pub(crate) const GATE: &str = "/tmp/go";
/// Lets the container end.
pub(crate) const END: &str = "/tmp/end";

/// What runs the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The operator.
    Ours,
    /// Only the kubelet.
    Pod,
}

/// A container with the writer in it.
pub(crate) struct Subject<'a> {
    namespace: &'a Namespace,
    kind: Kind,
    /// Of the object.
    pub name: String,
    pod: String,
}

impl<'a> Subject<'a> {
    /// Starts a container that runs the command with bash once the writer, `/tmp/writer`, exists, and then waits for
    /// [`END`]; copies the writer into it.
    pub(crate) fn start(namespace: &'a Namespace, kind: Kind, name: &str, command: &str) -> Result<Self> {
        let script = format!(
            "while [ ! -x /tmp/writer ]; do sleep 0.02; done; {command}; while [ ! -f {END} ]; do sleep 0.1; done"
        );
        let pod = match kind {
            Kind::Ours => process(namespace, name, &script)?,
            Kind::Pod => pod(namespace, name, &script)?,
        };
        let subject = Self {
            namespace,
            kind,
            name: name.to_owned(),
            pod,
        };
        let path = env::current_exe()?.with_file_name("bench-writer");
        let writer = fs::read(&path).with_context(|| format!("{}: cargo xtask bench builds it", path.display()))?;
        let put = "cat > /tmp/partial && chmod +x /tmp/partial && mv /tmp/partial /tmp/writer";
        let exec = [
            "exec",
            "--stdin",
            &subject.pod,
            "--container=main",
            "--",
            "bash",
            "-c",
            put,
        ];
        namespace.kubectl(&exec).input(writer).succeed()?;
        Ok(subject)
    }

    /// Runs a command in the container.
    pub(crate) fn exec(&self, command: &[&str]) -> Result<String> {
        let exec = ["exec", &self.pod, "--container=main", "--"];
        self.namespace.kubectl(&exec).args(command).succeed()
    }

    /// Waits until the writer has written its time to this file, and returns it in seconds.
    pub(crate) fn result(&self, file: &str) -> Result<f64> {
        until("the writer's time", Duration::from_secs(300), || {
            let test = ["exec", &self.pod, "--container=main", "--", "test", "-f", file];
            Ok(self.namespace.kubectl(&test).finish()?.code == 0)
        })?;
        let nanos: u64 = self.exec(&["cat", file])?.trim().parse()?;
        Ok(nanos as f64 / 1e9)
    }

    /// Opens the gate.
    pub(crate) fn open_gate(&self) -> Result<()> {
        self.exec(&["touch", GATE]).map(drop)
    }

    /// Ends it and waits until nothing of it is left, so that it is no load for the next contender.
    pub(crate) fn remove(self) -> Result<()> {
        self.exec(&["touch", END])?;
        let kind = match self.kind {
            Kind::Ours => "remoteprocess",
            Kind::Pod => "pod",
        };
        self.namespace.kubectl(&["delete", kind, &self.name]).succeed()?;
        until("the end of the pod", Duration::from_secs(60), || {
            let get = ["get", "pod", &self.pod, "--ignore-not-found", "--output=name"];
            Ok(self.namespace.kubectl(&get).succeed()?.is_empty())
        })
    }
}

fn process(namespace: &Namespace, name: &str, script: &str) -> Result<String> {
    let spec = json!({"image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script]});
    namespace.apply(name, spec).succeed()?;
    namespace.wait_running(name)?;
    let pod = namespace.pod(name)?;
    Ok(pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned())
}

fn pod(namespace: &Namespace, name: &str, script: &str) -> Result<String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": glibc(), "imagePullPolicy": "IfNotPresent", "command": ["bash", "-c", script],
        }]},
    });
    namespace
        .kubectl(&["create", "--filename=-"])
        .input(pod.to_string())
        .succeed()?;
    until("a running pod", Duration::from_secs(60), || {
        let get = ["get", "pod", name, "--output=jsonpath={.status.phase}"];
        Ok(namespace.kubectl(&get).succeed()? == "Running")
    })?;
    Ok(name.to_owned())
}
