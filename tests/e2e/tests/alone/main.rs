//! Tests that end or measure parts of the cluster. `cargo xtask test` runs them one at a time and nothing beside them; by
//! hand, `--test-threads=1` does.

mod agent;
mod deletion;
mod large;
mod node;
mod spool;
mod store;
mod uninstall;
mod writes;
