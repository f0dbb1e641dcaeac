//! Which attempt of which object: what every part of the relay is about.

/// Which attempt of which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptKey {
    /// UID of the object.
    pub uid: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

/// The object that an attempt belongs to, as the manifest remembers it.
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
