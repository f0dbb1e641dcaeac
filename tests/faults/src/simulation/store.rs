//! The archive's store: memory that outlives the relays, and sometimes refuses.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::Rng;
use rand::rngs::StdRng;

/// How the store behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Works normally.
    #[default]
    Works,
    /// Answers everything with an error.
    Refuses,
    /// Stores each put, and answers that it failed.
    Lies,
    /// Takes half a second for each request.
    Dawdles,
}

impl Mode {
    pub(super) fn choose(rng: &mut StdRng) -> Self {
        [Self::Refuses, Self::Lies, Self::Dawdles][rng.random_range(0..3)]
    }
}

/// A store with a mode.
#[derive(Debug, Default)]
pub(super) struct Store {
    inner: InMemory,
    mode: Mutex<Mode>,
}

impl Store {
    pub(super) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self) -> Result<()> {
        match self.mode() {
            Mode::Refuses => Err(refusal()),
            Mode::Dawdles => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok(())
            }
            Mode::Works | Mode::Lies => Ok(()),
        }
    }
}

fn refusal() -> Error {
    Error::Generic {
        store: "simulated",
        source: "the store is away".into(),
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

#[tonic::async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.answer().await?;
        let put = self.inner.put_opts(location, payload, options).await;
        if self.mode() == Mode::Lies {
            return Err(refusal());
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.answer().await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.answer().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.mode() == Mode::Refuses {
            return Box::pin(futures::stream::once(async { Err(refusal()) }));
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.answer().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.answer().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
