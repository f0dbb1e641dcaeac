//! Tests that restart the operator, which everything in the cluster notices. They bear with each other.

mod attach;
mod attempts;
mod exec;
mod streams;
