//! Bad input is refused, and what cannot run is reported, within seconds and with a message.

use std::time::Duration;

use anyhow::{Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Finished, Namespace, with_temp_ns};
use serde_json::{Value, json};

fn good() -> Value {
    json!({"image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]})
}

/// A valid spec with one field changed or added.
fn with(field: &str, value: Value) -> Value {
    let mut spec = good();
    spec[field] = value;
    spec
}

fn refused(finished: Result<Finished>, texts: &[&str]) -> Result<()> {
    let finished = finished?;
    ensure!(finished.code != 0, "it was accepted: {finished}");
    finished.expect_stderr(texts)?;
    Ok(())
}

#[test]
fn the_api_server_refuses_with_a_sentence() {
    with_temp_ns("refused", |namespace| {
        let apply = |spec: Value| namespace.apply("bad", spec).within(Duration::from_secs(20)).finish();
        refused(apply(json!({"image": BUSYBOX})), &["spec.command", "Required"])?;
        refused(apply(with("command", json!([]))), &["spec.command"])?;
        refused(apply(with("comand", json!(["x"]))), &["comand"])?;
        refused(
            apply(with("stop", json!({"signal": "SIGNONE"}))),
            &["spec.stop.signal", "SIGTERM"],
        )?;
        refused(
            apply(with("volumeMounts", json!([{"name": "v", "mountPath": "/.rproc"}]))),
            &["/.rproc", "reserved"],
        )?;
        refused(
            apply(with("volumeMounts", json!([{"name": "v", "mountPath": "/"}]))),
            &["reserved"],
        )?;
        refused(
            apply(with(
                "volumeMounts",
                json!([{"name": "v", "mountPath": "/.rproc-stdin/x"}]),
            )),
            &["/.rproc-stdin", "reserved"],
        )?;
        let key = json!({"name": "m", "key": "k"});
        for other in ["stdin", "tty"] {
            let mut spec = with("stdinFrom", json!({"configMapKeyRef": key}));
            spec[other] = json!(true);
            refused(
                apply(spec),
                &["spec.stdinFrom cannot be set together with spec.stdin or spec.tty"],
            )?;
        }
        for source in [json!({}), json!({"configMapKeyRef": key, "secretKeyRef": key})] {
            refused(
                apply(with("stdinFrom", source)),
                &["spec.stdinFrom: set exactly one of configMapKeyRef and secretKeyRef"],
            )?;
        }
        let volume = json!([{"name": "rproc-token", "emptyDir": {}}]);
        refused(
            apply(with("pod", json!({"volumes": volume}))),
            &["spec.pod", "rproc-", "reserved"],
        )?;
        let label = json!({"remoteprocess.dev/uid": "x"});
        refused(
            apply(with("pod", json!({"labels": label}))),
            &["remoteprocess.dev/", "reserved"],
        )?;
        let long = "n".repeat(200);
        refused(namespace.apply(&long, good()).finish(), &["52 characters"])?;
        refused(namespace.apply("dotted.name", good()).finish(), &["DNS label"])?;
        Ok(())
    });
}

#[test]
fn what_runs_cannot_be_changed() {
    with_temp_ns("fixed", |namespace| {
        namespace.apply("fixed", good()).succeed()?;
        let changes = [
            ("image", json!("other:1")),
            ("command", json!(["true"])),
            ("args", json!(["more"])),
            ("env", json!([{"name": "A", "value": "b"}])),
            ("stop", json!({"gracePeriodSeconds": 1})),
            ("stdinFrom", json!({"secretKeyRef": {"name": "s", "key": "k"}})),
            ("pod", json!({"nodeSelector": {"a": "b"}})),
        ];
        for (field, value) in changes {
            let sentence = format!("spec.{field} cannot change after creation");
            refused(namespace.apply("fixed", with(field, value)).finish(), &[&sentence])?;
        }
        let patch = r#"{"spec":{"imagePullPolicy":null}}"#;
        let removed = ["patch", "remoteprocess", "fixed", "--type=merge", "--patch", patch];
        refused(
            namespace.editor.kubectl(&removed).finish(),
            &["spec.imagePullPolicy cannot change"],
        )?;
        namespace.editor.rproc(&["stop", "fixed"]).finish()?.expect_code(0)?;
        Ok(())
    });
}

#[test]
fn the_cli_refuses_with_a_sentence() {
    with_temp_ns("cli", |namespace| {
        let rproc = |arguments: &[&str]| {
            namespace
                .editor
                .rproc(arguments)
                .within(Duration::from_secs(20))
                .finish()
        };
        refused(rproc(&["run", "x", "--image", BUSYBOX]), &["COMMAND"])?;
        refused(
            rproc(&["logs", "no-such-process"]),
            &["there is no process no-such-process"],
        )?;
        refused(
            rproc(&["stop", "no-such-process"]),
            &["there is no process no-such-process"],
        )?;
        refused(rproc(&["signal", "x", "SIGNONE"]), &["SIGNONE"])?;
        refused(
            rproc(&["run", "Bad_Name", "--image", BUSYBOX, "--", "true"]),
            &["Bad_Name"],
        )?;
        Ok(())
    });
}

fn waits_with(namespace: &Namespace, name: &str, reason: &str, texts: &[&str]) -> Result<()> {
    let object = namespace.wait_for(name, reason, 40, |status| status["reason"] == reason)?;
    let message = object["status"]["message"].as_str().unwrap_or_default();
    for text in texts {
        ensure!(message.contains(text), "{name}: {text:?} is not in {message:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_start_says_why() {
    with_temp_ns("waiting", |namespace| {
        let missing = "no-such-image.invalid/x:1";
        namespace.apply("image", with("image", json!(missing))).succeed()?;
        let huge = json!({"requests": {"cpu": "4000"}});
        namespace.apply("huge", with("resources", huge)).succeed()?;
        let secret = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "k"}}}]);
        namespace.apply("secret", with("env", secret)).succeed()?;
        waits_with(namespace, "image", "ImagePull", &[missing])?;
        waits_with(namespace, "huge", "Unschedulable", &["cpu"])?;
        waits_with(namespace, "secret", "CreateContainer", &["no-such-secret"])?;
        let run = ["run", "missing", "--image", missing, "--", "true"];
        let mut run = namespace.editor.rproc(&run).start()?;
        run.wait_for_stderr("ImagePull")?;
        Ok(())
    });
}

#[test]
fn a_quota_is_named() {
    with_temp_ns("quota", |namespace| {
        namespace
            .kubectl(&["create", "quota", "none", "--hard=pods=0"])
            .succeed()?;
        namespace
            .apply("late", with("command", json!(["echo", "at last"])))
            .succeed()?;
        waits_with(namespace, "late", "Quota", &["none"])?;
        // It was late, not lost.
        namespace.kubectl(&["delete", "quota", "none"]).succeed()?;
        let logs = namespace.editor.rproc(&["logs", "-f", "late"]).finish()?;
        ensure!(logs.expect_code(0)?.out() == "at last\n", "{logs}");
        Ok(())
    });
}
