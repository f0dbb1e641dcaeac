//! A namespace for each test, with its users; its state is printed when the test fails.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::environment::{BUSYBOX, RELEASE_NAMESPACE, keeps_failed};
use crate::program::{Program, kubectl};
use crate::release::Installation;
use crate::user::{self, User};
use crate::wait::{until, until_some};

/// A namespace with a user who may edit it.
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// A user with the role `edit` here, and the right to connect.
    pub editor: User,
}

/// Runs a test in a namespace of its own. When it fails, prints what is in the namespace.
///
/// # Panics
/// When the test fails: this is its outermost frame.
pub fn with_temp_ns(test: &str, body: impl FnOnce(&Namespace) -> Result<()>) {
    let name = unique(test);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        Installation::ensure()?;
        let namespace = Namespace::create(&name)?;
        body(&namespace)
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(anyhow!(text.unwrap_or_else(|| "it panicked".to_owned())))
    });
    if outcome.is_err() {
        dump(&name);
    }
    if outcome.is_err() && keeps_failed() {
        println!("the namespace {name} is kept");
    } else {
        remove_namespace(&name);
    }
    if let Err(error) = outcome {
        panic!("{test}: {error:?}");
    }
}

/// The spec of a script for `sh` in busybox, with further fields.
#[must_use]
pub fn spec(script: &str, more: Value) -> Value {
    let mut spec = json!({"image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

fn unique(test: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.subsec_nanos());
    format!("e2e-{test}-{:05x}{:02x}", nanos & 0xf_ffff, count)
}

fn binding_name(namespace: &str) -> String {
    format!("{namespace}-connect")
}

fn dump(namespace: &str) {
    println!("---- state of the namespace {namespace}");
    let commands: [&[&str]; 7] = [
        &["get", "remoteprocesses", "--output=yaml"],
        &["get", "processtriggers", "--output=yaml"],
        &["get", "processsinks", "--output=yaml"],
        &["get", "pods", "--output=wide"],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &[
            "logs",
            "--selector=remoteprocess.dev/name",
            "--container=rproc-agent",
            "--tail=40",
            "--prefix",
        ],
        &[
            "logs",
            "--selector=app.kubernetes.io/component=bridge",
            "--tail=40",
            "--prefix",
        ],
    ];
    for command in commands {
        let shown = kubectl(command).arg("--namespace").arg(namespace).finish();
        match shown {
            Ok(finished) => println!("{finished}"),
            Err(error) => println!("{error:#}"),
        }
    }
    let operator = [
        "logs",
        "--selector=app.kubernetes.io/name=remoteprocess-operator",
        "--tail=2000",
        "--namespace",
    ];
    if let Ok(finished) = kubectl(operator).arg(RELEASE_NAMESPACE).finish() {
        let log = finished.out();
        log.lines()
            .filter(|line| line.contains(namespace))
            .for_each(|line| println!("{line}"));
    }
    println!("---- end of the state of {namespace}");
}

/// Deletes a namespace of a test and the rights of its users, without waiting for the end; prints what it cannot delete.
pub fn remove_namespace(namespace: &str) {
    let binding = binding_name(namespace);
    let commands: [&[&str]; 3] = [
        &["delete", "namespace", namespace, "--wait=false", "--ignore-not-found"],
        &["delete", "clusterrolebinding", &binding, "--ignore-not-found"],
        &[
            "delete",
            "rolebinding",
            &binding,
            "--ignore-not-found",
            "--namespace",
            RELEASE_NAMESPACE,
        ],
    ];
    for command in commands {
        if let Err(error) = kubectl(command).succeed() {
            println!("cannot clean up after {namespace}: {error:#}");
        }
    }
}

impl Namespace {
    fn create(name: &str) -> Result<Self> {
        kubectl(["create", "namespace", name]).succeed()?;
        connect(name)?;
        add_account(name, "editor", Some("edit"))?;
        let editor = User::service_account(name, "editor")?;
        Ok(Self {
            name: name.to_owned(),
            editor,
        })
    }

    /// Another user here, with this ClusterRole or none. All users may connect.
    pub fn user(&self, name: &str, role: Option<&str>) -> Result<User> {
        add_account(&self.name, name, role)?;
        User::service_account(&self.name, name)
    }

    /// The administrator, with this namespace.
    pub fn admin(&self) -> Result<User> {
        user::admin(&self.name)
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str]) -> Program {
        kubectl(["--namespace", &self.name]).args(arguments)
    }

    /// Creates a RemoteProcess with `kubectl apply` as the editor.
    pub fn apply(&self, name: &str, spec: Value) -> Program {
        let object = json!({
            "apiVersion": "remoteprocess.dev/v1alpha1",
            "kind": "RemoteProcess",
            "metadata": {"name": name},
            "spec": spec,
        });
        self.editor
            .kubectl(&["apply", "--filename=-"])
            .input(object.to_string())
    }

    /// The object as JSON.
    pub fn object(&self, name: &str) -> Result<Value> {
        self.kubectl(&["get", "remoteprocess", name, "--output=json"]).json()
    }

    /// The pod of the object's first attempt as JSON, as soon as there is one.
    pub fn pod(&self, process: &str) -> Result<Value> {
        let selector = format!("--selector=remoteprocess.dev/name={process}");
        until_some(&format!("a pod of {process}"), Duration::from_secs(30), || {
            let pods = self.kubectl(&["get", "pods", &selector, "--output=json"]).json()?;
            Ok(pods["items"].get(0).cloned())
        })
    }

    /// Uid of that pod.
    pub fn pod_uid(&self, process: &str) -> Result<String> {
        let pod = self.pod(process)?;
        Ok(pod["metadata"]["uid"].as_str().context("a pod has a uid")?.to_owned())
    }

    /// Name of that pod.
    pub fn pod_name(&self, process: &str) -> Result<String> {
        let pod = self.pod(process)?;
        Ok(pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned())
    }

    /// The node of that pod.
    pub fn node(&self, process: &str) -> Result<String> {
        let pod = self.pod(process)?;
        Ok(pod["spec"]["nodeName"]
            .as_str()
            .context("a pod with a node")?
            .to_owned())
    }

    /// Waits until the object is there and its status satisfies the test, and returns the object.
    pub fn wait_for(&self, name: &str, what: &str, seconds: u64, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let answer = until_some(what, Duration::from_secs(seconds), || {
            // The object may not exist yet.
            last = self.object(name).unwrap_or_default();
            Ok((!last.is_null() && is_so(&last["status"])).then(|| last.clone()))
        });
        answer.with_context(|| format!("status of {name}: {:#}", last["status"]))
    }

    /// Waits until the object says `Finished=True`.
    pub fn wait_finished(&self, name: &str) -> Result<Value> {
        self.wait_for(name, "Finished=True", 90, |status| {
            condition(status, "Finished")["status"] == "True"
        })
    }

    /// Waits until the program runs.
    pub fn wait_running(&self, name: &str) -> Result<Value> {
        let object = self.wait_for(name, "phase Running", 90, |status| {
            matches!(status["phase"].as_str(), Some("Running" | "Succeeded" | "Failed"))
        })?;
        if object["status"]["phase"] != "Running" {
            bail!("{name} ended before it was seen running: {:#}", object["status"]);
        }
        Ok(object)
    }

    /// Runs a shell command in the user's container, as an administrator.
    pub fn in_container(&self, process: &str, script: &str) -> Result<String> {
        let pod = self.pod_name(process)?;
        self.kubectl(&["exec", &pod, "--container=main", "--", "sh", "-c", script])
            .succeed()
    }

    /// Deletes the pods of a process and waits until they are gone.
    pub fn delete_pods(&self, process: &str) -> Result<()> {
        let selector = format!("--selector=remoteprocess.dev/name={process}");
        self.kubectl(&["delete", "pods", &selector, "--wait=true"]).succeed()?;
        self.wait_no_pods(process, 60)
    }

    /// Waits until no pod of the process is left.
    pub fn wait_no_pods(&self, process: &str, seconds: u64) -> Result<()> {
        let selector = format!("--selector=remoteprocess.dev/name={process}");
        until(
            &format!("the end of the pods of {process}"),
            Duration::from_secs(seconds),
            || {
                Ok(self
                    .kubectl(&["get", "pods", &selector, "--output=name"])
                    .succeed()?
                    .is_empty())
            },
        )
    }
}

/// A condition of a status, or null.
#[must_use]
pub fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or(&Value::Null)
}

fn connect(namespace: &str) -> Result<()> {
    let group = format!("--group=system:serviceaccounts:{namespace}");
    let binding = binding_name(namespace);
    kubectl([
        "create",
        "clusterrolebinding",
        &binding,
        "--clusterrole=remoteprocess-connect",
        &group,
    ])
    .succeed()?;
    kubectl([
        "create",
        "rolebinding",
        &binding,
        "--role=remoteprocess-connect",
        &group,
        "--namespace",
        RELEASE_NAMESPACE,
    ])
    .succeed()?;
    Ok(())
}

fn add_account(namespace: &str, name: &str, role: Option<&str>) -> Result<()> {
    kubectl(["create", "serviceaccount", name, "--namespace", namespace]).succeed()?;
    if let Some(role) = role {
        let role = format!("--clusterrole={role}");
        let subject = format!("--serviceaccount={namespace}:{name}");
        kubectl(["create", "rolebinding", name, &role, &subject, "--namespace", namespace]).succeed()?;
    }
    Ok(())
}
