//! How an attempt that is not live here ended, and which of its output is permanently missing.

use remoteprocess_proto::v1::{Cursor, Exit, Gap, GapReason, ProcessKey, Reason, Stream, WatchOutputRequest};
use remoteprocess_tls::User;

use super::{Core, unreadable};
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
    /// The first hundred ranges that are known to be missing.
    gaps: Vec<Gap>,
}

/// The attempt of a request, and how it ended.
pub(crate) struct Chosen {
    /// The process.
    pub target: Target,
    /// The attempt; `None` while another may replace it.
    pub attempt: Option<u32>,
    /// How it ended, if it has and is not live here.
    pub ended: Option<Ended>,
}

impl Core {
    /// Chooses the attempt that a user will read (0: the latest), before its output is opened.
    pub(crate) async fn choose(
        &self,
        user: &User,
        process: Option<ProcessKey>,
        attempt: u32,
    ) -> Result<Chosen, crate::relay::error::Error> {
        let target = self.allow::<WatchOutputRequest>(user, process).await?;
        self.check_attempt(&target, attempt).await?;
        let attempt = match attempt {
            0 if self.object(&target).is_none() => {
                let archived = self.archive.attempts(&target.uid).await;
                archived.map_err(|error| unreadable(&error))?.last().copied()
            }
            0 => self.settled(&target),
            named => Some(named),
        };
        let ended = match attempt {
            Some(attempt) => self.ended(&target, attempt, true).await,
            None => Ok(None),
        };
        Ok(Chosen {
            target,
            attempt,
            ended: ended.map_err(|error| unreadable(&error))?,
        })
    }

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
                gaps: Vec::new(),
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
            gaps: Vec::new(),
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
            gaps: manifest.gaps.clone(),
        })
    }

    /// The first range of a stream at or beyond `from` that the archive knows to be missing.
    pub(crate) fn known_gap(&self, stream: Stream, from: u64) -> Option<Gap> {
        if self.reason == GapReason::RemovedByRetention {
            return match self.gap(stream, from)? {
                Piece::Gap(gap) => Some(gap),
                Piece::Data(_) => None,
            };
        }
        let is_ahead = |gap: &&Gap| gap.stream() == stream && gap.to.is_none_or(|to| to > from);
        self.gaps.iter().find(is_ahead).copied()
    }

    /// Length and SHA-256 of a stream, every byte of which is in the archive.
    pub(crate) fn whole(&self, stream: Stream) -> Option<(u64, [u8; 32])> {
        if !self.exit.sealed || self.reason == GapReason::RemovedByRetention {
            return None;
        }
        let seal = self.exit.seal.as_ref()?;
        let seal = match stream {
            Stream::Stderr => seal.stderr.as_ref()?,
            Stream::Stdout | Stream::Unspecified => seal.stdout.as_ref()?,
        };
        Some((seal.bytes, seal.sha256.as_ref().try_into().ok()?))
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
        assert_eq!(ended.gap(Stream::Stdout, 0), Some(lost.clone()));
        assert_eq!(ended.known_gap(Stream::Stdout, 0).map(Piece::Gap), Some(lost));
        assert_eq!(ended.gap(Stream::Stderr, 0), None);
    }
}
