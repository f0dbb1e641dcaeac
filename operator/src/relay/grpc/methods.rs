//! Every method of the relay: its callers, and the permission that a user needs for it.
//!
//! A request that is not in this table can open no method: [`super::admit`] does not compile for it.

use http::Extensions;
use remoteprocess_proto::v1::{
    AttachOpen, ExecOpen, GetStateRequest, ListRequest, SignalRequest, StartRequest, StopRequest, WatchOutputRequest,
};
use remoteprocess_tls::User;
use tonic::Status;

use super::caller::{Callers, Who, peer};
use crate::relay::core::access::Access;
use crate::relay::core::authorize::{Action, AgentCaller, Authorized, Caller};

/// How many requests a call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requests {
    /// One.
    One,
    /// A stream of them.
    Many,
}

/// The relay's own service.
pub(super) const RELAY: &str = "remoteprocess.v1.Relay";
/// The standard health service of gRPC.
pub(super) const HEALTH: &str = "grpc.health.v1.Health";
/// The standard reflection service of gRPC.
pub(super) const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";

/// One method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    /// The service.
    pub service: &'static str,
    /// Its name in the service.
    pub name: &'static str,
    /// Who may call it.
    pub callers: Callers,
    /// What RBAC has to allow a user; `None` for a method that users cannot call.
    #[cfg_attr(not(test), expect(dead_code, reason = "the table in docs/threat-model.md has it"))]
    pub action: Option<Action>,
    /// How many requests it takes.
    pub requests: Requests,
}

/// The first request of a method.
pub(super) trait Opens {
    /// Who may send it.
    type Caller: Who;
    /// The method that it opens.
    const METHOD: Method;

    /// The version of the protocol that its sender speaks.
    fn protocol(&self) -> u32;
}

macro_rules! methods {
    ($($name:ident($request:ty), $requests:ident, $caller:ty, $action:expr;)*) => {
        $(impl Opens for $request {
            type Caller = $caller;
            const METHOD: Method = Method {
                service: RELAY,
                name: stringify!($name),
                callers: <$caller as Who>::CALLERS,
                action: $action,
                requests: Requests::$requests,
            };

            fn protocol(&self) -> u32 {
                self.protocol
            }
        })*

        /// All of them.
        pub(crate) const METHODS: &[Method] = &[$(<$request as Opens>::METHOD),*];
    };
}

methods! {
    Start(StartRequest), One, AgentCaller, None;
    GetState(GetStateRequest), One, Caller, Some(GetStateRequest::ACTION);
    List(ListRequest), One, User, Some(ListRequest::ACTION);
    WatchOutput(WatchOutputRequest), One, Access, Some(WatchOutputRequest::ACTION);
    Signal(SignalRequest), One, Caller, Some(SignalRequest::ACTION);
    Stop(StopRequest), One, Caller, Some(StopRequest::ACTION);
    Attach(AttachOpen), Many, Access, Some(AttachOpen::ACTION);
    Exec(ExecOpen), Many, Access, Some(ExecOpen::ACTION);
}

/// The methods of the services that every gRPC server has. Each is for users with a valid certificate, and tells nothing
/// of any process. The messages of each call are short and come within seconds, so a stream counts as one request.
pub(crate) const STANDARD: [Method; 3] = [
    standard(HEALTH, "Check"),
    standard(HEALTH, "Watch"),
    standard(REFLECTION, "ServerReflectionInfo"),
];

const fn standard(service: &'static str, name: &'static str) -> Method {
    Method {
        service,
        name,
        callers: Callers::Users,
        action: None,
        requests: Requests::One,
    }
}

impl Method {
    /// The method at the path of a request.
    pub(super) fn at(path: &str) -> Option<&'static Self> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        let mut all = METHODS.iter().chain(&STANDARD);
        all.find(|method| method.service == service && method.name == name)
    }

    /// Whether the peer of a connection may call this method at all. To be asked before anything of the request is read.
    ///
    /// # Errors
    /// `Unauthenticated` without a valid certificate, `PermissionDenied` for another role.
    pub(super) fn admit(&self, connection: &Extensions) -> Result<(), Status> {
        let role = &peer(connection)?.role;
        if self.callers.include(role) {
            Ok(())
        } else {
            Err(self.callers.refusal(role).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::relay::http::routes::ROUTES;

    /// The table as `docs/threat-model.md` has it.
    fn table() -> String {
        let mut table = "| method | callers | permission of the user |\n|---|---|---|\n".to_owned();
        let mut row = |name: &str, callers: &str, action: Option<Action>| {
            let permission = action.map_or_else(
                || "–".to_owned(),
                |action| match action.rule() {
                    (verb, "") => format!("`{verb} remoteprocesses`"),
                    (verb, subresource) => format!("`{verb} remoteprocesses/{subresource}`"),
                },
            );
            writeln!(table, "| `{name}` | {callers} | {permission} |").unwrap();
        };
        for method in METHODS {
            let callers = match method.callers {
                Callers::Agents => "agents",
                Callers::Users => "users",
                Callers::UsersAndReplicas => "users, other replicas for a user",
            };
            row(method.name, callers, method.action);
        }
        for method in STANDARD {
            row(&format!("{}/{}", method.service, method.name), "users", method.action);
        }
        for route in ROUTES {
            row(&format!("{} {}", route.method, route.path), "users", route.action);
        }
        table
    }

    #[test]
    fn the_table_in_the_docs_is_this_one() {
        const BEGIN: &str = "<!-- methods: generated, see operator/src/relay/grpc/methods.rs -->\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/threat-model.md");
        let docs = std::fs::read_to_string(path).unwrap();
        let (before, rest) = docs.split_once(BEGIN).expect("a place for the table");
        let (_, after) = rest.split_once("\n\n").expect("text after it");
        let expected = format!("{before}{BEGIN}{}\n{after}", table());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        assert!(
            docs == expected,
            "run UPDATE_DOCS=1 cargo test -p remoteprocess-operator the_table_in_the_docs"
        );
    }
}
