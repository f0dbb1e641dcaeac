//! Ports for servers that a test starts, stops, and starts again.
//!
//! A test must know the port before its server listens there. A port that the kernel chose for port 0 is not safe: once
//! it is closed, the kernel may give it to another server, or to the very connection that looks for the server, which
//! then talks to itself (TCP's simultaneous open, RFC 9293, section 3.5). The ports of this crate are below those that
//! the kernel chooses from, and each belongs to one process until that process ends.

pub mod rabbitmq;

use std::mem;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::process;

/// Linux chooses from 32,768 to 60,999 (`net.ipv4.ip_local_port_range`, ip(7)). Node ports and the ports of Kubernetes'
/// own programs are not in this range either.
const PORTS: Range<u16> = 21_000..29_000;

/// A port of 127.0.0.1 where nothing listens, and which no other caller gets before this process ends.
///
/// # Panics
///
/// If all of the 8,000 ports are taken.
#[must_use]
pub fn free_port() -> u16 {
    // Processes that run at the same time begin at different places, so that they seldom ask for the same port.
    let begin = usize::try_from(process::id()).unwrap_or_default() * 97 % PORTS.len();
    let mut ports = PORTS.skip(begin).chain(PORTS);
    ports.find(|port| reserve(*port)).expect("one of 8,000 ports is free")
}

/// An address with a [`free_port`].
#[must_use]
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// A name in the abstract namespace (unix(7)) is the lock: the kernel gives it back when the process ends.
fn reserve(port: u16) -> bool {
    let name = UnixAddr::from_abstract_name(format!("remoteprocess-test-port-{port}"));
    let Ok(lock) = name.and_then(|name| UnixListener::bind_addr(&name)) else {
        return false;
    };
    let is_free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    if is_free {
        mem::forget(lock);
    }
    is_free
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;

    #[test]
    fn a_port_is_given_once_and_never_by_the_kernel() {
        let ask = || (0..50).map(|_| free_port()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| thread::spawn(ask)).collect();
        let ports: Vec<u16> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 400);

        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let least: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(
            ports.iter().all(|port| PORTS.contains(port) && *port < least),
            "{range}"
        );
    }
}
