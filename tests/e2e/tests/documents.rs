//! What the documents tell people to type works.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, rproc, with_temp_ns};
use serde_json::{Value, json};

const DOCUMENTS: [&str; 6] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "examples/hello.yaml",
    "charts/remoteprocess-operator/templates/NOTES.txt",
];

fn read(path: &str) -> Result<String> {
    fs::read_to_string(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).with_context(|| path.to_owned())
}

/// The words that follow `program` where it begins a command: in a code block or between backticks.
fn verbs(text: &str, program: &str) -> BTreeSet<String> {
    let starts = [
        format!("`{program} "),
        format!("$ {program} "),
        format!("\n     {program} "),
    ];
    let found = starts.iter().flat_map(|start| text.split(start.as_str()).skip(1));
    let words = found.filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
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
fn the_first_process_of_the_readme_works() {
    with_temp_ns("readme", |namespace| {
        let example = read("examples/hello.yaml")?;
        namespace
            .editor
            .kubectl(&["apply", "--filename=-"])
            .input(example)
            .succeed()?;
        let first = namespace.editor.rproc(&["logs", "-f", "hello"]).finish()?;
        ensure!(first.expect_code(0)?.out() == "line 1\nline 2\nline 3\n", "{first}");
        namespace.wait_finished("hello")?;
        columns(namespace)?;
        namespace.delete_pods("hello")?;
        let second = namespace.editor.rproc(&["logs", "hello"]).finish()?;
        ensure!(second.expect_code(0)?.stdout == first.stdout, "{second}");

        let script = "echo to stdout; echo to stderr >&2; exit 7";
        let run = namespace.editor.run("readme", script).finish()?;
        ensure!(run.expect_code(7)?.out() == "to stdout\n", "{run}");
        ensure!(run.err_of_program() == b"to stderr\n", "{run}");
        Ok(())
    });
}

fn columns(namespace: &Namespace) -> Result<()> {
    let table = namespace.kubectl(&["get", "rproc"]).succeed()?;
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines.next().context("no header")?;
    ensure!(
        header
            == [
                "NAME", "PHASE", "REASON", "EXIT", "ATTEMPT", "STARTED", "DURATION", "AGE"
            ],
        "{table}"
    );
    let row = lines.next().context("no row")?;
    ensure!(
        row.starts_with(&["hello", "Succeeded", "Completed", "0", "1"]),
        "{table}"
    );
    Ok(())
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
        let crd = remoteprocess_e2e::kubectl(["get", "crd", "remoteprocesses.remoteprocess.dev", "--output=json"]);
        let crd = crd.json()?;
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        for part in ["spec", "status"] {
            let fields = schema[part]["properties"].as_object().context("it has no fields")?;
            for (name, field) in fields {
                ensure!(
                    field["description"].as_str().is_some_and(|text| text.len() > 10),
                    "{part}.{name}: {field}"
                );
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
