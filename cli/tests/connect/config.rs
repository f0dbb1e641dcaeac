//! The kubeconfig, the flags, and the messages if they are wrong.

use std::time::Instant;

use serde_json::{Value, json};

use crate::api::{Api, TOKEN, stderr};

#[test]
fn a_missing_member_of_kubeconfig_does_not_matter() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    let list = format!("/nosuch/file:{}", kubeconfig.display());
    let output = api
        .rproc(&kubeconfig, &["ps"])
        .env("KUBECONFIG", list)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_empty_kubeconfig_flag_counts_as_absent() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    for arguments in [&["ps", "--kubeconfig="][..], &["ps", "--kubeconfig", ""]] {
        let output = api.rproc(&kubeconfig, arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn a_server_without_a_scheme_has_no_tls_as_for_kubectl_also_where_a_ca_is_set() {
    let api = Api::start();
    let server = json!({"server": format!("127.0.0.1:{}", api.port)});
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &server);
    let output = api.rproc(&kubeconfig, &["ps"]).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(
        text.contains("http://127.0.0.1") && text.contains("https://HOST:PORT"),
        "{text}"
    );
    assert!(api.calls().is_empty(), "no token was sent");
}

#[test]
fn a_server_whose_certificate_is_not_checked_is_called() {
    let api = Api::start();
    let insecure = json!({"certificate-authority": null, "insecure-skip-tls-verify": true});
    for (cluster, is_called) in [(insecure, true), (json!({"certificate-authority": null}), false)] {
        let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &cluster);
        let output = api.rproc(&kubeconfig, &["ps"]).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.success(), is_called, "{text}");
        assert_eq!(text.contains("Check certificate-authority"), !is_called, "{text}");
    }
}

#[test]
fn a_refused_token_is_reported_with_its_user_entry_and_the_fix() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": "wrong"}), &json!({}));
    let output = api.rproc(&kubeconfig, &["ps"]).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{text}");
    for word in ["its token", "user \"alice\"", "kubeconfig", "valid token"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn missing_credentials_are_reported() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({}), &json!({}));
    let text = stderr(&api.rproc(&kubeconfig, &["ps"]).output().unwrap());
    assert!(text.contains("Credentials sent: none (user \"alice\""), "{text}");
}

#[test]
fn a_token_of_several_lines_is_no_reason_to_panic() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": "a\nb"}), &json!({}));
    let output = api.rproc(&kubeconfig, &["ps"]).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(
        text.contains("must be one line") && text.contains("user \"alice\""),
        "{text}"
    );
}

#[test]
fn wait_does_not_wait_for_an_api_server_that_was_never_there() {
    let api = Api::start();
    let port = remoteprocess_ports::free_port();
    let server = json!({"server": format!("https://127.0.0.1:{port}")});
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &server);
    let output = api
        .rproc(&kubeconfig, &["wait", "x", "--for", "sealed"])
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("cannot reach the API server"), "{text}");
}

#[test]
fn a_relay_address_that_is_none_ends_at_once() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    let start = Instant::now();
    for arguments in [
        &["logs", "job", "-f", "--server", "foo"][..],
        &["run", "--image", "i", "--server", "https://foo:443", "--", "x"],
        &["attach", "job", "--server", "foo:0"],
        &["whoami", "--server", "foo"],
    ] {
        let output = api.rproc(&kubeconfig, arguments).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {text}");
        assert!(text.contains("HOST:PORT"), "{arguments:?}: {text}");
    }
    assert!(api.calls().is_empty(), "nothing is made before");
    assert!(start.elapsed().as_secs() < 30);
}

#[test]
fn whoami_prints_your_identity_even_if_the_relay_is_not_reachable() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    let output = api.rproc(&kubeconfig, &["whoami"]).output().unwrap();
    let (shown, text) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        shown.contains("User:         alice\n") && shown.contains("Relay:        not reachable"),
        "{shown}"
    );
    assert!(text.contains("no RemoteProcess operator is ready"), "{text}");
    let output = api.rproc(&kubeconfig, &["whoami", "-o", "json"]).output().unwrap();
    let me: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&me["user"], me.get("relay")), (&"alice".into(), None));
    assert!(me["error"].as_str().unwrap().contains("operator"), "{me}");
}

#[test]
fn whoami_says_which_credentials_were_refused() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": "wrong"}), &json!({}));
    let output = api.rproc(&kubeconfig, &["whoami"]).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        shown.contains("User:         unknown") && shown.contains("user \"alice\""),
        "{shown}"
    );
}

#[test]
fn doctor_finds_what_is_missing_and_names_the_fix() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &json!({}));
    let output = api.rproc(&kubeconfig, &["doctor", "-o", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<[&str; 2]> = found
        .iter()
        .map(|finding| ["check", "result"].map(|field| finding[field].as_str().unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ["Kubeconfig", "Ok"],
            ["API server", "Ok"],
            ["Clock", "Ok"],
            ["CRD", "Ok"],
            ["Operator", "Failed"],
            ["Permissions", "Ok"],
            ["CA", "Failed"],
            // They need the operator.
            ["Metrics", "Warning"],
            ["Agents", "Ok"],
        ]
    );
    let wrong = api.kubeconfig(&json!({"token": "wrong"}), &json!({}));
    let output = api.rproc(&wrong, &["doctor"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("Failed   API server") && text.contains("does not know you"),
        "{text}"
    );
}
