//! Signals and stops, each with a line of audit.

use std::sync::Arc;

use remoteprocess_api::{DesiredState, signal};
use remoteprocess_proto::v1::{ExecutorSignalRequest, ExecutorStopRequest, SignalRequest, StopRequest};
use remoteprocess_tls::User;
use tonic::Status;
use tracing::{info, warn};

use super::{RelayParts, Target};
use crate::relay::archive::AttemptKey;
use crate::relay::session::{ControlError, Session};

/// Longest sentence that a user may attach to a stop, in bytes.
const MESSAGE: usize = 1024;

impl RelayParts {
    pub(super) async fn signal(&self, user: &User, target: &Target, request: SignalRequest) -> Result<(), Status> {
        if !(1..=signal::MAX_SIGNAL).contains(&request.number) {
            return Err(Status::invalid_argument(format!(
                "{} is not the number of a signal",
                request.number
            )));
        }
        let session = self.live(target)?;
        audit(user, target, &session, "signal", &signal::name(request.number));
        let request = ExecutorSignalRequest {
            request_id: request.request_id,
            number: request.number,
            target: request.target,
        };
        session.signal(request).await.map_err(|error| to_status(&error))
    }

    pub(super) async fn stop(&self, user: &User, target: &Target, request: StopRequest) -> Result<(), Status> {
        if request
            .signal
            .is_some_and(|number| !(1..=signal::MAX_SIGNAL).contains(&number))
        {
            return Err(Status::invalid_argument("signal is not the number of a signal"));
        }
        if request.message.len() > MESSAGE {
            return Err(Status::invalid_argument(format!(
                "message is longer than {MESSAGE} bytes"
            )));
        }
        let Ok(session) = self.live(target) else {
            return self.stop_by_spec(user, target).await;
        };
        audit(user, target, &session, "stop", &request.message);
        let asked = ExecutorStopRequest {
            signal: request.signal,
            grace_seconds: request.grace_seconds,
            requested_by: user.name.clone(),
            message: request.message,
        };
        match session.stop(asked).await {
            Ok(()) => Ok(()),
            // The wish outlives the connection: the agent hears it when it is back.
            Err(ControlError::Unreachable) => self.stop_by_spec(user, target).await,
            Err(error) => Err(to_status(&error)),
        }
    }

    async fn stop_by_spec(&self, user: &User, target: &Target) -> Result<(), Status> {
        let Some(process) = self.object(target) else {
            return Err(Status::not_found("the process has been deleted"));
        };
        let is_over = process
            .status
            .as_ref()
            .and_then(|status| status.phase)
            .is_some_and(|phase| phase.is_final());
        if is_over || process.spec.desired_state == DesiredState::Stopped {
            return Ok(());
        }
        info!(target: "audit", action = "stop", user = user.name, groups = ?user.groups, uid = target.uid,
            namespace = target.namespace, name = target.name, "sets spec.desiredState");
        self.recorder
            .stop(&target.namespace, &target.name, &target.uid)
            .await
            .map_err(|error| {
                warn!(error = &error as &dyn std::error::Error, "desiredState cannot be set");
                Status::unavailable("the API server does not take the stop now")
            })
    }

    fn live(&self, target: &Target) -> Result<Arc<Session>, Status> {
        let process = self
            .object(target)
            .ok_or_else(|| Status::not_found("the process has been deleted"))?;
        let status = process.status.as_ref();
        let attempt = status.and_then(|status| status.attempt).unwrap_or_default();
        let session = self.sessions.get(&AttemptKey {
            uid: target.uid.clone(),
            attempt,
        });
        session.ok_or_else(|| {
            let is_over = status
                .and_then(|status| status.phase)
                .is_some_and(|phase| phase.is_final());
            Status::failed_precondition(if is_over {
                "the process has ended"
            } else {
                "the process has not started, or its agent is not connected"
            })
        })
    }
}

fn audit(user: &User, target: &Target, session: &Session, action: &str, detail: &str) {
    info!(target: "audit", action, detail, user = user.name, groups = ?user.groups, uid = target.uid,
        namespace = target.namespace, name = target.name, attempt = session.subject().key.attempt, "control");
}

fn to_status(error: &ControlError) -> Status {
    match error {
        ControlError::Unreachable => Status::unavailable("the agent of the process cannot be reached now"),
        ControlError::Refused(status) => Status::new(status.code(), status.message().to_owned()),
    }
}
