//! The wire of RemoteProcess: the gRPC services `Executor`, `Relay` and `Enrollment`, and their messages.
//!
//! Arrows: none to a sibling. It knows nothing of Kubernetes, of TLS or of files.
//! Invariant: `gen/` is made from `remoteprocess/v1/*.proto` by `cargo xtask proto` and never edited.

#[allow(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
#[path = "gen/remoteprocess.v1.rs"]
pub mod v1;

mod checksum;
mod cursor;
pub mod metadata;
pub mod pod;
mod stored;
mod stream;
pub mod timing;
mod version;
pub mod wire;

pub use checksum::Checksum;
pub use stream::STREAMS;
pub use version::{PROTOCOL, Unsupported, check_protocol};

/// The `.proto` files as an encoded `google.protobuf.FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/remoteprocess.v1.bin");

/// Maximum length of `Data.bytes`, in bytes: 16 to 64 KiB performed best.
pub const MAX_CHUNK: usize = 64 * 1024;

/// More than any stream or input has, in bytes: an offset beyond it is refused. Sums of such numbers do not overflow.
pub const MAX_OFFSET: u64 = 1 << 60;

/// Largest message that a peer has to accept, in bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::*;
    use crate::v1::{GapReason, Phase, Reason, SealReason};

    fn names<T: VariantArray + ToString>() -> String {
        let names: Vec<String> = T::VARIANTS.iter().map(T::to_string).collect();
        names.join(" ")
    }

    /// Users' archives, conditions and scripts contain these names: a name may be added, but none may change.
    #[test]
    fn names_do_not_change() {
        assert_eq!(
            names::<Phase>(),
            " Pending Starting Running Paused Stopping Succeeded Failed"
        );
        assert_eq!(
            names::<Reason>(),
            " Completed NonZeroExit Signaled OOMKilled Stopped CommandNotFound CommandNotExecutable Interrupted NodeLost \
             Evicted Preempted AgentLost HandoverFailed ImagePull Unschedulable Gated Quota Admission NameConflict \
             InvalidSpec CreateContainer ContainerCreating Enrolling StartFailed DeadlineExceeded Retrying \
             ForeignContainer Running Paused Stopping Waiting DeadlineNear SessionLost"
        );
        assert_eq!(
            names::<GapReason>(),
            " SpoolFull ArchiverStalled NeverSealed NeverDelivered AgentSkipped ArchiveDamaged NotArchived \
             RemovedByRetention"
        );
        assert_eq!(
            names::<SealReason>(),
            " PipeHeld EntrypointLost BytesMissing CountMismatch HashMismatch"
        );
    }

    #[test]
    fn versions_one_away_are_served() {
        for (version, is_served) in [
            (PROTOCOL - 1, true),
            (PROTOCOL, true),
            (PROTOCOL + 1, true),
            (PROTOCOL + 2, false),
        ] {
            assert_eq!(check_protocol(version).is_ok(), is_served, "{version}");
        }
    }

    #[test]
    fn each_stream_has_its_index() {
        assert_eq!(STREAMS.map(crate::v1::Stream::index), [0, 1]);
    }
}
