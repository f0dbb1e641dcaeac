//! Calls to the other replicas: any of them may be the home of an attempt that is read or controlled here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
pub(super) use remoteprocess_proto::metadata::{ATTEMPT, ON_BEHALF};
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{
    Cursor, GetStateRequest, ProcessKey, ProcessState, SignalRequest, StopRequest, WatchOutputRequest,
};
use remoteprocess_proto::wire::RELAY_WATCH_OUTPUT;
use remoteprocess_proto::{MAX_MESSAGE, PROTOCOL};
use remoteprocess_tls::{Dialer, Role};
use tokio::time::timeout;
use tonic::Request;
use tonic::metadata::BinaryMetadataValue;
use tonic::transport::Channel;
use tracing::debug;

use super::frames::Frames;

use crate::relay::attempt::AttemptKey;
use crate::relay::error::Error;

/// Time limit for the question which replica is the home of a process.
const ASK: Duration = Duration::from_secs(2);
/// Time limit for a connection to a home, and for its first answer.
const OPEN: Duration = Duration::from_secs(5);

/// Returns the current addresses of the replicas; this one may be among them.
pub type Resolve = Arc<dyn Fn() -> BoxFuture<'static, Vec<SocketAddr>> + Send + Sync>;

/// Connects to the other replicas, each of which must have the operator's role. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    dialer: Dialer,
    resolve: Resolve,
    channels: Arc<Mutex<HashMap<SocketAddr, Channel>>>,
}

/// The replica that is the home of a process.
pub struct Home {
    /// The state that it reported.
    pub state: ProcessState,
    key: AttemptKey,
    address: SocketAddr,
    /// For short calls.
    client: RelayClient<Channel>,
}

impl Peers {
    /// The replicas that `resolve` finds.
    pub fn new(dialer: Dialer, resolve: Resolve) -> Self {
        Self {
            dialer,
            resolve,
            channels: Arc::default(),
        }
    }

    /// The replicas at the addresses of a DNS name (`host:port`); none without a name.
    pub fn by_name(dialer: Dialer, name: Option<String>) -> Self {
        let resolve = move || -> BoxFuture<'static, Vec<SocketAddr>> {
            let name = name.clone();
            Box::pin(async move {
                let Some(name) = name else { return Vec::new() };
                match tokio::net::lookup_host(&name).await {
                    Ok(found) => found.collect(),
                    Err(error) => {
                        debug!(name, %error, "the other replicas are not found");
                        Vec::new()
                    }
                }
            })
        };
        Self::new(dialer, Arc::new(resolve))
    }

    /// Asks all replicas at once which of them is the home of an attempt.
    pub async fn home_of(&self, key: &AttemptKey) -> Option<Home> {
        let mut answers: FuturesUnordered<_> = self
            .clients(&(self.resolve)().await)
            .into_iter()
            .map(|(address, client)| ask(address, client, key))
            .collect();
        let first = async {
            while let Some(answer) = answers.next().await {
                if answer.is_some() {
                    return answer;
                }
            }
            None
        };
        timeout(ASK, first).await.ok().flatten()
    }

    /// The output of a home's attempt from `cursor` on.
    pub async fn watch_output(&self, home: &Home, cursor: Cursor) -> Result<Frames, Error> {
        let request = WatchOutputRequest {
            protocol: PROTOCOL,
            process: Some(process(&home.key)),
            attempt: home.key.attempt,
            cursor: Some(cursor),
            follow: true,
            ..WatchOutputRequest::default()
        };
        let channel = self.dial(home).await?;
        let opened = Frames::open(channel, RELAY_WATCH_OUTPUT, forward(&home.key, "", request));
        timeout(OPEN, opened).await.unwrap_or_else(|_| Err(silent()))
    }

    /// A client with a connection of its own to a home, for a stream: the number of calls on a shared one is limited.
    pub(super) async fn connect(&self, home: &Home) -> Result<RelayClient<Channel>, Error> {
        let channel = self.dial(home).await?;
        Ok(RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    async fn dial(&self, home: &Home) -> Result<Channel, Error> {
        let address = home.address.to_string();
        match timeout(OPEN, self.dialer.connect(&address, &Role::Operator)).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => {
                debug!(address, %error, "cannot connect to the home");
                Err(unreachable())
            }
            Err(_) => Err(unreachable()),
        }
    }

    fn clients(&self, addresses: &[SocketAddr]) -> Vec<(SocketAddr, RelayClient<Channel>)> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|address, _| addresses.contains(address));
        for address in addresses {
            if !channels.contains_key(address)
                && let Ok(channel) = self.dialer.connect_lazy(&address.to_string(), &Role::Operator)
            {
                channels.insert(*address, channel);
            }
        }
        let client = |(address, channel): (&SocketAddr, &Channel)| (*address, RelayClient::new(channel.clone()));
        channels.iter().map(client).collect()
    }
}

impl Home {
    /// Signals the process for a user who was already authorized.
    pub async fn signal(&mut self, user: &str, request: SignalRequest) -> Result<(), Error> {
        let process = Some(process(&self.key));
        let request = forward(&self.key, user, SignalRequest { process, ..request });
        Ok(self.client.signal(request).await.map(drop)?)
    }

    /// Stops the process for a user who was already authorized.
    pub async fn stop(&mut self, user: &str, request: StopRequest) -> Result<(), Error> {
        let process = Some(process(&self.key));
        let request = forward(&self.key, user, StopRequest { process, ..request });
        Ok(self.client.stop(request).await.map(drop)?)
    }
}

fn unreachable() -> Error {
    Error::unavailable("the home of the process cannot be reached now")
}

pub(super) fn silent() -> Error {
    Error::unavailable("the home of the process does not answer")
}

async fn ask(address: SocketAddr, mut client: RelayClient<Channel>, key: &AttemptKey) -> Option<Home> {
    let request = forward(
        key,
        "",
        GetStateRequest {
            protocol: PROTOCOL,
            process: Some(process(key)),
        },
    );
    match client.get_state(request).await {
        Ok(answer) => Some(Home {
            state: answer.into_inner().process?,
            key: key.clone(),
            address,
            client,
        }),
        Err(status) => {
            debug!(%address, uid = key.uid, %status, "not the home");
            None
        }
    }
}

/// The process of an attempt, by its uid.
pub(super) fn process(key: &AttemptKey) -> ProcessKey {
    ProcessKey {
        uid: key.uid.clone(),
        ..ProcessKey::default()
    }
}

/// A request to the home of an attempt, on behalf of a user (empty: of no user).
pub(super) fn forward<T>(key: &AttemptKey, user: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(ATTEMPT, key.attempt.into());
    metadata.insert_bin(ON_BEHALF, BinaryMetadataValue::from_bytes(user.as_bytes()));
    request
}
