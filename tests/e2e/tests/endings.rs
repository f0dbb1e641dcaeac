//! A table of endings: each is reported with the right reason, code or signal, source, and who asked for it; in the CLI's
//! exit code, in status and in the conditions. And after each of them the books are closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use remoteprocess_e2e::{
    BUSYBOX, Namespace, agent_container_of, condition, is_development_cluster, signal, spec, until, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long after the end of its pod something of a process may still be open.
const OPEN_SECONDS: u64 = 30;

/// How an ending is told.
#[derive(Clone, Copy)]
struct Told {
    reason: &'static str,
    code: Option<i32>,
    signal: Option<&'static str>,
    source: &'static str,
    /// Who stopped it.
    by: Option<&'static str>,
}

const fn code(code: i32, reason: &'static str) -> Told {
    Told {
        reason,
        code: Some(code),
        signal: None,
        source: "Entrypoint",
        by: None,
    }
}

const fn by_signal(signal: &'static str, reason: &'static str) -> Told {
    Told {
        reason,
        code: None,
        signal: Some(signal),
        source: "Entrypoint",
        by: None,
    }
}

/// Programs that end by themselves.
const OWN: [(&str, &[&str], Told); 14] = [
    ("code-0", &["sh", "-c", "exit 0"], code(0, "Completed")),
    ("code-1", &["sh", "-c", "exit 1"], code(1, "NonZeroExit")),
    ("code-126", &["sh", "-c", "exit 126"], code(126, "NonZeroExit")),
    ("code-127", &["sh", "-c", "exit 127"], code(127, "NonZeroExit")),
    ("code-255", &["sh", "-c", "exit 255"], code(255, "NonZeroExit")),
    ("not-found", &["/no/such/program"], code(127, "CommandNotFound")),
    ("not-runnable", &["/etc/passwd"], code(126, "CommandNotExecutable")),
    ("hup", &["sh", "-c", "kill -HUP $$"], by_signal("SIGHUP", "Signaled")),
    ("int", &["sh", "-c", "kill -INT $$"], by_signal("SIGINT", "Signaled")),
    ("abrt", &["sh", "-c", "kill -ABRT $$"], by_signal("SIGABRT", "Signaled")),
    ("kill", &["sh", "-c", "kill -KILL $$"], by_signal("SIGKILL", "Signaled")),
    ("segv", &["sh", "-c", "kill -SEGV $$"], by_signal("SIGSEGV", "Signaled")),
    ("term", &["sh", "-c", "kill -TERM $$"], by_signal("SIGTERM", "Signaled")),
    ("usr1", &["sh", "-c", "kill -USR1 $$"], by_signal("SIGUSR1", "Signaled")),
];

/// 128 + n as a shell tells it.
fn exit_code(told: &Told) -> Result<i32> {
    let numbers = [
        ("SIGHUP", 1),
        ("SIGINT", 2),
        ("SIGABRT", 6),
        ("SIGKILL", 9),
        ("SIGUSR1", 10),
        ("SIGSEGV", 11),
        ("SIGTERM", 15),
    ];
    let of_signal = |name| {
        numbers
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| 128 + number)
    };
    told.code
        .or_else(|| of_signal(told.signal?))
        .context("an ending with a code")
}

#[test]
fn programs_that_end_by_themselves() {
    with_temp_ns("endings", |namespace| {
        let started = OWN.map(|(name, command, told)| {
            let run = namespace
                .editor
                .run_image(BUSYBOX, name, command)
                .within(Duration::from_secs(180));
            (name, told, run.start())
        });
        for (name, told, run) in started {
            let finished = run?.finish()?;
            finished.expect_code(exit_code(&told)?)?;
            ensure!(finished.stdout.is_empty(), "{finished}");
            check(namespace, name, &told)?;
        }
        Ok(())
    });
}

