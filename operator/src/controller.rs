//! The controller: observe, validate, build, apply, status.
