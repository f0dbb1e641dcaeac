//! gRPC: the face of the relay for users, agents and other replicas, and the calls that the relay itself makes.
//!
//! A method of the service consists of [`admit`] (who calls, and is the version of the protocol supported), one use
//! case of [`super::core`], and the encoding of the answer. No other folder of the relay names tonic. The other
//! face, [`super::http`], calls the same use cases.

pub mod agent;
mod attach;
mod brief;
pub(super) mod caller;
mod endpoint;
mod error;
mod exec;
pub mod frames;
mod guard;
mod interactive;
pub(crate) mod methods;
pub mod peers;
mod requests;
mod standard;

use std::sync::Arc;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::relay_server::Relay;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, AttachResponse, ExecOpen, ExecRequest, ExecResponse, GetStateRequest, GetStateResponse,
    ListRequest, ListResponse, OutputFrame, SignalRequest, SignalResponse, StartRequest, StartResponse, StopRequest,
    StopResponse, WatchOutputRequest,
};
use tonic::{Request, Response, Status, Streaming};

pub use endpoint::RelayEndpoint;
pub(super) use endpoint::pack;
pub use guard::Guard;

use super::calls::CallLimit;
use super::core::Core;
use super::error::Error;
use caller::Who;
use methods::Opens;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct RelayService {
    core: Arc<Core>,
}

impl RelayService {
    /// The gRPC face of these use cases.
    #[must_use]
    pub fn new(core: impl Into<Arc<Core>>) -> Self {
        Self { core: core.into() }
    }

    /// The service for a listener.
    #[must_use]
    pub fn into_server(self) -> Guard<RelayEndpoint> {
        self.limited(CallLimit::default())
    }

    /// As [`Self::into_server`]; users share this limit with another face.
    pub(super) fn limited(self, limit: CallLimit) -> Guard<RelayEndpoint> {
        Guard::new(endpoint::endpoint(self), limit)
    }
}

/// The caller and the request, if both are valid.
fn admit<T: Opens>(request: Request<T>) -> Result<(T::Caller, T), Status> {
    let caller = T::Caller::of(&request)?;
    let request = request.into_inner();
    check_protocol(&request)?;
    Ok((caller, request))
}

/// Versions that differ from ours by at most one are supported.
fn check_protocol(request: &impl Opens) -> Result<(), Error> {
    remoteprocess_proto::check_protocol(request.protocol())
        .map_err(|error| Error::failed_precondition(error.to_string()))
}

#[tonic::async_trait]
impl Relay for RelayService {
    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let (agent, request) = admit(request)?;
        Ok(Response::new(self.core.start(agent, request).await?))
    }

    async fn get_state(&self, request: Request<GetStateRequest>) -> Result<Response<GetStateResponse>, Status> {
        let (caller, request) = admit(request)?;
        let process = self.core.state(&caller, request.process).await?;
        Ok(Response::new(GetStateResponse {
            protocol: PROTOCOL,
            process: Some(process),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (user, request) = admit(request)?;
        let processes = self.core.list(&user, &request.namespace).await?;
        Ok(Response::new(ListResponse {
            protocol: PROTOCOL,
            processes,
        }))
    }

    type WatchOutputStream = tokio_stream::Empty<Result<OutputFrame, Status>>;

    /// [`RelayEndpoint`] answers this method before tonic sees it.
    async fn watch_output(&self, _: Request<WatchOutputRequest>) -> Result<Response<Self::WatchOutputStream>, Status> {
        Err(Status::unimplemented("WatchOutput is answered elsewhere"))
    }

    type AttachStream = interactive::Answers<AttachResponse>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        interactive::open::<AttachOpen>(self.core.clone(), request)
            .await
            .map(Response::new)
    }

    type ExecStream = interactive::Answers<ExecResponse>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        interactive::open::<ExecOpen>(self.core.clone(), request)
            .await
            .map(Response::new)
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        let (caller, request) = admit(request)?;
        self.core.signal(&caller, request).await?;
        Ok(Response::new(SignalResponse {}))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let (caller, request) = admit(request)?;
        self.core.stop(&caller, request).await?;
        Ok(Response::new(StopResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_one_away_are_served_and_no_others() {
        for (protocol, is_served) in [
            (PROTOCOL - 1, true),
            (PROTOCOL, true),
            (PROTOCOL + 1, true),
            (PROTOCOL + 2, false),
        ] {
            let request = StopRequest {
                protocol,
                ..StopRequest::default()
            };
            assert_eq!(check_protocol(&request).is_ok(), is_served, "{protocol}");
        }
    }
}
