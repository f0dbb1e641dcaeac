//! The environment of the tests: the cluster and the programs.

use std::env;

use anyhow::{Context, Result};

/// An image with a shell and the usual tools.
pub const BUSYBOX: &str = "busybox:1.36";
/// An image with only one static program, `/busybox`.
pub const STATIC: &str = "scratch-static:test";
/// Service of the relay.
pub const RELAY_SERVICE: &str = "remoteprocess-relay";

/// A program from its environment variable, or from its name in `PATH`.
pub(crate) fn program(variable: &str, name: &str) -> String {
    env::var(variable).unwrap_or_else(|_| name.to_owned())
}

/// Name of the Helm release, as `cargo xtask install` makes it.
pub const RELEASE: &str = "remoteprocess";
/// Namespace of the Helm release.
pub const RELEASE_NAMESPACE: &str = "remoteprocess-system";

/// The kubeconfig's context; none is the current one.
pub(crate) fn context() -> Option<String> {
    env::var("RPROC_CONTEXT").ok()
}

/// Tag of the images under test; `None` keeps the installed ones.
pub(crate) fn image_tag() -> Option<String> {
    env::var("RPROC_IMAGE_TAG").ok()
}

/// Whether to run the full sizes.
#[must_use]
pub fn is_long() -> bool {
    env::var("RPROC_LONG").is_ok_and(|value| value == "1")
}

/// The number in an environment variable, if it is set.
pub fn number(variable: &str) -> Result<Option<u64>> {
    match env::var(variable) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{variable}={text}"))?)),
        Err(_) => Ok(None),
    }
}

/// Whether to keep the namespaces of failed tests.
pub(crate) fn keeps_failed() -> bool {
    env::var("RPROC_KEEP").is_ok_and(|value| value == "1")
}

/// Whether the cluster is the one that `cargo xtask cluster up` creates on this machine: only there do tests kill
/// processes of the node or delete the CRD. If it is not, prints what is left out.
pub fn is_development_cluster(what_is_left_out: &str) -> bool {
    let own = is_own_cluster();
    if !own {
        println!("LEFT OUT, not the development cluster: {what_is_left_out}");
    }
    own
}

/// An image with bash and coreutils with glibc: built here for the development cluster, Debian's own elsewhere.
#[must_use]
pub fn glibc() -> &'static str {
    if is_own_cluster() {
        "debian-glibc:test"
    } else {
        "debian:12-slim"
    }
}

fn is_own_cluster() -> bool {
    env::var("RPROC_CLUSTER_OWN").is_ok_and(|value| value == "1")
}

/// Flags of `rproc run` for one of the images above: they are loaded, not pulled.
#[must_use]
pub fn image_arguments(image: &str) -> [String; 2] {
    [
        format!("--image={image}"),
        "--image-pull-policy=IfNotPresent".to_owned(),
    ]
}
