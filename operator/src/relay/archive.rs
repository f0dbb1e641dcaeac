//! The output of every attempt, kept in an object store.
//!
//! Layout below `processes/<uid>/<attempt>/`: `manifest.json` from the beginning, `end.json` with the exit from the end
//! on, `expired.json` instead of everything else once retention has removed it, and
//! `segments/<stdout>-<stderr>-<writer>`: the name contains the offsets at which the segment begins and a random mark
//! of the writer that created it, so that two writers never replace each other's objects. Manifests are put once and
//! never changed. Segments are whole, checked objects; the last bytes of a crashed writer are still with the agent,
//! because only what is durable here is ever committed.

mod checkpoint;
mod manifest;
mod reader;
mod resume;
mod retention;
mod seats;
mod segment;
mod since;
mod store;
mod tail;
mod unavailable;
mod writer;

use std::path::Path as FilePath;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use remoteprocess_api::identifier;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::warn;

pub use manifest::{Manifest, SegmentEntry};
pub(crate) use reader::beyond;
pub use reader::{Reader, precedes};
pub use retention::{Retention, run as retain};
pub use seats::Seat;
use seats::Seats;
pub use segment::{Segment, SegmentName};
pub use since::{first_since, since_start};
pub use store::{Bucket, StoreConfig};
pub use tail::{TailSearch, tail_start};
pub use unavailable::Unavailable;
pub use writer::Writer;

use super::attempt::{AttemptKey, Subject};

/// Raw bytes after which a segment is full.
pub const SEGMENT_BYTES: usize = 4 * 1024 * 1024;

/// What can go wrong between the relay and its store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused or is unavailable.
    #[error("the archive's store failed: {0}")]
    Store(#[from] object_store::Error),
    /// The bytes of a segment are not what was written.
    #[error("segment {name} is damaged: {reason}")]
    Damaged {
        /// Name of the segment.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A manifest is not valid JSON of this schema.
    #[error("the manifest of {uid}/{attempt} cannot be read: {source}")]
    Manifest {
        /// UID of the object.
        uid: String,
        /// Number of the attempt.
        attempt: u32,
        /// The decoder's error.
        source: serde_json::Error,
    },
    /// A UID that no API server generates.
    #[error("not a UID: only letters, digits and hyphens, at most 64")]
    Uid,
}

/// What all readers together may hold of the archive, in bytes of memory: part of the 512 MiB that the chart gives a
/// replica.
pub const READ_MEMORY: usize = 32 << 20;

/// The archive of an installation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    kind: Kind,
    seats: Arc<Seats>,
    /// Taken while a segment is decoded for a reader.
    decoders: Arc<Semaphore>,
    /// Who reads; `None`: the operator itself, which waits for no reader.
    user: Option<Arc<str>>,
}

/// Segments are decoded for readers on half of the processors, at least on one: the others are left for calls, however many
/// readers there are.
fn decoders() -> Arc<Semaphore> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new((processors / 2).max(1)))
}

/// The kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A directory: near, no network, and possibly no hard links with which an object is put only if there is none.
    Volume,
    /// A service: each byte and each request costs, and an object can be put only if there is none.
    Remote,
}

