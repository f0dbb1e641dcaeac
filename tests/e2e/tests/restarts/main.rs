//! Tests that restart the operator, which affects everything in the cluster. They can run at the same time.

mod attach;
mod attempts;
mod exec;
mod journal;
mod nats;
mod sinks;
mod streams;
mod triggers;
