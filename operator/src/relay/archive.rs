//! The output of every attempt, kept in an object store.
