//! A program is paused and resumed, gets more time and less, and is retried: with the CLI and with kubectl.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, condition, spec, until, with_temp_ns};
use serde_json::{Value, json};

const COUNTS: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

fn patch(namespace: &Namespace, name: &str, patch: &Value) -> Result<()> {
    let patch = patch.to_string();
    let patch = ["patch", "remoteprocess", name, "--type=merge", "--patch", &patch];
    namespace.editor.kubectl(&patch).succeed().map(drop)
}

fn wait_phase(namespace: &Namespace, name: &str, phase: &str) -> Result<Value> {
    let object = namespace.wait_for(name, phase, 60, |status| status["phase"] == phase)?;
    Ok(object["status"].clone())
}

/// State letters (proc_pid_stat(5)) of the program's shell and its children.
fn states(namespace: &Namespace, process: &str) -> Result<Vec<String>> {
    let script = r#"for p in /proc/[0-9]*; do
        grep -q 'echo $i' "$p/cmdline" 2>/dev/null || continue
        [ "${p#/proc/}" = 1 ] || [ "${p#/proc/}" = $$ ] || cut -d' ' -f3 "$p/stat"
    done"#;
    let shown = namespace.in_container(process, script)?;
    Ok(shown.lines().map(str::to_owned).collect())
}

fn has_event(namespace: &Namespace, name: &str, reason: &str, text: &str) -> Result<()> {
    until(
        &format!("the Event {reason} of {name}"),
        Duration::from_secs(30),
        || {
            let events = namespace.kubectl(&["get", "events", "--output=json"]).json()?;
            let events = events["items"].as_array().cloned().unwrap_or_default();
            Ok(events.iter().any(|event| {
                event["involvedObject"]["name"] == name
                    && event["reason"] == reason
                    && event["message"].as_str().is_some_and(|message| message.contains(text))
            }))
        },
    )
}

#[test]
fn a_program_is_paused_and_resumed() {
    with_temp_ns("paused", |namespace| {
        namespace.apply("counter", spec(COUNTS, json!({}))).succeed()?;
        let mut follow = namespace.editor.rproc(&["logs", "-f", "counter"]).start()?;
        follow.wait_for_bytes(20)?;
        patch(namespace, "counter", &json!({"spec": {"desiredState": "Paused"}}))?;
        let status = wait_phase(namespace, "counter", "Paused")?;
        ensure!(condition(&status, "Paused")["status"] == "True", "{status:#}");
        ensure!(status["message"].to_string().contains("by kubectl-patch"), "{status:#}");
        let states = states(namespace, "counter")?;
        ensure!(
            !states.is_empty() && states.iter().all(|state| state == "T"),
            "{states:?}"
        );
        has_event(namespace, "counter", "Paused", "kubectl-patch")?;
        let received = follow.received();
        namespace
            .editor
            .rproc(&["resume", "counter"])
            .finish()?
            .expect_code(0)?;
        let status = wait_phase(namespace, "counter", "Running")?;
        ensure!(condition(&status, "Paused").is_null(), "{status:#}");
        has_event(namespace, "counter", "Resumed", "rproc")?;
        follow.wait_for_bytes(received + 40)?;
        let pause = namespace
            .editor
            .rproc(&["pause", "counter", "-m", "no license"])
            .finish()?;
        pause.expect_code(0)?;
        let status = namespace.object("counter")?["status"].clone();
        ensure!(status["message"].to_string().contains("no license"), "{status:#}");
        namespace.editor.rproc(&["stop", "counter"]).finish()?.expect_code(0)?;
        let followed = follow.finish()?;
        // Whatever was paused in between, the numbers are consecutive.
        let numbers: Vec<u64> = followed.out().lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{followed}");
        let late = namespace.editor.rproc(&["pause", "counter"]).finish()?;
        late.expect_code(1)?
            .expect_stderr(&["cannot pause counter", "Stopped"])?;
        Ok(())
    });
}

