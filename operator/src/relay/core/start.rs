//! An agent asks for its start, or for a home.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{LaunchSettings, StartRequest, StartResponse};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::Core;
use super::authorize::AgentCaller;
use super::settings::launch_settings;
use crate::relay::attempt::{Agent, AttemptKey, Subject};
use crate::relay::error::Error;
use crate::relay::metrics::metrics;
use crate::relay::reconcile;
use crate::relay::status::{Claim, Error as GrantError};
use crate::timeline::Marks;

/// How much the watch may be behind an agent.
const LAG: Duration = Duration::from_secs(2);

impl Core {
    /// Grants an agent the start of its attempt, or becomes its home.
    pub(crate) async fn start(&self, agent: AgentCaller, request: StartRequest) -> Result<StartResponse, Error> {
        let AgentCaller {
            namespace,
            pod_uid,
            source,
        } = agent;
        let address: SocketAddr =
            (request.address.parse()).map_err(|_| Error::invalid("address must be an IP address and a port"))?;
        let key = AttemptKey {
            uid: request.process_uid.clone(),
            attempt: request.attempt,
        };
        let claim = Claim {
            uid: request.process_uid,
            attempt: request.attempt,
            pod_uid: pod_uid.clone(),
            launched: request.launched,
        };
        let marks = Marks {
            scheduled: None,
            agent: from_nanos(request.agent_started_unix_nanos),
            entrypoint: from_nanos(request.entrypoint_connected_unix_nanos),
        };
        let process = self.await_object(&claim.uid).await;
        let granted = match &process {
            Some(process) => self.claim(process, &namespace, &claim, marks).await,
            None => (self.claim_of_deleted(&namespace, &key, &claim).await).map(|subject| (subject, None)),
        };
        let (subject, settings) = match granted {
            Ok(granted) => granted,
            Err(GrantError::Refused(message)) => {
                info!(uid = key.uid, attempt = key.attempt, pod_uid, %message, "start refused");
                return Ok(answer(false, message.into_owned(), None));
            }
            Err(error) => return Err(safe(&error)),
        };
        self.check_address(&subject, address, source).await?;
        info!(
            uid = key.uid,
            attempt = key.attempt,
            pod_uid,
            launched = claim.launched,
            "start granted"
        );
        metrics().starts.inc();
        let live = self.live.open(
            subject,
            Agent {
                namespace,
                pod_uid,
                address: request.address,
            },
        );
        if let Some(process) = self.directory.by_uid(&key.uid) {
            live.update_desired(reconcile::desired(&process, key.attempt));
        }
        Ok(answer(true, String::new(), settings))
    }

    async fn await_object(&self, uid: &str) -> Option<Arc<RemoteProcess>> {
        let deadline = Instant::now() + LAG;
        let mut changes = self.directory.changes();
        loop {
            if let Some(process) = self.directory.by_uid(uid) {
                return Some(process);
            }
            timeout_at(deadline, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Grants the start, with the settings for an agent that has not launched.
    async fn claim(
        &self,
        process: &RemoteProcess,
        namespace: &str,
        claim: &Claim,
        marks: Marks,
    ) -> Result<(Subject, Option<LaunchSettings>), GrantError> {
        let subject = Subject {
            namespace: process.namespace().unwrap_or_default(),
            name: process.name_any(),
            pod_uid: claim.pod_uid.clone(),
            key: AttemptKey {
                uid: claim.uid.clone(),
                attempt: claim.attempt,
            },
        };
        if subject.namespace != namespace {
            return Err(GrantError::Refused("the process is in another namespace".into()));
        }
        let settings = (!claim.launched).then(|| launch_settings(&process.spec)).transpose();
        let settings = settings.map_err(|sentence| GrantError::Refused(sentence.into()))?;
        if !is_known(process, claim)
            && let Some(granted) = self.recorder.grant(process, claim).await?
        {
            let (recorder, number) = (self.recorder.clone(), claim.attempt);
            tokio::spawn(async move { recorder.tell_start(granted, number, marks).await });
        }
        Ok((subject, settings))
    }

    /// The object is gone and its pod is being deleted: this replica accepts the remaining output if this pod has sent
    /// some before.
    async fn claim_of_deleted(&self, namespace: &str, key: &AttemptKey, claim: &Claim) -> Result<Subject, GrantError> {
        let manifest = self.archive.manifest(key).await.map_err(|error| {
            warn!(%error, "the archive cannot be read");
            GrantError::Api(None)
        })?;
        let manifest = manifest.ok_or(GrantError::Gone)?;
        if !claim.launched || manifest.namespace != namespace || manifest.pod_uid != claim.pod_uid {
            return Err(GrantError::Refused("the process has been deleted".into()));
        }
        Ok(Subject {
            namespace: manifest.namespace,
            name: manifest.name,
            pod_uid: manifest.pod_uid,
            key: key.clone(),
        })
    }
}

fn answer(granted: bool, message: String, settings: Option<LaunchSettings>) -> StartResponse {
    StartResponse {
        protocol: PROTOCOL,
        granted,
        message,
        settings,
    }
}

/// A time that an agent told; `None` if it did not, or if it is no time.
fn from_nanos(unix_nanos: i64) -> Option<Timestamp> {
    let told = Some(unix_nanos).filter(|nanos| *nanos > 0)?;
    Timestamp::from_nanosecond(told.into()).ok()
}

/// A launched agent whose grant is known here gets a home without a request to the API server.
fn is_known(process: &RemoteProcess, claim: &Claim) -> bool {
    let attempt = process.status.as_ref().and_then(|status| status.attempt(claim.attempt));
    claim.launched
        && attempt
            .is_some_and(|attempt| attempt.granted_at.is_some() && attempt.pod_uid.as_deref() == Some(&claim.pod_uid))
}

pub(super) fn safe(error: &GrantError) -> Error {
    match error {
        GrantError::Api(source) => {
            warn!(error = ?source, "the grant cannot be written");
            Error::unavailable("the grant cannot be written now")
        }
        GrantError::Denied(source) => {
            warn!(
                error = source as &dyn std::error::Error,
                "the API server refuses the grant"
            );
            Error::unavailable("the API server refuses to record the grant; see the log of the operator")
        }
        GrantError::Gone => Error::not_found("there is no such process"),
        GrantError::Refused(message) => Error::failed_precondition(message.clone()),
    }
}
