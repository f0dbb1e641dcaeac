//! The connection to the API server as a user types it: the program itself, a kubeconfig, and an API server of the test
//! behind TLS.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "connect/api.rs"]
mod api;
#[path = "connect/completion.rs"]
mod completion;
#[path = "connect/config.rs"]
mod config;
#[path = "connect/credential.rs"]
mod credential;
#[path = "connect/proxy.rs"]
mod proxy;
#[path = "connect/sink.rs"]
mod sink;
#[path = "connect/trigger.rs"]
mod trigger;
