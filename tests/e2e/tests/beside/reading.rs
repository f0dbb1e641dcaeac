//! Reads many processes at once, as objects, and from a given time on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, Program, Screen, spec, until, with_temp_ns};
use rustix::process::Signal;
use serde_json::{Value, json};

fn labelled(namespace: &Namespace, name: &str, script: &str) -> Program {
    let object = json!({
        "apiVersion": "remoteprocess.dev/v1alpha1",
        "kind": "RemoteProcess",
        "metadata": {"name": name, "labels": {"app": "many"}},
        "spec": spec(script, json!({})),
    });
    namespace
        .editor
        .kubectl(&["apply", "--filename=-"])
        .input(object.to_string())
}

#[test]
fn a_selector_follows_those_that_come_later_too() {
    with_temp_ns("selector", |namespace| {
        let script = "echo first; echo err >&2; while [ ! -f /tmp/go ]; do sleep 0.05; done; echo last";
        labelled(namespace, "one", script).succeed()?;
        labelled(namespace, "two", script).succeed()?;
        namespace.wait_running("one")?;
        namespace.wait_running("two")?;
        let logs = namespace.editor.rproc(&["logs", "-f", "-l", "app=many"]).start()?;
        let says = |name: &str, word: &str| logs.said().contains(&format!("[{name}] {word}\n"));
        until("the first line of two", Duration::from_secs(30), || {
            Ok(says("one", "first") && says("two", "first"))
        })?;
        labelled(namespace, "three", script).succeed()?;
        namespace.wait_running("three")?;
        for name in ["one", "two", "three"] {
            namespace.in_container(name, "touch /tmp/go")?;
        }
        until("the last line of each", Duration::from_secs(30), || {
            let all = ["one", "two", "three"].iter();
            Ok(all.copied().all(|name| says(name, "first") && says(name, "last")))
        })?;
        ensure!(logs.said().lines().count() == 6, "{}", logs.said());
        Ok(())
    });
}

fn decoded_length(base64: &str) -> usize {
    base64.len() / 4 * 3 - base64.matches('=').count()
}

#[test]
fn objects_hold_every_byte() {
    with_temp_ns("json", |namespace| {
        let script = r"printf 'a line\n\377\n'; echo err >&2; exit 4";
        namespace.editor.run("job", script).finish()?.expect_code(4)?;
        let logs = namespace.editor.rproc(&["logs", "job", "-o", "json"]).finish()?;
        let out = logs.expect_code(4)?.out();
        let objects: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let (exit, output) = objects.split_last().context("no objects")?;
        ensure!(exit["type"] == "exit" && exit["result"]["exitCode"] == 4, "{exit:#}");
        let mut next = [0; 2];
        for object in output {
            ensure!(object["type"] == "output" && object["process"] == "job", "{object:#}");
            let stream = usize::from(object["stream"] == "stderr");
            ensure!(object["offset"] == next[stream], "{object:#}");
            next[stream] += match object["text"].as_str() {
                Some(text) => text.len(),
                None => decoded_length(object["base64"].as_str().context("neither text nor base64")?),
            };
        }
        ensure!(next == [9, 4], "{next:?}: {out}");
        Ok(())
    });
}

#[test]
fn top_is_kept_up_to_date_until_ctrl_c() {
    with_temp_ns("top", |namespace| {
        let Some(screen) = Screen::open(namespace.editor.rproc(&[]), 80, 5)? else {
            return Ok(());
        };
        let script = "head -c 2000 /dev/zero; while [ ! -f /tmp/go ]; do sleep 0.05; done; head -c 3000 /dev/zero";
        let script = format!("{script}; while true; do sleep 1; done");
        for name in ["first", "second", "third", "fourth"] {
            namespace.apply(name, spec(&script, json!({}))).succeed()?;
        }
        for name in ["first", "second", "third", "fourth"] {
            namespace.wait_running(name)?;
        }
        screen.line("echo above; rproc top -w --interval 500ms --no-headers first")?;
        screen.wait_for("2.0Ki")?;
        namespace.in_container("first", "touch /tmp/go")?;
        // One row, which is redrawn: the old number is gone, and what was above it stays.
        screen.wait_until("another number in place of the old one", |shown| {
            shown.contains("4.9Ki") && !shown.contains("2.0Ki") && shown.contains("\nabove\n")
        })?;
        screen.presses(&["C-c"])?;
        screen.at_prompt()?;
        screen.line("echo code=$?")?;
        screen.wait_for("code=130")?;
        // Not all processes fit into the window.
        screen.line("clear; rproc top --watch")?;
        screen.wait_until("a line that counts the rest", |shown| shown.contains(" more"))?;
        screen.presses(&["C-c"])?;
        screen.is_back()?;
        // Into a pipe, one table follows the other.
        let piped = namespace
            .editor
            .rproc(&["top", "-w", "--interval=500ms", "first"])
            .start()?;
        until("three rows", Duration::from_secs(30), || {
            Ok(piped.said().matches("first").count() >= 3)
        })?;
        ensure!(
            piped.said().matches("NAME").count() == 1 && !piped.said().contains('\u{1b}'),
            "{}",
            piped.said()
        );
        piped.signal(Signal::INT)?;
        piped.finish()?.expect_code(130)?;
        Ok(())
    });
}

