//! Tests that end or measure parts of the cluster. `cargo xtask test` runs them one at a time and nothing in parallel;
//! by hand, use `--test-threads=1`.

mod agent;
mod cert_manager;
mod deletion;
mod faces;
mod large;
mod node;
mod rotation;
mod spool;
mod store;
mod traces;
mod uninstall;
mod verbs;
mod writes;
