//! A `SOCK_SEQPACKET` Unix socket that carries messages and file descriptors.
//!
//! Both ends work blocking (as created) or non-blocking ([`Connection::set_nonblocking`]); in the
//! latter case operations return [`io::ErrorKind::WouldBlock`], which is what an event loop or
//! tokio's `AsyncFd` wants:
//!
//! ```ignore
//! let (message, descriptors) = async_fd
//!     .async_io(Interest::READABLE, |connection| connection.receive::<FromEntrypoint>())
//!     .await?
//!     .ok_or(Closed)?;
//! ```
//!
//! What the kernel keeps: packets that were sent stay readable, with their descriptors, after the
//! sender has closed its end or died, also before the connection was accepted.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::message::{self, MAX_PACKET_BYTES, Message};

/// Most file descriptors in one packet. A packet with more is an error, and all are closed.
pub const MAX_DESCRIPTORS: usize = 4;

const BACKLOG: i32 = 16;

/// Refuses violations of the protocol with [`io::ErrorKind::InvalidData`].
fn invalid(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// The agent's end that waits for entrypoints.
#[derive(Debug)]
pub struct Listener {
    descriptor: OwnedFd,
}

impl Listener {
    /// Listens at `path`, in place of a socket that is already there. Any user id may connect: the two containers of a
    /// pod often have different ones, and no other container sees the directory.
    ///
    /// The socket appears at `path` by a rename, when it already accepts connections.
    ///
    /// # Errors
    /// From the socket calls and the file system.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let descriptor = new_socket()?;
        let unfinished = unfinished_path(path);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        net::bind(&descriptor, &SocketAddrUnix::new(&unfinished)?)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o666))?;
        net::listen(&descriptor, BACKLOG)?;
        fs::rename(&unfinished, path)?;
        Ok(Self { descriptor })
    }

    /// Switches between blocking and non-blocking; does not touch accepted connections.
    ///
    /// # Errors
    /// From `ioctl(2)`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.descriptor, nonblocking)?)
    }

    /// The next connection, in blocking mode, closed on exec.
    ///
    /// # Errors
    /// `WouldBlock` if non-blocking and no peer is waiting; else from `accept4(2)`.
    pub fn accept(&self) -> io::Result<Connection> {
        let accept = || net::accept_with(&self.descriptor, SocketFlags::CLOEXEC);
        Ok(Connection {
            descriptor: rustix::io::retry_on_intr(accept)?,
        })
    }
}

fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    descriptor: OwnedFd,
}

impl Connection {
    /// Connects to the listener at `path`, without waiting: a full backlog is reported as `WouldBlock`. The connection
    /// is in blocking mode, closed on exec.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused` while no agent listens; else from the socket calls.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let connection = Self {
            descriptor: new_socket()?,
        };
        connection.set_nonblocking(true)?;
        let address = SocketAddrUnix::new(path)?;
        rustix::io::retry_on_intr(|| net::connect(&connection.descriptor, &address))?;
        connection.set_nonblocking(false)?;
        Ok(connection)
    }

    /// Two connected ends.
    ///
    /// # Errors
    /// From `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self { descriptor: ours }, Self { descriptor: theirs }))
    }

    /// Switches between blocking and non-blocking.
    ///
    /// # Errors
    /// From `ioctl(2)`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.descriptor, nonblocking)?)
    }

    /// Sends one message, completely or not at all. The peer gets duplicates of `descriptors`.
    ///
    /// # Errors
    /// `WouldBlock` if non-blocking and the peer's queue is full; `InvalidData` if the message is
    /// too long; `InvalidInput` for more than [`MAX_DESCRIPTORS`]; `BrokenPipe` and
    /// `ConnectionReset` if the peer is gone.
    pub fn send<M: Message>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = message::encode(message).map_err(invalid)?;
        self.send_packet(&packet, descriptors)
    }

    fn send_packet(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(fits, "the space is for MAX_DESCRIPTORS");
        }
        let parts = [IoSlice::new(packet)];
        let mut send = || net::sendmsg(&self.descriptor, &parts, &mut control, SendFlags::NOSIGNAL);
        loop {
            match send() {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message and the descriptors that came with it (closed on exec), or `None` when
    /// the peer has closed its end and everything it sent has been read.
    ///
    /// # Errors
    /// `WouldBlock` if non-blocking and nothing is there; `InvalidData` if the packet is not a
    /// message, is too long or has more than [`MAX_DESCRIPTORS`] descriptors: the peer is broken or
    /// hostile, hang up.
    pub fn receive<M: Message>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut packet = vec![0; MAX_PACKET_BYTES];
        let (length, descriptors) = self.receive_packet(&mut packet)?;
        if length == 0 {
            return Ok(None);
        }
        let message = message::decode(&packet[..length]).map_err(invalid)?;
        Ok(Some((message, descriptors)))
    }

    fn receive_packet(&self, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut parts = [IoSliceMut::new(packet)];
            match net::recvmsg(&self.descriptor, &mut parts, &mut control, flags) {
                Ok(received) => break received,
                // A peer that closes its end with our packets unread resets the connection. The kernel reports that
                // once, before what the peer had sent, which can still be read.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut descriptors = Vec::new();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(invalid(message::Error::TooLong(received.bytes)));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
            return Err(invalid("too many descriptors in a packet"));
        }
        Ok((received.bytes, descriptors))
    }
}

