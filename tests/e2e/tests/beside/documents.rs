//! The commands in the documents work.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Document, kubectl, rproc, with_temp_ns};
use serde_json::{Value, json};

const DOCUMENTS: [&str; 15] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/ca.md",
    "docs/ci.md",
    "docs/configuration.md",
    "docs/http.md",
    "docs/operations.md",
    "docs/rproc.md",
    "docs/sinks.md",
    "docs/triggers.md",
    "docs/ui.md",
    "examples/hello.yaml",
    "charts/remoteprocess-operator/templates/NOTES.txt",
];

fn read(path: &str) -> Result<String> {
    fs::read_to_string(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).with_context(|| path.to_owned())
}

/// The words that follow `program` if it begins a command: in a code block or between backticks.
fn verbs(text: &str, program: &str) -> BTreeSet<String> {
    let starts = [
        format!("`{program} "),
        format!("$ {program} "),
        format!("\n     {program} "),
    ];
    let found = starts.iter().flat_map(|start| text.split(start.as_str()).skip(1));
    let words = found.filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next());
    words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_that_a_document_names_exists() {
    let mut named = BTreeSet::new();
    for path in DOCUMENTS {
        named.extend(verbs(&read(path).expect("it is there"), "rproc"));
    }
    assert!(named.contains("run") && named.contains("logs"), "{named:?}");
    for verb in named {
        let help = rproc([verb.as_str(), "--help"]).finish().expect("rproc runs");
        assert_eq!(help.code, 0, "{help}");
    }
}

#[test]
fn the_readme_can_be_typed_from_top_to_bottom_in_one_namespace() {
    with_temp_ns("readme", |namespace| {
        let document = Document::read(&read("README.md")?);
        for (line, reason) in &document.left_out {
            println!("LEFT OUT, line {line} of the README: {reason}");
        }
        ensure!(document.commands.len() > 10, "{document:?}");
        ensure!(document.left_out.len() < 7, "{:?}", document.left_out);
        let script = format!("cd {}/../..\n{}", env!("CARGO_MANIFEST_DIR"), document.script());
        let shell = namespace.editor.shell(&script)?.within(Duration::from_secs(300));
        document.check(&shell.finish()?.out())
    });
}

#[test]
fn the_ci_example_runs_in_a_pod_and_fails_with_its_program() {
    with_temp_ns("ci", |namespace| {
        let example = read("examples/ci.yaml")?
            .replace("namespace: ci", &format!("namespace: {}", namespace.name))
            // Its own bindings instead of those that every namespace of a test has.
            .replace("name: ci-connect", &format!("name: {}-connect", namespace.name));
        // In two namespaces.
        kubectl(["apply", "--filename=-"]).input(example).succeed()?;
        namespace
            .kubectl(&["create", "job", "now", "--from=cronjob/nightly"])
            .succeed()?;
        let ended = ["wait", "job/now", "--for=condition=Failed", "--timeout=110s"];
        let ended = namespace.kubectl(&ended).finish()?;
        let logs = namespace.kubectl(&["logs", "job/now"]).finish()?;
        ensure!(ended.code == 0 && logs.out().contains("nightly\n"), "{ended}\n{logs}");
        let pods = namespace
            .kubectl(&["get", "pods", "--selector=job-name=now", "--output=json"])
            .json()?;
        let code = &pods["items"][0]["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        ensure!(*code == 3, "{code}: {logs}");
        Ok(())
    });
}

#[test]
fn it_is_a_plugin_of_kubectl() {
    with_temp_ns("plugin", |namespace| {
        let folder = tempfile::tempdir()?;
        let own = std::env::var("RPROC_BIN").context("RPROC_BIN is not set")?;
        symlink(own, folder.path().join("kubectl-rproc"))?;
        let path = std::env::var("PATH")?;
        let [image, policy] = remoteprocess_e2e::image_arguments(BUSYBOX);
        let plugin = namespace.editor.kubectl_at(folder.path(), &path);
        let run = plugin.args([
            "rproc",
            "run",
            "plugged",
            &image,
            &policy,
            "--",
            "sh",
            "-c",
            "echo in; exit 4",
        ]);
        let run = run.finish()?;
        ensure!(run.expect_code(4)?.out() == "in\n", "{run}");
        Ok(())
    });
}

#[test]
fn every_field_is_explained() {
    with_temp_ns("explained", |_| {
        for kind in ["remoteprocesses", "processtriggers", "processsinks"] {
            let crd = format!("{kind}.remoteprocess.dev");
            let crd = kubectl(["get", "crd", &crd, "--output=json"]).json()?;
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
            for part in ["spec", "status"] {
                let fields = schema[part]["properties"].as_object().context("it has no fields")?;
                for (name, field) in fields {
                    ensure!(
                        field["description"].as_str().is_some_and(|text| text.len() > 10),
                        "{kind}: {part}.{name}: {field}"
                    );
                }
            }
        }
        Ok(())
    });
}

#[test]
fn the_long_example_is_stopped_politely() {
    with_temp_ns("full", |namespace| {
        let example = read("examples/full.yaml")?;
        namespace
            .editor
            .kubectl(&["apply", "--filename=-"])
            .input(example)
            .succeed()?;
        let mut follow = namespace.editor.rproc(&["logs", "-f", "full"]).start()?;
        follow.wait_for_stderr("this goes to stderr")?;
        namespace.editor.rproc(&["stop", "full"]).finish()?.expect_code(0)?;
        let followed = follow.finish()?;
        ensure!(followed.out().ends_with("asked to stop, cleaning up\n"), "{followed}");
        let status: Value = namespace.wait_finished("full")?["status"].clone();
        ensure!(
            status["reason"] == json!("Stopped") && status["exitCode"] == json!(3),
            "{status:#}"
        );
        Ok(())
    });
}
