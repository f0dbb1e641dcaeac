//! What can go wrong in a reconcile, and when to retry.

use std::time::Duration;

use crate::backoff::Backoff;

/// One variant per step that talks to the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Reading the pod failed.
    #[error("cannot read the pod: {0}")]
    Observe(#[source] kube::Error),
    /// Creating the pod failed for a reason that is not the object's fault.
    #[error("cannot create the pod: {0}")]
    Apply(#[source] kube::Error),
    /// Writing the status failed.
    #[error("cannot write the status: {0}")]
    Status(#[source] kube::Error),
    /// The object changed between reading and writing.
    #[error("the object has changed meanwhile: {0}")]
    Conflict(String),
    /// Deleting a pod failed.
    #[error("cannot delete the pod: {0}")]
    Cleanup(#[source] kube::Error),
}

impl Error {
    /// A fixed word for metrics and logs.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Apply(_) => "apply",
            Self::Status(_) => "status",
            Self::Conflict(_) => "conflict",
            Self::Cleanup(_) => "cleanup",
        }
    }

    /// When to retry after this many failures of the same object in a row.
    pub(crate) fn retry(&self, failures: u32) -> Duration {
        let (first, longest) = match self {
            // The watch will deliver the newer version shortly.
            Self::Conflict(_) => (Duration::from_millis(20), Duration::from_secs(1)),
            _ => (Duration::from_millis(200), Duration::from_secs(20)),
        };
        Backoff::new(first, longest).after(failures)
    }
}
