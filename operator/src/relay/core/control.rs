//! Signals and stops, each with an audit line at the replica where the user was authorized.

use remoteprocess_api::{DesiredState, signal};
use remoteprocess_proto::v1::{ExecutorSignalRequest, ExecutorStopRequest, SignalRequest, StopRequest};
use remoteprocess_tls::User;
use tracing::warn;

use super::Core;
use super::authorize::{Caller, UserCaller};
use super::home::Reached;
use crate::audit::{Action, Audit};
use crate::relay::attempt::{AttemptKey, Target};
use crate::relay::error::{Code, Error};
use crate::relay::live::LiveAttempt;

/// Longest message that a user may attach to a stop, in bytes.
const MESSAGE: usize = 1024;

impl Core {
    /// Sends a signal to the program.
    pub(crate) async fn signal(&self, caller: &Caller, request: SignalRequest) -> Result<(), Error> {
        let process = request.process.clone();
        let caller = match caller {
            Caller::User(caller) => caller,
            Caller::Replica(forwarded) => return signal_here(&*self.at_home(forwarded, process)?, request).await,
        };
        let user = &caller.user;
        let target = self.allow::<SignalRequest>(user, process).await?;
        if !(1..=signal::MAX_SIGNAL).contains(&request.number) {
            return Err(Error::invalid(format!(
                "{} is not the number of a signal",
                request.number
            )));
        }
        let key = self.current(&target)?;
        let reached = self.reach(&target, &key).await?;
        caller.audit(&target, &key, Action::Signal(request.number));
        match reached {
            Reached::Here(live) => signal_here(&live, request).await,
            Reached::There(mut home) => home.signal(&user.name, request).await,
        }
    }

    /// Stops the program: through its agent, or through the object if the agent cannot be reached.
    pub(crate) async fn stop(&self, caller: &Caller, request: StopRequest) -> Result<(), Error> {
        let process = request.process.clone();
        let caller = match caller {
            Caller::User(caller) => caller,
            Caller::Replica(forwarded) => {
                return stop_here(&*self.at_home(forwarded, process)?, &forwarded.user, request).await;
            }
        };
        let user = &caller.user;
        let target = self.allow::<StopRequest>(user, process).await?;
        check_stop(&request)?;
        let key = self.current(&target)?;
        let message = request.message.clone();
        let reached = self.reach(&target, &key).await;
        caller.audit(&target, &key, Action::Stop);
        let Ok(reached) = reached else {
            return self.stop_by_spec(user, &target, &message).await;
        };
        let stopped = match reached {
            Reached::Here(live) => stop_here(&live, &user.name, request).await,
            Reached::There(mut home) => home.stop(&user.name, request).await,
        };
        match stopped {
            // The object outlives the connection: the agent is told when it is back.
            Err(error) if matches!(error.code, Code::Unavailable | Code::NotFound) => {
                self.stop_by_spec(user, &target, &message).await
            }
            answered => answered,
        }
    }

    async fn stop_by_spec(&self, user: &User, target: &Target, message: &str) -> Result<(), Error> {
        let Some(process) = self.object(target) else {
            return Err(Error::not_found("the process has been deleted"));
        };
        if process.is_final() || process.spec.desired_state == DesiredState::Stopped {
            return Ok(());
        }
        self.recorder
            .stop(&target.namespace, &target.name, &target.uid, &user.name, message)
            .await
            .map_err(|error| {
                warn!(error = &error as &dyn std::error::Error, "cannot set desiredState");
                Error::unavailable("the API server does not take the stop now")
            })
    }
}

fn check_stop(request: &StopRequest) -> Result<(), Error> {
    if request
        .signal
        .is_some_and(|number| !(1..=signal::MAX_SIGNAL).contains(&number))
    {
        return Err(Error::invalid("signal is not the number of a signal"));
    }
    if request.message.len() > MESSAGE {
        return Err(Error::invalid(format!("message is longer than {MESSAGE} bytes")));
    }
    Ok(())
}

/// Signals the process of a live attempt; the user was already authorized.
async fn signal_here(live: &LiveAttempt, request: SignalRequest) -> Result<(), Error> {
    let request = ExecutorSignalRequest {
        request_id: request.request_id,
        number: request.number,
        target: request.target,
    };
    live.agent().signal(request).await
}

/// Stops the process of a live attempt on behalf of a user who was already authorized.
async fn stop_here(live: &LiveAttempt, user: &str, request: StopRequest) -> Result<(), Error> {
    let request = ExecutorStopRequest {
        signal: request.signal,
        grace_seconds: request.grace_seconds,
        requested_by: user.to_owned(),
        message: request.message,
    };
    live.agent().stop(request).await
}

impl UserCaller {
    /// Records what the user does to an attempt.
    pub(crate) fn audit(&self, target: &Target, key: &AttemptKey, action: Action<'_>) {
        let audit = Audit {
            namespace: &target.namespace,
            name: &target.name,
            uid: &target.uid,
            attempt: key.attempt,
            serial: &self.origin.serial,
            source: self.origin.source,
            ..Audit::by(&self.user)
        };
        audit.write(action);
    }
}
