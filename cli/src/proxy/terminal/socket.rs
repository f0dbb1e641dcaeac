//! Carries a terminal over a WebSocket: bounded messages, a window of unconfirmed bytes in each direction, and pings.
//!
//! The socket is always read, however much input waits: a confirmation or the end of the client must not wait behind
//! input that the process does not take. So input is bounded by what the client may send, not by TCP.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use remoteprocess_client::SinkError;
use remoteprocess_client::stream::{Local, due};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

use super::message::{ClientMessage, Open, ServerMessage, Size};
use super::process::Target;

/// Bytes that each side may send before the other has confirmed some of them.
pub(super) const WINDOW: usize = 256 * 1024;
/// Size of a message of the client.
const MAX_MESSAGE: usize = 64 * 1024;
/// Most bytes of output in one message, and of input in one step.
const CHUNK: usize = 32 * 1024;
/// Number of passed bytes after which the client is told while more of its input waits.
const CONFIRM: u64 = 64 * 1024;
/// Messages that wait for the socket.
const QUEUE: usize = 16;
/// Time for the first message.
const OPENING: Duration = Duration::from_secs(10);
/// Time between pings. A client that sends nothing for three times as long is gone.
const PING: Duration = Duration::from_secs(20);
const SILENCE: Duration = PING.saturating_mul(3);
/// Time for the client to take one message, or what is left at the end.
const STALL: Duration = Duration::from_secs(30);
/// Time to tell the relay that a terminal is closed, or the client that it gets none.
const FAREWELL: Duration = Duration::from_secs(3);

/// The limits of a socket.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// What goes to the client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Outgoing {
    queue: mpsc::Sender<Message>,
    /// Bytes of output that the client may be sent now.
    room: Arc<Semaphore>,
}

impl Outgoing {
    /// Messages for the socket go into this queue.
    pub(super) fn new(queue: mpsc::Sender<Message>) -> Self {
        Self {
            queue,
            room: Arc::new(Semaphore::new(WINDOW)),
        }
    }

    /// Tells the client something.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn tell(&self, told: &ServerMessage) -> Result<(), SinkError> {
        self.queue.send(text(told)).await.map_err(|_| SinkError::Closed)
    }

    /// Sends output, as the client takes it.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn bytes(&self, mut bytes: Bytes) -> Result<(), SinkError> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK));
            // At most `CHUNK`.
            let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            let room = self.room.acquire_many(length).await;
            room.map_err(|_| SinkError::Closed)?.forget();
            let sent = self.queue.send(Message::Binary(chunk)).await;
            sent.map_err(|_| SinkError::Closed)?;
        }
        Ok(())
    }
}

fn text(told: &ServerMessage) -> Message {
    // Every message can be written as JSON.
    Message::text(serde_json::to_string(told).unwrap_or_default())
}

/// Tells the client why it gets no terminal.
pub(super) async fn refuse<S>(socket: WebSocketStream<S>, why: &ServerMessage)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    let refusing = async {
        sink.send(text(why)).await?;
        sink.send(Message::Close(Some(Close::normal().0))).await?;
        // Unread bytes would reset the connection, and the client could lose the reason.
        while stream.next().await.transpose()?.is_some() {}
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    // A client that breaks off here has no terminal.
    let _ = timeout(FAREWELL, refusing).await;
}

/// Serves a terminal until one side has left.
pub(super) async fn serve<S>(socket: WebSocketStream<S>, target: Target)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (sink, stream) = socket.split();
    let (queue, messages) = mpsc::channel(QUEUE);
    let out = Outgoing::new(queue);
    let mut incoming = Incoming::new(stream, out.clone());
    let mut writing = std::pin::pin!(write(sink, messages));
    let opened = tokio::select! {
        opened = timeout(OPENING, incoming.open()) => opened,
        () = &mut writing => return,
    };
    let open = match opened.unwrap_or_else(|_| Err(Close::fault("the first message must be open"))) {
        Ok(open) => open,
        Err(close) => return finish(&out, &mut writing, std::future::ready(()), close).await,
    };
    let (events, local) = mpsc::channel(1);
    let (leaving, left) = watch::channel(false);
    let mut reading = std::pin::pin!(incoming.read(events));
    let mut running = std::pin::pin!(target.run(open, out.clone(), local, left));
    let (mut ended, mut is_writing, mut leave_by) = (None, true, None);
    loop {
        tokio::select! {
            close = &mut reading, if ended.is_none() => ended = Some(close),
            () = &mut writing, if is_writing => is_writing = false,
            () = &mut running => break,
            () = due(leave_by) => break,
        }
        // One direction is of no use without the other.
        out.room.close();
        leaving.send_replace(true);
        leave_by.get_or_insert_with(|| Instant::now() + FAREWELL);
    }
    if !is_writing {
        return;
    }
    match ended {
        Some(close) => finish(&out, &mut writing, std::future::ready(()), close).await,
        None => finish(&out, &mut writing, async { drop(reading.await) }, Close::normal()).await,
    }
}

