//! Where the tests run and with which programs.

use std::env;
use std::process::Command;
use std::sync::OnceLock;

/// A shell and the usual tools.
pub const BUSYBOX: &str = "busybox:1.36";
/// bash and coreutils over glibc.
pub const GLIBC: &str = "debian-glibc:test";
/// Nothing but one static program, `/busybox`.
pub const STATIC: &str = "scratch-static:test";
/// Service of the relay.
pub const RELAY_SERVICE: &str = "remoteprocess-relay";

/// A program by its environment variable, or by its name in `PATH`.
pub(crate) fn program(variable: &str, name: &str) -> String {
    env::var(variable).unwrap_or_else(|_| name.to_owned())
}

/// Name of the Helm release.
#[must_use]
pub fn release() -> String {
    program("RPROC_E2E_RELEASE", "remoteprocess-operator")
}

/// Namespace of the Helm release.
#[must_use]
pub fn release_namespace() -> String {
    program("RPROC_E2E_RELEASE_NAMESPACE", "remoteprocess-system")
}

/// Whether full sizes are wanted.
#[must_use]
pub fn is_long() -> bool {
    env::var("RPROC_E2E_LONG").is_ok_and(|value| value == "1")
}

/// Whether the namespaces of failed tests stay.
pub(crate) fn keeps_failed() -> bool {
    env::var("RPROC_E2E_KEEP").is_ok_and(|value| value == "1")
}

/// Whether the cluster is the one that `cargo xtask cluster up` makes on this machine: only there do tests kill processes
/// of the node or delete the CRD. Says so where it is not.
pub fn is_development_cluster(what_is_left_out: &str) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let own = *ANSWER.get_or_init(|| {
        let mut kubectl = Command::new(program("KUBECTL", "kubectl"));
        let output = kubectl.args(["get", "nodes", "--output=name"]).output();
        output.is_ok_and(|output| output.stdout.trim_ascii() == b"node/remoteprocess-dev")
    });
    if !own {
        println!("LEFT OUT, not the development cluster: {what_is_left_out}");
    }
    own
}

/// Flags of `rproc run` for one of the images above: they are loaded, not pulled.
#[must_use]
pub fn image_arguments(image: &str) -> [String; 2] {
    [
        format!("--image={image}"),
        "--image-pull-policy=IfNotPresent".to_owned(),
    ]
}
