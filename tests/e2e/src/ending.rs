//! Expected endings, and the check that an object reports them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::namespace::{Namespace, condition};
use crate::wait::until;

/// How an ending is reported.
#[derive(Clone, Copy)]
pub struct Told {
    /// `status.reason`.
    pub reason: &'static str,
    /// Exit code.
    pub code: Option<i32>,
    /// Name of the signal.
    pub signal: Option<&'static str>,
    /// Which component reported it.
    pub source: &'static str,
    /// Who requested it.
    pub by: Option<&'static str>,
}

impl Told {
    /// The program ended with this code.
    #[must_use]
    pub const fn code(code: i32, reason: &'static str) -> Self {
        Self {
            reason,
            code: Some(code),
            signal: None,
            source: "Entrypoint",
            by: None,
        }
    }

    /// A signal ended the program.
    #[must_use]
    pub const fn signal(signal: &'static str, reason: &'static str) -> Self {
        Self {
            reason,
            code: None,
            signal: Some(signal),
            source: "Entrypoint",
            by: None,
        }
    }

    /// [`POLITE`] was asked to end.
    #[must_use]
    pub const fn asked(reason: &'static str, by: &'static str) -> Self {
        Self {
            by: Some(by),
            ..Self::code(5, reason)
        }
    }

    /// 128 + n for signal n, as a shell reports it.
    pub fn exit_code(&self) -> Result<i32> {
        let numbers = [
            ("SIGHUP", 1),
            ("SIGINT", 2),
            ("SIGABRT", 6),
            ("SIGKILL", 9),
            ("SIGUSR1", 10),
            ("SIGSEGV", 11),
            ("SIGTERM", 15),
        ];
        let of_signal = |name| {
            numbers
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, number)| 128 + number)
        };
        self.code
            .or_else(|| of_signal(self.signal?))
            .context("an ending with a code")
    }

    /// It is not known how the program ended, or it never started.
    #[must_use]
    pub const fn unknown(reason: &'static str) -> Self {
        Self {
            reason,
            code: None,
            signal: None,
            source: "None",
            by: None,
        }
    }
}

/// How long after the end of its pod output of a process may stay unsealed.
const OPEN_SECONDS: u64 = 30;

/// Checks that status and conditions report it, and that everything is closed soon after the pod's end.
///
/// # Errors
/// When they do not.
pub fn check_ending(namespace: &Namespace, name: &str, told: &Told) -> Result<()> {
    let object = namespace.wait_for(name, "Finished=True", 180, |status| {
        condition(status, "Finished")["status"] == "True"
    })?;
    let status = &object["status"];
    let is_success = told.reason == "Completed";
    let phase = if is_success { "Succeeded" } else { "Failed" };
    ensure!(
        status["phase"] == phase && status["reason"] == told.reason,
        "{name}: {status:#}"
    );
    ensure!(
        status["exitCode"] == json!(told.code) && status["signal"] == json!(told.signal),
        "{name}: {status:#}"
    );
    let succeeded = if is_success { "True" } else { "False" };
    ensure!(
        condition(status, "Succeeded")["status"] == succeeded,
        "{name}: {status:#}"
    );
    let exit = &last_attempt(status)["exit"];
    ensure!(exit["source"] == told.source, "{name}: {status:#}");
    ensure!(exit["stop"]["requestedBy"] == json!(told.by), "{name}: {status:#}");
    // Never a success without the entrypoint's record of code 0 and without a request to stop.
    let is_verified = exit["source"] == "Entrypoint" && exit["code"] == 0 && exit["stop"].is_null();
    ensure!(phase != "Succeeded" || is_verified, "{name}: {status:#}");
    println!("ending {name}: {phase}, {}, exit {exit}", told.reason);
    if last_attempt(status)["grantedAt"].is_null() {
        return Ok(());
    }
    wait_for_pod(namespace, name)?;
    namespace.wait_for(name, "closed books", OPEN_SECONDS, |status| {
        let is_closed = |attempt: &Value| !attempt["output"].is_null() && !attempt["finishedAt"].is_null();
        let attempts = status["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
        attempts.iter().all(is_closed) && !condition(status, "OutputSealed").is_null()
    })?;
    Ok(())
}

/// The record of the newest attempt, or null.
#[must_use]
pub fn last_attempt(status: &Value) -> &Value {
    let attempts = status["attempts"].as_array().and_then(|attempts| attempts.last());
    attempts.unwrap_or(&Value::Null)
}

/// Waits until its pod has ended or is gone.
fn wait_for_pod(namespace: &Namespace, name: &str) -> Result<()> {
    let selector = format!("--selector=remoteprocess.dev/name={name}");
    until(
        &format!("the end of the pod of {name}"),
        Duration::from_secs(90),
        || {
            let pods = namespace.kubectl(&["get", "pods", &selector, "--output=json"]).json()?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let has_ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            Ok(pods.iter().all(has_ended))
        },
    )
}

/// Ends with code 5 when it is asked to.
pub const POLITE: &str = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