#[test]
fn what_is_paused_from_the_beginning_starts_when_it_may() {
    with_temp_ns("held", |namespace| {
        let held = spec("echo at last", json!({"desiredState": "Paused"}));
        namespace.apply("held", held).succeed()?;
        wait_phase(namespace, "held", "Paused")?;
        ensure!(
            namespace
                .kubectl(&["get", "pods", "--output=name"])
                .succeed()?
                .is_empty(),
            "there is a pod"
        );
        let follow = namespace.editor.rproc(&["logs", "-f", "held"]).start()?;
        namespace.editor.rproc(&["resume", "held"]).finish()?.expect_code(0)?;
        let followed = follow.finish()?;
        ensure!(followed.expect_code(0)?.out() == "at last\n", "{followed}");
        Ok(())
    });
}

#[test]
fn a_deadline_warns_and_can_be_moved_while_the_program_runs() {
    with_temp_ns("extended", |namespace| {
        let script = "trap 'exit 5' TERM; trap 'echo warned' USR1; while :; do sleep 0.1; done";
        let deadlines = json!({"runSeconds": 30, "warnBeforeSeconds": 28, "warnSignal": "SIGUSR1"});
        namespace
            .apply("job", spec(script, json!({"deadlines": deadlines})))
            .succeed()?;
        let mut follow = namespace.editor.rproc(&["logs", "-f", "job"]).start()?;
        follow.wait_for_bytes("warned\n".len())?;
        has_event(namespace, "job", "DeadlineNear", "rproc extend job")?;
        let extend = namespace.editor.rproc(&["extend", "job", "--by", "1h"]).finish()?;
        ensure!(extend.expect_code(0)?.out().contains("may run for 1h"), "{extend}");
        let status = namespace.object("job")?["status"].clone();
        ensure!(
            status["attempts"][0]["runSeconds"] == 3630,
            "its agent knows: {status:#}"
        );
        let started: Value = status["startedAt"].clone();
        let refused = namespace.editor.rproc(&["extend", "job", "--to", "1s"]).finish()?;
        refused.expect_code(1)?.expect_stderr(&["already"])?;
        let fixed = json!({"spec": {"deadlines": {"warnBeforeSeconds": 1}}}).to_string();
        let fixed = ["patch", "remoteprocess", "job", "--type=merge", "--patch", &fixed];
        let fixed = namespace.editor.kubectl(&fixed).finish()?;
        ensure!(fixed.code != 0, "{fixed}");
        fixed.expect_stderr(&["spec.deadlines.warnBeforeSeconds cannot change"])?;
        patch(namespace, "job", &json!({"spec": {"deadlines": {"runSeconds": 1}}}))?;
        follow
            .finish()?
            .expect_code(124)?
            .expect_stderr(&["DeadlineExceeded"])?;
        let status = namespace.wait_finished("job")?["status"].clone();
        ensure!(
            status["reason"] == "DeadlineExceeded" && status["exitCode"] == 5,
            "{status:#}"
        );
        ensure!(status["startedAt"] == started, "{status:#}");
        has_event(namespace, "job", "DeadlineExceeded", "spec.deadlines.runSeconds")
    });
}

#[test]
fn followers_continue_in_the_next_attempt() {
    with_temp_ns("attempts", |namespace| {
        let retries = json!({"retries": {"limit": 1, "backoff": {"initialSeconds": 1}}});
        // Attempts are distinguished by their pods' names.
        namespace.apply("again", spec("hostname; exit 7", retries)).succeed()?;
        let followed = namespace
            .editor
            .rproc(&["logs", "-f", "again"])
            .within(Duration::from_secs(120))
            .finish()?;
        followed
            .expect_code(7)?
            .expect_stderr(&["attempt 1: again exited with code 7", "attempt 2 of again begins"])?;
        let out = followed.out();
        let names: Vec<&str> = out.lines().collect();
        ensure!(names.len() == 2 && names[0] != names[1], "{followed}");
        let status = namespace.wait_finished("again")?["status"].clone();
        ensure!(status["attempt"] == 2 && status["exitCode"] == 7, "{status:#}");
        let first = namespace.editor.rproc(&["logs", "again", "--attempt", "1"]).finish()?;
        ensure!(first.out().trim_end() == names[0], "{first}");
        let pods = status["attempts"].as_array().context("attempts")?;
        ensure!(
            pods.iter().all(|attempt| attempt["output"]["sealed"] == true),
            "{status:#}"
        );
        Ok(())
    });
}
