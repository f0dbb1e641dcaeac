//! The relay's service on the wire: tonic's, but for `WatchOutput`, whose messages are encoded before they come here and
//! go out as they are, shared by all who read them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, Limited};
use prost::Message;
use remoteprocess_proto::MAX_MESSAGE;
use remoteprocess_proto::v1::WatchOutputRequest;
use remoteprocess_proto::v1::relay_server::{RelayServer, SERVICE_NAME};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use tower::Service;

use super::RelayService;

/// Messages up to this size are put together: each piece of a body costs a frame of HTTP/2.
const TINY: usize = 2048;
/// Bytes of tiny messages in one.
const PACK: usize = 16 * 1024;

/// Method of [`SERVICE_NAME`].
const WATCH_OUTPUT: &str = "WatchOutput";

/// Serves every method of the relay. Cheap to clone.
#[derive(Clone)]
pub struct RelayEndpoint {
    service: RelayService,
    tonic: RelayServer<RelayService>,
}

/// Encoded messages; or why the stream is over.
pub(super) type Batch = Result<Vec<Bytes>, Status>;

/// What `WatchOutput` answers: metadata, then messages.
pub(super) type Output = (MetadataMap, mpsc::Receiver<Batch>);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl RelayEndpoint {
    pub(super) fn new(service: RelayService) -> Self {
        Self {
            tonic: RelayServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE),
            service,
        }
    }
}

impl<B> Service<http::Request<B>> for RelayEndpoint
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if !is_watch_output(request.uri().path()) {
            return self.tonic.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move {
            let output = match read(request).await {
                Ok(request) => service.output(request).await,
                Err(status) => Err(status),
            };
            Ok(match output {
                Ok((metadata, batches)) => answer(metadata, batches),
                Err(status) => status.into_http(),
            })
        })
    }
}

fn is_watch_output(path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME));
    method.and_then(|method| method.strip_prefix('/')) == Some(WATCH_OUTPUT)
}

/// The one message of a request.
async fn read<B>(request: http::Request<B>) -> Result<Request<WatchOutputRequest>, Status>
where
    B: http_body::Body + Send,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_MESSAGE).collect().await;
    let mut body = body
        .map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?
        .to_bytes();
    if body.len() < 5 {
        return Err(Status::invalid_argument("a request without a message"));
    }
    if body.get_u8() != 0 {
        return Err(Status::unimplemented("compressed messages are not taken"));
    }
    if body.get_u32() as usize != body.len() {
        return Err(Status::invalid_argument("one message is expected"));
    }
    let message = WatchOutputRequest::decode(body)
        .map_err(|error| Status::invalid_argument(format!("not a WatchOutputRequest: {error}")))?;
    let metadata = MetadataMap::from_headers(parts.headers);
    Ok(Request::from_parts(metadata, parts.extensions, message))
}

fn answer(metadata: MetadataMap, batches: mpsc::Receiver<Batch>) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(OutputBody {
        batches,
        ready: VecDeque::new(),
        is_over: false,
    }));
    *response.headers_mut() = metadata.into_headers();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Messages, then the status as trailers.
struct OutputBody {
    batches: mpsc::Receiver<Batch>,
    ready: VecDeque<Bytes>,
    is_over: bool,
}

impl http_body::Body for OutputBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(wire) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(wire))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let status = match ready!(self.batches.poll_recv(cx)) {
                Some(Ok(batch)) => {
                    self.ready = pack(batch);
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over && self.ready.is_empty()
    }
}

/// Puts tiny messages together.
fn pack(wires: Vec<Bytes>) -> VecDeque<Bytes> {
    let mut packed = VecDeque::with_capacity(wires.len());
    let mut tiny = BytesMut::new();
    let mut wires = wires.into_iter().peekable();
    while let Some(wire) = wires.next() {
        let is_alone = tiny.is_empty() && wires.peek().is_none_or(|next| next.len() > TINY);
        if wire.len() > TINY || is_alone {
            if !tiny.is_empty() {
                packed.push_back(tiny.split().freeze());
            }
            packed.push_back(wire);
            continue;
        }
        tiny.extend_from_slice(&wire);
        if tiny.len() >= PACK {
            packed.push_back(tiny.split().freeze());
        }
    }
    if !tiny.is_empty() {
        packed.push_back(tiny.freeze());
    }
    packed
}
