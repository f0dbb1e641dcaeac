//! What needs both listeners and every part of the relay.

mod admission;
mod audit;
mod crowd;
mod cutting_proxy;
mod event_follower;
mod faces;
mod fanout;
mod foreign;
mod http_client;
pub(crate) mod replica;
mod replicas;
mod resume;
mod switches;
