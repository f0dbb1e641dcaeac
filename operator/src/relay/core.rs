//! The use cases of the relay: find a process, authorize a caller, read the output, control the program, start an
//! attempt, report the state.
//!
//! Nothing here depends on a protocol: requests and answers are the messages of `proto/`, errors are [`Error`]. A face
//! ([`super::grpc`]) identifies the caller, and encodes each answer.

pub(crate) mod access;
mod address;
pub mod authorize;
pub(crate) mod control;
pub(crate) mod ended;
pub(super) mod home;
pub(crate) mod output;
pub(crate) mod settings;
mod start;
pub(crate) mod state;
pub mod streams;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::SignedDuration;
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus, identifier};
use remoteprocess_proto::v1::ProcessKey;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::archive::Archive;
use super::attempt::{AttemptKey, Target};
use super::error::{Code, Error};
use super::live::LiveAttempts;
use super::status::Recorder;
use crate::directory::Directory;
use authorize::{Action, Authorized, Authorizer, Caller, UserCaller};
use streams::Streams;

/// How much the clocks of the archive and of the API server may differ. A namespace takes longer to be deleted.
const SKEW: SignedDuration = SignedDuration::from_secs(5);

/// What every use case needs.
pub struct Core {
    /// All existing processes.
    pub directory: Directory,
    /// The attempts that are live here.
    pub live: LiveAttempts,
    /// The archived output.
    pub archive: Archive,
    /// Decides who may do what.
    pub authorizer: Authorizer,
    /// Writes grants.
    pub recorder: Recorder,
    /// The open streams of users.
    pub streams: Streams,
    /// Ends streams, so that their readers continue at another replica.
    pub shutdown: CancellationToken,
}

impl Core {
    /// Finds the process in a user's request and checks whether the user may do this with it. A user without the right
    /// does not learn whether the process exists.
    pub(crate) async fn allow<R: Authorized>(
        &self,
        user: &remoteprocess_tls::User,
        key: Option<ProcessKey>,
    ) -> Result<Target, Error> {
        let action = R::ACTION;
        let key = key.unwrap_or_default();
        if key.uid.is_empty() && (key.name.is_empty() || key.namespace.is_empty()) {
            return Err(Error::invalid("give the process's namespace and name, or its uid"));
        }
        check_key(&key)?;
        if key.uid.is_empty() || !key.namespace.is_empty() {
            self.authorizer
                .authorize(user, action, &key.namespace, &key.name)
                .await?;
        }
        let missing = || Error::not_found(not_found(&key));
        let target = self.find(&key).await?.ok_or_else(missing)?;
        if target.namespace != key.namespace || target.name != key.name {
            let asked = self.authorizer.authorize(user, action, &target.namespace, &target.name);
            match asked.await {
                // A refusal names namespace and name. They are not for a user who has only the uid.
                Err(error) if error.code == Code::PermissionDenied => return Err(missing()),
                asked => asked?,
            }
        }
        if self.object(&target).is_none() && !self.may_read_deleted(user, action, &target).await? {
            return Err(missing());
        }
        Ok(target)
    }

    /// Checks again whether the caller of an open stream may continue.
    pub(crate) async fn check(&self, caller: &Caller, action: Action, target: &Target) -> Result<(), Error> {
        let Caller::User(UserCaller { user, .. }) = caller else {
            return Ok(());
        };
        let authorizer = &self.authorizer;
        match authorizer
            .authorize(user, action, &target.namespace, &target.name)
            .await
        {
            // If the API server is unavailable, streams that it has allowed stay open.
            Err(error) if error.code == Code::PermissionDenied => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn find(&self, key: &ProcessKey) -> Result<Option<Target>, Error> {
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

    pub(crate) async fn find_archived(&self, uid: &str) -> Result<Option<Target>, Error> {
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

    /// Whether a user may read what is left of a deleted process. If its namespace was deleted as well, another one may
    /// have its name now, and permissions there are not for the output of the old one: that takes the permission in all
    /// namespaces.
    async fn may_read_deleted(
        &self,
        user: &remoteprocess_tls::User,
        action: Action,
        target: &Target,
    ) -> Result<bool, Error> {
        let begun = self
            .archive
            .begun(&target.uid)
            .await
            .map_err(|error| unreadable(&error))?;
        let created = self.recorder.namespace_created(&target.namespace).await;
        let created = created.map_err(|error| {
            warn!(
                error = &error as &dyn std::error::Error,
                "cannot read the namespace of a deleted process"
            );
            Error::unavailable("the API server cannot be asked now for the namespace of the deleted process")
        })?;
        if let (Some(begun), Some(created)) = (begun, created)
            && created.duration_until(begun) >= -SKEW
        {
            return Ok(true);
        }
        match self.authorizer.authorize(user, action, "", "").await {
            Ok(()) => Ok(true),
            Err(error) if error.code == Code::PermissionDenied => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An attempt that was never made has no output to wait for.
    pub(crate) async fn check_attempt(&self, target: &Target, attempt: u32) -> Result<(), Error> {
        let made = match self.object(target) {
            Some(process) => process
                .status
                .as_ref()
                .and_then(RemoteProcessStatus::current_attempt)
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
        Err(Error::not_found(format!(
            "there is no attempt {attempt}; the latest is {made}"
        )))
    }

    /// The latest attempt, once a stream can settle on it: it was granted, or no other follows. An attempt that has run
    /// nothing may be replaced by another (its pod was deleted while it waited, for example).
    pub(crate) fn settled(&self, target: &Target) -> Option<u32> {
        let process = self.object(target)?;
        let status = process.status.as_ref()?;
        let attempt = status.attempt(status.current_attempt()?)?;
        (attempt.granted_at.is_some() || process.is_final()).then_some(attempt.number)
    }

    /// Whether another attempt may still follow.
    pub(crate) fn may_go_on(&self, target: &Target) -> bool {
        self.object(target).is_some_and(|process| !process.is_final())
    }

    pub(crate) fn object(&self, target: &Target) -> Option<Arc<RemoteProcess>> {
        self.directory.by_uid(&target.uid)
    }
}

/// Each part of a key is empty or valid in the Kubernetes API. So it is bounded, and an invalid one costs no request.
pub(crate) fn check_key(key: &ProcessKey) -> Result<(), Error> {
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
        Some((what, ..)) => Err(Error::invalid(format!("no process can have this {what}"))),
    }
}

pub(crate) fn not_found(key: &ProcessKey) -> String {
    if key.uid.is_empty() {
        format!("there is no RemoteProcess {} in namespace {}", key.name, key.namespace)
    } else {
        "there is no RemoteProcess with this uid and nothing of it in the archive, or you have no permission for it"
            .to_owned()
    }
}

/// The error chain goes to the log, a safe message to the peer.
pub(crate) fn unreadable(error: &super::archive::Error) -> Error {
    match error {
        super::archive::Error::Uid => Error::invalid(error.to_string()),
        other => {
            warn!(error = %other, "the archive cannot be read");
            Error::unavailable("the archive cannot be read now")
        }
    }
}
