//! Removes expired output, the oldest first, and never output that is still being written.
//!
//! Removed output leaves a record, `expired.json`, so that readers are told that the output was removed, not that it is
//! damaged. The record itself is deleted after [`RECORD_KEPT`].

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutPayload};
use tracing::{info, warn};

use super::{Archive, Error, Manifest};
use crate::relay::attempt::AttemptKey;
use crate::relay::metrics::metrics;

/// Pause between two scans of the whole archive.
const SWEEP: Duration = Duration::from_secs(600);
/// Pause after a scan that failed because the store did not answer.
const AGAIN: Duration = Duration::from_secs(60);
/// How long the record of a removed output stays.
const RECORD_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// Number of simultaneous deletions.
const AT_ONCE: usize = 16;

/// How long output stays in the archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Counted from the end of an attempt; `None`: forever.
    pub max_age: Option<Duration>,
    /// Total size beyond which the oldest finished attempts are removed; `None`: no limit.
    pub max_bytes: Option<u64>,
}

/// Why output is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Why {
    /// It was older than the limit.
    Age,
    /// The archive was larger than the limit.
    Size,
}

/// What the archive holds of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    /// When any of its objects was last written, in seconds since the Unix epoch.
    touched: i64,
    /// When it was closed.
    ended: Option<i64>,
    /// When it was removed.
    expired: Option<i64>,
    /// Number of objects, without the record of the removal.
    objects: usize,
}

/// What to do with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Remove(Why),
    /// Finish an interrupted removal.
    Finish,
    /// Delete the record of the removal as well.
    Forget,
}

