//! `rproc sink`, with an API server that has one sink that this version can read.

use std::path::Path;
use std::process::Output;

use serde_json::json;

use crate::api::{Api, TOKEN, stderr};

fn run(api: &Api, kubeconfig: &Path, arguments: &[&str]) -> Output {
    let arguments = [&["sink", "-n", "jobs"], arguments].concat();
    api.rproc(kubeconfig, &arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn sinks_are_listed_and_described() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    for verb in ["ls", "get", "list"] {
        let table = stdout(&run(&api, &kubeconfig, &[verb]));
        assert!(table.starts_with("NAME    DESTINATION   READY   SENT"), "{table}");
        assert!(table.contains("\nfeed    HTTP          False   12"), "{table}");
        assert!(table.contains("\nother   Unreadable"), "{table}");
    }
    let names = stdout(&run(&api, &kubeconfig, &["ls", "-o", "name"]));
    assert_eq!(
        names,
        "processsink.remoteprocess.dev/feed\nprocesssink.remoteprocess.dev/other\n"
    );
    let page = stdout(&run(&api, &kubeconfig, &["describe", "psink/feed"]));
    assert!(
        page.contains("spec.suspend is set") && page.contains("Destination HTTP:"),
        "{page}"
    );
    let missing = run(&api, &kubeconfig, &["describe", "missing", "feed"]);
    assert_eq!(missing.status.code(), Some(1));
    let said = stderr(&missing);
    assert!(said.contains("there is no sink missing in namespace jobs"), "{said}");
    let described = String::from_utf8_lossy(&missing.stdout);
    assert!(described.contains("Destination HTTP:"), "the other one is described");
}
