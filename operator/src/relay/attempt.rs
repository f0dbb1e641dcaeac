//! Identifies an attempt, its object, and the agent in its pod.

use kube::ResourceExt;
use remoteprocess_api::RemoteProcess;
use remoteprocess_proto::v1::ProcessKey;

/// Which attempt of which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptKey {
    /// UID of the object.
    pub uid: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

/// The object of an attempt, as the manifest stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the attempt's pod.
    pub pod_uid: String,
    /// The attempt.
    pub key: AttemptKey,
}

/// A process that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
}

/// The agent of an attempt: the pod that it must prove to be in, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Namespace of its pod.
    pub namespace: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// `host:port`, IPv6 in brackets; empty if the agent will not come back.
    pub address: String,
}

impl Subject {
    /// The process that the attempt belongs to.
    pub fn target(&self) -> Target {
        Target {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.key.uid.clone(),
        }
    }
}

impl Target {
    /// The identity of an object; `None` for one that the API server has never seen.
    pub fn of(process: &RemoteProcess) -> Option<Self> {
        Some(Self {
            namespace: process.namespace()?,
            name: process.name_any(),
            uid: process.uid()?,
        })
    }

    /// An attempt of it.
    pub fn attempt(&self, attempt: u32) -> AttemptKey {
        AttemptKey {
            uid: self.uid.clone(),
            attempt,
        }
    }

    /// The key as the wire has it.
    pub fn key(&self) -> ProcessKey {
        ProcessKey {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }
}

impl Agent {
    /// An agent that will not come back.
    pub fn lost(subject: &Subject) -> Self {
        Self {
            namespace: subject.namespace.clone(),
            pod_uid: subject.pod_uid.clone(),
            address: String::new(),
        }
    }
}
