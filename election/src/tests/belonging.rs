//! Leases of other programs, and what others write into ours.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use rstest::rstest;
use serde_json::json;

use super::*;

fn owner(uid: &str) -> OwnerReference {
    OwnerReference {
        kind: "ProcessTrigger".into(),
        name: "orders".into(),
        uid: uid.into(),
        ..OwnerReference::default()
    }
}

fn lease(holder: &str, labels: &[(&str, &str)], owners: &[&str]) -> Lease {
    let labels = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Lease {
        metadata: ObjectMeta {
            labels: Some(labels.collect()),
            owner_references: Some(owners.iter().map(|uid| owner(uid)).collect()),
            ..ObjectMeta::default()
        },
        spec: Some(held_by(holder)),
    }
}

#[rstest]
#[case::marked("other_7a", &[("app", "ours"), ("more", "x")], &[], true)]
#[case::of_an_earlier_version("operator-5d4f7-x2x4q", &[], &[], true)]
#[case::released_by_an_earlier_version("", &[], &[], true)]
#[case::own_pod("operator-7c9b6-aaaaa", &[("app", "theirs")], &["1"], true)]
#[case::other_holder("node-1_7a5e", &[], &[], false)]
#[case::other_deployment("manager-5d4f7-x2x4q", &[], &[], false)]
#[case::labeled_by_another_tool("operator-5d4f7-x2x4q", &[("velero.io/restore-name", "x")], &[], true)]
#[case::of_another_release("the-ours-5d4f7-x2x4q", &[], &[], true)]
#[case::other_labels("operator-5d4f7-x2x4q", &[("app", "theirs")], &[], false)]
#[case::owned_by_something("operator-5d4f7-x2x4q", &[], &["1"], false)]
#[case::released_by_another("", &[("app", "theirs")], &[], false)]
fn a_lease_of_the_operator_has_its_labels_or_is_of_an_earlier_version(
    #[case] holder: &str,
    #[case] labels: &[(&str, &str)],
    #[case] owners: &[&str],
    #[case] is_ours: bool,
) {
    let found = stranger(&lease(holder, labels, owners), &candidate("operator-7c9b6-aaaaa"));
    assert_eq!(found.is_none(), is_ours, "{found:?}");
}

#[rstest]
#[case::its_own("orders-trigger-1-a", &["2", "1"], None)]
#[case::own_pod("me", &[], None)]
#[case::of_a_former_object("orders-trigger-1-a", &["2"], Some("it belongs to ProcessTrigger orders (2)"))]
#[case::of_nothing("x", &[], Some("its holder is x"))]
#[case::free("", &[], Some("nobody holds it"))]
fn a_lease_of_a_bridge_belongs_to_its_object(
    #[case] holder: &str,
    #[case] owners: &[&str],
    #[case] whose: Option<&str>,
) {
    let mut candidate = candidate("me");
    candidate.mark = Mark::Owner(owner("1"));
    assert_eq!(stranger(&lease(holder, &[], owners), &candidate).as_deref(), whose);
}

/// What a user has written makes nobody wait forever, and takes nothing from a holder that lives.
#[rstest]
#[case::for_years(i32::MAX, 59, Step::Wait)]
#[case::not_for_years(i32::MAX, 60, Step::Take)]
#[case::not_at_once(1, 14, Step::Wait)]
#[case::nonsense(-5, 14, Step::Wait)]
#[case::as_usual(1, 15, Step::Take)]
fn a_duration_that_a_user_has_written_has_bounds(#[case] written: i32, #[case] silent: u64, #[case] expected: Step) {
    let lease = LeaseSpec {
        lease_duration_seconds: Some(written),
        ..held_by("b")
    };
    assert_eq!(decide(&lease, Duration::from_secs(silent), &candidate("a")), expected);
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_another_program_is_left_alone() {
    let (server, throne) = (Server::default(), Throne::default());
    let theirs = json!({"holderIdentity": "node-1_7a5e", "leaseDurationSeconds": 1});
    server.edit(|lease| lease["spec"] = theirs.clone());
    let election = Election::new(server.client(), candidate("a"));
    let mut standing = election.standing();
    let (stop, task) = campaign(election, &server, &throne, "a");
    let failing = standing
        .wait_for(|now| *now != Standing::Unknown)
        .await
        .unwrap()
        .clone();
    let message = "the Lease work in namespace system was made by another program, its holder is node-1_7a5e, and is not \
                   taken over; delete it if nothing else needs it";
    let expected = Standing::Failing {
        obstacle: Obstacle::Foreign,
        is_free: false,
        message: message.to_owned(),
    };
    assert_eq!(failing, expected);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(throne.who(), None);
    assert_eq!(server.0.lock().unwrap().lease.as_ref().unwrap()["spec"], theirs);
    server.remove();
    until(4, || throne.who().is_some()).await;
    // A holder whose Lease was replaced by that of another program stops, too.
    server.edit(|lease| *lease = json!({"metadata": {"resourceVersion": "99"}, "spec": theirs}));
    until(4, || throne.who().is_none()).await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_an_earlier_version_is_taken_and_marked() {
    let (server, throne) = (Server::default(), Throne::default());
    server.edit(|lease| lease["spec"] = json!({"leaseDurationSeconds": 1, "leaseTransitions": 3}));
    let (stop, task) = run(&server, &throne, "a");
    until(1, || throne.who().is_some()).await;
    let is_marked = || server.0.lock().unwrap().lease.as_ref().unwrap()["metadata"]["labels"]["app"] == "ours";
    assert!(is_marked());
    server.edit(|lease| lease["metadata"]["labels"] = json!({}));
    until(4, is_marked).await;
    stop.cancel();
    task.await.unwrap();
}
