//! End-to-end tests: the real programs as black boxes on a real cluster that has the operator installed.
//!
//! Arrows: none to a sibling; only tests that act as a peer use `tls` and `proto`.
//! Invariant: nothing sleeps for a fixed time to let something happen; each wait is for a condition, with a deadline.
//!
//! `tests/restarts` contains the tests that restart the operator, which can run at the same time. `tests/alone`
//! contains those that end or measure parts of the cluster: `cargo xtask test` runs them one at a time, with nothing in
//! parallel. All other files run in parallel, and no test in them may disturb anything outside its own namespace.
//!
//! Environment, as `cargo xtask test` sets it: `KUBECONFIG` and `RPROC_CONTEXT` (the cluster); `RPROC_BIN`, `KUBECTL`,
//! `HELM` (programs, looked up in `PATH` otherwise); `RPROC_IMAGE_TAG` (the operator is installed with these images);
//! `RPROC_NATS_SERVER`, `RPROC_RABBITMQ_SERVER`, `RPROC_PUBSUB_EMULATOR` (the programs of brokers);
//! `RPROC_CLUSTER_OWN=1` (it is the development cluster of this machine); `RPROC_LONG=1` (full sizes).
//! `RPROC_KEEP=1` keeps the namespaces of failed tests.

mod bridged;
mod counting;
mod daemon;
mod ending;
mod environment;
mod namespace;
mod node;
mod program;
mod release;
mod running;
mod screen;
mod stream;
mod traces;
mod typed;
mod user;
mod wait;

pub use bridged::{Bridged, Sink, Trigger};
pub use counting::{counting, seq};
pub use daemon::{EndedDaemon, daemon_flag, mounted_tokens};
pub use ending::{POLITE, Told, check_ending, last_attempt};
pub use environment::{
    BUSYBOX, RELAY_SERVICE, RELEASE, RELEASE_NAMESPACE, STATIC, glibc, image_arguments, is_development_cluster,
    is_long, number,
};
pub use namespace::{Namespace, condition, remove_namespace, spec, with_temp_ns};
pub use node::{
    Pid, agent_container_of, agent_of, agents_of, anonymous_memory, bridges_of, node_address, operators,
    processes_of_pod, signal,
};
pub use program::{Digested, Program, kubectl, rproc, sha256};
pub use release::{
    Installation, OPERATORS, delete_operator_pods, helm, kill_operators, operator_is_ready, operator_pods,
    scale_operator, wait_for_operator,
};
pub use running::{Finished, Running};
pub use screen::Screen;
pub use stream::SlowStream;
pub use traces::Traces;
pub use typed::Document;
pub use user::{User, admin};
pub use wait::{until, until_some};
