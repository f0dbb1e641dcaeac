//! Tests that run beside each other: each has a namespace of its own, and leaves the operator and the cluster as they are.

mod attach;
mod attempts;
mod canaries;
mod documents;
mod endings;
mod exec;
mod exits;
mod faults;
mod foreign;
mod input;
mod lifecycle;
mod masking;
mod page;
mod pauses;
mod peers;
mod permissions;
mod reading;
mod roles;
mod sinks;
mod stdin_from;
mod streams;
mod triggers;
mod waits;
