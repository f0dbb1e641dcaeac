use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::admission::Meter;

/// A byte stream from which only a limited number of bytes can be read, and all of them are counted, until the limit is
/// lifted.
pub(crate) struct Metered<Io> {
    io: Io,
    limit: Option<Limit>,
}

struct Limit {
    left: usize,
    meter: Meter,
}

impl<Io> Metered<Io> {
    /// Reading more than `limit` bytes fails with [`io::ErrorKind::QuotaExceeded`].
    pub(crate) fn new(io: Io, limit: usize, meter: Meter) -> Self {
        let limit = Some(Limit { left: limit, meter });
        Self { io, limit }
    }

    /// Lifts the limit.
    pub(crate) fn lift(&mut self) {
        self.limit = None;
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Metered<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = buf.filled().len().saturating_sub(before);
        if let Some(limit) = this.limit.as_mut() {
            limit.left = (limit.left)
                .checked_sub(read)
                .ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "the handshake is too large"))?;
            limit.meter.count(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Metered<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
