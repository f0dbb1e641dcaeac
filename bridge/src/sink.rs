//! The bridge of one ProcessSink: one CloudEvent for each change of a process, and for its output, to a destination.
//!
//! The parts: `view` is what is known of a process, `cursor` how far its events are sent, `steps` decides what comes next
//! from both, `events` writes it down, `divide` cuts the output. They are pure. `worker` does it for one process, `book`
//! decides whose turn it is, `link` holds the connection to the destination, `reader` gets the output, and `engine` watches.

pub(crate) mod board;
mod book;
pub mod cursor;
pub mod destination;
pub mod divide;
pub mod engine;
pub mod events;
mod http;
mod link;
pub mod reader;
pub mod steps;
pub mod view;
mod worker;

pub use board::Metrics;
pub use engine::{Config, first_finding, run};