/// Closes the socket: what is queued is sent first. Then the client's answer is read, because a connection with unread
/// bytes would be reset, and the client could lose what was sent last.
async fn finish(out: &Outgoing, writing: impl Future<Output = ()>, reading: impl Future<Output = ()>, close: Close) {
    let closing = async {
        // The writer may be gone.
        let _ = out.queue.send(Message::Close(Some(close.0))).await;
    };
    let _ = timeout(STALL, async { tokio::join!(closing, writing, reading) }).await;
}

/// Why a socket is closed.
struct Close(CloseFrame);

impl Close {
    fn of(code: CloseCode, reason: &str) -> Self {
        Self(CloseFrame {
            code,
            reason: reason.to_owned().into(),
        })
    }

    fn normal() -> Self {
        Self::of(CloseCode::Normal, "")
    }

    /// The client does not keep to the protocol.
    fn fault(reason: &str) -> Self {
        Self::of(CloseCode::Policy, reason)
    }
}

/// Sends what is queued, and pings, until a `Close` is sent or the client takes nothing.
async fn write<S>(mut sink: SplitSink<WebSocketStream<S>, Message>, mut messages: mpsc::Receiver<Message>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(Instant::now() + PING, PING);
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            _ = pings.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else { return };
        let is_last = message.is_close();
        if !matches!(timeout(STALL, sink.send(message)).await, Ok(Ok(()))) || is_last {
            return;
        }
    }
}

/// What comes from the client.
struct Incoming<S> {
    stream: SplitStream<WebSocketStream<S>>,
    out: Outgoing,
    /// Output that the client has confirmed.
    shown: u64,
    /// Input that is not passed on yet.
    waiting: BytesMut,
    /// Input that was passed on, and how much of it the client was told.
    passed: u64,
    told: u64,
    /// The last size of the terminal that is not passed on yet.
    size: Option<Size>,
    end: End,
    silent_at: Instant,
}

