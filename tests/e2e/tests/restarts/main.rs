//! Tests that restart the operator, which affects everything in the cluster. They can run at the same time.

mod attach;
mod attempts;
mod broker;
mod exec;
mod journal;
mod kills;
mod nats;
mod pubsub;
mod rabbitmq;
mod sinks;
mod streams;
mod triggers;
