//! Two bridges of one trigger at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Setup, kept, of, publish};
use crate::cluster::{Cluster, Cut, Line, PROCESSES};
use crate::engine::{Bridge, TIMING};

/// Time between two messages.
const PAUSE: Duration = Duration::from_millis(25);
/// Most results of which the former holder may have sent one without noting it, for each time that the lease is passed on.
const IN_FLIGHT: usize = 16;

/// How long it takes until this one holds the lease, and has created a process since.
async fn takeover(cluster: &Cluster, identity: &str) -> Duration {
    let begin = Instant::now();
    cluster
        .until(identity, |cluster| cluster.holder().as_deref() == Some(identity))
        .await;
    let created = cluster.created().len();
    cluster
        .until("a message", |cluster| cluster.created().len() > created)
        .await;
    begin.elapsed()
}

/// Waits for all results. Each message was one process, and has one result, which may have been sent again.
async fn once_each(setup: &Setup, ids: Vec<String>) {
    let (cluster, context) = (&setup.cluster, setup.server.context().await);
    let number = ids.len();
    let is_marked = |process: &Value| process["metadata"]["annotations"]["remoteprocess.dev/result-sent"].is_string();
    let is_over = |cluster: &Cluster| {
        let processes = cluster.all(PROCESSES);
        processes.len() == number && processes.iter().all(is_marked)
    };
    cluster.until("all results", is_over).await;
    assert_eq!(
        cluster.strays(),
        Vec::<String>::new(),
        "only the holder changes anything"
    );
    let (journal, created) = (cluster.journal(), cluster.created());
    assert_eq!((journal.len(), created.len()), (number, number), "one process for each");
    assert_eq!(created.into_iter().collect::<BTreeSet<_>>(), ids.into_iter().collect());
    assert!(cluster.most_running() <= 5, "{}", cluster.most_running());
    let results = kept(&context, "results").await;
    let sent = results.len();
    println!("{number} messages, {} results again", sent - number);
    let mut by_message: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (event, _) in results {
        let (message, id) = of(&event);
        by_message.entry(message).or_default().insert(id);
    }
    assert_eq!(by_message.len(), number);
    assert!(by_message.values().all(|ids| ids.len() == 1), "a result has one id");
    assert!(sent <= number + 3 * IN_FLIGHT, "{sent} results");
}

/// The holder is killed, loses its way to the Lease only, loses its way to the API server, and ends in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_bridges_one_works_whatever_happens_to_it() {
    let source = json!({"resultSubject": "results"});
    let Some(setup) = Setup::start(source, json!({"maxRunning": 5})).await else {
        return;
    };
    setup.run_processes();
    let (cluster, context) = (setup.cluster.clone(), setup.server.context().await);
    let (sender, enough) = (context.clone(), CancellationToken::new());
    let is_enough = enough.clone();
    let publishing = tokio::spawn(async move {
        let mut ids = Vec::new();
        while !is_enough.is_cancelled() {
            let id = format!("m{}", ids.len());
            publish(&sender, &id, &[], &id).await;
            ids.push(id);
            tokio::time::sleep(PAUSE).await;
        }
        ids
    });
    let (line_a, line_b) = (Line::of("a"), Line::of("b"));
    let start = |line: &Line| Bridge::start_candidate(&cluster, setup.secrets.path(), line);
    let a = start(&line_a);
    takeover(&cluster, "a").await;
    let b = start(&line_b);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.holder().as_deref(), Some("a"), "the other one waits");

    a.kill().await;
    let killed = takeover(&cluster, "b").await;
    let a = start(&line_a);
    line_b.cut(Cut::Lease);
    let cut = takeover(&cluster, "a").await;
    line_b.cut(Cut::Nothing);
    line_a.cut(Cut::Everything);
    let lost = takeover(&cluster, "b").await;
    line_a.cut(Cut::Nothing);
    // It campaigns again.
    tokio::time::sleep(Duration::from_millis(300)).await;
    b.stop().await;
    let stopped = takeover(&cluster, "a").await;
    println!("killed {killed:?}, without the lease {cut:?}, without the API server {lost:?}, stopped {stopped:?}");
    assert!(
        stopped < TIMING.lease_duration / 2,
        "{stopped:?}: the lease is released"
    );

    enough.cancel();
    once_each(&setup, publishing.await.unwrap()).await;
    setup.server.until_settled("ORDERS").await;
    a.stop().await;
    assert_eq!(cluster.holder(), None);
}

/// What two bridges without an election would both send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bridges_send_each_result_once() {
    let source = json!({"resultSubject": "results"});
    let Some(setup) = Setup::start(source, json!({"maxRunning": 3})).await else {
        return;
    };
    setup.run_processes();
    let context = setup.server.context().await;
    let lines = [Line::of("a"), Line::of("b")];
    let bridges = lines.map(|line| Bridge::start_candidate(&setup.cluster, setup.secrets.path(), &line));
    for number in 0..60 {
        publish(&context, &format!("m{number}"), &[], "0").await;
    }
    setup
        .cluster
        .until("all results", |cluster| cluster.status()["succeeded"] == 60)
        .await;
    let results = kept(&context, "results").await;
    assert_eq!(results.len(), 60, "nobody was killed: each result is sent once");
    assert!(setup.cluster.most_running() <= 3);
    assert_eq!(setup.cluster.strays(), Vec::<String>::new());
    for bridge in bridges {
        bridge.stop().await;
    }
}