#[test]
fn what_is_older_is_left_out() {
    with_temp_ns("since", |namespace| {
        let script = "echo early; while [ ! -f /tmp/go ]; do sleep 0.05; done; date -u +%Y-%m-%dT%H:%M:%SZ >&2; sleep 1.1; \
                      echo late";
        let mut run = namespace.editor.run("job", script).start()?;
        run.wait_for_bytes(6)?;
        namespace.in_container("job", "sleep 1.1; touch /tmp/go")?;
        let finished = run.finish()?;
        let moment = String::from_utf8(finished.expect_code(0)?.err_of_program())?;
        let since = namespace
            .editor
            .rproc(&["logs", "job", "--stream=stdout", "--since-time", moment.trim()])
            .finish()?;
        ensure!(since.expect_code(0)?.out() == "late\n", "{since}");
        let all = namespace
            .editor
            .rproc(&["logs", "job", "--stream=stdout", "--since=1h"])
            .finish()?;
        ensure!(all.expect_code(0)?.out() == "early\nlate\n", "{all}");
        Ok(())
    });
}

#[test]
fn what_is_kept_is_verified() {
    with_temp_ns("verify", |namespace| {
        namespace
            .editor
            .run("job", "seq 1 300000; exit 5")
            .finish()?
            .expect_code(5)?;
        namespace.wait_finished("job")?;
        let verified = namespace.editor.rproc(&["logs", "job", "--verify"]).finish()?;
        verified
            .expect_code(0)?
            .expect_stderr(&["verified by the seal and the status"])?;
        Ok(())
    });
}

#[test]
fn the_example_of_the_client_library_runs_signals_and_verifies_a_process() {
    with_temp_ns("client", |namespace| {
        let example = |words: &[&str]| namespace.editor.client_example(words);
        let numbers = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n";
        let ran = example(&["run", BUSYBOX, "seq", "10"])?.succeed()?;
        ensure!(
            ran == format!("{numbers}ended with 0; 21 bytes, verified by length and hash\n"),
            "{ran}"
        );
        let script = "trap 'echo signal; exit 3' HUP; echo ready; while :; do sleep 0.05; done";
        labelled(namespace, "trapped", script).succeed()?;
        namespace.wait_running("trapped")?;
        let follows = example(&["follow", "trapped", "2"])?.start()?;
        until("the first line from byte 2", Duration::from_secs(60), || {
            Ok(follows.said().starts_with("ady\n"))
        })?;
        let listed = example(&["list"])?.succeed()?;
        ensure!(listed.contains("trapped"), "{listed}");
        example(&["signal", "trapped", "1"])?.succeed()?;
        let followed = follows.finish()?;
        ensure!(
            String::from_utf8_lossy(&followed.stdout) == "ady\nsignal\nended with 3; 13 bytes, verified by length\n",
            "{followed}"
        );
        Ok(())
    });
}

#[test]
fn events_of_a_process_are_listed_with_those_of_its_pod() {
    with_temp_ns("events", |namespace| {
        let script = "while [ ! -f /tmp/go ]; do sleep 0.05; done";
        labelled(namespace, "one", script).succeed()?;
        labelled(namespace, "other", "true").succeed()?;
        namespace.wait_running("one")?;
        let watch = namespace.editor.rproc(&["events", "one", "-w"]).start()?;
        until("the Events of the start", Duration::from_secs(30), || {
            let said = watch.said();
            Ok(said.contains("remoteprocess/one ") && said.contains("pod/one-"))
        })?;
        namespace.in_container("one", "touch /tmp/go")?;
        namespace.wait_finished("one")?;
        until("the Event of the end", Duration::from_secs(30), || {
            Ok(watch.said().contains("Completed"))
        })?;
        ensure!(!watch.said().contains("/other"), "{}", watch.said());
        until("the Events of both", Duration::from_secs(30), || {
            let list = namespace.editor.rproc(&["events", "-o", "json"]).json()?;
            let events = list["items"].as_array().context("a list")?;
            let concerns = |name: &str| events.iter().any(|event| event["involvedObject"]["name"] == name);
            Ok(concerns("one") && concerns("other"))
        })?;
        let warnings = namespace
            .editor
            .rproc(&["events", "one", "--types", "Warning"])
            .finish()?;
        ensure!(!warnings.out().contains("Normal"), "{warnings}");
        Ok(())
    });
}
