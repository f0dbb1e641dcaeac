//! Signals and stops, each with a line of audit where the user was authorised.

use std::sync::Arc;

use remoteprocess_api::{DesiredState, signal};
use remoteprocess_proto::v1::{ExecutorSignalRequest, ExecutorStopRequest, SignalRequest, StopRequest};
use remoteprocess_tls::User;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::{RelayParts, Target};
use crate::relay::attempt::AttemptKey;
use crate::relay::grpc::peers::{self, Home};
use crate::relay::live::{ControlError, Session};

/// Longest sentence that a user may attach to a stop, in bytes.
const MESSAGE: usize = 1024;

/// Where a process can be reached.
pub(crate) enum Reached {
    Here(Arc<Session>),
    There(Box<Home>),
}

impl RelayParts {
    pub(crate) async fn signal(&self, user: &User, target: &Target, request: SignalRequest) -> Result<(), Status> {
        if !(1..=signal::MAX_SIGNAL).contains(&request.number) {
            return Err(Status::invalid_argument(format!(
                "{} is not the number of a signal",
                request.number
            )));
        }
        let key = self.current(target)?;
        let reached = self.reach(target, &key).await?;
        audit(user, target, &key, "signal", &signal::name(request.number));
        match reached {
            Reached::Here(session) => signal_here(&session, request).await,
            Reached::There(mut home) => {
                let request = peers::forward(
                    &key,
                    &user.name,
                    SignalRequest {
                        process: Some(peers::process(&key)),
                        ..request
                    },
                );
                home.client.signal(request).await.map(drop)
            }
        }
    }

    pub(crate) async fn stop(&self, user: &User, target: &Target, request: StopRequest) -> Result<(), Status> {
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
        let key = self.current(target)?;
        let message = request.message.clone();
        let Ok(reached) = self.reach(target, &key).await else {
            return self.stop_by_spec(user, target, &message).await;
        };
        audit(user, target, &key, "stop", &message);
        let stopped = match reached {
            Reached::Here(session) => stop_here(&session, &user.name, request).await,
            Reached::There(mut home) => {
                let request = peers::forward(
                    &key,
                    &user.name,
                    StopRequest {
                        process: Some(peers::process(&key)),
                        ..request
                    },
                );
                home.client.stop(request).await.map(drop)
            }
        };
        match stopped {
            // The wish outlives the connection: the agent hears it when it is back.
            Err(status) if matches!(status.code(), Code::Unavailable | Code::NotFound) => {
                self.stop_by_spec(user, target, &message).await
            }
            answered => answered,
        }
    }

    async fn stop_by_spec(&self, user: &User, target: &Target, message: &str) -> Result<(), Status> {
        let Some(process) = self.object(target) else {
            return Err(Status::not_found("the process has been deleted"));
        };
        if process.is_final() || process.spec.desired_state == DesiredState::Stopped {
            return Ok(());
        }
        info!(target: "audit", action = "stop", user = user.name, groups = ?user.groups, uid = target.uid,
            namespace = target.namespace, name = target.name, "sets spec.desiredState");
        self.recorder
            .stop(&target.namespace, &target.name, &target.uid, &user.name, message)
            .await
            .map_err(|error| {
                warn!(error = &error as &dyn std::error::Error, "desiredState cannot be set");
                Status::unavailable("the API server does not take the stop now")
            })
    }

    pub(crate) fn current(&self, target: &Target) -> Result<AttemptKey, Status> {
        let process = self
            .object(target)
            .ok_or_else(|| Status::not_found("the process has been deleted"))?;
        let attempt = process.status.as_ref().and_then(|status| status.attempt);
        Ok(AttemptKey {
            uid: target.uid.clone(),
            attempt: attempt.unwrap_or_default(),
        })
    }

    /// The session of an attempt, here or at its home.
    pub(crate) async fn reach(&self, target: &Target, key: &AttemptKey) -> Result<Reached, Status> {
        if let Some(session) = self.sessions.get(key) {
            return Ok(Reached::Here(session));
        }
        if self.may_live(key)
            && let Some(home) = self.sessions.peers().home_of(key).await
        {
            return Ok(Reached::There(Box::new(home)));
        }
        let is_over = self.object(target).is_some_and(|process| process.is_final());
        Err(Status::failed_precondition(if is_over {
            "the process has ended"
        } else {
            "the process has not started, or its agent is not connected"
        }))
    }
}

/// Signals the process of a session; the user has been authorised.
pub(crate) async fn signal_here(session: &Session, request: SignalRequest) -> Result<(), Status> {
    let request = ExecutorSignalRequest {
        request_id: request.request_id,
        number: request.number,
        target: request.target,
    };
    session.signal(request).await.map_err(|error| to_status(&error))
}

/// Stops the process of a session on behalf of a user who has been authorised.
pub(crate) async fn stop_here(session: &Session, user: &str, request: StopRequest) -> Result<(), Status> {
    let request = ExecutorStopRequest {
        signal: request.signal,
        grace_seconds: request.grace_seconds,
        requested_by: user.to_owned(),
        message: request.message,
    };
    session.stop(request).await.map_err(|error| to_status(&error))
}

pub(crate) fn audit(user: &User, target: &Target, key: &AttemptKey, action: &str, detail: &str) {
    info!(target: "audit", action, detail, user = user.name, groups = ?user.groups, uid = target.uid,
        namespace = target.namespace, name = target.name, attempt = key.attempt, "control");
}

pub(crate) fn to_status(error: &ControlError) -> Status {
    match error {
        ControlError::Unreachable => Status::unavailable("the agent of the process cannot be reached now"),
        ControlError::Refused(status) => Status::new(status.code(), status.message().to_owned()),
    }
}
