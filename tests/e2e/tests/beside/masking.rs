//! A secret that the program prints appears nowhere: not in the stream, the container's log, or the status.

use std::time::Duration;

use anyhow::{Context, ensure};
use remoteprocess_e2e::{BUSYBOX, condition, spec, until, with_temp_ns};
use serde_json::json;

const SECRET: &str = "correct-horse-battery-staple";

#[test]
fn a_masked_value_is_nowhere() {
    with_temp_ns("mask", |namespace| {
        let literal = format!("--from-literal=token={SECRET}");
        namespace
            .kubectl(&["create", "secret", "generic", "credentials", &literal])
            .succeed()?;
        // In two writes, in the middle of a large block, twice in a row, and on both streams.
        let script = format!(
            "head -c 65530 /dev/zero | tr '\\0' x; printf '{SECRET}'; printf 'correct-horse-'; sleep 0.3; \
             printf 'battery-staple\\n'; echo \"{SECRET}{SECRET}\" >&2; echo 'correct-horse-'; \
             while [ ! -f /tmp/go ]; do sleep 0.05; done; echo \"end {SECRET}\""
        );
        let mask = json!({"output": {"mask": [{"secretKeyRef": {"name": "credentials", "key": "token"}}]}});
        namespace.apply("mask", spec(&script, mask)).succeed()?;
        let begin = format!("{}******\ncorrect-horse-\n", "x".repeat(65530));
        namespace.wait_running("mask")?;
        let pod = namespace.pod("mask")?["metadata"]["name"]
            .as_str()
            .context("a name")?
            .to_owned();
        until("the output in kubectl logs", Duration::from_secs(60), || {
            let echoed = namespace.kubectl(&["logs", &pod]).finish()?;
            ensure!(!echoed.out().contains("battery-staple"), "{echoed}");
            Ok(echoed.out().contains("\ncorrect-horse-\n") && echoed.out().contains("******\n"))
        })?;
        namespace.in_container("mask", "touch /tmp/go")?;
        let logs = namespace.editor.rproc(&["logs", "-f", "mask"]).finish()?;
        ensure!(logs.expect_code(0)?.out() == format!("{begin}end ***\n"), "{logs}");
        ensure!(logs.err_of_program() == b"******\n", "{logs}");
        let object = namespace.wait_finished("mask")?;
        let status = &object["status"];
        ensure!(!status.to_string().contains("battery-staple"), "{status:#}");
        ensure!(status.to_string().contains("end ***"), "no tail: {status:#}");
        ensure!(
            status["attempts"][0]["output"]["stdout"]["bytes"] == logs.stdout.len(),
            "{status:#}"
        );
        ensure!(condition(status, "OutputSealed")["status"] == "True", "{status:#}");
        Ok(())
    });
}

#[test]
fn a_value_that_is_missing_is_waited_for() {
    with_temp_ns("mask-late", |namespace| {
        let spec = json!({
            "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["echo", SECRET],
            "output": {"mask": [{"secretKeyRef": {"name": "late", "key": "token"}}]},
        });
        namespace.apply("late", spec).succeed()?;
        namespace.pod("late")?;
        let literal = format!("--from-literal=token={SECRET}");
        namespace
            .kubectl(&["create", "secret", "generic", "late", &literal])
            .succeed()?;
        let logs = namespace.editor.rproc(&["logs", "-f", "late"]).finish()?;
        ensure!(logs.expect_code(0)?.out() == "***\n", "{logs}");
        Ok(())
    });
}
