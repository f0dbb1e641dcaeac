//! The executor on the wire. `WatchOutput` sends the messages that the spool encoded; only the operator is served.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::Extensions;
use remoteprocess_proto::v1::ExecutorWatchOutputRequest;
use remoteprocess_proto::v1::executor_server::ExecutorServer;
use remoteprocess_proto::wire::{EXECUTOR_WATCH_OUTPUT, Endpoint, WatchOutput};
use remoteprocess_tls::{PeerIdentity, Role};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::ExecutorService;

/// Serves every method of the agent. Cheap to clone.
pub type ExecutorEndpoint = Endpoint<ExecutorService, ExecutorServer<ExecutorService>>;

pub(super) fn endpoint(service: ExecutorService) -> ExecutorEndpoint {
    Endpoint::new(service.clone(), ExecutorServer::new(service))
}

impl WatchOutput for ExecutorService {
    const PATH: &'static str = EXECUTOR_WATCH_OUTPUT;
    type Request = ExecutorWatchOutputRequest;
    type Messages = BoxStream<'static, Result<Bytes, Status>>;

    fn admit(&self, connection: &Extensions) -> Result<(), Status> {
        match connection.get::<Arc<PeerIdentity>>() {
            Some(peer) if peer.role == Role::Operator => Ok(()),
            Some(_) => Err(Status::permission_denied("only the operator may call an agent")),
            None => Err(Status::unauthenticated("a client certificate is required")),
        }
    }

    async fn watch_output(
        &self,
        request: Request<ExecutorWatchOutputRequest>,
    ) -> Result<(MetadataMap, Self::Messages), Status> {
        let output = self.output(request.into_inner())?;
        Ok((MetadataMap::new(), output.into_stream().boxed()))
    }
}
