//! The ways from a program's output to a client.

use anyhow::Result;
use remoteprocess_e2e::{Namespace, Program, RELAY_SERVICE, RELEASE_NAMESPACE, User, kubectl};

use crate::subject::{Kind, Subject};

/// A way from a program's output to a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// `rproc` to the relay's address.
    Direct,
    /// `rproc` through the API server's port-forward.
    Forward,
    /// The kubelet's log file.
    Logs,
    /// The program as a child of the runtime's exec.
    Exec,
}

impl Route {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::Forward, Self::Logs, Self::Exec];

    /// What a user types.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "rproc logs -f, direct",
            Self::Forward => "rproc logs -f, port-forward",
            Self::Logs => "kubectl logs -f",
            Self::Exec => "kubectl exec",
        }
    }

    /// A container whose program is the writer with these arguments; with exec, the client brings the writer.
    pub(crate) fn subject<'a>(self, namespace: &'a Namespace, name: &str, writer: &[String]) -> Result<Subject<'a>> {
        let command = match self {
            Self::Exec => "true".to_owned(),
            _ => format!("/tmp/writer {}", writer.join(" ")),
        };
        let kind = match self {
            Self::Direct | Self::Forward => Kind::Ours,
            Self::Logs | Self::Exec => Kind::Pod,
        };
        Subject::start(namespace, kind, name, &command)
    }

    /// The client that follows it.
    pub(crate) fn client(self, user: &User, name: &str, writer: &[String]) -> Result<Program> {
        Ok(match self {
            Self::Direct => user.rproc(&["logs", "-f", name, "--server", &relay()?]),
            Self::Forward => user.rproc(&["logs", "-f", name]),
            Self::Logs => user.kubectl(&["logs", "-f", name]),
            Self::Exec => user.kubectl(&["exec", name, "--", "/tmp/writer"]).args(writer),
        })
    }
}

fn relay() -> Result<String> {
    let path = "--output=jsonpath={.spec.clusterIP}";
    let address = kubectl(["get", "service", RELAY_SERVICE, path, "--namespace"])
        .arg(RELEASE_NAMESPACE)
        .succeed()?;
    Ok(format!("{address}:8443"))
}
