//! What the relay writes into the status of a process.
