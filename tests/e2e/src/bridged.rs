//! Triggers and sinks: how tests make them and look at them.

use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::namespace::{Namespace, condition};
use crate::node::{bridges_of, signal};
use crate::program::Program;
use crate::wait::{until, until_some};

/// A ProcessTrigger or a ProcessSink in the namespace of a test. Its ServiceAccount has its name.
pub struct Bridged<'a> {
    namespace: &'a Namespace,
    word: &'static str,
    name: &'static str,
}

impl<'a> Bridged<'a> {
    /// Names an object, and makes a ServiceAccount for it with the ClusterRole of its kind.
    fn prepare(namespace: &'a Namespace, word: &'static str, name: &'static str) -> Result<Self> {
        namespace.user(name, Some(&format!("remoteprocess-{word}")))?;
        Ok(Self { namespace, word, name })
    }

    fn object(&self, kind: &str, spec: Value, more: Value) -> Value {
        let mut object = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": kind, "metadata": {"name": self.name},
            "spec": {"serviceAccountName": self.name},
        });
        for part in [spec, more] {
            if let (Some(spec), Value::Object(part)) = (object["spec"].as_object_mut(), part) {
                spec.extend(part);
            }
        }
        object
    }

    /// `kubectl apply` of an object as the editor.
    #[must_use]
    pub fn apply(&self, object: &Value) -> Program {
        let apply = self.namespace.editor.kubectl(&["apply", "--filename=-"]);
        apply.input(object.to_string())
    }

    /// Its status as it is now.
    pub fn status(&self) -> Result<Value> {
        let resource = format!("process{}", self.word);
        let get = ["get", &resource, self.name, "--output=json"];
        Ok(self.namespace.kubectl(&get).json()?["status"].take())
    }

    /// Waits until a condition has this status and its message contains the text; returns the condition.
    pub fn wait_for(&self, kind: &str, wanted: &str, text: &str, seconds: u64) -> Result<Value> {
        let mut last = Value::Null;
        let answer = until_some(
            &format!("{kind}={wanted} with {text:?}"),
            Duration::from_secs(seconds),
            || {
                last = self.status()?;
                let found = condition(&last, kind);
                let message = found["message"].as_str().unwrap_or_default();
                let is_so = found["status"] == wanted && message.contains(text);
                Ok(is_so.then(|| found.clone()))
            },
        );
        answer.with_context(|| format!("status of {}: {last:#}", self.name))
    }

    /// What `kubectl get` lists, as JSON.
    fn list(&self, get: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.namespace.kubectl(get).json()?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// The pods of the bridge.
    fn pods(&self) -> Result<Vec<Value>> {
        let selector = format!("--selector=remoteprocess.dev/{}={}", self.word, self.name);
        let get = ["get", "pods", &selector, "--output=json"];
        self.list(&get)
    }

    /// Kills the program of the bridge without a word, as soon as there is one. If its container was killed before, its pod
    /// is deleted, too, because the kubelet lets such a container wait before it restarts; this returns when the pod is
    /// another one.
    pub fn kill_bridge(&self) -> Result<()> {
        let before = until_some("a bridge to kill", Duration::from_secs(90), || {
            let pods = self.pods()?;
            let mut killed = false;
            for pod in &pods {
                for pid in bridges_of(text(&pod["metadata"]["uid"]))? {
                    killed |= signal(pid, Signal::KILL).is_ok();
                }
            }
            Ok(killed.then_some(pods))
        })?;
        let restarts = |pod: &&Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0);
        for pod in before.iter().filter(restarts) {
            let delete = ["delete", "pod", text(&pod["metadata"]["name"])];
            let at_once = ["--grace-period=0", "--force", "--ignore-not-found"];
            self.namespace.kubectl(&[&delete[..], &at_once].concat()).succeed()?;
        }
        let gone: Vec<_> = before
            .iter()
            .filter(restarts)
            .map(|pod| &pod["metadata"]["uid"])
            .collect();
        until("another bridge", Duration::from_secs(60), || {
            let now = self.pods()?;
            Ok(!now.is_empty() && now.iter().all(|pod| !gone.contains(&&pod["metadata"]["uid"])))
        })
    }

    /// Deletes the object, and waits until its bridge is gone.
    pub fn delete(&self) -> Result<()> {
        let resource = format!("process{}", self.word);
        self.namespace
            .editor
            .kubectl(&["delete", &resource, self.name])
            .succeed()?;
        until("the end of the bridge", Duration::from_secs(60), || {
            Ok(self.pods()?.is_empty())
        })
    }
}

fn text(field: &Value) -> &str {
    field.as_str().unwrap_or_default()
}

/// A ProcessTrigger.
pub struct Trigger<'a>(Bridged<'a>);

impl<'a> Trigger<'a> {
    /// Names a trigger, and makes a ServiceAccount for it with the ClusterRole `remoteprocess-trigger`.
    pub fn prepare(namespace: &'a Namespace, name: &'static str) -> Result<Self> {
        Ok(Self(Bridged::prepare(namespace, "trigger", name)?))
    }

    /// The object, with a template and further fields of the spec.
    #[must_use]
    pub fn object(&self, source: &Value, template: &Value, more: Value) -> Value {
        let spec = json!({"source": source, "template": {"spec": template}});
        self.0.object("ProcessTrigger", spec, more)
    }

    /// The processes of the trigger.
    pub fn processes(&self) -> Result<Vec<Value>> {
        self.some_processes(&[])
    }

    /// How many of them have not ended.
    pub fn running(&self) -> Result<usize> {
        let not_ended = "--field-selector=status.phase!=Succeeded,status.phase!=Failed";
        Ok(self.some_processes(&[not_ended])?.len())
    }

    /// Deletes the pods of these processes, which must have ended, without waiting for that.
    pub fn delete_pods(&self, processes: &[String]) -> Result<()> {
        let selector = format!("--selector=remoteprocess.dev/name in ({})", processes.join(","));
        let delete = ["delete", "pods", &selector, "--wait=false"];
        self.namespace.kubectl(&delete).succeed()?;
        Ok(())
    }

    fn some_processes(&self, selectors: &[&str]) -> Result<Vec<Value>> {
        let selector = format!("--selector=remoteprocess.dev/trigger={}", self.name);
        let get = [&["get", "remoteprocesses", &selector, "--output=json"], selectors].concat();
        self.list(&get)
    }
}

/// A ProcessSink.
pub struct Sink<'a>(Bridged<'a>);

impl<'a> Sink<'a> {
    /// Names a sink, and makes a ServiceAccount for it with the ClusterRole `remoteprocess-sink`.
    pub fn prepare(namespace: &'a Namespace, name: &'static str) -> Result<Self> {
        Ok(Self(Bridged::prepare(namespace, "sink", name)?))
    }

    /// The object, with further fields of the spec.
    #[must_use]
    pub fn object(&self, destination: &Value, more: Value) -> Value {
        self.0.object("ProcessSink", json!({"destination": destination}), more)
    }
}

impl<'a> Deref for Trigger<'a> {
    type Target = Bridged<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a> Deref for Sink<'a> {
    type Target = Bridged<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
