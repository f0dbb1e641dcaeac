//! The output arrives byte for byte, on the right stream, at every reader, before and after the pod's life.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, Running, glibc, is_long, seq, sha256, spec, with_temp_ns};
use serde_json::json;

#[test]
fn both_streams_are_apart_and_exact() {
    with_temp_ns("exact", |namespace| {
        let script = r"printf 'a\r\nb\000c\377\n\n'; printf 'no newline at the end' >&2; printf '\302'";
        let run = namespace.editor.run("exact", script).finish()?;
        run.expect_code(0)?;
        ensure!(run.stdout == b"a\r\nb\0c\xff\n\n\xc2", "{run}");
        ensure!(run.err_of_program().starts_with(b"no newline at the end"), "{run}");

        let only = |stream: &str| namespace.editor.rproc(&["logs", "exact", "--stream", stream]).finish();
        ensure!(only("stdout")?.stdout == run.stdout);
        ensure!(only("stderr")?.stderr == b"no newline at the end");
        Ok(())
    });
}

#[test]
fn random_bytes_arrive_complete_and_sealed() {
    with_temp_ns("binary", |namespace| {
        let script = "head -c 5000001 /dev/urandom > /tmp/x; cat /tmp/x; sha256sum < /tmp/x >&2";
        let run = namespace.editor.run("binary", script).finish()?;
        let hash = sha256(&run.expect_code(0)?.stdout);
        run.expect_stderr(&[&hash])?;
        let status = namespace.wait_finished("binary")?["status"].clone();
        let output = &status["attempts"][0]["output"];
        ensure!(output["sealed"] == true, "{status:#}");
        ensure!(
            output["stdout"] == json!({"bytes": 5_000_001, "sha256": hash}),
            "{status:#}"
        );
        Ok(())
    });
}

#[test]
fn a_line_of_20_megabytes_is_a_line() {
    with_temp_ns("long-line", |namespace| {
        let run = namespace
            .editor
            .run("long-line", "head -c 20000000 /dev/zero | tr '\\0' x; echo")
            .finish()?;
        run.expect_code(0)?;
        ensure!(run.stdout.len() == 20_000_001, "{} bytes", run.stdout.len());
        ensure!(run.stdout[..20_000_000].iter().all(|byte| *byte == b'x'));
        let tail = namespace.editor.rproc(&["logs", "long-line", "--tail=1"]).finish()?;
        ensure!(tail.expect_code(0)?.stdout == run.stdout, "{} bytes", tail.stdout.len());
        Ok(())
    });
}

#[test]
fn fifty_followers_read_the_same() {
    with_temp_ns("followers", |namespace| {
        let script = "seq 1 200000; while [ ! -f /tmp/go ]; do sleep 0.05; done; seq 200001 400000; echo end >&2";
        namespace.apply("source", spec(script, json!({}))).succeed()?;
        // The first call gets the certificate for all of them.
        namespace.editor.rproc(&["whoami"]).finish()?.expect_code(0)?;
        let follow = |_| {
            let deadline = Duration::from_secs(240);
            namespace
                .editor
                .rproc(&["logs", "-f", "source"])
                .within(deadline)
                .start()
        };
        let mut followers: Vec<Running> = (0..50).map(follow).collect::<Result<_>>()?;
        for follower in &mut followers {
            follower.wait_for_bytes(1)?;
        }
        namespace.in_container("source", "touch /tmp/go")?;
        let expected = sha256(&seq(1, 400_000));
        for (number, follower) in followers.into_iter().enumerate() {
            let finished = follower.finish()?;
            finished.expect_code(0)?;
            ensure!(
                sha256(&finished.stdout) == expected,
                "follower {number}: {} bytes",
                finished.stdout.len()
            );
            ensure!(
                finished.err_of_program() == b"end\n",
                "follower {number}: {}",
                finished.err()
            );
        }
        Ok(())
    });
}

