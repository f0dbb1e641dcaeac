//! Identifies the caller: by the role that the certificate of the connection proves.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::Extensions;
use remoteprocess_tls::{Connection, PeerIdentity, Role, User};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Status};

use super::peers::{ATTEMPT, ON_BEHALF};
use crate::audit::Origin;
use crate::relay::core::access::Access;
use crate::relay::core::authorize::{AgentCaller, Caller, Forwarded, UserCaller};
use crate::relay::error::{Code, Error};

/// The roles that may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Agents, for their own attempt.
    Agents,
    /// Users.
    Users,
    /// Users, and other replicas of the operator for a user whom they have authorized.
    UsersAndReplicas,
}

impl Callers {
    /// Whether it is one of them.
    pub(super) fn include(self, role: &Role) -> bool {
        match role {
            Role::Agent { .. } => self == Self::Agents,
            Role::User => self != Self::Agents,
            Role::Operator => self == Self::UsersAndReplicas,
        }
    }

    /// What a caller of another role is told.
    pub(super) fn refusal(self, role: &Role) -> Error {
        Error::new(
            Code::PermissionDenied,
            format!("this method is for {self}, not for {role}"),
        )
    }
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agents => "agents",
            Self::Users | Self::UsersAndReplicas => "users",
        })
    }
}

/// Who may open a method: read from what the connection proves.
pub(super) trait Who: Sized {
    /// The roles that it can be.
    const CALLERS: Callers;

    /// Who sent the request.
    ///
    /// # Errors
    /// As [`peer`], and `PermissionDenied` for every other role.
    fn of<T>(request: &Request<T>) -> Result<Self, Status>;
}

/// The peer of a connection.
///
/// # Errors
/// `Unauthenticated` if the connection presents no identity, or one that has expired since the handshake.
pub(in crate::relay) fn peer(connection: &Extensions) -> Result<&Arc<PeerIdentity>, Error> {
    let peer = connection.get::<Arc<PeerIdentity>>();
    let peer = peer.ok_or_else(|| Error::new(Code::Unauthenticated, "this method needs a client certificate"))?;
    if peer.not_after <= SystemTime::now() {
        return Err(Error::expired());
    }
    Ok(peer)
}

/// The user or the replica that opens a stream.
impl Who for Access {
    const CALLERS: Callers = Callers::UsersAndReplicas;

    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Ok(access(Caller::of(request)?, request.extensions())?)
    }
}

/// A caller, for as long as its certificate is valid.
pub(in crate::relay) fn access(caller: Caller, connection: &Extensions) -> Result<Access, Error> {
    let valid_for = peer(connection)?.not_after.duration_since(SystemTime::now());
    Ok(Access {
        caller,
        until: Instant::now() + valid_for.unwrap_or_default(),
        connection: connection.get::<Connection>().cloned().unwrap_or_default(),
    })
}

/// The user or the replica that calls.
impl Who for Caller {
    const CALLERS: Callers = Callers::UsersAndReplicas;

    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        match peer(request.extensions())?.role {
            Role::Operator => Ok(Self::Replica(forwarded(request.metadata()))),
            _ => UserCaller::of(request).map(Self::User),
        }
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

/// The user who calls, and the connection.
impl Who for UserCaller {
    const CALLERS: Callers = Callers::Users;

    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Ok(user_caller(request.extensions())?)
    }
}

/// The user at the other end of a connection, and the connection.
pub(in crate::relay) fn user_caller(connection: &Extensions) -> Result<UserCaller, Error> {
    let info = connection.get::<TcpConnectInfo>();
    let origin = Origin {
        source: info.and_then(|info| Some(info.remote_addr?.ip())),
        serial: peer(connection)?.serial.clone(),
    };
    let user = user(connection)?;
    Ok(UserCaller { user, origin })
}

/// The user who calls.
impl Who for User {
    const CALLERS: Callers = Callers::Users;

    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Ok(user(request.extensions())?)
    }
}

/// The user at the other end of a connection.
fn user(connection: &Extensions) -> Result<User, Error> {
    let peer = peer(connection)?;
    match (&peer.role, &peer.user) {
        (Role::User, Some(user)) => Ok(user.clone()),
        (role, _) => Err(Callers::Users.refusal(role)),
    }
}

/// The agent that calls.
impl Who for AgentCaller {
    const CALLERS: Callers = Callers::Agents;

    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        match &peer(request.extensions())?.role {
            Role::Agent { namespace, pod_uid } => Ok(Self {
                namespace: namespace.clone(),
                pod_uid: pod_uid.clone(),
                source: request.remote_addr().map(|address| address.ip()),
            }),
            role => Err(Self::CALLERS.refusal(role).into()),
        }
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
        request.extensions_mut().insert(Arc::new(PeerIdentity {
            role,
            user,
            not_after,
            serial: "5e".to_owned(),
        }));
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
        assert_eq!(User::of(&by_user).expect("a user"), alice());
        assert_eq!(AgentCaller::of(&by_agent).expect("an agent").pod_uid, "u");
        let denied = |status: Status| assert_eq!(status.code(), tonic::Code::PermissionDenied);
        denied(User::of(&by_agent).expect_err("an agent is no user"));
        denied(User::of(&by_operator).expect_err("the operator is no user"));
        denied(AgentCaller::of(&by_user).expect_err("a user is no agent"));
        denied(AgentCaller::of(&by_operator).expect_err("the operator is no agent"));
        for request in [Request::new(()), request(pod, None, true)] {
            assert_eq!(
                peer(request.extensions()).expect_err("nobody").code,
                Code::Unauthenticated
            );
        }
    }
}
