//! The client of RemoteProcess as a library: `rproc` is one program that uses it, yours can be another.
//!
//! Arrows: api, proto, tls.
//! Invariant: what a [`Sink`] receives is the output of the process, in order, each byte once. What is missing is a gap.

pub mod attach;
pub mod cluster;
pub mod control;
pub mod dial;
pub mod exec;
pub mod gap;
pub mod login;
pub mod observe;
pub mod output;
pub mod pool;
pub mod relay;
pub mod retry;
pub mod sink;
pub mod stream;
pub mod trust;

mod forward;

pub use cluster::{Cluster, ClusterOptions, Rule};
pub use dial::{Dial, DialError};
pub use output::{Follower, Ledger, Want};
pub use relay::Relay;
pub use sink::{Progress, Sink, SinkError};
pub use trust::Trust;