/// Scans the archive repeatedly; never returns. `is_known` returns whether the object of a uid still exists: an attempt
/// that was never closed is removed only if it does not.
pub async fn run(archive: &Archive, retention: Retention, is_known: impl Fn(&str) -> bool) {
    if retention == Retention::default() {
        return std::future::pending().await;
    }
    loop {
        let pause = match sweep(archive, retention, &is_known, Timestamp::now().as_second()).await {
            Ok(()) => SWEEP,
            Err(error) => {
                warn!(%error, "cannot look through the archive for what may go");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Scans once.
async fn sweep(
    archive: &Archive,
    retention: Retention,
    is_known: impl Fn(&str) -> bool,
    now: i64,
) -> Result<(), Error> {
    let held = survey(archive).await?;
    let total: u64 = held.values().map(|held| held.bytes).sum();
    metrics().archive_size.set(i64::try_from(total).unwrap_or(i64::MAX));
    for (key, step) in plan(&held, retention, is_known, now) {
        let bytes = held.get(&key).map_or(0, |held| held.bytes);
        match step {
            Step::Remove(why) => archive.expire(&key, why, bytes).await?,
            Step::Finish => archive.remove_rest(&key).await?,
            Step::Forget => archive.forget(&key).await?,
        }
    }
    Ok(())
}

/// The contents of the archive, by attempt.
async fn survey(archive: &Archive) -> Result<BTreeMap<AttemptKey, Held>, Error> {
    let mut held: BTreeMap<AttemptKey, Held> = BTreeMap::new();
    let mut objects = archive.store.list(Some(&Path::from("processes")));
    while let Some(object) = objects.try_next().await? {
        if let Some((key, name)) = place(&object.location) {
            held.entry(key).or_default().add(&name, &object);
        }
    }
    Ok(held)
}

fn place(path: &Path) -> Option<(AttemptKey, String)> {
    let mut parts = path.parts().skip_while(|part| part.as_ref() != "processes").skip(1);
    let key = AttemptKey {
        uid: parts.next()?.as_ref().to_owned(),
        attempt: parts.next()?.as_ref().parse().ok()?,
    };
    Some((key, parts.next()?.as_ref().to_owned()))
}

impl Held {
    fn add(&mut self, name: &str, object: &ObjectMeta) {
        let at = object.last_modified.timestamp();
        self.bytes += object.size;
        if name == "expired.json" {
            self.expired = Some(at);
            return;
        }
        self.objects += 1;
        self.touched = self.touched.max(at);
        if name == "end.json" {
            self.ended = Some(at);
        }
    }
}

/// What to remove, the oldest first.
fn plan(
    held: &BTreeMap<AttemptKey, Held>,
    retention: Retention,
    is_known: impl Fn(&str) -> bool,
    now: i64,
) -> Vec<(AttemptKey, Step)> {
    let is_past = |at: i64, age: Duration| now.saturating_sub(at) > i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    let mut steps = Vec::new();
    let mut removable = Vec::new();
    let mut total: u64 = held.values().map(|held| held.bytes).sum();
    for (key, held) in held {
        match held.expired {
            Some(_) if held.objects > 0 => steps.push((key.clone(), Step::Finish)),
            Some(at) if is_past(at, RECORD_KEPT) => steps.push((key.clone(), Step::Forget)),
            Some(_) => {}
            None => match held.ended {
                Some(ended) => removable.push((ended, true, key, held.bytes)),
                None if !is_known(&key.uid) => removable.push((held.touched, false, key, held.bytes)),
                None => {}
            },
        }
    }
    removable.sort();
    for (at, is_closed, key, bytes) in removable {
        let is_old = retention.max_age.is_some_and(|age| is_past(at, age));
        // A process that was just deleted may still report its end.
        let is_much = is_closed && retention.max_bytes.is_some_and(|limit| total > limit);
        if is_old || is_much {
            total = total.saturating_sub(bytes);
            steps.push((key.clone(), Step::Remove(if is_old { Why::Age } else { Why::Size })));
        }
    }
    steps
}

impl Archive {
    /// Removes an attempt's output; the record of the removal is written first.
    async fn expire(&self, key: &AttemptKey, why: Why, bytes: u64) -> Result<(), Error> {
        let Some(manifest) = self.manifest(key).await? else {
            return self.remove_rest(key).await;
        };
        let (namespace, name) = (manifest.namespace.clone(), manifest.name.clone());
        let record = manifest.expire(Timestamp::now(), why);
        let body = serde_json::to_vec_pretty(&record).map_err(|source| key.unreadable(source))?;
        self.store.put(&key.expired_path()?, PutPayload::from(body)).await?;
        self.remove_rest(key).await?;
        metrics().archive_expired.inc();
        metrics().archive_expired_size.inc_by(bytes);
        info!(
            uid = key.uid,
            attempt = key.attempt,
            namespace,
            name,
            bytes,
            ?why,
            "removed output by retention"
        );
        Ok(())
    }

    /// Removes everything except the record. In this order a reader finds the whole attempt or the record, and never an
    /// attempt that seems to be still running.
    async fn remove_rest(&self, key: &AttemptKey) -> Result<(), Error> {
        self.remove([key.manifest_path()?]).await?;
        self.remove([key.end_path()?]).await?;
        let segments: Vec<_> = self.store.list(Some(&key.segments_path()?)).try_collect().await?;
        self.remove(segments.into_iter().map(|object| object.location)).await
    }

    async fn forget(&self, key: &AttemptKey) -> Result<(), Error> {
        self.remove([key.expired_path()?]).await
    }

    /// One request for each: not every service that implements S3 can delete many at once.
    async fn remove(&self, paths: impl IntoIterator<Item = Path>) -> Result<(), Error> {
        let deletions = stream::iter(paths).map(|path| async move {
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(Error::from(error)),
            }
        });
        deletions.buffer_unordered(AT_ONCE).try_collect().await
    }
}

impl Manifest {
    fn expire(mut self, at: Timestamp, why: Why) -> Self {
        self.segments = Vec::new();
        self.sealed = false;
        self.expired = Some(Expired { at, why });
        self
    }
}

/// Record that an attempt's output was removed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Expired {
    at: Timestamp,
    why: Why,
}

impl Expired {
    /// A message for a person who looks for the output.
    pub fn sentence(&self) -> String {
        let why = match self.why {
            Why::Age => "it was older than the archive keeps (archive.retention.days)",
            Why::Size => "the archive was larger than it may be (archive.retention.maxSize)",
        };
        format!(
            "the output was removed on {}: {why}",
            self.at.strftime("%Y-%m-%d at %H:%M UTC")
        )
    }
}

#[cfg(test)]
mod tests;