impl Archive {
    /// Opens (and creates) an archive in a directory. Each put is renamed into place and fsynced before it returns.
    pub fn local(root: &FilePath) -> Result<Self, Error> {
        std::fs::create_dir_all(root).map_err(|source| object_store::Error::Generic {
            store: "archive",
            source: source.into(),
        })?;
        let store = LocalFileSystem::new_with_prefix(root)?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            kind: Kind::Volume,
            seats: Seats::new(READ_MEMORY),
            decoders: decoders(),
            user: None,
        })
    }

    /// An archive in an object store whose puts are atomic and durable, and can be conditional on absence.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            kind: Kind::Remote,
            seats: Seats::new(READ_MEMORY),
            decoders: decoders(),
            user: None,
        }
    }

    /// Opens an attempt for writing, at the end of what is there.
    pub async fn writer(&self, subject: Subject) -> Result<Writer, Error> {
        Writer::resume(self.clone(), subject).await
    }

    /// A reader of one attempt.
    pub fn reader(&self, key: &AttemptKey) -> Reader {
        Reader::new(self.clone(), key.clone())
    }

    /// The same archive for the readers of a user: what they hold of it is counted, and they take turns.
    pub fn for_user(&self, user: &str) -> Self {
        Self {
            user: Some(user.into()),
            ..self.clone()
        }
    }

    /// The manifest of an attempt; `None` if nothing was ever archived of it.
    pub async fn manifest(&self, key: &AttemptKey) -> Result<Option<Manifest>, Error> {
        for path in [key.end_path()?, key.manifest_path()?, key.expired_path()?] {
            if let Some(manifest) = self.read_manifest(key, &path).await? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    async fn read_manifest(&self, key: &AttemptKey, path: &Path) -> Result<Option<Manifest>, Error> {
        let body = match self.store.get(path).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let manifest = serde_json::from_slice(&body).map_err(|source| key.unreadable(source))?;
        Ok(Some(manifest))
    }

    /// When the archive began with the first attempt that it has of an object, by the clock of the store.
    pub async fn begun(&self, uid: &str) -> Result<Option<Timestamp>, Error> {
        let Some(attempt) = self.attempts(uid).await?.first().copied() else {
            return Ok(None);
        };
        let uid = uid.to_owned();
        let manifest = AttemptKey { uid, attempt }.manifest_path()?;
        match self.store.head(&manifest).await {
            Ok(meta) => Ok(Timestamp::from_second(meta.last_modified.timestamp()).ok()),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The attempts of an object that are in the archive, ascending.
    pub async fn attempts(&self, uid: &str) -> Result<Vec<u32>, Error> {
        check_uid(uid)?;
        let listed = self
            .store
            .list_with_delimiter(Some(&Path::from_iter(["processes", uid])))
            .await?;
        let mut attempts: Vec<u32> = listed
            .common_prefixes
            .iter()
            .filter_map(|prefix| prefix.parts().next_back().and_then(|part| part.as_ref().parse().ok()))
            .collect();
        attempts.sort_unstable();
        Ok(attempts)
    }

    /// The last bytes of both streams together, in the observed order, at most `limit` of them.
    pub async fn last_bytes(&self, key: &AttemptKey, limit: usize) -> Result<Vec<u8>, Error> {
        tail::last_bytes(self, key, limit).await
    }

    /// The stored manifest of an attempt, or a new one.
    async fn begin_manifest(&self, subject: &Subject) -> Result<Manifest, Error> {
        let key = &subject.key;
        if let Some(manifest) = self.manifest(key).await? {
            return Ok(manifest);
        }
        let manifest = Manifest::begin(subject);
        if self.put_once(key, &key.manifest_path()?, &manifest).await? {
            return Ok(manifest);
        }
        self.manifest(key).await?.ok_or_else(contested)
    }

    /// Closes an attempt; returns the closing manifest of another writer if there is one.
    async fn close_manifest(&self, key: &AttemptKey, manifest: Manifest) -> Result<Manifest, Error> {
        let path = key.end_path()?;
        if self.put_once(key, &path, &manifest).await? {
            return Ok(manifest);
        }
        self.read_manifest(key, &path).await?.ok_or_else(contested)
    }

    /// Puts a manifest if there is none; returns false if there is one. If two are put at once, the first one stays,
    /// but on a volume the last one does.
    async fn put_once(&self, key: &AttemptKey, path: &Path, manifest: &Manifest) -> Result<bool, Error> {
        let body = serde_json::to_vec_pretty(manifest).map_err(|source| key.unreadable(source))?;
        let mode = match self.kind {
            Kind::Remote => PutMode::Create,
            Kind::Volume if self.store.head(path).await.is_ok() => return Ok(false),
            Kind::Volume => PutMode::Overwrite,
        };
        match self.store.put_opts(path, PutPayload::from(body), mode.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether to compress a segment that is filled at `rate` bytes per second. Compression always pays if each byte is
    /// sent over a network; on a volume it may take at most a twentieth of a processor per stream.
    fn compresses(&self, rate: f64) -> bool {
        const CHEAP: f64 = 12e6;
        self.kind == Kind::Remote || rate < CHEAP
    }

    /// The segments of an attempt, ordered by their beginnings.
    async fn segments(&self, key: &AttemptKey) -> Result<Vec<SegmentName>, Error> {
        let prefix = key.segments_path()?;
        let found: Vec<_> = self.store.list(Some(&prefix)).try_collect().await?;
        let mut names: Vec<SegmentName> = found
            .iter()
            .filter_map(|meta| SegmentName::parse(meta.location.filename()?))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// A segment; `None` if it is damaged, which is logged here.
    async fn segment(&self, key: &AttemptKey, name: &SegmentName) -> Result<Option<Segment>, Error> {
        let (mut seat, body) = self.read_segment(&key.segment_path(name)?).await?;
        let name = name.clone();
        let decoder = match &self.user {
            // Never closed, so never an error.
            Some(_) => self.decoders.clone().acquire_owned().await.ok(),
            None => None,
        };
        // Allocated here: the allocator gives freed memory back to the system only in the thread that has allocated it, and
        // one for blocking work may sleep for long.
        let buffer = Vec::with_capacity(segment::compressed(&body));
        let decode = move || {
            let _decoder = decoder;
            Segment::decode_into(&name, body, buffer)
        };
        let decoded = spawn_blocking(decode).await;
        match decoded.map_err(object_store::Error::from)? {
            Ok(mut segment) => {
                if let Some(seat) = &mut seat {
                    seat.shrink(segment.cost);
                }
                segment.seat = seat;
                Ok(Some(segment))
            }
            Err(error @ Error::Damaged { .. }) => {
                warn!(uid = key.uid, attempt = key.attempt, %error, "the archive is damaged");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The object of a segment, and a seat for it and what is compressed in it. That is known only when it has been read:
    /// if it is more than usual, the object is read again with the largest seat, because nobody may hold one and wait for
    /// more.
    async fn read_segment(&self, path: &Path) -> Result<(Option<Seat>, Bytes), Error> {
        let mut raw = segment::USUAL;
        loop {
            let found = self.store.get(path).await?;
            let seat = match &self.user {
                Some(user) => {
                    let bytes = usize::try_from(found.meta.size).unwrap_or(usize::MAX);
                    Some(self.seats.take(user, bytes.saturating_add(raw)).await)
                }
                None => None,
            };
            let body = found.bytes().await?;
            if seat.is_none() || segment::compressed(&body) <= raw {
                return Ok((seat, body));
            }
            raw = segment::RAW_LIMIT;
        }
    }
}

impl AttemptKey {
    fn directory(&self) -> Result<Path, Error> {
        check_uid(&self.uid)?;
        Ok(Path::from_iter(["processes", &self.uid, &self.attempt.to_string()]))
    }

    fn manifest_path(&self) -> Result<Path, Error> {
        Ok(self.directory()?.join("manifest.json"))
    }

    fn end_path(&self) -> Result<Path, Error> {
        Ok(self.directory()?.join("end.json"))
    }

    fn expired_path(&self) -> Result<Path, Error> {
        Ok(self.directory()?.join("expired.json"))
    }

    fn unreadable(&self, source: serde_json::Error) -> Error {
        Error::Manifest {
            uid: self.uid.clone(),
            attempt: self.attempt,
            source,
        }
    }

    fn segments_path(&self) -> Result<Path, Error> {
        Ok(self.directory()?.join("segments"))
    }

    fn segment_path(&self, name: &SegmentName) -> Result<Path, Error> {
        Ok(self.segments_path()?.join(name.to_string()))
    }
}

/// A put that failed because of another one, which failed as well: S3 may report this for two at the same time. Retry
/// it.
fn contested() -> Error {
    Error::Store(object_store::Error::Generic {
        store: "archive",
        source: "two writers put the same manifest at the same time".into(),
    })
}

/// Checks a UID, because it becomes part of a path and may come from a peer.
fn check_uid(uid: &str) -> Result<(), Error> {
    if identifier::is_uid(uid) {
        Ok(())
    } else {
        Err(Error::Uid)
    }
}

#[cfg(test)]
mod tests;
