//! A program whose standard input is a key of a ConfigMap or Secret.

use anyhow::{Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, image_arguments, sha256, spec, with_temp_ns};
use serde_json::json;

/// Creates a ConfigMap or Secret with the key `data`.
fn create(namespace: &Namespace, kind: &[&str], name: &str, data: &[u8]) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), data)?;
    let from = format!("--from-file=data={}", file.path().display());
    let create = [&["create"][..], kind, &[name, &from]].concat();
    namespace.kubectl(&create).succeed().map(drop)
}

#[test]
fn a_program_waits_for_its_input_and_reads_all_of_it() {
    with_temp_ns("stdin-late", |namespace| {
        let from = json!({"stdinFrom": {"configMapKeyRef": {"name": "input", "key": "data"}}});
        let script = "sha256sum | cut -d' ' -f1; exit 5";
        namespace.apply("late", spec(script, from)).succeed()?;
        let needs = "the ConfigMap input must exist and have the key data";
        let object = namespace.wait_for("late", "the missing object", 60, |status| {
            status["message"].to_string().contains(needs)
        })?;
        let status = &object["status"];
        ensure!(
            status["phase"] == "Pending"
                && status["reason"] == "ContainerCreating"
                && status["attempts"][0]["grantedAt"].is_null(),
            "{status:#}"
        );
        let refused = namespace.editor.rproc(&["attach", "-i", "late"]).input("x").finish()?;
        refused
            .expect_code(125)?
            .expect_stderr(&["takes no input", "spec.stdinFrom"])?;
        let data: Vec<u8> = (0..900_usize << 10).map(|at| ((at * 31) ^ (at >> 8)) as u8).collect();
        create(namespace, &["configmap"], "input", &data)?;
        let status = namespace.wait_finished("late")?["status"].clone();
        ensure!(status["exitCode"] == 5 && status["attempt"] == 1, "{status:#}");
        let logs = namespace.editor.rproc(&["logs", "late"]).finish()?;
        ensure!(logs.expect_code(5)?.out() == format!("{}\n", sha256(&data)), "{logs}");
        Ok(())
    });
}

#[test]
fn each_attempt_reads_the_input_from_its_beginning() {
    with_temp_ns("stdin-retry", |namespace| {
        create(namespace, &["secret", "generic"], "input", b"b\na\n")?;
        let [image, policy] = image_arguments(BUSYBOX);
        let from = "--stdin-from=secret/input:data";
        let sort = ["run", "sort", from, &image, &policy, "--", "sort"];
        let sorted = namespace.editor.rproc(&sort).finish()?;
        ensure!(sorted.expect_code(0)?.out() == "a\nb\n", "{sorted}");
        let more = json!({
            "stdinFrom": {"secretKeyRef": {"name": "input", "key": "data"}},
            "retries": {"limit": 1, "after": ["ProcessFailure"], "backoff": {"initialSeconds": 0}},
        });
        namespace.apply("again", spec("cat; exit 3", more)).succeed()?;
        let status = namespace.wait_finished("again")?["status"].clone();
        ensure!(status["exitCode"] == 3 && status["attempt"] == 2, "{status:#}");
        for attempt in ["1", "2"] {
            let logs = namespace
                .editor
                .rproc(&["logs", "again", "--attempt", attempt])
                .finish()?;
            ensure!(logs.expect_code(3)?.out() == "b\na\n", "{logs}");
        }
        Ok(())
    });
}
