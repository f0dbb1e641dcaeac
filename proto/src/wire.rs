//! Output messages in their wire encoding, so that the bytes of a chunk are not copied between the spool, or a socket,
//! and the next socket.

mod endpoint;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_core::Stream;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, Limited};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

pub use endpoint::{Endpoint, WatchOutput};

use crate::MAX_MESSAGE;
use crate::v1::{OutputFrame, Stream as OutputStream};

/// Flag and length before each gRPC message.
pub const PREFIX: usize = 5;
/// Room before the bytes of a chunk for everything that precedes them in a message with its prefix.
pub const HEAD: usize = 48;
/// Path of `Executor.WatchOutput`.
pub const EXECUTOR_WATCH_OUTPUT: &str = "/remoteprocess.v1.Executor/WatchOutput";
/// Path of `Relay.WatchOutput`.
pub const RELAY_WATCH_OUTPUT: &str = "/remoteprocess.v1.Relay/WatchOutput";

/// Tags of `OutputFrame.data` and of the fields of `Data`.
const DATA: u8 = 0x0a;
const FIELDS: [u8; 4] = [0x08, 0x10, 0x18, 0x22];
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A message with its prefix.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut wire = BytesMut::with_capacity(PREFIX + length);
    put_prefix(&mut wire, length);
    // A growing buffer has room for all of it.
    let _ = message.encode(&mut wire);
    wire.freeze()
}

/// The message, with its prefix, of a chunk that follows [`HEAD`] bytes of room; the message ends with the chunk.
pub fn data_message(mut buffer: Vec<u8>, stream: OutputStream, offset: u64, time_unix_nanos: i64) -> Bytes {
    let length = buffer.len() - HEAD;
    // Two's complement, as on the wire.
    let values = [
        i32::from(stream).unsigned_abs().into(),
        offset,
        time_unix_nanos.cast_unsigned(),
    ];
    let mut fields = BytesMut::with_capacity(HEAD);
    for (tag, value) in FIELDS.into_iter().zip(values).filter(|(_, value)| *value != 0) {
        fields.put_u8(tag);
        encode_varint(value, &mut fields);
    }
    fields.put_u8(FIELDS[3]);
    encode_varint(length as u64, &mut fields);
    let inner = fields.len() + length;
    let mut head = BytesMut::with_capacity(HEAD);
    put_prefix(&mut head, 1 + encoded_len_varint(inner as u64) + inner);
    head.put_u8(DATA);
    encode_varint(inner as u64, &mut head);
    head.put_slice(&fields);
    let from = HEAD - head.len();
    buffer[from..HEAD].copy_from_slice(&head);
    // A buffer that has grown may be twice as large as its content.
    if buffer.capacity() - buffer.len() > length / 4 + HEAD {
        return Bytes::copy_from_slice(&buffer[from..]);
    }
    Bytes::from(buffer).slice(from..)
}

/// The frame of a message with its prefix. It refers to the message's bytes.
///
/// # Errors
/// Bytes that are no such message.
pub fn decode(wire: &Bytes) -> Result<OutputFrame, Status> {
    let message = wire.slice(PREFIX.min(wire.len())..);
    OutputFrame::decode(message).map_err(|error| Status::internal(format!("not an OutputFrame: {error}")))
}

