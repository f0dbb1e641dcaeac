//! How signals affect a program that shuts down.

use std::{
    env,
    future::pending,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use remoteprocess_runtime::shutdown_token;

/// Set if this process is the child of the test.
const CHILD: &str = "SHUTDOWN_CHILD";

#[test]
fn a_second_signal_ends_a_shutdown_that_hangs() {
    if env::var_os(CHILD).is_some() {
        hang();
    }
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut child = Command::new(env::current_exe().expect("a path"))
            .args(["--exact", "a_second_signal_ends_a_shutdown_that_hangs", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let pid = child.id().to_string();
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        for expected in ["child: running", "child: shutting down"] {
            let found = lines.by_ref().any(|line| line.expect("a line").ends_with(expected));
            assert!(found, "the child did not say {expected}");
            let sent = Command::new("kill").args(["-s", signal, &pid]).status();
            assert!(sent.expect("kill").success());
        }
        assert_eq!(child.wait().expect("an end").code(), Some(code), "SIG{signal}");
    }
}

/// A program whose shutdown never ends.
fn hang() -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let token = shutdown_token().expect("signal handlers");
        println!("\nchild: running");
        token.cancelled().await;
        println!("\nchild: shutting down");
        pending().await
    })
}
