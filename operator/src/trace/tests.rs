use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use remoteprocess_api::RemoteProcessSpec;

use super::*;

fn process(traceparent: Option<&str>) -> RemoteProcess {
    let annotation = traceparent.map(|text| (names::ANNOTATION_TRACEPARENT.to_owned(), text.to_owned()));
    RemoteProcess {
        metadata: ObjectMeta {
            uid: Some("u".into()),
            annotations: Some(BTreeMap::from_iter(annotation)),
            ..ObjectMeta::default()
        },
        ..RemoteProcess::new("p", RemoteProcessSpec::default())
    }
}

#[test]
fn every_replica_derives_the_same_identifiers() {
    let ids = |number| {
        let tree = Tree::of(&process(None), number);
        (tree.trace_id, tree.span_id("run"))
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1).0, ids(2).0, "one trace per attempt");
    assert_ne!(ids(1).1, ids(2).1);
    // They do not change between versions: replicas of both run during an upgrade.
    assert_eq!(
        traceparent(&process(None), 1),
        "00-4f435f2f803c21592502bff0763becd1-df27d947ee53eed3-01"
    );
}

#[test]
fn the_trace_of_the_user_continues() {
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let text = traceparent(&process(Some(own)), 2);
    assert!(text.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{text}");
    assert!(!text.contains("b7ad6b7169203331"), "{text}");
    assert!(text.ends_with("-01"), "{text}");
}

#[test]
fn a_trace_that_is_not_sampled_stays_so() {
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    assert!(traceparent(&process(Some(own)), 1).ends_with("-00"));
    assert!(!Tree::of(&process(Some(own)), 1).context("run").is_sampled());
}

#[test]
fn an_annotation_that_is_no_traceparent_is_ignored() {
    let derived = traceparent(&process(None), 1);
    let long = "0".repeat(LONGEST_TRACEPARENT + 1);
    let zero = "00-00000000000000000000000000000000-0000000000000000-01";
    for text in [
        "",
        "x",
        "00-1-2",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        zero,
        &long,
    ] {
        assert_eq!(traceparent(&process(Some(text)), 1), derived, "{text}");
    }
}
