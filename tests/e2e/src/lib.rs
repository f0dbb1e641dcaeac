//! End-to-end tests: the real programs as black boxes on a real cluster that has the operator installed.
//!
//! Arrows: none to a sibling; the tests of refused peers alone use `tls` and `proto`, to be a peer.
//! Invariant: nothing sleeps for a fixed time to let something happen; each wait is for a condition, with a deadline.
//!
//! Environment: `KUBECONFIG`; `RPROC_BIN`, `KUBECTL`, `HELM` (programs, looked up in `PATH` otherwise);
//! `RPROC_E2E_RELEASE` and `RPROC_E2E_RELEASE_NAMESPACE` (`remoteprocess-operator`, `remoteprocess-system`);
//! `RPROC_E2E_LONG=1` (full sizes); `RPROC_E2E_KEEP=1` (keep the namespaces of failed tests).

mod counting;
mod environment;
mod namespace;
mod node;
mod program;
mod release;
mod user;
mod wait;

pub use counting::{counting, seq};
pub use environment::{
    BUSYBOX, GLIBC, RELAY_SERVICE, STATIC, image_arguments, is_development_cluster, is_long, release, release_namespace,
};
pub use namespace::{Namespace, condition, with_temp_ns};
pub use node::{Pid, agents_of, signal};
pub use program::{Finished, Program, Running, kubectl, rproc, sha256};
pub use release::{Installation, delete_operator_pods, helm, operator_is_ready, operator_pods, wait_for_operator};
pub use user::{User, admin};
pub use wait::{until, until_some};
