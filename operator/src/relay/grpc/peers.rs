//! The other replicas: any of them may be the home of a process that somebody follows here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{GetStateRequest, ProcessKey, ProcessState};
use remoteprocess_proto::{MAX_MESSAGE, PROTOCOL};
use remoteprocess_tls::{Dialer, Role};
use tokio::time::timeout;
use tonic::Request;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tracing::debug;

use crate::relay::attempt::AttemptKey;

/// Metadata: the attempt that is meant, or that was answered for.
pub const ATTEMPT: &str = "rproc-attempt";
/// Metadata from replica to replica: the user who asked, as UTF-8.
pub const ON_BEHALF: &str = "rproc-on-behalf-bin";
/// Time for the question who is a process's home.
const ASK: Duration = Duration::from_secs(2);

/// Where the other replicas are now; this one may be among them.
pub type Resolve = Arc<dyn Fn() -> BoxFuture<'static, Vec<SocketAddr>> + Send + Sync>;

/// Reaches the other replicas, each of which must have the operator's role. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    dialer: Dialer,
    resolve: Resolve,
    channels: Arc<Mutex<HashMap<SocketAddr, Channel>>>,
}

/// The replica that is a process's home.
pub struct Home {
    /// What it said of the process.
    pub state: ProcessState,
    address: SocketAddr,
    /// For short calls.
    pub client: RelayClient<Channel>,
}

impl Peers {
    /// The replicas that `resolve` finds.
    #[must_use]
    pub fn new(dialer: Dialer, resolve: Resolve) -> Self {
        Self {
            dialer,
            resolve,
            channels: Arc::default(),
        }
    }

    /// The replicas at the addresses that a DNS name (`host:port`) has; none without a name.
    #[must_use]
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

    /// Asks all at once which of them is the home of an attempt.
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

    /// A connection of its own to a home, for a stream: calls that share one are limited in number.
    pub async fn connect(&self, home: &Home) -> Result<RelayClient<Channel>, remoteprocess_tls::Error> {
        let channel = self.dialer.connect(&home.address.to_string(), &Role::Operator).await?;
        Ok(RelayClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
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
#[must_use]
pub fn process(key: &AttemptKey) -> ProcessKey {
    ProcessKey {
        uid: key.uid.clone(),
        ..ProcessKey::default()
    }
}

/// A request to the home of an attempt, on behalf of a user (empty: of nobody).
pub fn forward<T>(key: &AttemptKey, user: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(ATTEMPT, key.attempt.into());
    metadata.insert_bin(ON_BEHALF, BinaryMetadataValue::from_bytes(user.as_bytes()));
    request
}

/// The user on whose behalf a replica asks; empty where it names none.
#[must_use]
pub fn on_behalf(metadata: &MetadataMap) -> String {
    let named = metadata.get_bin(ON_BEHALF).and_then(|value| value.to_bytes().ok());
    named
        .map(|name| String::from_utf8_lossy(&name).into_owned())
        .unwrap_or_default()
}
