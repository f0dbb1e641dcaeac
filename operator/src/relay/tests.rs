//! What needs both listeners and every part of the relay.

mod admission;
mod audit;
mod faces;
mod fanout;
mod http_client;
pub(crate) mod replica;
mod replicas;
mod resume;
mod switches;
