//! The real agent and the real entrypoint as processes, with a relay in the test.

// All of this is test code, but clippy recognizes only functions that are marked as tests.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod attach;
mod config;
mod crashes;
mod endings;
mod exec;
mod kills;
mod masking;
mod peers;
mod pod;
mod policies;
mod relay;
mod run;
mod stdin_file;
mod verbs;
mod wait;

use std::fs::File;
use std::process::{Command, Stdio};

use wait::{in_time, until};

#[test]
fn a_standard_error_that_takes_nothing_is_no_reason_to_abort() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for words in [
        &["install", "--entrypoint", "/nonexistent", "--handover", "/nonexistent"][..],
        &["run"],
        &["no-such-command"],
    ] {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_agent"));
        let status = agent
            .args(words)
            .env("RUST_BACKTRACE", "0")
            .stderr(full())
            .status()
            .unwrap();
        assert!(matches!(status.code(), Some(1 | 2)), "{words:?}: {status}");
    }
}
