//! Identifies the caller: by the role that the certificate of the connection proves.

use std::sync::Arc;
use std::time::SystemTime;

use remoteprocess_tls::{PeerIdentity, Role, User};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::peers::{ATTEMPT, ON_BEHALF};
use crate::relay::core::authorize::{AgentCaller, Caller, Forwarded};

/// The peer of the connection.
///
/// # Errors
/// `Unauthenticated` if the connection presents no identity, or one that has expired since the handshake.
fn peer<T>(request: &Request<T>) -> Result<Arc<PeerIdentity>, Status> {
    let peer = request.extensions().get::<Arc<PeerIdentity>>();
    let peer = peer.ok_or_else(|| Status::unauthenticated("this method needs a client certificate"))?;
    if peer.not_after <= SystemTime::now() {
        return Err(Status::unauthenticated(
            "the client certificate has expired; connect again with a new one",
        ));
    }
    Ok(peer.clone())
}

/// The user or the replica that calls.
///
/// # Errors
/// As [`peer`], and `PermissionDenied` for every other role.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    match peer(request)?.role {
        Role::Operator => Ok(Caller::Replica(forwarded(request.metadata()))),
        _ => user(request).map(Caller::User),
    }
}

/// What the request of another replica says about the user's request.
fn forwarded(metadata: &MetadataMap) -> Forwarded {
    let attempt = metadata
        .get(ATTEMPT)
        .and_then(|attempt| attempt.to_str().ok()?.parse().ok());
    let user = metadata.get_bin(ON_BEHALF).and_then(|value| value.to_bytes().ok());
    Forwarded {
        attempt,
        user: user
            .map(|name| String::from_utf8_lossy(&name).into_owned())
            .unwrap_or_default(),
    }
}

/// The user who calls.
///
/// # Errors
/// As [`peer`], and `PermissionDenied` for every other role.
pub(super) fn user<T>(request: &Request<T>) -> Result<User, Status> {
    let peer = peer(request)?;
    match (&peer.role, &peer.user) {
        (Role::User, Some(user)) => Ok(user.clone()),
        _ => Err(Status::permission_denied(format!(
            "this method is for users, not for {}",
            peer.role
        ))),
    }
}

/// The agent that calls.
///
/// # Errors
/// As [`peer`], and `PermissionDenied` for every other role.
pub(super) fn agent<T>(request: &Request<T>) -> Result<AgentCaller, Status> {
    match &peer(request)?.role {
        Role::Agent { namespace, pod_uid } => Ok(AgentCaller {
            namespace: namespace.clone(),
            pod_uid: pod_uid.clone(),
            source: request.remote_addr().map(|address| address.ip()),
        }),
        role => Err(Status::permission_denied(format!(
            "this method is for agents, not for {role}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn alice() -> User {
        User {
            name: "alice".to_owned(),
            ..User::default()
        }
    }

    fn request(role: Role, user: Option<User>, expired: bool) -> Request<()> {
        let hour = Duration::from_secs(3600);
        let not_after = if expired {
            SystemTime::now() - hour
        } else {
            SystemTime::now() + hour
        };
        let mut request = Request::new(());
        request
            .extensions_mut()
            .insert(Arc::new(PeerIdentity { role, user, not_after }));
        request
    }

    #[test]
    fn roles_do_not_imply_each_other() {
        let pod = Role::Agent {
            namespace: "default".into(),
            pod_uid: "u".into(),
        };
        let (by_user, by_agent) = (
            request(Role::User, Some(alice()), false),
            request(pod.clone(), None, false),
        );
        let by_operator = request(Role::Operator, None, false);
        assert_eq!(user(&by_user).expect("a user"), alice());
        assert_eq!(agent(&by_agent).expect("an agent").pod_uid, "u");
        let denied = |status: Status| assert_eq!(status.code(), tonic::Code::PermissionDenied);
        denied(user(&by_agent).expect_err("an agent is no user"));
        denied(user(&by_operator).expect_err("the operator is no user"));
        denied(agent(&by_user).expect_err("a user is no agent"));
        denied(agent(&by_operator).expect_err("the operator is no agent"));
        for request in [Request::new(()), request(pod, None, true)] {
            assert_eq!(peer(&request).expect_err("nobody").code(), tonic::Code::Unauthenticated);
        }
    }
}
