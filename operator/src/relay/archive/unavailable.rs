//! Why a store takes nothing, in categories on which a cluster administrator can act.

use std::error::Error as StdError;
use std::io::ErrorKind;

use remoteprocess_api::OutputReason;

use super::Error;

/// Why the archive takes no output: reasons of the condition `ArchiveUnavailable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// There is no room: disk, quota or size of the bucket.
    StoreFull,
    /// It does not answer, or answers with an error of its own.
    StoreUnreachable,
    /// It answers and refuses: credentials, rights, a bucket that does not exist, a read-only volume.
    StoreRefused,
}

impl Unavailable {
    /// The reason of the condition.
    pub fn reason(self) -> OutputReason {
        match self {
            Self::StoreFull => OutputReason::StoreFull,
            Self::StoreUnreachable => OutputReason::StoreUnreachable,
            Self::StoreRefused => OutputReason::StoreRefused,
        }
    }

    /// What it means for a process, without any text of the store.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::StoreFull => "the archive's store is full: output stays in the pod until there is room",
            Self::StoreUnreachable => "the archive's store does not answer: output stays in the pod until it does",
            Self::StoreRefused => {
                "the archive's store refuses what is written (credentials, rights, bucket, read-only volume): output \
                 stays in the pod until that is mended; the operator's log has its answer"
            }
        }
    }
}

impl Error {
    /// Why the store takes nothing.
    pub fn unavailable(&self) -> Unavailable {
        match self {
            Self::Store(error) => classify(error),
            Self::Damaged { .. } | Self::Manifest { .. } | Self::Uid => Unavailable::StoreRefused,
        }
    }
}

fn classify(error: &object_store::Error) -> Unavailable {
    if let Some(kind) = io_kind(error) {
        return match kind {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Unavailable::StoreFull,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Unavailable::StoreRefused,
            _ => Unavailable::StoreUnreachable,
        };
    }
    // Stores have no common error for it, and the type that holds status and body is not public.
    let text = error.to_string();
    const FULL: [&str; 4] = ["StorageFull", "QuotaExceeded", "InsufficientStorage", "code: 507"];
    if FULL.iter().any(|word| text.contains(word)) {
        return Unavailable::StoreFull;
    }
    match error {
        object_store::Error::Generic { .. } if !is_refusal(&text) => Unavailable::StoreUnreachable,
        object_store::Error::JoinError { .. } => Unavailable::StoreUnreachable,
        _ => Unavailable::StoreRefused,
    }
}

/// A status of the 4xx kind that is not about load or time.
fn is_refusal(text: &str) -> bool {
    text.contains("status code: 4")
        && !["408", "429"]
            .iter()
            .any(|code| text.contains(&format!("status code: {code}")))
}

fn io_kind(error: &(dyn StdError + 'static)) -> Option<ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Store(object_store::Error::Generic {
            store: "S3",
            source: source.into(),
        })
    }

    #[test]
    fn what_a_store_says_is_sorted() {
        use Unavailable::{StoreFull, StoreRefused, StoreUnreachable};
        for (error, expected) in [
            (generic(std::io::Error::from(ErrorKind::StorageFull)), StoreFull),
            (generic(std::io::Error::from(ErrorKind::QuotaExceeded)), StoreFull),
            (
                generic(std::io::Error::from(ErrorKind::ReadOnlyFilesystem)),
                StoreRefused,
            ),
            (
                generic(std::io::Error::from(ErrorKind::ConnectionRefused)),
                StoreUnreachable,
            ),
            (generic("Server returned non-2xx status code: 507: "), StoreFull),
            (generic("<Code>XMinioStorageFull</Code>"), StoreFull),
            (
                generic("Server returned non-2xx status code: 503: SlowDown"),
                StoreUnreachable,
            ),
            (generic("Server returned non-2xx status code: 429: "), StoreUnreachable),
            (
                generic("Server returned non-2xx status code: 400: InvalidRegion"),
                StoreRefused,
            ),
            (generic("error sending request"), StoreUnreachable),
        ] {
            assert_eq!(error.unavailable(), expected, "{error}");
        }
        let denied = object_store::Error::PermissionDenied {
            path: "a".to_owned(),
            source: "403".into(),
        };
        assert_eq!(Error::Store(denied).unavailable(), StoreRefused);
    }
}
