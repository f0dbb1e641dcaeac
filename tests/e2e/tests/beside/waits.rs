//! What prevents a program from starting, or its pod from ending: what can never work fails at once with its reason;
//! what can be fixed from outside is awaited and reported.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, helm, spec, until, with_temp_ns};
use serde_json::{Value, json};

/// Waits for the end of a process that can never start, and checks its reason and its message.
fn fails_at_once(namespace: &Namespace, name: &str, spec: Value, reason: &str, named: &str) -> Result<()> {
    namespace.apply(name, spec).succeed()?;
    let status = namespace.wait_finished(name)?["status"].clone();
    let message = status["message"].to_string();
    ensure!(
        status["phase"] == "Failed" && status["reason"] == reason && message.contains(named),
        "{name}: {status:#}"
    );
    namespace.wait_no_pods(name, 60)
}

#[test]
fn what_can_never_start_fails_at_once_with_the_reason() {
    with_temp_ns("never", |namespace| {
        let image = |image: &str, policy: &str| spec("true", json!({"image": image, "imagePullPolicy": policy}));
        let name = "couldn't parse image name";
        fails_at_once(namespace, "name", image("No Such:x", "IfNotPresent"), "ImagePull", name)?;
        let absent = image("localhost:1/nosuch:x", "Never");
        fails_at_once(namespace, "absent", absent, "ImagePull", "pull policy of Never")?;
        let root = spec("true", json!({"securityContext": {"runAsNonRoot": true}}));
        fails_at_once(namespace, "root", root, "CreateContainer", "runAsNonRoot")?;
        let size = spec("true", json!({"resources": {"requests": {"memory": "64 MB"}}}));
        fails_at_once(namespace, "size", size, "InvalidSpec", "quantities must match")
    });
}

#[test]
fn of_two_missing_config_maps_the_one_that_is_missing_now_is_named() {
    with_temp_ns("missing", |namespace| {
        let from = |name: &str| json!({"configMapRef": {"name": name}});
        namespace
            .apply(
                "job",
                spec("exit 3", json!({"envFrom": [from("first"), from("second")]})),
            )
            .succeed()?;
        for name in ["first", "second"] {
            namespace.wait_for("job", &format!("that {name} is missing"), 60, |status| {
                status["message"]
                    .to_string()
                    .contains(&format!("\\\"{name}\\\" not found"))
            })?;
            namespace.kubectl(&["create", "configmap", name]).succeed()?;
        }
        let status = namespace.wait_finished("job")?["status"].clone();
        ensure!(status["exitCode"] == 3, "{status:#}");
        Ok(())
    });
}

#[test]
fn a_limit_range_is_waited_for_and_makes_no_specification_invalid() {
    with_temp_ns("limits", |namespace| {
        let limits = json!({
            "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "low"},
            "spec": {"limits": [{"type": "Container", "default": {"memory": "32Mi"}, "defaultRequest": {"memory": "16Mi"}}]},
        });
        namespace
            .kubectl(&["create", "--filename=-"])
            .input(limits.to_string())
            .succeed()?;
        let requests = json!({"resources": {"requests": {"memory": "64Mi"}}});
        namespace.apply("job", spec("exit 3", requests)).succeed()?;
        let object = namespace.wait_for("job", "a reason", 60, |status| status["reason"] == "Admission")?;
        let message = object["status"]["message"].to_string();
        ensure!(message.contains("LimitRange") && message.contains("32Mi"), "{message}");
        namespace.kubectl(&["delete", "limitrange", "low"]).succeed()?;
        let status = namespace.wait_finished("job")?["status"].clone();
        ensure!(status["exitCode"] == 3, "{status:#}");
        Ok(())
    });
}

#[test]
fn an_environment_that_is_too_large_is_named_in_the_status() {
    with_temp_ns("large-env", |namespace| {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"}, "data": {"LARGE": "x".repeat(140 << 10)},
        });
        namespace
            .kubectl(&["create", "--filename=-"])
            .input(map.to_string())
            .succeed()?;
        let from = json!({"envFrom": [{"configMapRef": {"name": "large"}}]});
        namespace.apply("job", spec("true", from)).succeed()?;
        let object = namespace.wait_for("job", "the end", 180, |status| status["phase"] == "Failed")?;
        let message = object["status"]["message"].to_string();
        ensure!(message.contains("argument list too long"), "{message}");
        ensure!(!message.contains("was not reported"), "nothing has run: {message}");
        Ok(())
    });
}

#[test]
fn a_debugger_does_not_keep_the_pod_of_an_ended_process() {
    with_temp_ns("debugged", |namespace| {
        let script = "while [ ! -f /tmp/go ]; do sleep 0.05; done; exit 3";
        namespace.apply("job", spec(script, json!({}))).succeed()?;
        namespace.wait_running("job")?;
        let (pod, image) = (namespace.pod_name("job")?, format!("--image={BUSYBOX}"));
        let debug = [
            "debug",
            &pod,
            &image,
            "--image-pull-policy=IfNotPresent",
            "--profile=general",
        ];
        namespace
            .kubectl(&debug)
            .args([
                "--container=debugger",
                "--",
                "sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1; done",
            ])
            .succeed()?;
        until("the debugger", Duration::from_secs(60), || {
            let pod = namespace.kubectl(&["get", "pod", &pod, "--output=json"]).json()?;
            Ok(!pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_null())
        })?;
        namespace.in_container("job", "touch /tmp/go")?;
        let status = namespace.wait_finished("job")?["status"].clone();
        ensure!(status["exitCode"] == 3, "{status:#}");
        // The kubelet ends the debugger once the other containers have ended, unless the operator deletes the pod before.
        until("the end of the pod", Duration::from_secs(60), || {
            let pod = namespace.kubectl(&["get", "pod", &pod, "--output=json", "--ignore-not-found"]);
            let text = pod.succeed()?;
            let pod: Value = serde_json::from_str(if text.is_empty() { "null" } else { &text })?;
            let has_ended = ["Failed", "Succeeded"]
                .iter()
                .any(|phase| pod["status"]["phase"] == *phase);
            Ok(pod.is_null() || has_ended || !pod["metadata"]["deletionTimestamp"].is_null())
        })
    });
}

#[test]
fn a_second_release_is_refused_with_the_name_of_the_first() {
    with_temp_ns("second", |namespace| {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/remoteprocess-operator");
        let refused = helm(&[
            "install",
            "second",
            chart,
            "--dry-run=server",
            "--namespace",
            &namespace.name,
        ])
        .finish()?;
        ensure!(refused.code != 0, "{refused}");
        let said = refused.err();
        let first = said.split_once("release ").context("a release")?.1;
        ensure!(
            said.contains("one release per cluster") && first.starts_with("remoteprocess"),
            "{said}"
        );
        Ok(())
    });
}
