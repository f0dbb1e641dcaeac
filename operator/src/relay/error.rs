//! Errors for callers of the relay. Each face encodes them in its own protocol.

/// The kinds of failure; the names are those of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is wrong, whatever the state of the system.
    InvalidArgument,
    /// A position is outside the available range.
    OutOfRange,
    /// There is no such object.
    NotFound,
    /// The caller lacks a right.
    PermissionDenied,
    /// The caller shows no valid identity.
    Unauthenticated,
    /// The request does not fit the state of the object.
    FailedPrecondition,
    /// Another caller was first.
    Aborted,
    /// A limit is reached.
    ResourceExhausted,
    /// The peer is too old for this.
    Unimplemented,
    /// There was no answer in time.
    DeadlineExceeded,
    /// Not possible now; try again.
    Unavailable,
    /// A defect.
    Internal,
}

impl Code {
    /// Its name in gRPC.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::OutOfRange => "OutOfRange",
            Self::NotFound => "NotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::Unauthenticated => "Unauthenticated",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Aborted => "Aborted",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::Unimplemented => "Unimplemented",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Unavailable => "Unavailable",
            Self::Internal => "Internal",
        }
    }
}

/// Why a use case failed, as a message that is safe to show to the caller. Causes go to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The kind of failure.
    pub code: Code,
    /// Cause, object and fix.
    pub message: String,
    /// The RBAC rule that the user lacks, with `PermissionDenied` of a user.
    pub missing: Option<Box<MissingRule>>,
}

/// An RBAC rule that would have allowed a request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingRule {
    /// `Role`, or `ClusterRole` for a right in all namespaces.
    pub kind: &'static str,
    /// Namespace of the Role; absent for a ClusterRole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The rule's only API group.
    pub api_groups: [&'static str; 1],
    /// The rule's only resource, with a subresource.
    pub resources: [String; 1],
    /// The rule's only verb.
    pub verbs: [&'static str; 1],
}

impl Error {
    /// An error of this kind.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            missing: None,
        }
    }

    /// The request is wrong.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// There is no such object.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// The object is in another state.
    #[must_use]
    pub fn failed_precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// Not possible now.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// The agent of a process cannot be reached now.
    #[must_use]
    pub fn agent_unreachable() -> Self {
        Self::unavailable("the agent of the process cannot be reached now")
    }

    /// The certificate that the caller has shown is no longer valid.
    #[must_use]
    pub fn expired() -> Self {
        Self::new(
            Code::Unauthenticated,
            "the client certificate has expired; connect again with a new one",
        )
    }

    /// This replica ends.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::unavailable("this replica is going away")
    }

    /// Whether a retry may succeed.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.code == Code::Unavailable
    }
}
