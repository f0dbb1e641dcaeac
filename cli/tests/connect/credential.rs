//! Credential plugins and token files.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::api::{Api, TOKEN, stderr};

/// Version of the credential plugins' interface.
const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// A plugin that reads all of its input, counts its runs and prints a token.
fn plugin(api: &Api, mode: Option<&str>) -> Value {
    let count = api.folder.path().join("runs");
    // Only the older version may leave the mode out.
    let version = if mode.is_some() { V1 } else { V1BETA1 };
    let credential = json!({"kind": "ExecCredential", "apiVersion": version, "status": {"token": TOKEN}});
    let text = format!("cat > /dev/null; echo run >> {}; echo '{credential}'", count.display());
    api.script("plugin", &text);
    let mut exec = json!({"apiVersion": version, "command": "./plugin"});
    if let Some(mode) = mode {
        exec["interactiveMode"] = mode.into();
    }
    json!({"exec": exec})
}

fn runs(api: &Api) -> usize {
    let text = std::fs::read_to_string(api.folder.path().join("runs")).unwrap_or_default();
    text.lines().count()
}

#[test]
fn a_credential_plugin_eats_no_piped_input_and_runs_once() {
    for mode in [None, Some("IfAvailable"), Some("Never")] {
        let api = Api::start();
        let kubeconfig = api.kubeconfig(&plugin(&api, mode), &json!({}));
        let mut child = api
            .rproc(&kubeconfig, &["ps", "-A"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // We keep the other end of the pipe: what the plugin reads would be missing there.
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"one\ntwo\n").unwrap();
        assert!(child.wait().unwrap().success(), "{mode:?}");
        assert_eq!(runs(&api), 1, "{mode:?}");
        assert!(api.calls().iter().all(|call| call.authorization.is_some()));
    }
}

#[test]
fn a_loop_that_reads_names_continues_after_rproc_ps() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&plugin(&api, Some("IfAvailable")), &json!({}));
    let command = api.rproc(&kubeconfig, &[]);
    let rproc = command.get_program().to_owned();
    let mut shell = std::process::Command::new("sh");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.env("RPROC", rproc).args([
        "-c",
        "printf 'a\\nb\\nc\\n' | while read name; do \"$RPROC\" ps >/dev/null; echo $name; done",
    ]);
    let output = shell.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "a\nb\nc\n",
        "{}",
        stderr(&output)
    );
    assert_eq!(runs(&api), 3);
}

#[test]
fn a_plugin_that_fails_or_is_not_there_is_named_with_its_user_entry() {
    let api = Api::start();
    api.script("broken", "echo why >&2; exit 3");
    for (command, words) in [
        ("no-such-plugin", ["no-such-plugin", "not installed"]),
        ("./broken", ["broken", "exit status: 3"]),
    ] {
        let exec = json!({"exec": {"apiVersion": V1, "command": command, "interactiveMode": "Never"}});
        let kubeconfig = api.kubeconfig(&exec, &json!({}));
        let output = api.rproc(&kubeconfig, &["ps"]).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{text}");
        for word in words.iter().chain(&["user"]) {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

#[test]
fn a_token_file_may_end_with_a_line_end() {
    let api = Api::start();
    std::fs::write(api.folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
    let kubeconfig = api.kubeconfig(&json!({"tokenFile": "token"}), &json!({}));
    let output = api.rproc(&kubeconfig, &["ps"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_impersonated_user_and_group_are_sent_once() {
    let api = Api::start();
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN, "as": "carol"}), &json!({}));
    for (arguments, expected) in [
        (
            &["ps", "--as", "bob", "--as-group", "g", "--as-group", "h"][..],
            &["bob", "g", "h"][..],
        ),
        (&["ps"], &["carol"]),
    ] {
        let output = api.rproc(&kubeconfig, arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(api.calls().pop().unwrap().impersonated, expected);
    }
}
