//! Notices when an agent's socket appears, so that the entrypoint need not poll for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// A watch of the directory in which the socket appears.
pub(crate) struct Arrival(OwnedFd);

impl Arrival {
    /// Begins to watch. `None` if the kernel allows this user no more watches.
    pub(crate) fn watch(socket: &Path) -> Option<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        let appears = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&descriptor, socket.parent()?, appears).ok()?;
        Some(Self(descriptor))
    }

    /// Whether something has appeared since the last call.
    pub(crate) fn has_come(&self) -> bool {
        let mut events = [0; 4096];
        let mut has_come = false;
        while rustix::io::read(&self.0, &mut events).is_ok_and(|length| length > 0) {
            has_come = true;
        }
        has_come
    }
}

impl AsFd for Arrival {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_entrypoint::socket::Listener;

    use super::*;

    #[test]
    fn a_socket_that_appears_or_is_replaced_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let arrival = Arrival::watch(&path).unwrap();
        assert!(!arrival.has_come());
        for _ in 0..2 {
            let _listener = Listener::bind(&path).unwrap();
            assert!(arrival.has_come());
            assert!(!arrival.has_come());
        }
    }
}