#[test]
fn the_output_outlives_the_pod() {
    with_temp_ns("archive", |namespace| {
        let run = namespace
            .editor
            .run("gone", "seq 1 50000; echo to stderr >&2; exit 6")
            .finish()?;
        ensure!(run.expect_code(6)?.stdout == seq(1, 50_000), "{run}");
        namespace.wait_finished("gone")?;
        namespace.delete_pods("gone")?;
        let again = namespace.editor.rproc(&["logs", "-f", "gone"]).finish()?;
        ensure!(again.expect_code(6)?.stdout == seq(1, 50_000), "{again}");
        ensure!(again.err_of_program() == b"to stderr\n", "{again}");
        let object = namespace.object("gone")?;
        ensure!(
            object["status"]["phase"] == "Failed" && object["status"]["exitCode"] == 6,
            "{object:#}"
        );
        Ok(())
    });
}

#[test]
fn logs_begin_at_a_line_or_an_offset() {
    with_temp_ns("from", |namespace| {
        namespace
            .editor
            .run("numbers", "seq 1 10000")
            .finish()?
            .expect_code(0)?;
        let all = seq(1, 10_000);
        let logs = |argument: &str| namespace.editor.rproc(&["logs", "numbers", argument]).finish();
        let tail = logs("--tail=3")?;
        ensure!(tail.stdout == b"9998\n9999\n10000\n", "{tail}");
        ensure!(logs("--tail=0")?.stdout.is_empty());
        ensure!(logs("--tail=20000")?.stdout == all);
        ensure!(logs("--offset=48890")?.stdout == all[48_890..]);
        ensure!(logs("--offset=48894")?.stdout.is_empty());
        let stamped = logs("--timestamps")?;
        let first = stamped.out().lines().next().context("no line")?.to_owned();
        ensure!(
            first.ends_with(" 1") && first.starts_with("20") && first.contains('T'),
            "{first}"
        );
        Ok(())
    });
}

#[test]
fn the_containers_log_has_the_output_of_ordinary_jobs() {
    with_temp_ns("echo", |namespace| {
        let script = "seq 1 1000; while [ ! -f /tmp/go ]; do sleep 0.05; done";
        let _run = namespace.editor.run("echo", script).start()?;
        let pod = namespace.pod("echo")?;
        let pod = pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
        let logs = || namespace.kubectl(&["logs", &pod]).finish();
        remoteprocess_e2e::until("the output in kubectl logs", Duration::from_secs(60), || {
            Ok(logs()?.stdout == seq(1, 1000))
        })?;
        namespace.in_container("echo", "touch /tmp/go")?;
        Ok(())
    });
}

#[test]
fn logs_of_a_process_that_waits_say_why() {
    with_temp_ns("waits", |namespace| {
        let spec = json!({
            "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["echo", "late"],
            "pod": {"nodeSelector": {"remoteprocess.dev/no-such-node": "true"}},
        });
        namespace.apply("late", spec).succeed()?;
        let mut logs = namespace.editor.rproc(&["logs", "-f", "late"]).start()?;
        logs.wait_for_stderr("Unschedulable")?;
        ensure!(logs.received() == 0);
        Ok(())
    });
}

/// The well-known case that `kubectl run --rm -i` sometimes gets wrong.
#[test]
fn two_million_lines_are_two_million_lines() {
    with_temp_ns("seq", |namespace| {
        let expected = sha256(&seq(1, 2_000_000));
        for number in 0..if is_long() { 100 } else { 8 } {
            one_seq(namespace, &format!("seq-{number}"), &expected).with_context(|| format!("run {number}"))?;
        }
        Ok(())
    });
}

fn one_seq(namespace: &Namespace, name: &str, expected: &str) -> Result<()> {
    let run = namespace
        .editor
        .run_image(glibc(), name, &["seq", "1", "2000000"])
        .finish()?;
    run.expect_code(0)?;
    ensure!(sha256(&run.stdout) == expected, "{} bytes", run.stdout.len());
    Ok(())
}
