//! Checks whether standard input can be read at all.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

/// Whether this program was started without a standard input. Rust's runtime then opens /dev/null, before `main`.
static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before `main` and before Rust's runtime.
#[allow(unsafe_code, reason = "it has to run before `main`")]
#[used]
// SAFETY: the C runtime calls each function in this section once, before `main`; this one makes a single system call.
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static AT_START: extern "C" fn() = look;

extern "C" fn look() {
    let is_closed = matches!(
        rustix::io::fcntl_getfd(rustix::stdio::stdin()),
        Err(rustix::io::Errno::BADF)
    );
    WAS_CLOSED.store(is_closed, Ordering::Relaxed);
}

/// Reports why standard input cannot be the input of a process. Otherwise a false end would be taken for the whole
/// input.
pub fn check() -> io::Result<()> {
    let refuse = |what: &str| {
        Err(io::Error::other(format!(
            "standard input is {what}: leave -i out, or add < /dev/null"
        )))
    };
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return refuse("closed");
    }
    let stdin = rustix::stdio::stdin();
    if FileType::from_raw_mode(fstat(stdin)?.st_mode) == FileType::Directory {
        return refuse("a directory");
    }
    match fcntl_getfl(stdin)? & OFlags::RWMODE {
        OFlags::WRONLY => refuse("open for writing only"),
        _ => Ok(()),
    }
}
