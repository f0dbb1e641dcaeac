//! Credential plugins, with the rules of client-go (`plugin/pkg/client/auth/exec`).

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use kube::config::{ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{Credential, Error, is_sendable};

/// Maximum length of a plugin's answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// After this time a message says what we wait for.
const QUIET: Duration = Duration::from_secs(5);

/// A program that prints credentials.
pub(crate) struct Plugin {
    config: ExecConfig,
    command: String,
    cluster: Option<ExecAuthCluster>,
    owner: String,
    /// Called when the plugin takes long.
    pub on_wait: Option<fn(&str)>,
    /// It must not talk to a person.
    pub is_unattended: bool,
}

impl Plugin {
    /// Checks the configuration of a plugin. `owner` describes the user entry.
    ///
    /// # Errors
    /// It names no command, or an unknown version.
    pub(crate) fn new(config: ExecConfig, cluster: Option<ExecAuthCluster>, owner: String) -> Result<Self, Error> {
        let wrong = |what: &str| Err(Error(format!("{owner}: its credential plugin (exec) {what}")));
        let command = config.command.clone().unwrap_or_default();
        if command.is_empty() {
            return wrong("has no command");
        }
        match config.api_version.as_deref().unwrap_or_default() {
            "client.authentication.k8s.io/v1" if config.interactive_mode.is_none() => {
                return wrong("has no interactiveMode. Set it to Never, IfAvailable or Always");
            }
            "client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1" => {}
            "" => return wrong("has no apiVersion. Set it to client.authentication.k8s.io/v1"),
            other => {
                return wrong(&format!(
                    "has the apiVersion {other:?}, which is not known. Set it to client.authentication.k8s.io/v1"
                ));
            }
        }
        let mut variables = config.env.iter().flatten();
        if variables.any(|variable| variable.get("name").is_none_or(String::is_empty)) {
            return wrong("has an environment variable without a name");
        }
        Ok(Self {
            config,
            command,
            cluster,
            owner,
            on_wait: None,
            is_unattended: false,
        })
    }

    /// An error about this plugin.
    pub(super) fn error(&self, what: impl Display) -> Error {
        Error(format!(
            "{}: the credential plugin {:?} {what}",
            self.owner, self.command
        ))
    }

    /// Runs it. It may use the terminal only if `is_free`: later, standard input has another reader.
    ///
    /// # Errors
    /// It cannot run, fails, or prints no credential.
    pub(crate) async fn run(&self, is_free: bool) -> Result<Credential, Error> {
        let is_terminal = is_free && !self.is_unattended && std::io::stdin().is_terminal();
        let is_interactive = match &self.config.interactive_mode {
            Some(ExecInteractiveMode::Never) => false,
            Some(ExecInteractiveMode::Always) if !is_terminal => {
                return Err(self.error(
                    "needs a terminal (interactiveMode: Always), and standard input is not free to be one. Log in with \
                     its own tools first, or use a user entry that needs no terminal",
                ));
            }
            _ => is_terminal,
        };
        let child = self
            .command(is_interactive)
            .spawn()
            .map_err(|error| self.start_error(&error))?;
        let finished = self.finish(child);
        tokio::pin!(finished);
        if !is_interactive {
            match tokio::time::timeout(QUIET, &mut finished).await {
                Ok(answer) => return answer,
                Err(_) => {
                    if let Some(tell) = self.on_wait {
                        tell(&format!("waiting for the credential plugin {:?}", self.command));
                    }
                }
            }
        }
        finished.await
    }

    fn command(&self, is_interactive: bool) -> Command {
        let variables = self.config.env.iter().flatten();
        let variables = variables.filter_map(|variable| Some((variable.get("name")?, variable.get("value")?)));
        let mut command = Command::new(&self.command);
        command
            .args(self.config.args.iter().flatten())
            .envs(variables)
            .env("KUBERNETES_EXEC_INFO", self.request(is_interactive).to_string())
            .stdin(if is_interactive {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(if self.is_unattended {
                Stdio::null()
            } else {
                Stdio::inherit()
            })
            .kill_on_drop(true);
        command
    }

    fn request(&self, is_interactive: bool) -> serde_json::Value {
        let mut spec = serde_json::json!({"interactive": is_interactive});
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = serde_json::json!(cluster);
        }
        serde_json::json!({"kind": "ExecCredential", "apiVersion": self.config.api_version, "spec": spec})
    }

    fn start_error(&self, error: &std::io::Error) -> Error {
        let hint = self.config.install_hint.as_deref().unwrap_or_default().trim();
        let hint = if hint.is_empty() {
            format!("Install {:?}, or use another user entry", self.command)
        } else {
            hint.to_owned()
        };
        match error.kind() {
            ErrorKind::NotFound if self.command.contains('/') => {
                self.error(format_args!("is not there, or its interpreter is not. {hint}"))
            }
            ErrorKind::NotFound => self.error(format_args!("is not installed: no folder of PATH has it. {hint}")),
            _ => self.error(format_args!("cannot be started: {error}")),
        }
    }

    async fn finish(&self, mut child: Child) -> Result<Credential, Error> {
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(MAX_ANSWER + 1)
                .read_to_end(&mut answer)
                .await
                .map_err(|error| self.error(format_args!("cannot be read: {error}")))?;
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(self.error(format_args!("prints more than {MAX_ANSWER} bytes")));
        }
        let status = child
            .wait()
            .await
            .map_err(|error| self.error(format_args!("is lost: {error}")))?;
        if !status.success() {
            return Err(self.error(format_args!(
                "failed ({status}). Run it by hand to see why, or log in with its own tools again"
            )));
        }
        let version = self.config.api_version.as_deref().unwrap_or_default();
        parse(&answer, version).map_err(|why| self.error(why))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    api_version: Option<String>,
    kind: Option<String>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Parses the output of a plugin, JSON or YAML. No part of it gets into a message, because it is secret.
fn parse(answer: &[u8], version: &str) -> Result<Credential, String> {
    let answer: Answer = std::str::from_utf8(answer)
        .ok()
        .and_then(|text| serde_saphyr::from_str(text).ok())
        .ok_or("did not print an ExecCredential as JSON")?;
    let found = answer.api_version.unwrap_or_default();
    if answer.kind.as_deref() != Some("ExecCredential") || found != version {
        return Err(format!(
            "printed {:?} of apiVersion {found:?} instead of \"ExecCredential\" of {version:?}, which the kubeconfig \
             asks for",
            answer.kind.unwrap_or_default()
        ));
    }
    let status = answer.status.ok_or("printed an ExecCredential without a status")?;
    let set = |value: Option<String>| value.filter(|value| !value.is_empty());
    let certificate = match (set(status.client_certificate_data), set(status.client_key_data)) {
        (Some(chain), Some(key)) => Some((chain, key)),
        (None, None) => None,
        _ => return Err("printed only one of a client certificate and its key".to_owned()),
    };
    let token = set(status.token);
    if token.is_none() && certificate.is_none() {
        return Err("printed neither a token nor a client certificate. Log in with its own tools".to_owned());
    }
    if token.as_deref().is_some_and(|token| !is_sendable(token)) {
        return Err("printed a token that cannot be a part of a header".to_owned());
    }
    let until = set(status.expiration_timestamp)
        .map(|text| text.parse::<Timestamp>())
        .transpose()
        .map_err(|_| "printed an expirationTimestamp that is not an RFC 3339 time")?;
    Ok(Credential {
        token,
        certificate,
        until,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const V1: &str = "client.authentication.k8s.io/v1";

    fn plugin(command: &str, more: serde_json::Value) -> Plugin {
        let mut config = serde_json::json!({"apiVersion": V1, "command": command, "interactiveMode": "IfAvailable"});
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let config = serde_json::from_value(config).unwrap();
        Plugin::new(config, None, "user \"alice\" of /k".into()).unwrap()
    }

    fn script(folder: &tempfile::TempDir, text: &str) -> String {
        let path = folder.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_string_lossy().into_owned()
    }

    async fn refusal(plugin: Plugin) -> String {
        plugin.run(true).await.err().unwrap().0
    }

    #[tokio::test]
    async fn a_plugin_gets_what_kubectl_passes_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let command = script(
            &folder,
            r#"test "$(cat)" = "" || exit 9
echo "$KUBERNETES_EXEC_INFO" | grep -q '"interactive":false' || exit 8
printf '{"kind":"ExecCredential","apiVersion":"%s","status":{"token":"%s-%s"}}' "$V" "$1" "$WHO""#,
        );
        let more =
            serde_json::json!({"args": ["a"], "env": [{"name": "WHO", "value": "b"}, {"name": "V", "value": V1}]});
        let credential = plugin(&command, more).run(false).await.ok().unwrap();
        assert_eq!(credential.token.as_deref(), Some("a-b"));
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_installed_is_named_with_its_user_entry_and_the_hint() {
        let none = serde_json::json!({});
        let text = refusal(plugin("no-such-plugin-anywhere", none)).await;
        insta::assert_snapshot!(text, @r#"user "alice" of /k: the credential plugin "no-such-plugin-anywhere" is not installed: no folder of PATH has it. Install "no-such-plugin-anywhere", or use another user entry"#);
        let hint = serde_json::json!({"installHint": "Get it from example.com\n"});
        let text = refusal(plugin("/no/such/plugin", hint)).await;
        assert!(text.ends_with("Get it from example.com"), "{text}");
    }

    #[tokio::test]
    async fn a_plugin_that_fails_is_named_without_what_it_printed() {
        let folder = tempfile::tempdir().unwrap();
        let command = script(&folder, "echo secret; exit 3");
        let text = refusal(plugin(&command, serde_json::json!({}))).await;
        assert!(
            text.contains("exit status: 3") && text.contains("user \"alice\""),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
    }

    #[tokio::test]
    async fn a_plugin_that_prints_without_end_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let command = script(&folder, "exec yes");
        let text = refusal(plugin(&command, serde_json::json!({}))).await;
        assert!(text.contains("more than 1048576 bytes"), "{text}");
    }

    #[tokio::test]
    async fn a_plugin_that_needs_a_terminal_gets_no_other_input() {
        let more = serde_json::json!({"interactiveMode": "Always"});
        let text = plugin("true", more).run(false).await.err().unwrap().0;
        assert!(text.contains("needs a terminal"), "{text}");
    }

    #[test]
    fn an_answer_is_judged_as_kubectl_judges_it() {
        let answer = |status: &str| {
            let text = format!(r#"{{"kind": "ExecCredential", "apiVersion": "{V1}", "status": {status}}}"#);
            parse(text.as_bytes(), V1).map(|credential| (credential.token, credential.certificate))
        };
        assert_eq!(answer(r#"{"token": "t"}"#), Ok((Some("t".into()), None)));
        let both = Ok((None, Some(("c".into(), "k".into()))));
        assert_eq!(answer(r#"{"clientCertificateData": "c", "clientKeyData": "k"}"#), both);
        for (status, word) in [
            ("null", "without a status"),
            ("{}", "neither"),
            (r#"{"token": ""}"#, "neither"),
            (r#"{"token": "a\nb"}"#, "part of a header"),
            (r#"{"token": "t", "clientKeyData": "k"}"#, "only one"),
            (r#"{"token": "t", "expirationTimestamp": "soon"}"#, "RFC 3339"),
        ] {
            let why = answer(status).unwrap_err();
            assert!(why.contains(word), "{status}: {why}");
        }
        for text in [
            "",
            "nonsense",
            "[1]",
            "{\"kind\": \"ExecCredential\", \"apiVersion\": \"v2\"}",
        ] {
            assert!(parse(text.as_bytes(), V1).is_err(), "{text}");
        }
        let yaml = format!("kind: ExecCredential\napiVersion: {V1}\nstatus:\n  token: t\n");
        assert!(parse(yaml.as_bytes(), V1).is_ok());
    }

    #[test]
    fn a_plugin_without_a_command_or_a_known_version_is_refused() {
        for (config, word) in [
            (serde_json::json!({"apiVersion": V1}), "no command"),
            (serde_json::json!({"command": "x"}), "no apiVersion"),
            (
                serde_json::json!({"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}),
                "v1alpha1",
            ),
        ] {
            let refused = Plugin::new(serde_json::from_value(config).unwrap(), None, "user \"a\"".into());
            let text = refused.err().unwrap().0;
            assert!(text.contains(word), "{text}");
        }
    }
}