/// Status and conditions say it; everything is closed soon after the pod's end.
fn check(namespace: &Namespace, name: &str, told: &Told) -> Result<()> {
    let object = namespace.wait_for(name, "Finished=True", 180, |status| {
        condition(status, "Finished")["status"] == "True"
    })?;
    let status = &object["status"];
    let is_success = told.reason == "Completed";
    let phase = if is_success { "Succeeded" } else { "Failed" };
    ensure!(
        status["phase"] == phase && status["reason"] == told.reason,
        "{name}: {status:#}"
    );
    ensure!(
        status["exitCode"] == json!(told.code) && status["signal"] == json!(told.signal),
        "{name}: {status:#}"
    );
    let succeeded = if is_success { "True" } else { "False" };
    ensure!(
        condition(status, "Succeeded")["status"] == succeeded,
        "{name}: {status:#}"
    );
    let exit = &last_attempt(status)["exit"];
    ensure!(exit["source"] == told.source, "{name}: {status:#}");
    ensure!(exit["stop"]["requestedBy"] == json!(told.by), "{name}: {status:#}");
    // Never a success without the entrypoint's record of code 0 that nobody asked for.
    let is_verified = exit["source"] == "Entrypoint" && exit["code"] == 0 && exit["stop"].is_null();
    ensure!(phase != "Succeeded" || is_verified, "{name}: {status:#}");
    if last_attempt(status)["grantedAt"].is_null() {
        return Ok(());
    }
    wait_for_pod(namespace, name)?;
    namespace.wait_for(name, "closed books", OPEN_SECONDS, |status| {
        let is_closed = |attempt: &Value| !attempt["output"].is_null() && !attempt["finishedAt"].is_null();
        let attempts = status["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
        attempts.iter().all(is_closed) && !condition(status, "OutputSealed").is_null()
    })?;
    Ok(())
}

fn last_attempt(status: &Value) -> &Value {
    let attempts = status["attempts"].as_array().and_then(|attempts| attempts.last());
    attempts.unwrap_or(&Value::Null)
}

/// Its pod has ended or is gone.
fn wait_for_pod(namespace: &Namespace, name: &str) -> Result<()> {
    let selector = format!("--selector=remoteprocess.dev/name={name}");
    until(
        &format!("the end of the pod of {name}"),
        Duration::from_secs(90),
        || {
            let pods = namespace.kubectl(&["get", "pods", &selector, "--output=json"]).json()?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let has_ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            Ok(pods.iter().all(has_ended))
        },
    )
}

/// Ends by its own choice when it is asked to.
const POLITE: &str = "trap 'exit 5' TERM; while :; do sleep 0.1; done";

fn pod_name(namespace: &Namespace, process: &str) -> Result<String> {
    let pod = namespace.pod(process)?;
    Ok(pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned())
}

fn evict(namespace: &Namespace, process: &str) -> Result<()> {
    let pod = pod_name(namespace, process)?;
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", namespace.name);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace.name}});
    let create = namespace.kubectl(&["create", "--raw", &path, "--filename=-"]);
    create.input(eviction.to_string()).succeed().map(drop)
}

/// What somebody does to a process that runs, and how its end is told.
type Case = (&'static str, fn(&Namespace, &str) -> Result<()>, Told);

const fn asked(reason: &'static str, by: &'static str) -> Told {
    Told {
        by: Some(by),
        ..code(5, reason)
    }
}

const FROM_OUTSIDE: [Case; 3] = [
    (
        "patched",
        |namespace, name| {
            let patch = r#"{"spec":{"desiredState":"Stopped"}}"#;
            let patch = ["patch", "remoteprocess", name, "--type=merge", "--patch", patch];
            namespace.editor.kubectl(&patch).succeed().map(drop)
        },
        asked("Stopped", "spec.desiredState"),
    ),
    ("evicted", evict, asked("Evicted", "kubelet")),
    (
        "pod-deleted",
        |namespace, name| {
            let pod = pod_name(namespace, name)?;
            namespace
                .kubectl(&["delete", "pod", &pod, "--wait=false"])
                .succeed()
                .map(drop)
        },
        asked("Interrupted", "kubelet"),
    ),
];

#[test]
fn ends_that_somebody_brings_about() {
    with_temp_ns("ended", |namespace| {
        for (name, ..) in FROM_OUTSIDE {
            namespace.apply(name, spec(POLITE, json!({}))).succeed()?;
        }
        namespace
            .apply("limited", spec(POLITE, json!({"deadlines": {"runSeconds": 2}})))
            .succeed()?;
        for (name, act, _) in FROM_OUTSIDE {
            namespace.wait_running(name)?;
            act(namespace, name)?;
        }
        for (name, _, told) in FROM_OUTSIDE {
            check(namespace, name, &told)?;
        }
        let patched = namespace.object("patched")?["status"].clone();
        let message = patched["message"].to_string();
        ensure!(message.contains("asked by kubectl-patch"), "who asked: {message}");
        check(namespace, "limited", &asked("DeadlineExceeded", "deadline"))?;
        Ok(())
    });
}

#[test]
fn a_stop_by_the_relay_names_the_user_and_why() {
    with_temp_ns("stopped-by", |namespace| {
        namespace.apply("polite", spec(POLITE, json!({}))).succeed()?;
        namespace.wait_running("polite")?;
        let stop = namespace
            .editor
            .rproc(&["stop", "polite", "-m", "it is late"])
            .finish()?;
        stop.expect_code(0)?;
        let status = namespace.wait_finished("polite")?["status"].clone();
        let stop = last_attempt(&status)["exit"]["stop"].clone();
        let editor = format!("system:serviceaccount:{}:editor", namespace.name);
        ensure!(
            stop == json!({"requestedBy": editor, "message": "it is late"}),
            "{status:#}"
        );
        let events = namespace
            .kubectl(&["get", "events", "--output=json"])
            .json()?
            .to_string();
        ensure!(events.contains("it is late"), "the Event says why: {events}");
        Ok(())
    });
}

#[test]
fn an_object_that_is_deleted_ends_its_program_and_its_record_says_so() {
    with_temp_ns("object-deleted", |namespace| {
        namespace.apply("gone", spec(POLITE, json!({}))).succeed()?;
        let uid = namespace.wait_running("gone")?["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let follow = namespace.editor.rproc(&["logs", "-f", "gone"]).start()?;
        namespace
            .editor
            .kubectl(&["delete", "remoteprocess", "gone", "--wait=true"])
            .succeed()?;
        let followed = follow.finish()?;
        followed.expect_code(5)?.expect_stderr(&["deletion"])?;
        namespace.wait_no_pods("gone", 45)?;
        let later = namespace.admin()?.rproc(&["logs", "--uid", &uid]).finish()?;
        later.expect_code(5)?.expect_stderr(&["deletion"])?;
        Ok(())
    });
}

#[test]
fn what_is_not_started_in_time_has_failed_for_its_reason() {
    with_temp_ns("start-deadline", |namespace| {
        let mut missing = spec("true", json!({"deadlines": {"startSeconds": 45}}));
        missing["image"] = json!("no-such-image.invalid/x:1");
        namespace.apply("image", missing).succeed()?;
        let huge = json!({"deadlines": {"startSeconds": 5}, "resources": {"requests": {"cpu": "4000"}}});
        namespace.apply("huge", spec("true", huge)).succeed()?;
        for (name, reason) in [("image", "ImagePull"), ("huge", "Unschedulable")] {
            let told = Told {
                reason,
                code: None,
                signal: None,
                source: "None",
                by: None,
            };
            check(namespace, name, &told)?;
        }
        Ok(())
    });
}

/// A process that is filled with zeros by `dd` is killed by the kernel at the container's limit.
const TOO_MUCH: &str = "dd if=/dev/zero of=/dev/null bs=200M count=1";

#[test]
fn an_oom_kill_of_the_program_and_one_of_a_child_are_told_apart() {
    // On cgroup version 2 kubelets kill the whole container with the child.
    if !is_development_cluster("memory cgroups of version 1") {
        return;
    }
    with_temp_ns("oom", |namespace| {
        let limited = json!({"resources": {"limits": {"memory": "64Mi"}}});
        let child = format!("{TOO_MUCH} 2>/dev/null; echo \"child: $?\"; exit 0");
        namespace.apply("child", spec(&child, limited.clone())).succeed()?;
        namespace
            .apply("main", spec(&format!("exec {TOO_MUCH}"), limited))
            .succeed()?;
        let logs = namespace.editor.rproc(&["logs", "-f", "child"]).finish()?;
        ensure!(logs.expect_code(0)?.out() == "child: 137\n", "{logs}");
        check(namespace, "child", &code(0, "Completed"))?;
        check(namespace, "main", &by_signal("SIGKILL", "OOMKilled"))?;
        for name in ["child", "main"] {
            let status = namespace.object(name)?["status"].clone();
            ensure!(last_attempt(&status)["exit"]["oomKills"] == 1, "{name}: {status:#}");
        }
        Ok(())
    });
}

/// Whatever of the agent's container begins to live dies before it can say anything.
fn kill_until(has_ended: &AtomicBool, pod_uid: &str) -> Result<()> {
    while !has_ended.load(Ordering::Relaxed) {
        kill_agent(pod_uid)?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn kill_agent(pod_uid: &str) -> Result<()> {
    // One of them may have ended by itself.
    let processes = agent_container_of(pod_uid)?;
    processes.into_iter().for_each(|pid| drop(signal(pid, Signal::KILL)));
    Ok(())
}

/// Nobody hands the end over: the kubelet's word is all there is, and the output is not whole.
#[test]
fn an_agent_that_is_killed_for_good_leaves_the_kubelets_word() {
    if !is_development_cluster("killing the agent's container again and again") {
        return;
    }
    with_temp_ns("agent-gone", |namespace| {
        let script = "echo ready; while [ ! -f /tmp/go ]; do sleep 0.05; done; exit 3";
        namespace.apply("orphan", spec(script, json!({}))).succeed()?;
        namespace.wait_running("orphan")?;
        let pod = namespace.pod("orphan")?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a uid")?.to_owned();
        kill_agent(&uid)?;
        let has_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let killing = scope.spawn(|| kill_until(&has_ended, &uid));
            let ended = namespace
                .in_container("orphan", "touch /tmp/go")
                .and_then(|_| namespace.wait_for("orphan", "the end", 120, |status| status["phase"] == "Failed"));
            has_ended.store(true, Ordering::Relaxed);
            let killed = killing.join().map_err(|_| anyhow!("the killing panicked"))?;
            ended.and(killed)
        })?;
        let told = Told {
            source: "Kubelet",
            ..code(3, "NonZeroExit")
        };
        let status = namespace.wait_finished("orphan")?["status"].clone();
        let exit = &last_attempt(&status)["exit"];
        ensure!(status["reason"] == told.reason && status["exitCode"] == 3, "{status:#}");
        ensure!(exit["source"] == told.source, "{status:#}");
        let logs = namespace
            .editor
            .rproc(&["logs", "-f", "orphan"])
            .within(Duration::from_secs(120))
            .finish()?;
        logs.expect_code(125)?;
        Ok(())
    });
}
