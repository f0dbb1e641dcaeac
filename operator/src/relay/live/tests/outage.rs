//! A store that takes nothing for a while: the live attempt stays, nothing is committed, nothing is lost, and the
//! reason is reported.

use std::fmt;
use std::io::ErrorKind;

use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;
use crate::relay::archive::Unavailable;

/// A store whose puts fail with an error of the operating system while one is set.
#[derive(Debug)]
struct Failing {
    inner: InMemory,
    trouble: watch::Sender<Option<ErrorKind>>,
    refused: watch::Sender<usize>,
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failing")
    }
}

#[tonic::async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> StoreResult<PutResult> {
        let trouble = *self.trouble.borrow();
        if let Some(kind) = trouble {
            self.refused.send_modify(|count| *count += 1);
            return Err(object_store::Error::Generic {
                store: "failing",
                source: std::io::Error::from(kind).into(),
            });
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn failing() -> (Archive, watch::Sender<Option<ErrorKind>>, watch::Receiver<usize>) {
    let (trouble, refused) = (watch::Sender::new(None), watch::Sender::new(0));
    let (set, count) = (trouble.clone(), refused.subscribe());
    let store = Failing {
        inner: InMemory::new(),
        trouble,
        refused,
    };
    (Archive::new(Arc::new(store)), set, count)
}

fn committed(program: &Program) -> Cursor {
    let commits = program.commits.lock().unwrap();
    commits
        .iter()
        .filter_map(|commit| commit.archived)
        .next_back()
        .unwrap_or_default()
}

#[rstest]
#[case(ErrorKind::StorageFull, Unavailable::StoreFull)]
#[case(ErrorKind::ConnectionRefused, Unavailable::StoreUnreachable)]
#[case(ErrorKind::PermissionDenied, Unavailable::StoreRefused)]
#[tokio::test]
async fn a_store_that_takes_nothing_holds_back_and_loses_nothing(
    #[case] kind: ErrorKind,
    #[case] expected: Unavailable,
) {
    let (archive, trouble, mut refused) = failing();
    let program = Program::new(&chunks(20));
    program.written.send_replace(21);
    let agent = FakeAgent::serve(&program).await;
    let relay = Relay::new(&archive);
    let live = relay.open(&agent);
    let (mut follower, mut got) = (relay.follower(all()), Got::new());
    assert!(got.read(&mut follower, 21 * 48 * 1024).await.is_none());
    let mut unavailable = live.archive_unavailable();
    trouble.send_replace(Some(kind));
    program.written.send_replace(program.history.len());
    let told = *soon(unavailable.wait_for(Option::is_some)).await.unwrap();
    assert_eq!(told, Some(expected));
    // The put is retried, and in the meantime nothing more is reported as durable.
    let tries = *refused.borrow();
    soon(refused.wait_for(|count| *count >= tries + 2)).await.unwrap();
    let before = committed(&program);
    soon(refused.wait_for(|count| *count >= tries + 4)).await.unwrap();
    assert_eq!(committed(&program), before);
    trouble.send_replace(None);
    soon(unavailable.wait_for(Option::is_none)).await.unwrap();
    let exit = got.read(&mut follower, u64::MAX).await.unwrap();
    assert!(exit.sealed);
    assert_eq!((got.at, got.gaps.len()), (program.end(), 0));
    assert_eq!(relay.recorded().await.0.end(), program.end());
}
