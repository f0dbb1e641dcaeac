use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::{Cursor, Exit, Stream};

use super::*;
use crate::relay::attempt::Subject;
use crate::relay::piece::{Placed, data};

const DAY: i64 = 24 * 3600;

fn key(uid: &str) -> AttemptKey {
    AttemptKey {
        uid: uid.to_owned(),
        attempt: 1,
    }
}

fn held(entries: &[(&str, u64, Option<i64>)]) -> BTreeMap<AttemptKey, Held> {
    let entries = entries.iter().map(|(uid, bytes, ended)| {
        let held = Held {
            bytes: *bytes,
            touched: ended.unwrap_or(0),
            ended: *ended,
            expired: None,
            objects: 3,
        };
        (key(uid), held)
    });
    entries.collect()
}

fn days(days: u64) -> Retention {
    Retention {
        max_age: Some(Duration::from_secs(days * 24 * 3600)),
        max_bytes: None,
    }
}

fn size(max_bytes: u64) -> Retention {
    Retention {
        max_age: None,
        max_bytes: Some(max_bytes),
    }
}

#[test]
fn what_is_old_goes_and_what_runs_stays() {
    let held = held(&[("old", 1, Some(0)), ("young", 1, Some(9 * DAY)), ("runs", 1, None)]);
    let steps = plan(&held, days(7), |_| true, 10 * DAY);
    assert_eq!(steps, vec![(key("old"), Step::Remove(Why::Age))]);
}

#[test]
fn what_was_never_closed_goes_only_when_it_is_old_and_its_object_is_gone() {
    let held = held(&[("lost", 1, None)]);
    assert_eq!(plan(&held, days(7), |_| true, 10 * DAY), vec![]);
    assert_eq!(plan(&held, size(0), |_| false, 10 * DAY), vec![]);
    let steps = plan(&held, days(7), |_| false, 10 * DAY);
    assert_eq!(steps, vec![(key("lost"), Step::Remove(Why::Age))]);
}

#[test]
fn the_oldest_finished_go_until_the_rest_fits() {
    let held = held(&[
        ("b", 40, Some(2)),
        ("a", 40, Some(3)),
        ("c", 40, Some(1)),
        ("runs", 500, None),
    ]);
    let steps = plan(&held, size(545), |_| true, 10);
    let expected = [("c", Why::Size), ("b", Why::Size)];
    assert_eq!(steps, expected.map(|(uid, why)| (key(uid), Step::Remove(why))));
}

#[test]
fn a_removal_that_was_cut_off_is_finished_and_its_record_goes_in_the_end() {
    let mut held = held(&[("a", 1, None), ("b", 1, None)]);
    held.get_mut(&key("a")).unwrap().expired = Some(0);
    let b = held.get_mut(&key("b")).unwrap();
    (b.expired, b.objects) = (Some(0), 0);
    assert_eq!(plan(&held, days(1), |_| true, DAY), vec![(key("a"), Step::Finish)]);
    let steps = plan(&held, days(1), |_| true, 91 * DAY);
    assert_eq!(steps, vec![(key("a"), Step::Finish), (key("b"), Step::Forget)]);
}

#[tokio::test]
async fn a_removed_attempt_keeps_its_exit_and_says_what_happened() {
    let archive = Archive::new(Arc::new(InMemory::new()));
    for (uid, is_closed) in [("done", true), ("runs", false)] {
        let subject = Subject {
            namespace: "default".to_owned(),
            name: uid.to_owned(),
            pod_uid: "pod".to_owned(),
            key: key(uid),
        };
        let mut writer = archive.writer(subject).await.unwrap();
        writer.append(&Placed {
            start: Cursor::default(),
            piece: data(Stream::Stdout, 0, 0, Bytes::from_static(b"hello")),
        });
        writer.flush().await.unwrap();
        if is_closed {
            let exit = Exit {
                outcome: Outcome::Code.into(),
                value: 3,
                sealed: true,
                ..Exit::default()
            };
            writer.seal(&exit).await.unwrap();
        }
    }
    let removed = metrics().archive_expired.get();
    let far = Timestamp::now().as_second() + 8 * DAY;
    sweep(&archive, days(7), |_| true, far).await.unwrap();
    assert_eq!(metrics().archive_expired.get(), removed + 1);
    assert!(archive.segments(&key("done")).await.unwrap().is_empty());
    assert_eq!(archive.segments(&key("runs")).await.unwrap().len(), 1);
    let manifest = archive.manifest(&key("done")).await.unwrap().unwrap();
    assert_eq!((manifest.name.as_str(), manifest.end().stdout), ("done", 5));
    let exit = manifest.exit_frame().unwrap();
    assert_eq!((exit.value, exit.sealed), (3, false));
    assert!(exit.message.contains("removed on"), "{}", exit.message);
    sweep(&archive, days(7), |_| true, far + 91 * DAY).await.unwrap();
    assert!(archive.manifest(&key("done")).await.unwrap().is_none());
}
