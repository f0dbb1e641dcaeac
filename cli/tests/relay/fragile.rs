//! A relay of the test, and connections to it that break.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use hyper_util::rt::TokioIo;
use remoteprocess_client::{Dial, DialError};
use remoteprocess_proto::v1::relay_server::{Relay, RelayServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

/// Number of bytes until a connection breaks.
struct Left {
    received: usize,
    sent: usize,
}

struct Fragile {
    stream: TcpStream,
    left: Left,
}

impl AsyncRead for Fragile {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left.received == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut part = buffer.take(self.left.received);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let taken = part.filled().len();
        self.left.received -= taken;
        let filled = part.filled().to_vec();
        buffer.put_slice(&filled);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Fragile {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.left.sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let part = &bytes[..bytes.len().min(self.left.sent)];
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, part))?;
        self.left.sent -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection that breaks after this many bytes.
pub(crate) async fn connect(address: SocketAddr, received: usize, sent: usize) -> Result<Channel, DialError> {
    let connector = tower::service_fn(move |_| async move {
        let stream = TcpStream::connect(address).await?;
        let left = Left { received, sent };
        Ok::<_, io::Error>(TokioIo::new(Fragile { stream, left }))
    });
    let channel = Endpoint::from_static("http://relay")
        .connect_with_connector(connector)
        .await;
    channel.map_err(|error| DialError::Unreachable(error.to_string()))
}

/// Each connection gets a little further than the one before, so that cuts happen at any position.
pub(crate) struct GrowingDial {
    pub address: SocketAddr,
    /// Number of bytes until the next one breaks; if absent, none does.
    pub next_cut: Option<usize>,
    /// Connections so far.
    pub dials: Arc<Mutex<usize>>,
    /// Cuts alternate between what is received and what is sent; otherwise only the latter is cut.
    pub is_cut_both_ways: bool,
}

impl Dial for GrowingDial {
    async fn dial(&mut self) -> Result<Channel, DialError> {
        let left = self.next_cut.unwrap_or(usize::MAX);
        self.next_cut = self.next_cut.map(|cut| cut * 5 / 4);
        let dials = {
            let mut dials = self.dials.lock().unwrap();
            *dials += 1;
            *dials
        };
        let (received, sent) = if self.is_cut_both_ways && dials.is_multiple_of(2) {
            (left, usize::MAX)
        } else {
            (usize::MAX, left)
        };
        connect(self.address, received, sent).await
    }

    fn discredit(&mut self) {}
}

/// What was written.
#[derive(Clone, Default)]
pub(crate) struct Shared(pub Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves a relay until the handle is aborted.
pub(crate) async fn serve(relay: impl Relay) -> (SocketAddr, JoinHandle<Result<(), tonic::transport::Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(
        Server::builder()
            .add_service(RelayServer::new(relay))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, serving)
}
