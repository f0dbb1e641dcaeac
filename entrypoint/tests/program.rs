//! The entrypoint with real children, driven by a minimal agent, both as process 1 of a PID namespace and as a
//! subreaper.

#![allow(clippy::unwrap_used, reason = "the harness of these tests may fail a test anywhere")]

#[path = "program/agent.rs"]
mod agent;
#[path = "program/crowd.rs"]
mod crowd;
#[path = "program/deadline.rs"]
mod deadline;
#[path = "program/endings.rs"]
mod endings;
#[path = "program/hostile.rs"]
mod hostile;
#[path = "program/input.rs"]
mod input;
#[path = "program/leftovers.rs"]
mod leftovers;
#[path = "program/oom.rs"]
mod oom;
#[path = "program/output.rs"]
mod output;
#[path = "program/pause.rs"]
mod pause;
#[path = "program/reconnect.rs"]
mod reconnect;
#[path = "program/sessions.rs"]
mod sessions;
#[path = "program/signals.rs"]
mod signals;
#[path = "program/start.rs"]
mod start;
#[path = "program/terminal.rs"]
mod terminal;
