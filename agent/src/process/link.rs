//! The socket side: one connection to an entrypoint, as a pair of queues.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use remoteprocess_entrypoint::message::{FromEntrypoint, PROTOCOL_VERSION, Resume, ToEntrypoint};
use remoteprocess_entrypoint::socket::{Connection, Listener};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time for the first packet of a connection.
const HELLO: Duration = Duration::from_secs(5);
/// Maximum number of connections that have not said hello: the socket's peer is untrusted.
const STRANGERS: usize = 8;
/// Orders in the queue of one entrypoint; if the queue is full, the connection is closed.
const ORDERS: usize = 256;

/// An entrypoint that has introduced itself and waits to be accepted.
#[derive(Debug)]
pub(super) struct Newcomer {
    /// Its proof that it was welcomed before.
    pub resume: Option<Resume>,
    /// The read ends of the pipes: none, both in one, or stdout and stderr.
    pub descriptors: Vec<OwnedFd>,
    connection: Arc<AsyncFd<Connection>>,
}

/// The orders to an accepted entrypoint. Dropping it hangs up.
#[derive(Debug)]
pub(super) struct Link {
    orders: mpsc::Sender<ToEntrypoint>,
    /// Echo has a queue of its own, one packet deep, so that it never delays an order.
    pub echo: mpsc::Sender<ToEntrypoint>,
    _hang_up: DropGuard,
}

/// What an accepted entrypoint sends. `None`: it is gone.
pub(super) type Heard = Option<(FromEntrypoint, Vec<OwnedFd>)>;

/// Listens at `path` and passes on each peer that sends a valid hello, as long as there is a receiver.
pub(super) fn listen(path: &Path, newcomers: mpsc::Sender<Newcomer>) -> io::Result<()> {
    let listener = Listener::bind(path)?;
    listener.set_nonblocking(true)?;
    let listener = register(listener)?;
    tokio::spawn(async move {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        loop {
            let accepted = listener.async_io(Interest::READABLE, Listener::accept).await;
            let connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "accept an entrypoint");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&strangers).acquire_owned().await else {
                return;
            };
            let newcomers = newcomers.clone();
            tokio::spawn(async move {
                let greeted = tokio::time::timeout(HELLO, greet(connection)).await;
                drop(permit);
                match greeted {
                    Ok(Ok(Some(newcomer))) => drop(newcomers.send(newcomer).await),
                    // A peer that only checks whether the socket is there leaves without a message.
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "a stranger on the socket"),
                    Err(_) => tracing::warn!("a connection on the socket said nothing"),
                }
            });
        }
    });
    Ok(())
}

// The replacement, `AsyncFd::register`, is unsafe to call: it requires only what these two types guarantee anyway, one
// descriptor that is open as long as they live.
#[allow(deprecated, reason = "see above")]
fn register<T: std::os::fd::AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(socket)
}

async fn greet(connection: Connection) -> io::Result<Option<Newcomer>> {
    connection.set_nonblocking(true)?;
    let connection = Arc::new(register(connection)?);
    match receive(&connection).await? {
        None => Ok(None),
        Some((
            FromEntrypoint::Hello {
                version: PROTOCOL_VERSION,
                resume,
                ..
            },
            descriptors,
        )) => Ok(Some(Newcomer {
            resume,
            descriptors,
            connection,
        })),
        Some(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the first packet is no hello of our version",
        )),
    }
}

async fn receive(connection: &AsyncFd<Connection>) -> io::Result<Heard> {
    connection
        .async_io(Interest::READABLE, Connection::receive::<FromEntrypoint>)
        .await
}

async fn send(connection: &AsyncFd<Connection>, order: &ToEntrypoint) -> io::Result<()> {
    connection
        .async_io(Interest::WRITABLE, |connection| connection.send(order, &[]))
        .await
}

impl Newcomer {
    /// Starts the conversation. Each message goes to `heard`, and `None` at the end.
    pub(super) fn accept(self, heard: impl Fn(Heard) + Send + 'static) -> Link {
        let (orders, due_orders) = mpsc::channel(ORDERS);
        let (echo, due_echo) = mpsc::channel(1);
        let over = CancellationToken::new();
        let writing = write(Arc::clone(&self.connection), due_orders, due_echo, over.clone());
        tokio::spawn(writing);
        let reading_over = over.clone();
        let connection = self.connection;
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    received = receive(&connection) => received,
                    () = reading_over.cancelled() => break,
                };
                match received {
                    Ok(Some(message)) => heard(Some(message)),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the entrypoint's connection");
                        break;
                    }
                }
            }
            reading_over.cancel();
            heard(None);
        });
        Link {
            orders,
            echo,
            _hang_up: over.drop_guard(),
        }
    }
}

impl Link {
    /// Queues an order. Returns false if the entrypoint is gone or its queue is full.
    pub(super) fn send(&self, order: ToEntrypoint) -> bool {
        self.orders.try_send(order).is_ok()
    }
}

async fn write(
    connection: Arc<AsyncFd<Connection>>,
    mut orders: mpsc::Receiver<ToEntrypoint>,
    mut echo: mpsc::Receiver<ToEntrypoint>,
    over: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            biased;
            () = over.cancelled() => return,
            Some(order) = orders.recv() => order,
            Some(bytes) = echo.recv() => bytes,
            else => return,
        };
        let sent = tokio::select! {
            sent = send(&connection, &next) => sent,
            () = over.cancelled() => return,
        };
        if let Err(error) = sent {
            // The reader also sees the end, after everything that the peer had sent.
            tracing::debug!(%error, "an order did not reach the entrypoint");
            return;
        }
    }
}
