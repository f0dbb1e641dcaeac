//! The gRPC service of the main listener: role, rights, call.

mod attach;
mod control;
mod ended;
mod endpoint;
mod exec;
mod interactive;
mod output;
mod replica;
mod start;
mod state;
mod watched;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use remoteprocess_api::{RemoteProcess, identifier};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::relay_server::Relay;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, AttachResponse, ExecOpen, ExecRequest, ExecResponse, GetStateRequest, GetStateResponse,
    ListRequest, ListResponse, OutputFrame, ProcessKey, SignalRequest, SignalResponse, StartRequest, StartResponse,
    StopRequest, StopResponse, WatchOutputRequest,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::warn;

use endpoint::Batch;
pub use endpoint::RelayEndpoint;

use super::archive::{Archive, AttemptKey};
use super::authorize::{self, Action, Authorizer, Caller};
use super::directory::Directory;
use super::peers::{ATTEMPT, on_behalf};
use super::record::Recorder;
use super::session::Sessions;

/// Metadata of an answer to `WatchOutput`: the object's uid.
const UID: &str = "rproc-uid";
/// How often the right to an open stream is asked for again.
const RECHECK: Duration = Duration::from_secs(60);

/// What every call needs.
pub struct RelayParts {
    /// Which processes exist.
    pub directory: Directory,
    /// Which of them are live here.
    pub sessions: Sessions,
    /// What was archived of them.
    pub archive: Archive,
    /// Who may do what.
    pub authorizer: Authorizer,
    /// Writes grants.
    pub recorder: Recorder,
    /// Ends streams, so that their readers go on at another replica.
    pub shutdown: CancellationToken,
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct RelayService {
    parts: Arc<RelayParts>,
}

/// A process that was found and may be worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    namespace: String,
    name: String,
    uid: String,
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

impl RelayParts {
    /// Finds the process that a user means and asks whether the user may do this with it. Somebody without the right
    /// does not learn whether the process exists.
    async fn allow(
        &self,
        user: &remoteprocess_tls::User,
        action: Action,
        key: Option<ProcessKey>,
    ) -> Result<Target, Status> {
        let key = key.unwrap_or_default();
        if key.uid.is_empty() && (key.name.is_empty() || key.namespace.is_empty()) {
            return Err(Status::invalid_argument(
                "give the process's namespace and name, or its uid",
            ));
        }
        check_key(&key)?;
        if key.uid.is_empty() || !key.namespace.is_empty() {
            self.authorizer
                .authorize(user, action, &key.namespace, &key.name)
                .await?;
        }
        let missing = || Status::not_found(not_found(&key));
        let target = self.find(&key).await?.ok_or_else(missing)?;
        if target.namespace != key.namespace || target.name != key.name {
            self.authorizer
                .authorize(user, action, &target.namespace, &target.name)
                .await?;
        }
        Ok(target)
    }

    /// Asks again whether the caller of an open stream may go on with it.
    async fn check(&self, caller: &Caller, action: Action, target: &Target) -> Result<(), Status> {
        let Caller::User(user) = caller else {
            return Ok(());
        };
        let authorizer = &self.authorizer;
        match authorizer
            .authorize(user, action, &target.namespace, &target.name)
            .await
        {
            // The API server away is no reason to cut a stream that it allowed.
            Err(status) if status.code() == Code::PermissionDenied => Err(status),
            _ => Ok(()),
        }
    }

    async fn find(&self, key: &ProcessKey) -> Result<Option<Target>, Status> {
        if key.uid.is_empty() {
            let found = self.directory.get(&key.namespace, &key.name);
            return Ok(found.as_deref().and_then(Target::of));
        }
        let found = match self.directory.by_uid(&key.uid) {
            Some(process) => Target::of(&process),
            None => self.find_archived(&key.uid).await?,
        };
        let fits = |target: &Target| {
            (key.name.is_empty() || key.name == target.name)
                && (key.namespace.is_empty() || key.namespace == target.namespace)
        };
        Ok(found.filter(fits))
    }

    async fn find_archived(&self, uid: &str) -> Result<Option<Target>, Status> {
        let attempts = self.archive.attempts(uid).await.map_err(|error| unreadable(&error))?;
        let Some(attempt) = attempts.last() else {
            return Ok(None);
        };
        let key = AttemptKey {
            uid: uid.to_owned(),
            attempt: *attempt,
        };
        let manifest = self.archive.manifest(&key).await.map_err(|error| unreadable(&error))?;
        Ok(manifest.map(|manifest| Target {
            namespace: manifest.namespace,
            name: manifest.name,
            uid: manifest.uid,
        }))
    }

    /// An attempt that was never made has no output to wait for.
    async fn check_attempt(&self, target: &Target, attempt: u32) -> Result<(), Status> {
        let made = match self.object(target) {
            Some(process) => process
                .status
                .as_ref()
                .and_then(|status| status.attempt)
                .unwrap_or_default(),
            None => {
                let attempts = self
                    .archive
                    .attempts(&target.uid)
                    .await
                    .map_err(|error| unreadable(&error))?;
                attempts.last().copied().unwrap_or_default()
            }
        };
        if attempt <= made {
            return Ok(());
        }
        Err(Status::not_found(format!(
            "there is no attempt {attempt}; the latest is {made}"
        )))
    }

    /// The latest attempt, once it is the one that a stream is of: it was granted, or nothing comes after it. One that
    /// has run nothing may be replaced by another (its pod was deleted while it waited, say).
    fn settled(&self, target: &Target) -> Option<u32> {
        let process = self.object(target)?;
        let status = process.status.as_ref()?;
        let attempt = status.attempt(status.attempt?)?;
        (attempt.granted_at.is_some() || process.is_final()).then_some(attempt.number)
    }

    /// Whether another attempt may still come.
    fn may_go_on(&self, target: &Target) -> bool {
        self.object(target).is_some_and(|process| !process.is_final())
    }

    fn object(&self, target: &Target) -> Option<Arc<RemoteProcess>> {
        self.directory.by_uid(&target.uid)
    }
}

impl Target {
    fn of(process: &RemoteProcess) -> Option<Self> {
        Some(Self {
            namespace: process.namespace()?,
            name: process.name_any(),
            uid: process.uid()?,
        })
    }
}

/// Each part of a key is empty or what the Kubernetes API takes for one. So it has a bound, and nobody is asked about it.
fn check_key(key: &ProcessKey) -> Result<(), Status> {
    let parts = [
        (
            "namespace",
            &key.namespace,
            identifier::is_namespace as fn(&str) -> bool,
        ),
        ("name", &key.name, identifier::is_name),
        ("uid", &key.uid, identifier::is_uid),
    ];
    match parts.into_iter().find(|(_, text, is)| !text.is_empty() && !is(text)) {
        None => Ok(()),
        Some((what, ..)) => Err(Status::invalid_argument(format!("no process can have this {what}"))),
    }
}

fn not_found(key: &ProcessKey) -> String {
    if key.uid.is_empty() {
        format!("there is no RemoteProcess {} in namespace {}", key.name, key.namespace)
    } else {
        "there is no RemoteProcess with this uid, and nothing of it in the archive".to_owned()
    }
}

/// The chain goes to the log, a sentence to the peer.
fn unreadable(error: &super::archive::Error) -> Status {
    match error {
        super::archive::Error::Uid => Status::invalid_argument(error.to_string()),
        other => {
            warn!(error = %other, "the archive cannot be read");
            Status::unavailable("the archive cannot be read now")
        }
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
        let request = request.into_inner();
        check_protocol(request.protocol)?;
        self.parts.start(namespace, pod_uid, request).await.map(Response::new)
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
