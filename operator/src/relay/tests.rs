//! What needs both listeners and every part of the relay.

mod admission;
mod fanout;
pub(crate) mod replica;
mod replicas;