fn put_prefix(wire: &mut BytesMut, length: usize) {
    wire.put_u8(0);
    // Messages are at most a chunk and their head.
    wire.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// Calls a method that answers with a stream of messages.
///
/// # Errors
/// The peer's status, or a failure of the connection.
pub async fn call<S, M>(service: &mut S, path: &str, request: Request<M>) -> Result<(MetadataMap, Messages), Status>
where
    S: GrpcService<Body>,
    S::Error: Into<BoxError>,
    S::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as http_body::Body>::Error: Into<BoxError>,
    M: Message,
{
    let (metadata, extensions, message) = request.into_parts();
    let mut request = http::Request::new(Body::new(Full::new(encode(&message))));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = path
        .parse::<Uri>()
        .map_err(|error| Status::internal(format!("{path}: {error}")))?;
    *request.headers_mut() = metadata.into_headers();
    request.headers_mut().insert(CONTENT_TYPE, GRPC);
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    *request.extensions_mut() = extensions;
    poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let response = service
        .call(request)
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let (parts, body) = response.into_parts();
    match Status::from_header_map(&parts.headers) {
        Some(status) if status.code() != Code::Ok => return Err(status),
        _ if parts.status != http::StatusCode::OK => {
            return Err(Status::unavailable(format!("the answer was {}", parts.status)));
        }
        _ => {}
    }
    Ok((MetadataMap::from_headers(parts.headers), Messages::new(Body::new(body))))
}

/// An incoming stream of messages.
#[derive(Debug)]
pub struct Messages {
    body: Body,
    /// The bytes that come next.
    held: Bytes,
    /// A message that arrived in more than one part.
    partial: BytesMut,
}

impl Messages {
    /// The messages of a body.
    pub fn new(body: Body) -> Self {
        Self {
            body,
            held: Bytes::new(),
            partial: BytesMut::new(),
        }
    }

    /// The next message with its prefix: a slice of what came from the socket if it came in one part. `None` at the
    /// end. Safe to cancel.
    ///
    /// # Errors
    /// The peer's status; a stream that breaks off; a message that is too large or compressed.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return Err(Status::unavailable("the stream broke off"));
            };
            match frame?.into_data() {
                Ok(data) => self.held = data,
                Err(frame) => return self.finish(frame.trailers_ref()),
            }
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if self.partial.is_empty()
            && let Some(length) = length(&self.held)?
            && self.held.len() >= length
        {
            return Ok(Some(self.held.split_to(length)));
        }
        loop {
            let goal = match length(&self.partial)? {
                Some(length) if self.partial.len() == length => return Ok(Some(self.partial.split().freeze())),
                Some(length) => length,
                None => PREFIX,
            };
            if self.held.is_empty() {
                return Ok(None);
            }
            let missing = goal - self.partial.len();
            self.partial.reserve(missing);
            let more = self.held.split_to(missing.min(self.held.len()));
            self.partial.put_slice(&more);
        }
    }

    fn finish(&self, trailers: Option<&HeaderMap>) -> Result<Option<Bytes>, Status> {
        match trailers.and_then(Status::from_header_map) {
            Some(status) if status.code() != Code::Ok => Err(status),
            Some(_) if self.partial.is_empty() => Ok(None),
            _ => Err(Status::unavailable("the stream broke off")),
        }
    }
}

/// Length of the first message with its prefix, if that has arrived.
// tonic's own error type.
fn length(mut from: &[u8]) -> Result<Option<usize>, Status> {
    if from.len() < PREFIX {
        return Ok(None);
    }
    if from.get_u8() != 0 {
        return Err(Status::unimplemented("compressed messages are not taken"));
    }
    let length = from.get_u32() as usize;
    if length > MAX_MESSAGE {
        return Err(Status::out_of_range(format!("a message of {length} bytes")));
    }
    Ok(Some(PREFIX + length))
}

/// The one message of a request.
///
/// # Errors
/// Anything else.
async fn read_request<B, M>(request: http::Request<B>) -> Result<Request<M>, Status>
where
    B: http_body::Body + Send,
    B::Error: Into<BoxError>,
    M: Message + Default,
{
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_MESSAGE).collect().await;
    let mut body = body
        .map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?
        .to_bytes();
    match length(&body)? {
        None => return Err(Status::invalid_argument("a request without a message")),
        Some(length) if length != body.len() => return Err(Status::invalid_argument("one message is expected")),
        Some(_) => body.advance(PREFIX),
    }
    let message = M::decode(body).map_err(|error| Status::invalid_argument(format!("not this request: {error}")))?;
    let metadata = MetadataMap::from_headers(parts.headers);
    Ok(Request::from_parts(metadata, parts.extensions, message))
}

