//! A relay of the test, and connections to it that break.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper_util::rt::TokioIo;
use remoteprocess_cli::follow::DialError;
use remoteprocess_proto::v1::relay_server::{Relay, RelayServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

/// Bytes until a connection breaks.
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

/// A connection that breaks after so many bytes.
pub async fn connect(address: SocketAddr, received: usize, sent: usize) -> Result<Channel, DialError> {
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

/// Serves a relay until the handle is aborted.
pub async fn serve(relay: impl Relay) -> (SocketAddr, JoinHandle<Result<(), tonic::transport::Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(
        Server::builder()
            .add_service(RelayServer::new(relay))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, serving)
}
