//! The lease that decides which replica writes.
