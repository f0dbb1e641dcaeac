//! What needs both listeners and every part of the relay.

mod admission;
mod audit;
mod fanout;
pub(crate) mod replica;
mod replicas;
