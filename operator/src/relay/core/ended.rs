//! How an attempt that is not live here ended, and which of its output is permanently missing.

use remoteprocess_proto::v1::{Cursor, Exit, GapReason, Reason, Stream};

use super::Core;
use crate::relay::archive::{Error, Manifest};
use crate::relay::attempt::Target;
use crate::relay::piece::{Piece, gap};
use crate::relay::status::known_end;

/// How an attempt that is not live here ended.
pub(crate) struct Ended {
    /// The last frame.
    pub exit: Exit,
    /// Where both streams end, if that is known.
    end: Option<Cursor>,
    /// Why bytes up to that end may be missing.
    reason: GapReason,
}

impl Core {
    /// The end of an attempt that is not live here, from archive or status; `None` while there may be more. If the
    /// stream is not settled on the attempt, the end of an attempt that has run nothing is not the end of the stream,
    /// because another attempt may replace it.
    pub(crate) async fn ended(&self, target: &Target, attempt: u32, is_settled: bool) -> Result<Option<Ended>, Error> {
        let key = target.attempt(attempt);
        if attempt != 0 {
            let manifest = self.archive.manifest(&key).await?;
            let closed = manifest.and_then(|manifest| Ended::archived(&manifest));
            if closed.is_some() {
                return Ok(closed);
            }
            if self.live.get(&key).is_some() {
                return Ok(None);
            }
        }
        if !is_settled && self.may_go_on(target) {
            return Ok(None);
        }
        Ok(self.ended_by_status(target, attempt))
    }

    fn ended_by_status(&self, target: &Target, attempt: u32) -> Option<Ended> {
        let Some(process) = self.object(target) else {
            let exit = Exit {
                message: "the process was deleted before its end was known".to_owned(),
                reason: Reason::Interrupted.into(),
                ..Exit::default()
            };
            return Some(Ended {
                exit,
                end: None,
                reason: GapReason::NotArchived,
            });
        };
        let record = process.status.as_ref().and_then(|status| status.attempt(attempt));
        let has_run = record.is_some_and(|record| record.granted_at.is_some());
        let end = if has_run {
            let output = record.and_then(|record| record.output.as_ref());
            output.map(|output| Cursor {
                stdout: output.stdout.bytes,
                stderr: output.stderr.bytes,
            })
        } else {
            Some(Cursor::default())
        };
        known_end(&process, attempt).map(|exit| Ended {
            exit,
            end,
            reason: GapReason::NotArchived,
        })
    }
}

impl Ended {
    /// According to the archive.
    fn archived(manifest: &Manifest) -> Option<Self> {
        let expired = manifest.expired.as_ref();
        let never_closed = || {
            expired.map(|expired| Exit {
                message: expired.sentence(),
                ..Exit::default()
            })
        };
        Some(Self {
            exit: manifest.exit_frame().or_else(never_closed)?,
            end: Some(manifest.end()),
            reason: if expired.is_some() {
                GapReason::RemovedByRetention
            } else {
                GapReason::ArchiveDamaged
            },
        })
    }

    /// The gap for what a reader that has reached `reached` will never get.
    pub(crate) fn gap(&self, stream: Stream, reached: u64) -> Option<Piece> {
        let reason = self.reason;
        match self.end {
            Some(end) if end.of(stream) > reached => Some(gap(stream, reached, Some(end.of(stream)), reason)),
            Some(_) => None,
            None => Some(gap(stream, reached, None, GapReason::NeverSealed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_removed_by_retention_is_reported_as_such() {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "version": 1, "namespace": "default", "name": "hello", "uid": "0c1d", "attempt": 1, "stdoutBytes": 5,
            "exit": {"outcome": "OUTCOME_CODE", "value": 3},
            "expired": {"at": "2026-11-21T10:00:00Z", "why": "Size"},
        }))
        .unwrap();
        let ended = Ended::archived(&manifest).unwrap();
        assert_eq!((ended.exit.value, ended.exit.sealed), (3, false));
        assert!(
            ended.exit.message.contains("removed on 2026-11-21"),
            "{}",
            ended.exit.message
        );
        assert!(
            ended.exit.message.contains("archive.retention.maxSize"),
            "{}",
            ended.exit.message
        );
        let lost = gap(Stream::Stdout, 0, Some(5), GapReason::RemovedByRetention);
        assert_eq!(ended.gap(Stream::Stdout, 0), Some(lost));
        assert_eq!(ended.gap(Stream::Stderr, 0), None);
    }
}