impl From<OwnedFd> for Connection {
    /// Takes a connected `SOCK_SEQPACKET` socket.
    fn from(descriptor: OwnedFd) -> Self {
        Self { descriptor }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;
    use crate::message::{FromEntrypoint, PROTOCOL_VERSION, ToEntrypoint};

    fn launched(pid: u32) -> FromEntrypoint {
        FromEntrypoint::Launched {
            pid,
            at_unix_nanos: 0,
            is_paused: false,
            input: None,
        }
    }

    #[test]
    fn messages_and_descriptors_arrive_and_are_closed_on_exec() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listener::bind(&path).unwrap();
        let ours = Connection::connect(&path).unwrap();
        let theirs = listener.accept().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        ours.send(&launched(7), &[read.as_fd(), write.as_fd()]).unwrap();
        drop(read);
        let (message, mut descriptors) = theirs.receive::<FromEntrypoint>().unwrap().unwrap();
        assert_eq!(message, launched(7));
        assert_eq!(descriptors.len(), 2);
        for descriptor in &descriptors {
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        rustix::io::write(&write, b"through").unwrap();
        drop(write);
        descriptors.pop();
        let mut text = String::new();
        File::from(descriptors.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_second_listener_takes_over_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(Connection::connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(Listener::bind(&path).unwrap());
        let refused = Connection::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let second = Listener::bind(&path).unwrap();
        Connection::connect(&path).unwrap();
        second.accept().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn non_blocking_would_block_and_a_closed_peer_is_the_end() {
        let (ours, theirs) = Connection::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let nothing = ours.receive::<ToEntrypoint>().unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let full = loop {
            if let Err(error) = ours.send(&launched(1), &[]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert!(ours.receive::<ToEntrypoint>().unwrap().is_none());
        assert_eq!(
            ours.send(&launched(1), &[]).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn what_was_sent_is_read_though_the_sender_left_with_packets_unread() {
        let (ours, theirs) = Connection::pair().unwrap();
        ours.send(&launched(3), &[]).unwrap();
        theirs.send(&ToEntrypoint::Recorded, &[]).unwrap();
        drop(ours);
        let (message, _) = theirs.receive::<FromEntrypoint>().unwrap().unwrap();
        assert_eq!(message, launched(3));
        assert!(theirs.receive::<FromEntrypoint>().unwrap().is_none());
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (ours, theirs) = Connection::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let many = [write.as_fd(); MAX_DESCRIPTORS + 4];
        let input = ours.send(&launched(1), &many).unwrap_err();
        assert_eq!(input.kind(), io::ErrorKind::InvalidInput);
        let mut space = [MaybeUninit::uninit(); 256];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let packet = message::encode(&launched(1)).unwrap();
        let parts = [IoSlice::new(&packet)];
        net::sendmsg(&ours, &parts, &mut control, SendFlags::empty()).unwrap();
        let refused = theirs.receive::<FromEntrypoint>().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        drop(write);
        let mut byte = [0];
        assert_eq!(
            rustix::io::read(&read, &mut byte).unwrap(),
            0,
            "every write end is closed"
        );
    }

    #[test]
    fn a_packet_over_the_bound_is_refused() {
        let (ours, theirs) = Connection::pair().unwrap();
        ours.send_packet(&vec![0; MAX_PACKET_BYTES + 1], &[]).unwrap();
        let refused = theirs.receive::<FromEntrypoint>().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        ours.send(
            &FromEntrypoint::Hello {
                version: PROTOCOL_VERSION,
                pid: 1,
                resume: None,
            },
            &[],
        )
        .unwrap();
        assert!(theirs.receive::<FromEntrypoint>().unwrap().is_some());
    }

    proptest! {
        #[test]
        fn garbage_from_the_peer_does_not_panic(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..8),
        ) {
            let (ours, theirs) = Connection::pair().unwrap();
            for packet in &packets {
                ours.send_packet(packet, &[]).unwrap();
                match theirs.receive::<ToEntrypoint>() {
                    Ok(received) => prop_assert!(received.is_some()),
                    Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData),
                }
            }
        }
    }
}