/// The answer of a method whose messages are already encoded: metadata, messages with their prefixes, the status.
fn answer<S>(metadata: MetadataMap, messages: S) -> http::Response<Body>
where
    S: Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static,
{
    let mut response = http::Response::new(Body::new(Answer {
        messages,
        is_over: false,
    }));
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Messages, then the status as trailers.
struct Answer<S> {
    messages: S,
    is_over: bool,
}

impl<S> http_body::Body for Answer<S>
where
    S: Stream<Item = Result<Bytes, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let status = match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::output_frame::Frame as Kind;
    use crate::v1::{Data, executor_server, relay_server};
    use std::collections::VecDeque;

    struct Parts(VecDeque<Frame<Bytes>>);

    impl http_body::Body for Parts {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn messages(parts: impl IntoIterator<Item = Bytes>, status: Option<Status>) -> Messages {
        let mut frames: VecDeque<_> = parts.into_iter().map(Frame::data).collect();
        if let Some(status) = status {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            frames.push_back(Frame::trailers(trailers));
        }
        Messages::new(Body::new(Parts(frames)))
    }

    fn chunk(length: usize, offset: u64) -> (Data, Bytes) {
        let bytes: Vec<u8> = (0..length).map(|index| index as u8).collect();
        let mut buffer = vec![0; HEAD];
        buffer.extend_from_slice(&bytes);
        let wire = data_message(buffer, OutputStream::Stderr, offset, -1);
        let data = Data {
            stream: OutputStream::Stderr.into(),
            offset,
            time_unix_nanos: -1,
            bytes: bytes.into(),
        };
        (data, wire)
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => unreachable!("everything is there"),
        }
    }

    #[test]
    fn the_paths_are_those_of_the_services() {
        let path = |service| format!("/{service}/WatchOutput");
        assert_eq!(EXECUTOR_WATCH_OUTPUT, path(executor_server::SERVICE_NAME));
        assert_eq!(RELAY_WATCH_OUTPUT, path(relay_server::SERVICE_NAME));
    }

    #[test]
    fn messages_come_whole_however_they_were_cut() {
        let sent: Vec<_> = [(3, 0), (0, 3), (70_000, u64::MAX), (1, 9)]
            .map(|(length, offset)| chunk(length, offset))
            .into();
        let whole: Vec<u8> = sent.iter().flat_map(|(_, wire)| wire.to_vec()).collect();
        for size in [1, 4, 5, 6, 7, 64, 1000, 70_010, whole.len()] {
            let parts = whole.chunks(size).map(Bytes::copy_from_slice);
            let mut messages = messages(parts, Some(Status::ok("")));
            for (data, wire) in &sent {
                let got = block_on(messages.next()).unwrap().unwrap();
                assert_eq!(got, wire);
                assert_eq!(decode(&got).unwrap().frame, Some(Kind::Data(data.clone())), "{size}");
            }
            assert_eq!(block_on(messages.next()).unwrap(), None);
        }
    }

    #[test]
    fn a_message_that_came_in_one_part_is_not_copied() {
        let (_, wire) = chunk(1000, 0);
        let mut messages = messages([wire.clone()], None);
        let got = block_on(messages.next()).unwrap().unwrap();
        assert_eq!(got.as_ptr(), wire.as_ptr());
        let Some(Kind::Data(data)) = decode(&got).unwrap().frame else {
            panic!("no data");
        };
        assert_eq!(data.bytes.as_ptr(), wire[wire.len() - 1000..].as_ptr());
    }

    #[test]
    fn an_end_without_a_word_is_none() {
        let (_, wire) = chunk(1000, 0);
        let next = |parts: &[Bytes], status| block_on(messages(parts.to_vec(), status).next());
        assert_eq!(next(&[], None).unwrap_err().code(), Code::Unavailable);
        let cut = wire.slice(..500);
        assert_eq!(
            next(std::slice::from_ref(&cut), Some(Status::ok("")))
                .unwrap_err()
                .code(),
            Code::Unavailable
        );
        assert_eq!(
            next(&[cut], Some(Status::aborted("moved"))).unwrap_err().code(),
            Code::Aborted
        );
        let large = Bytes::from_static(&[0, 0xff, 0, 0, 0]);
        assert_eq!(next(&[large], None).unwrap_err().code(), Code::OutOfRange);
        let compressed = Bytes::from_static(&[1, 0, 0, 0, 1, 0]);
        assert_eq!(next(&[compressed], None).unwrap_err().code(), Code::Unimplemented);
    }
}
