//! Wiring: starts every part of the operator and ends them in order.
