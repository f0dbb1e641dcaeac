//! Which processes exist, and which of them have a live session here.
