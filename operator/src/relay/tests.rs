//! What needs both listeners and every part of the relay.

mod admission;
