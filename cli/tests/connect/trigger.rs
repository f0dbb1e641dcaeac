//! `rproc trigger`, with an API server that has one trigger.

use std::path::Path;
use std::process::Output;

use serde_json::json;

use crate::api::{Api, TOKEN, stderr};

fn run(api: &Api, kubeconfig: &Path, arguments: &[&str]) -> Output {
    let arguments = [&["trigger", "-n", "jobs"], arguments].concat();
    api.rproc(kubeconfig, &arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn triggers_are_listed_and_described() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    for verb in ["ls", "get", "list"] {
        let table = stdout(&run(&api, &kubeconfig, &[verb]));
        assert!(table.starts_with("NAME     SOURCE       READY"), "{table}");
        assert!(table.contains("\norders   HTTP         False   3"), "{table}");
        assert!(table.contains("\nother    Unreadable"), "{table}");
    }
    let names = stdout(&run(&api, &kubeconfig, &["ls", "-o", "name"]));
    assert_eq!(
        names,
        "processtrigger.remoteprocess.dev/orders\nprocesstrigger.remoteprocess.dev/other\n"
    );
    let reason = stdout(&run(
        &api,
        &kubeconfig,
        &["ls", "orders", "-o", "jsonpath={.status.running}"],
    ));
    assert_eq!(reason.trim(), "3");
    let page = stdout(&run(&api, &kubeconfig, &["describe", "orders"]));
    assert!(
        page.contains("spec.suspend is set") && page.contains("Source HTTP:"),
        "{page}"
    );
    let missing = run(&api, &kubeconfig, &["describe", "missing", "orders"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("there is no trigger missing in namespace jobs"),
        "{}",
        stderr(&missing)
    );
    assert!(
        String::from_utf8_lossy(&missing.stdout).contains("Source HTTP:"),
        "the other one is described"
    );
}

#[test]
fn a_test_prints_the_process_of_its_message_or_why_there_is_none() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    let found = run(&api, &kubeconfig, &["test", "orders", "--id", "7", "--data", "hi"]);
    assert_eq!(stdout(&found), "remoteprocess.remoteprocess.dev/orders-2\n");
    let none = run(&api, &kubeconfig, &["test", "orders", "--id", "8", "--timeout", "1s"]);
    assert_eq!(none.status.code(), Some(1));
    let text = stderr(&none);
    assert!(text.contains("no process for message 8 in time"), "{text}");
    assert!(
        text.contains("Ready is False: Suspended: spec.suspend is set"),
        "{text}"
    );
}
