//! PID 1 of the user's container: starts the program when the agent says so, passes the read ends of its output to the
//! agent, forwards signals, reaps children, reports the end.
//!
//! One thread, one poll loop, no network. Each session in the container adds one process of this program ([`shim`]).
//! Static and small, because it is copied into images that may hold nothing else.
//!
//! Invariant: the program is started at most once, and after that only its own end, the stop path, or SIGKILL from
//! outside ends this process.

// The macros that print panic if the stream is closed.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod arrival;
mod cgroup;
mod diagnosis;
mod ending;
mod launch;
mod link;
mod pause;
mod phase;
mod processes;
mod requests;
mod sessions;
mod shim;
mod signals;
mod stdin;
mod stdin_file;
mod stdio;
mod supervisor;
mod terminal;

use std::io::{self, Write};

use remoteprocess_entrypoint::{EXIT_PLATFORM, clock};
use rustix::process::{DumpableBehavior, set_child_subreaper, set_dumpable_behavior};

use crate::arguments::Arguments;
use crate::clock::Timer;
use crate::processes::Scope;
use crate::signals::Signals;
use crate::stdio::Stdio;
use crate::supervisor::Supervisor;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Arguments(#[from] arguments::Error),
    #[error(
        "NotPID1: must be process 1 of its container, and is {0} \
         (a pod with shareProcessNamespace is not supported)"
    )]
    NotPid1(u32),
    #[error("cannot prepare: {0}")]
    Prepare(#[from] io::Error),
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
}

fn main() {
    if let Some(code) = shim::run_if_asked(std::env::args_os().skip(1)) {
        std::process::exit(code);
    }
    let code = run().unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "remoteprocess entrypoint: {error}");
        EXIT_PLATFORM
    });
    std::process::exit(code);
}

fn run() -> Result<i32, Error> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    // The program has the same user id, and must not be able to read the secret or steal the descriptors.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    let scope = scope(&arguments)?;
    let stdio = Stdio::take()?;
    let signals = Signals::take(scope)?;
    let timer = Timer::new()?;
    Ok(Supervisor::new(arguments, scope, stdio, signals, timer).run()?)
}

fn scope(arguments: &Arguments) -> Result<Scope, Error> {
    match std::process::id() {
        1 => Ok(Scope::Namespace),
        _ if arguments.subreaper => {
            let this = rustix::process::getpid();
            set_child_subreaper(Some(this)).map_err(io::Error::from)?;
            Ok(Scope::Descendants)
        }
        other => Err(Error::NotPid1(other)),
    }
}
