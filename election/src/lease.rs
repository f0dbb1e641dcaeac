//! What is read from a Lease, and what is written into it. Pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;

use crate::Candidate;

/// A candidate waits at most this long for a holder that does not renew its Lease, also if the Lease states a longer
/// duration. No version of this program sets a longer one.
const LONGEST: Duration = Duration::from_secs(60);
/// Most characters of what another program has written into the Lease.
const MAX_STRANGER: usize = 200;

/// What tells a Lease of ours from one of another program with the same name.
#[derive(Clone, Debug)]
pub enum Mark {
    /// It belongs to the object with the uid in this reference, and is deleted with it.
    Owner(OwnerReference),
    /// It has these labels. Without any of them and without owners, it is one of an earlier version, if nobody holds it, or a
    /// pod of the same Deployment or of one with such a value in its name. Other labels say nothing: other tools add them.
    Labels(Vec<(String, String)>),
}

/// What to do about a Lease that was just read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is ours already: write a new renew time.
    Renew,
    /// It is free, or its holder is silent: take it.
    Take,
    /// Another holds it.
    Wait,
}

fn holder(lease: &LeaseSpec) -> &str {
    lease.holder_identity.as_deref().unwrap_or_default()
}

/// Decides about a lease whose content has not changed for `unchanged_for` by
/// the local clock.
pub(crate) fn decide(lease: &LeaseSpec, unchanged_for: Duration, candidate: &Candidate) -> Step {
    let holder = holder(lease);
    if holder == candidate.identity {
        return Step::Renew;
    }
    // A user may have written another duration than the one by which the holder lives.
    let own = candidate.timing.lease_duration;
    let written = lease.lease_duration_seconds.unwrap_or_default().max(0).unsigned_abs();
    let duration = Duration::from_secs(written.into()).min(LONGEST).max(own);
    if holder.is_empty() || unchanged_for >= duration {
        Step::Take
    } else {
        Step::Wait
    }
}

/// The lease's content after `candidate` took or renewed it at `now`.
pub(crate) fn claimed(previous: Option<&LeaseSpec>, candidate: &Candidate, now: Timestamp) -> LeaseSpec {
    let renewing = previous.filter(|lease| lease.holder_identity.as_ref() == Some(&candidate.identity));
    let transitions = previous.and_then(|lease| lease.lease_transitions).unwrap_or(0).max(0);
    let seconds = candidate.timing.lease_duration.as_secs().max(1);
    LeaseSpec {
        holder_identity: Some(candidate.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
        acquire_time: renewing
            .and_then(|lease| lease.acquire_time.clone())
            .or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(match (previous, renewing) {
            (Some(_), None) => transitions.saturating_add(1),
            _ => transitions,
        }),
        ..LeaseSpec::default()
    }
}

/// Whose Lease this is, for people; `None`: ours.
pub(crate) fn stranger(lease: &Lease, candidate: &Candidate) -> Option<String> {
    let holder = lease.spec.as_ref().map(holder).unwrap_or_default();
    // Nobody else has the name of this pod: a user has removed the mark, and it gets it again.
    if holder == candidate.identity || is_marked(&lease.metadata, holder, candidate) {
        return None;
    }
    let owners = lease.metadata.owner_references.iter().flatten();
    let owner = owners.map(|owner| format!("it belongs to {} {} ({})", owner.kind, owner.name, owner.uid));
    let held = || match holder.is_empty() {
        true => "nobody holds it".to_owned(),
        false => format!("its holder is {holder}"),
    };
    let whose = owner.into_iter().next().unwrap_or_else(held);
    Some(whose.chars().take(MAX_STRANGER).collect())
}

fn is_marked(metadata: &ObjectMeta, holder: &str, candidate: &Candidate) -> bool {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    match &candidate.mark {
        Mark::Owner(ours) => owners.iter().any(|owner| owner.uid == ours.uid),
        Mark::Labels(ours) => {
            let labels = metadata.labels.as_ref();
            let found = |name: &String| labels.and_then(|labels| labels.get(name));
            if ours.iter().any(|(name, _)| found(name).is_some()) {
                return ours.iter().all(|(name, value)| found(name) == Some(value));
            }
            let own = deployment(&candidate.identity);
            let is_sibling = own.is_some() && deployment(holder) == own;
            let is_namesake = || ours.iter().any(|(_, value)| holder.contains(value));
            owners.is_empty() && (holder.is_empty() || is_sibling || is_namesake())
        }
    }
}

/// The Deployment of a pod, by their names: without the hash of the ReplicaSet and of the pod.
fn deployment(pod: &str) -> Option<&str> {
    let (replica_set, _) = pod.rsplit_once('-')?;
    replica_set.rsplit_once('-').map(|(deployment, _)| deployment)
}

/// Marks a Lease as ours.
pub(crate) fn mark(metadata: &mut ObjectMeta, mark: &Mark) {
    match mark {
        Mark::Owner(owner) => {
            let owners = metadata.owner_references.get_or_insert_default();
            if !owners.iter().any(|found| found.uid == owner.uid) {
                owners.push(owner.clone());
            }
        }
        Mark::Labels(labels) => {
            let marked = metadata.labels.get_or_insert_default();
            marked.extend(labels.iter().cloned());
        }
    }
}
