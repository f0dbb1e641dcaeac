//! The gRPC service of the main listener: role, rights, call.

mod attach;
mod endpoint;
mod exec;
mod interactive;
pub mod peers;
mod replica;

use std::sync::Arc;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::relay_server::Relay;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, AttachResponse, ExecOpen, ExecRequest, ExecResponse, GetStateRequest, GetStateResponse,
    ListRequest, ListResponse, OutputFrame, ProcessKey, SignalRequest, SignalResponse, StartRequest, StartResponse,
    StopRequest, StopResponse, WatchOutputRequest,
};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use endpoint::Batch;
pub use endpoint::RelayEndpoint;

use super::core::authorize::{self, Action, Caller};
use super::core::{RelayParts, Target, check_key, control, output, watched};
use peers::{ATTEMPT, on_behalf};

/// Metadata of an answer to `WatchOutput`: the object's uid.
const UID: &str = "rproc-uid";

/// The service; cheap to clone.
#[derive(Clone)]
pub struct RelayService {
    parts: Arc<RelayParts>,
}

impl RelayService {
    /// A service over these parts.
    #[must_use]
    pub fn new(parts: RelayParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// The service for a listener.
    #[must_use]
    pub fn into_server(self) -> RelayEndpoint {
        endpoint::endpoint(self)
    }

    async fn output(
        &self,
        request: Request<WatchOutputRequest>,
    ) -> Result<(MetadataMap, mpsc::Receiver<Batch>), Status> {
        let caller = authorize::caller(&request)?;
        let (metadata, _, request) = request.into_parts();
        check_protocol(request.protocol)?;
        let parts = &self.parts;
        let target = match &caller {
            Caller::User(user) => {
                let target = parts.allow(user, Action::Log, request.process.clone()).await?;
                parts.check_attempt(&target, request.attempt).await?;
                target
            }
            Caller::Replica => Target::of_session(&*parts.at_home(&metadata, request.process.clone())?),
        };
        let attempt = match request.attempt {
            0 => parts.settled(&target),
            named => Some(named),
        };
        let mut metadata = MetadataMap::new();
        if let Ok(uid) = target.uid.parse() {
            metadata.insert(UID, uid);
        }
        if let Some(attempt) = attempt {
            metadata.insert(ATTEMPT, attempt.into());
        }
        let batches = output::watch(parts.clone(), caller, target, attempt, &request);
        Ok((metadata, batches))
    }
}

/// Versions one away from ours are served.
fn check_protocol(protocol: u32) -> Result<(), Status> {
    if protocol.abs_diff(PROTOCOL) <= 1 {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "this operator speaks version {PROTOCOL} of the wire, not {protocol}"
    )))
}

#[tonic::async_trait]
impl Relay for RelayService {
    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let (namespace, pod_uid) = authorize::agent(&request)?;
        let source = request.remote_addr().map(|address| address.ip());
        let request = request.into_inner();
        check_protocol(request.protocol)?;
        let started = self.parts.start(namespace, pod_uid, source, request).await;
        started.map(Response::new)
    }

    async fn get_state(&self, request: Request<GetStateRequest>) -> Result<Response<GetStateResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let (metadata, _, request) = request.into_parts();
        check_protocol(request.protocol)?;
        let process = match caller {
            Caller::User(user) => {
                let target = self.parts.allow(&user, Action::Get, request.process).await?;
                self.parts.state(&target).await?
            }
            Caller::Replica => {
                let session = self.parts.at_home(&metadata, request.process)?;
                self.parts.state_at_home(&session)
            }
        };
        Ok(Response::new(GetStateResponse {
            protocol: PROTOCOL,
            process: Some(process),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let user = authorize::user(&request)?;
        let request = request.into_inner();
        check_protocol(request.protocol)?;
        let namespace = request.namespace.clone();
        check_key(&ProcessKey {
            namespace,
            ..ProcessKey::default()
        })?;
        self.parts
            .authorizer
            .authorize(&user, Action::List, &request.namespace, "")
            .await?;
        let processes = self.parts.list(&request.namespace);
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

    type AttachStream = watched::Answers<AttachResponse>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let caller = authorize::caller(&request)?;
        let (metadata, _, requests) = request.into_parts();
        let answers = interactive::open::<AttachOpen>(self.parts.clone(), caller, &metadata, requests).await?;
        Ok(Response::new(answers))
    }

    type ExecStream = watched::Answers<ExecResponse>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let caller = authorize::caller(&request)?;
        let (metadata, _, requests) = request.into_parts();
        let answers = interactive::open::<ExecOpen>(self.parts.clone(), caller, &metadata, requests).await?;
        Ok(Response::new(answers))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let (metadata, _, request) = request.into_parts();
        match caller {
            Caller::User(user) => {
                let process = request.process.clone();
                let target = self.parts.allow(&user, Action::Signal, process).await?;
                self.parts.signal(&user, &target, request).await?;
            }
            Caller::Replica => {
                let session = self.parts.at_home(&metadata, request.process.clone())?;
                control::signal_here(&session, request).await?;
            }
        }
        Ok(Response::new(SignalResponse {}))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let (metadata, _, request) = request.into_parts();
        match caller {
            Caller::User(user) => {
                let process = request.process.clone();
                let target = self.parts.allow(&user, Action::Signal, process).await?;
                self.parts.stop(&user, &target, request).await?;
            }
            Caller::Replica => {
                let session = self.parts.at_home(&metadata, request.process.clone())?;
                control::stop_here(&session, &on_behalf(&metadata), request).await?;
            }
        }
        Ok(Response::new(StopResponse {}))
    }
}
