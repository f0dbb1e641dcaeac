//! Explanations of output that is missing.

use remoteprocess_proto::v1::{Gap, GapReason};

/// A message about a range of output that is lost.
#[must_use]
pub fn loss(gap: &Gap) -> String {
    let stream = gap.stream().name();
    let range = match gap.to {
        Some(to) => format!("bytes {} to {to} of {stream}", gap.from),
        None => format!("the bytes of {stream} from {} on", gap.from),
    };
    let explained = match gap.reason() {
        GapReason::Unspecified => "are lost for a reason that this version does not know",
        GapReason::SpoolFull => "were dropped because the spool was full (spec.output.whenFull: DropOldest)",
        GapReason::ArchiverStalled => "were dropped because the spool was full and the archive took nothing",
        GapReason::NeverSealed => "are lost because the agent never came back to hand over the rest",
        GapReason::NeverDelivered => "are lost because the agent counted them and never handed them over",
        GapReason::AgentSkipped => "are lost because the agent left them out without saying why",
        GapReason::ArchiveDamaged => "are lost because the archive's copy of them is missing or damaged",
        GapReason::NotArchived => "are lost because the archive has no record of this attempt",
        GapReason::RemovedByRetention => "are gone because the archive removed them (archive.retention)",
    };
    format!("{range} {explained}")
}

/// A message about all ranges that are lost; `None` if there is none.
#[must_use]
pub fn losses(gaps: &[Gap]) -> Option<String> {
    let first = loss(gaps.first()?);
    let bytes: u64 = gaps.iter().filter_map(|gap| gap.to.map(|to| to - gap.from)).sum();
    Some(match gaps.len() {
        1 => first,
        count => format!("{count} ranges of its output are missing, {bytes} bytes or more; the first: {first}"),
    })
}
