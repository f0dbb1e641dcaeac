//! The home: the relay that watches, archives and commits. This makes sure that there is one.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{StartRequest, StartResponse};
use remoteprocess_tls::{Dialer, Identity, Role};
use tokio::sync::watch;

use crate::args::Config;
use crate::backoff::Backoff;
use crate::enroll::Enrollment;
use crate::process::Process;
use crate::process::machine::Phase;
use crate::process::settings::LaunchSettings;

/// How long a relay that has answered `Start` has to open its stream.
const OPENING: Duration = Duration::from_secs(3);
/// How long another home may take to come by itself after one has gone.
const SUCCESSION: Duration = Duration::from_millis(300);
/// Limit of one `Start`: the relay writes to the API server first.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Which home there is. A later one ends an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Home {
    /// Number of homes that there have been so far.
    pub generation: u64,
    /// The stream of the latest home is open.
    pub is_present: bool,
}

/// Tracks the home of this attempt. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Homes {
    current: watch::Sender<Home>,
}

impl Default for Homes {
    fn default() -> Self {
        Self {
            current: watch::Sender::new(Home::default()),
        }
    }
}

impl Homes {
    /// A new home opens its stream; it is the current home until the guard is dropped or the next one comes.
    pub fn open_stream(&self) -> HomeStream {
        let mut generation = 0;
        self.current.send_modify(|home| {
            home.generation += 1;
            home.is_present = true;
            generation = home.generation;
        });
        HomeStream {
            homes: self.clone(),
            generation,
        }
    }

    /// The current home, as it changes.
    pub fn watch(&self) -> watch::Receiver<Home> {
        self.current.subscribe()
    }
}

/// The open stream of one home.
#[derive(Debug)]
pub struct HomeStream {
    homes: Homes,
    generation: u64,
}

impl HomeStream {
    /// Waits until a later home has opened its stream.
    pub async fn superseded(&self) {
        let mut current = self.homes.watch();
        // The sender lives in `homes`.
        let _ = current.wait_for(|home| home.generation > self.generation).await;
    }
}

impl Drop for HomeStream {
    fn drop(&mut self) {
        self.homes.current.send_if_modified(|home| {
            let is_mine = home.generation == self.generation && home.is_present;
            home.is_present &= !is_mine;
            is_mine
        });
    }
}

/// Why there is no start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the relay.
    #[error("TLS with the relay")]
    Tls(#[from] remoteprocess_tls::Error),
    /// The relay answered with an error.
    #[error("the relay refuses: {}", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// The relay does not answer.
    #[error("the relay did not answer in time")]
    Timeout,
}

/// The way to a relay.
pub trait Ask: Send + Sync {
    /// Asks for the start, or (`launched`) for a home.
    fn start(&self, launched: bool) -> impl Future<Output = Result<StartResponse, Error>> + Send;

    /// After a start that failed: the relay may be another installation's, with another CA or without memory of this
    /// certificate.
    fn renew(&self) -> impl Future<Output = ()> + Send;
}

/// A relay over the network, as the pod's specification names it.
pub struct Relay {
    /// Which process, and where the relay is.
    pub config: Arc<Config>,
    /// Where this agent listens, `host:port`.
    pub address: String,
    /// Obtains certificates.
    pub enrollment: Arc<Enrollment>,
    /// The certificate.
    pub identity: Arc<Identity>,
    /// When this agent began to run.
    pub began: SystemTime,
    /// When the entrypoint was there: the first start is requested then.
    pub entrypoint_connected: OnceLock<SystemTime>,
}

/// Asks for the start when the entrypoint is there, and for a new home whenever there is none. Never returns.
pub async fn keep(relay: impl Ask, process: Process, homes: Homes) {
    let mut status = process.status();
    let mut home = homes.watch();
    let mut backoff = Backoff::default();
    loop {
        // The sender lives as long as the process.
        let _ = status.wait_for(|status| status.phase != Phase::Waiting).await;
        let launched = process.status().borrow().facts.launch.is_some();
        let seen = home.borrow_and_update().generation;
        match relay.start(launched).await {
            Ok(StartResponse {
                granted: true,
                settings,
                ..
            }) => {
                // An agent that has launched keeps the settings of its launch.
                let granted = (!launched).then(|| LaunchSettings::from_grant(settings)).transpose();
                match granted {
                    Ok(settings) => settings.into_iter().for_each(|settings| process.grant(settings)),
                    Err(error) => {
                        tracing::error!(%error, "the start is granted, and the program cannot be launched");
                        backoff.wait().await;
                        continue;
                    }
                }
                if has_come(&mut home, seen, OPENING).await {
                    backoff = Backoff::default();
                    stay(&mut home).await;
                    continue;
                }
                tracing::warn!("the relay has not opened its stream: can it reach this pod's address?");
            }
            Ok(StartResponse { message, .. }) => tracing::warn!(message, "the start is not granted"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no start; trying again");
                relay.renew().await;
            }
        }
        backoff.wait().await;
    }
}

impl Ask for Relay {
    async fn start(&self, launched: bool) -> Result<StartResponse, Error> {
        let request = StartRequest {
            protocol: PROTOCOL,
            process_uid: self.config.process_uid.clone(),
            attempt: self.config.attempt,
            address: self.address.clone(),
            launched,
            agent_started_unix_nanos: unix_nanos(self.began),
            entrypoint_connected_unix_nanos: unix_nanos(*self.entrypoint_connected.get_or_init(SystemTime::now)),
        };
        let ask = async {
            // A new connection each time: the Service then chooses a living replica.
            let channel = Dialer::new(Arc::clone(&self.identity))
                .connect(&self.config.relay, &Role::Operator)
                .await?;
            let response = RelayClient::new(channel).start(request).await.map_err(Box::new)?;
            Ok(response.into_inner())
        };
        tokio::time::timeout(START_LIMIT, ask)
            .await
            .unwrap_or(Err(Error::Timeout))
    }

    async fn renew(&self) {
        if let Err(error) = self.enrollment.renew(&self.identity).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "not enrolled");
        }
    }
}

fn unix_nanos(at: SystemTime) -> i64 {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or_default()
}

/// Waits for a home other than the one before, or for any that is there.
async fn has_come(home: &mut watch::Receiver<Home>, before: u64, limit: Duration) -> bool {
    let come = home.wait_for(|home| home.is_present || home.generation > before);
    tokio::time::timeout(limit, come).await.is_ok()
}

/// Returns when there has been no home for a little while.
async fn stay(home: &mut watch::Receiver<Home>) {
    loop {
        // The sender lives in the service.
        let _ = home.wait_for(|home| !home.is_present).await;
        let back = home.wait_for(|home| home.is_present);
        if tokio::time::timeout(SUCCESSION, back).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_later_home_ends_an_earlier_one() {
        let homes = Homes::default();
        let first = homes.open_stream();
        let second = homes.open_stream();
        first.superseded().await;
        drop(first);
        assert!(homes.watch().borrow().is_present);
        drop(second);
        assert!(!homes.watch().borrow().is_present);
    }
}
