//! Details of an end besides the code: last lines, leftovers; other images and security settings; stops and signals.

use anyhow::ensure;
use remoteprocess_e2e::{BUSYBOX, STATIC, condition, glibc, is_development_cluster, with_temp_ns};
use serde_json::json;

#[test]
fn the_last_lines_are_in_the_condition() {
    with_temp_ns("tail", |namespace| {
        let script = r"echo first; printf 'disk full: \033[31mred\033[0m\n' >&2; exit 3";
        namespace.editor.run("tail", script).finish()?.expect_code(3)?;
        let object = namespace.wait_finished("tail")?;
        let message = condition(&object["status"], "Succeeded")["message"].to_string();
        ensure!(message.contains("first") && message.contains("disk full"), "{message}");
        ensure!(
            !object["status"].to_string().contains("\\u001b"),
            "control bytes are escaped: {object:#}"
        );
        Ok(())
    });
}

#[test]
fn images_with_nothing_but_a_static_program_work() {
    if !is_development_cluster("images that only the development cluster holds") {
        return;
    }
    with_temp_ns("images", |namespace| {
        let plain = namespace
            .editor
            .run_image(STATIC, "static", &["/busybox", "echo", "static"])
            .start()?;
        let glibc = namespace
            .editor
            .run_image(glibc(), "glibc", &["bash", "-c", "echo $0 glibc", "over"])
            .start()?;
        let (plain, glibc) = (plain.finish()?, glibc.finish()?);
        ensure!(plain.expect_code(0)?.out() == "static\n", "{plain}");
        ensure!(glibc.expect_code(0)?.out() == "over glibc\n", "{glibc}");
        Ok(())
    });
}

#[test]
fn a_restricted_namespace_with_a_strange_user_and_a_read_only_root_works() {
    with_temp_ns("restricted", |namespace| {
        let label = "pod-security.kubernetes.io/enforce=restricted";
        namespace
            .kubectl(&["label", "namespace", &namespace.name, label])
            .succeed()?;
        let spec = json!({
            "image": BUSYBOX,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "id -u; touch /x 2>/dev/null || echo read-only"],
            "securityContext": {
                "runAsUser": 4_711_042, "runAsGroup": 99, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        });
        namespace.apply("strange", spec).succeed()?;
        let logs = namespace.editor.rproc(&["logs", "-f", "strange"]).finish()?;
        ensure!(logs.expect_code(0)?.out() == "4711042\nread-only\n", "{logs}");
        // Without security settings: the restricted profile is built, and the image needs root, which is reported.
        namespace
            .editor
            .run("bare", "exit 4")
            .start()?
            .wait_for_stderr("run as root")?;
        Ok(())
    });
}

#[test]
fn leftovers_are_ended_and_counted() {
    with_temp_ns("leftovers", |namespace| {
        let run = namespace
            .editor
            .run("parent", "sleep 1000 & sleep 1000 & echo started; exit 5")
            .finish()?;
        ensure!(run.expect_code(5)?.out() == "started\n", "{run}");
        let object = namespace.wait_finished("parent")?;
        ensure!(
            object["status"]["attempts"][0]["exit"]["leftovers"] == 2,
            "{:#}",
            object["status"]
        );
        Ok(())
    });
}

#[test]
fn stop_ends_a_process_by_its_signal_and_is_no_success() {
    with_temp_ns("stop", |namespace| {
        let script = "trap 'echo stopping; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
        let mut run = namespace.editor.run("polite", script).start()?;
        run.wait_for_bytes(6)?;
        namespace.editor.rproc(&["stop", "polite"]).finish()?.expect_code(0)?;
        let finished = run.finish()?;
        ensure!(finished.expect_code(143)?.out() == "ready\nstopping\n", "{finished}");
        let status = namespace.wait_finished("polite")?["status"].clone();
        ensure!(
            status["phase"] == "Failed" && status["reason"] == "Stopped" && status["exitCode"] == 0,
            "{status:#}"
        );
        ensure!(condition(&status, "Succeeded")["status"] == "False", "{status:#}");
        Ok(())
    });
}

#[test]
fn a_stop_that_is_ignored_ends_by_kill_after_the_grace_period() {
    with_temp_ns("stubborn", |namespace| {
        let spec = json!({
            "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "stop": {"gracePeriodSeconds": 2},
            "command": ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
        });
        namespace.apply("stubborn", spec).succeed()?;
        let mut follow = namespace.editor.rproc(&["logs", "-f", "stubborn"]).start()?;
        follow.wait_for_bytes(6)?;
        let patch = r#"{"spec":{"desiredState":"Stopped"}}"#;
        namespace
            .editor
            .kubectl(&["patch", "remoteprocess", "stubborn", "--type=merge", "--patch", patch])
            .succeed()?;
        follow.finish()?;
        let status = namespace.wait_finished("stubborn")?["status"].clone();
        ensure!(
            status["reason"] == "Stopped" && status["signal"] == "SIGKILL",
            "{status:#}"
        );
        Ok(())
    });
}

#[test]
fn a_signal_reaches_the_program() {
    with_temp_ns("signal", |namespace| {
        let script = "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.1; done";
        let mut run = namespace.editor.run("listener", script).start()?;
        run.wait_for_bytes(6)?;
        namespace
            .editor
            .rproc(&["signal", "listener", "SIGUSR1"])
            .finish()?
            .expect_code(0)?;
        let finished = run.finish()?;
        ensure!(finished.expect_code(9)?.out() == "ready\ngot it\n", "{finished}");
        Ok(())
    });
}
