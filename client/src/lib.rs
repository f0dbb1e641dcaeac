//! The client of RemoteProcess as a library. `rproc` is one program that uses it; yours can be another.
//!
//! Open a [`Cluster`] as kubectl would, make a [`Relay`] of it, and use what you need:
//!
//! | to | use |
//! |---|---|
//! | list, create and delete processes | [`Cluster::processes`], a typed kube API |
//! | follow the output to the end, over connections that break | [`Follower`] with your [`Sink`]; [`Ledger`] knows what arrived |
//! | learn why nothing arrives | [`Progress`] |
//! | write to the standard input of a process | [`attach::Writer`] |
//! | run another command in its container | [`exec::Exec`] |
//! | send a signal | [`control::signal`] |
//! | wait for a state | [`observe::until`] |
//! | explain output that is missing | [`gap::losses`] |
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use remoteprocess_client::{Cluster, ClusterOptions, Relay, control};
//! use remoteprocess_proto::v1::{ProcessKey, SignalTarget};
//!
//! remoteprocess_tls::install_crypto_provider();
//! let cluster = Arc::new(Cluster::open(&ClusterOptions::default()).await?);
//! let process = ProcessKey {
//!     namespace: cluster.namespace.clone(),
//!     name: "build".into(),
//!     ..ProcessKey::default()
//! };
//! control::signal(&mut Relay::new(cluster), process, 1, SignalTarget::Main).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/process.rs` lists processes, follows one from an offset and verifies its output, sends a signal, and runs a
//! process to completion.
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
pub mod metrics;
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
