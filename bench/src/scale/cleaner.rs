//! Removes everything at the end, however the program ends.

use std::env;
use std::io::{Read, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, remove_namespace, scale_operator, until};

use super::node;
use crate::proxy::Proxy;

/// Where objects are removed, before the pods, so that nothing replaces those.
const OWNERS: [&str; 2] = ["/apis/remoteprocess.dev/v1alpha1", "/apis/batch/v1"];

/// Another process of this program, in a process group of its own: Ctrl-C does not reach it. It waits until its standard
/// input is closed, which the kernel does if this process dies, and then [`clean`]s.
pub(super) struct Cleaner(Child);

impl Cleaner {
    /// Starts it.
    pub(super) fn start(namespace: &Namespace, replicas: usize) -> Result<Self> {
        let child = Command::new(env::current_exe()?)
            .args(["--clean", &namespace.name, "--replicas", &replicas.to_string()])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start the cleaner")?;
        Ok(Self(child))
    }

    /// Lets it clean; returns when it has.
    pub(super) fn finish(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "the cleaner has failed");
        Ok(())
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Waits for the end of standard input, then removes objects, pods, fake node and namespace, and leaves the operator with
/// this many replicas.
pub(crate) fn clean(namespace: &str, replicas: usize) -> Result<()> {
    stdin().read_to_end(&mut Vec::new())?;
    eprintln!("removing the namespace {namespace} and the fake node");
    // It would replace the pods of live processes, and look at each object that goes.
    let outcomes = [
        scale_operator(0),
        Proxy::start().and_then(|proxy| {
            let outcome = remove(&proxy, namespace, "");
            outcome.and(node::remove(&proxy))
        }),
        scale_operator(replicas),
    ];
    remove_namespace(namespace);
    outcomes.into_iter().collect()
}

/// Removes objects and pods that this selector of labels matches; returns when none is left.
pub(super) fn remove(proxy: &Proxy, namespace: &str, selector: &str) -> Result<()> {
    let selector = format!("labelSelector={}", selector.replace('=', "%3D"));
    let [processes, jobs] = OWNERS;
    let all = [
        format!("{processes}/namespaces/{namespace}/remoteprocesses?propagationPolicy=Background"),
        format!("{jobs}/namespaces/{namespace}/jobs?propagationPolicy=Background"),
        // Without a kubelet nobody would confirm a later end.
        format!("/api/v1/namespaces/{namespace}/pods?gracePeriodSeconds=0"),
    ];
    for path in all {
        let path = format!("{path}&{selector}");
        until(&format!("the end of {path}"), Duration::from_secs(600), || {
            // One request may not be enough: it ends after a minute.
            if let Err(error) = proxy.delete(&path) {
                eprintln!("{error:#}");
            }
            Ok(proxy.list(&format!("{path}&limit=1"))?.is_empty())
        })?;
    }
    Ok(())
}
