//! A table of endings: each is reported with the right reason, code or signal, source, and requester; in the CLI's exit
//! code, in status and in the conditions. After each of them the output is closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use remoteprocess_e2e::{
    BUSYBOX, Namespace, POLITE, Told, agent_container_of, check_ending, is_development_cluster, last_attempt, signal,
    spec, with_temp_ns,
};
use rustix::process::Signal;
use serde_json::json;

/// Programs that end by themselves.
const OWN: [(&str, &[&str], Told); 14] = [
    ("code-0", &["sh", "-c", "exit 0"], Told::code(0, "Completed")),
    ("code-1", &["sh", "-c", "exit 1"], Told::code(1, "NonZeroExit")),
    ("code-126", &["sh", "-c", "exit 126"], Told::code(126, "NonZeroExit")),
    ("code-127", &["sh", "-c", "exit 127"], Told::code(127, "NonZeroExit")),
    ("code-255", &["sh", "-c", "exit 255"], Told::code(255, "NonZeroExit")),
    ("not-found", &["/no/such/program"], Told::code(127, "CommandNotFound")),
    (
        "not-runnable",
        &["/etc/passwd"],
        Told::code(126, "CommandNotExecutable"),
    ),
    ("hup", &["sh", "-c", "kill -HUP $$"], Told::signal("SIGHUP", "Signaled")),
    ("int", &["sh", "-c", "kill -INT $$"], Told::signal("SIGINT", "Signaled")),
    (
        "abrt",
        &["sh", "-c", "kill -ABRT $$"],
        Told::signal("SIGABRT", "Signaled"),
    ),
    (
        "kill",
        &["sh", "-c", "kill -KILL $$"],
        Told::signal("SIGKILL", "Signaled"),
    ),
    (
        "segv",
        &["sh", "-c", "kill -SEGV $$"],
        Told::signal("SIGSEGV", "Signaled"),
    ),
    (
        "term",
        &["sh", "-c", "kill -TERM $$"],
        Told::signal("SIGTERM", "Signaled"),
    ),
    (
        "usr1",
        &["sh", "-c", "kill -USR1 $$"],
        Told::signal("SIGUSR1", "Signaled"),
    ),
];

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
            finished.expect_code(told.exit_code()?)?;
            ensure!(finished.stdout.is_empty(), "{finished}");
            check_ending(namespace, name, &told)?;
        }
        Ok(())
    });
}

fn evict(namespace: &Namespace, process: &str) -> Result<()> {
    let pod = namespace.pod_name(process)?;
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", namespace.name);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace.name}});
    let create = namespace.kubectl(&["create", "--raw", &path, "--filename=-"]);
    create.input(eviction.to_string()).succeed().map(drop)
}

/// What a user does to a running process, and how its end is reported.
type Case = (&'static str, fn(&Namespace, &str) -> Result<()>, Told);

const FROM_OUTSIDE: [Case; 3] = [
    (
        "patched",
        |namespace, name| {
            let patch = r#"{"spec":{"desiredState":"Stopped"}}"#;
            let patch = ["patch", "remoteprocess", name, "--type=merge", "--patch", patch];
            namespace.editor.kubectl(&patch).succeed().map(drop)
        },
        Told::asked("Stopped", "kubectl-patch through spec.desiredState"),
    ),
    ("evicted", evict, Told::asked("Evicted", "kubelet")),
    (
        "pod-deleted",
        |namespace, name| {
            let pod = namespace.pod_name(name)?;
            namespace
                .kubectl(&["delete", "pod", &pod, "--wait=false"])
                .succeed()
                .map(drop)
        },
        Told::asked("Interrupted", "kubelet"),
    ),
];

#[test]
fn ends_that_are_caused_from_outside() {
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
            check_ending(namespace, name, &told)?;
        }
        let patched = namespace.object("patched")?["status"].clone();
        let message = patched["message"].to_string();
        ensure!(
            message.contains("stopped by kubectl-patch through spec.desiredState"),
            "who asked: {message}"
        );
        check_ending(namespace, "limited", &Told::asked("DeadlineExceeded", "deadline"))?;
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
fn what_is_not_started_in_time_has_failed_for_its_reason() {
    with_temp_ns("start-deadline", |namespace| {
        let mut missing = spec("true", json!({"deadlines": {"startSeconds": 45}}));
        missing["image"] = json!("no-such-image.invalid/x:1");
        namespace.apply("image", missing).succeed()?;
        let huge = json!({"deadlines": {"startSeconds": 5}, "resources": {"requests": {"cpu": "4000"}}});
        namespace.apply("huge", spec("true", huge)).succeed()?;
        for (name, reason) in [("image", "ImagePull"), ("huge", "Unschedulable")] {
            check_ending(namespace, name, &Told::unknown(reason))?;
        }
        Ok(())
    });
}

/// `dd` fills a process with zeros until the kernel kills it at the container's limit.
const TOO_MUCH: &str = "dd if=/dev/zero of=/dev/null bs=200M count=1";

#[test]
fn an_oom_kill_of_the_program_and_one_of_a_child_are_distinguished() {
    // With cgroup version 2, kubelets kill the whole container with the child.
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
        check_ending(namespace, "child", &Told::code(0, "Completed"))?;
        check_ending(namespace, "main", &Told::signal("SIGKILL", "OOMKilled"))?;
        for name in ["child", "main"] {
            let status = namespace.object(name)?["status"].clone();
            ensure!(last_attempt(&status)["exit"]["oomKills"] == 1, "{name}: {status:#}");
        }
        Ok(())
    });
}

/// Every process of the agent's container dies before it can report anything.
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

/// The end is not reported: only the kubelet's status is known, and the output is not complete.
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
            ..Told::code(3, "NonZeroExit")
        };
        check_ending(namespace, "orphan", &told)?;
        let logs = namespace
            .editor
            .rproc(&["logs", "-f", "orphan"])
            .within(Duration::from_secs(120))
            .finish()?;
        logs.expect_code(125)?;
        Ok(())
    });
}