/// Whether the input has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Waits,
    Passed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    fn new(stream: SplitStream<WebSocketStream<S>>, out: Outgoing) -> Self {
        Self {
            stream,
            out,
            shown: 0,
            waiting: BytesMut::new(),
            passed: 0,
            told: 0,
            size: None,
            end: End::NotYet,
            silent_at: Instant::now() + SILENCE,
        }
    }

    /// The first message.
    async fn open(&mut self) -> Result<Open, Close> {
        loop {
            match self.next().await? {
                Message::Text(text) => {
                    let Ok(ClientMessage::Open(open)) = serde_json::from_str(&text) else {
                        return Err(Close::fault("the first message must be open"));
                    };
                    return match open.fault() {
                        Some(fault) => Err(Close::fault(fault)),
                        None => Ok(open),
                    };
                }
                Message::Binary(_) => return Err(Close::fault("the first message must be open")),
                _ => {}
            }
        }
    }

    /// Passes on what the client says, until it leaves, or does not keep to the protocol.
    async fn read(mut self, events: mpsc::Sender<Local>) -> Close {
        let mut events = Some(events);
        let queue = self.out.queue.clone();
        loop {
            let is_due = self.passed - self.told >= CONFIRM || (self.waiting.is_empty() && self.passed > self.told);
            tokio::select! {
                message = self.next() => {
                    if let Err(close) = message.and_then(|message| self.take(message)) {
                        return close;
                    }
                    if events.is_none() {
                        self.drop_input();
                    }
                }
                permit = reserve(events.clone()), if self.has_event() => match permit {
                    Ok(permit) => drop(permit.send(self.next_event())),
                    // Nothing takes input anymore.
                    Err(_) => {
                        events = None;
                        self.drop_input();
                    }
                },
                Ok(permit) = queue.reserve(), if is_due => {
                    self.told = self.passed;
                    permit.send(text(&ServerMessage::Taken { bytes: self.told }));
                }
            }
        }
    }

    /// The next message; the end of the socket is an error.
    async fn next(&mut self) -> Result<Message, Close> {
        let message = tokio::select! {
            message = self.stream.next() => message,
            () = sleep_until(self.silent_at) => return Err(Close::of(CloseCode::Away, "the client is silent")),
        };
        self.silent_at = Instant::now() + SILENCE;
        match message {
            Some(Ok(Message::Close(_))) | None => Err(Close::normal()),
            Some(Ok(message)) => Ok(message),
            Some(Err(tokio_tungstenite::tungstenite::Error::Capacity(_))) => {
                Err(Close::of(CloseCode::Size, "a message has more than 64 KiB"))
            }
            // The connection broke, or this is no WebSocket.
            Some(Err(_)) => Err(Close::of(CloseCode::Protocol, "")),
        }
    }

    fn take(&mut self, message: Message) -> Result<(), Close> {
        match message {
            Message::Binary(bytes) => {
                self.waiting.extend_from_slice(&bytes);
                // What the client was not told yet counts, too.
                let unconfirmed = self.passed - self.told + self.waiting.len() as u64;
                if self.end != End::NotYet {
                    return Err(Close::fault("input behind its end"));
                }
                if unconfirmed > WINDOW as u64 {
                    return Err(Close::fault("more than 256 KiB of input are not confirmed"));
                }
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ClientMessage::Taken { bytes }) => return self.confirm(bytes),
                Ok(ClientMessage::Resize(size)) if size.is_possible() => self.size = Some(size),
                Ok(ClientMessage::End) if self.end == End::NotYet => self.end = End::Waits,
                _ => return Err(Close::fault("this message is not known, or not possible here")),
            },
            // Pings are answered by the library.
            _ => {}
        }
        Ok(())
    }

    /// The client has shown this much.
    fn confirm(&mut self, shown: u64) -> Result<(), Close> {
        let unconfirmed = WINDOW.saturating_sub(self.out.room.available_permits());
        let more = shown
            .checked_sub(self.shown)
            .and_then(|more| usize::try_from(more).ok());
        match more {
            Some(more) if more <= unconfirmed => {
                self.shown = shown;
                self.out.room.add_permits(more);
                Ok(())
            }
            _ => Err(Close::fault("the client confirms output that it was not sent")),
        }
    }

    fn has_event(&self) -> bool {
        self.size.is_some() || !self.waiting.is_empty() || self.end == End::Waits
    }

    /// The next event for the process.
    fn next_event(&mut self) -> Local {
        if let Some(size) = self.size.take() {
            return Local::Resize(size.into());
        }
        if !self.waiting.is_empty() {
            let bytes = self.waiting.split_to(self.waiting.len().min(CHUNK)).freeze();
            self.passed += bytes.len() as u64;
            return Local::Bytes(bytes);
        }
        self.end = End::Passed;
        Local::End
    }

    /// Drops input that nothing takes, so that the client does not wait.
    fn drop_input(&mut self) {
        self.passed += self.waiting.len() as u64;
        self.waiting.clear();
        self.size = None;
        if self.end == End::Waits {
            self.end = End::Passed;
        }
    }
}

/// Room for one event.
async fn reserve(events: Option<mpsc::Sender<Local>>) -> Result<mpsc::OwnedPermit<Local>, mpsc::error::SendError<()>> {
    match events {
        Some(events) => events.reserve_owned().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    type Socket = WebSocketStream<DuplexStream>;

    /// What comes from a client, what goes to it, and the client.
    async fn client() -> (Incoming<DuplexStream>, impl Future<Output = ()> + Send, Socket) {
        let (server, client) = tokio::io::duplex(1 << 20);
        let server = WebSocketStream::from_raw_socket(server, Role::Server, Some(config())).await;
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let (sink, stream) = server.split();
        let (queue, messages) = mpsc::channel(QUEUE);
        (
            Incoming::new(stream, Outgoing::new(queue)),
            write(sink, messages),
            client,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_no_ping_is_gone() {
        let (incoming, writing, mut client) = client().await;
        let writing = tokio::spawn(writing);
        let begun = Instant::now();
        let close = incoming.read(mpsc::channel(1).0).await;
        assert_eq!((close.0.code, begun.elapsed()), (CloseCode::Away, SILENCE));
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Ping(Bytes::new()));
        writing.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_stays() {
        let (incoming, writing, mut client) = client().await;
        let writing = tokio::spawn(writing);
        let answering = tokio::spawn(async move { while client.next().await.is_some() {} });
        let read = timeout(SILENCE * 10, incoming.read(mpsc::channel(1).0)).await;
        assert!(read.is_err());
        writing.abort();
        answering.abort();
    }

    #[tokio::test]
    async fn input_that_the_process_does_not_take_is_bounded() {
        let (incoming, _, mut client) = client().await;
        // Of its events, one waits for the process, which takes none.
        let (events, _local) = mpsc::channel(1);
        for _ in 0..4 {
            client.send(Message::binary(vec![0; MAX_MESSAGE])).await.unwrap();
        }
        client.send(Message::binary(vec![0])).await.unwrap();
        let close = incoming.read(events).await;
        assert_eq!(close.0.code, CloseCode::Policy);
    }
}
