//! A destination that does not take an event.

use std::time::Duration;

use serde_json::json;

use crate::cluster::Cluster;
use crate::receiver::Receiver;
use crate::world::{Outputs, SINKS, begin_process, pause_process, sink, start, until};

/// While a transition, or that output is lost, waits for the destination, the stream of a program that writes a lot would
/// stall. The relay counts the streams of a user, and cuts those that stall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_waits_for_the_destination() {
    let (cluster, outputs, secrets) = (Cluster::new(), Outputs::default(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start().await;
    let destination = json!({"http": {"url": receiver.url()}});
    cluster.put(SINKS, sink(&destination, &json!({"output": {"as": "Lines"}})));
    receiver.refuse("output-lost", 503);
    let lossy = begin_process(&cluster, 1);
    outputs.lose_first(&lossy);
    outputs.chatter(&lossy, Duration::ZERO);
    let engine = start(&cluster, &outputs, secrets.path());
    until(&cluster, "a stream", || outputs.open(&lossy) == 1).await;
    until(&cluster, "its end", || outputs.open(&lossy) == 0).await;
    assert_eq!(outputs.opened(&lossy), 1);

    receiver.refuse("process.paused", 503);
    let paused = begin_process(&cluster, 2);
    outputs.chatter(&paused, Duration::ZERO);
    until(&cluster, "another stream", || outputs.open(&paused) == 1).await;
    pause_process(&cluster, &paused);
    until(&cluster, "its end", || outputs.open(&paused) == 0).await;
    receiver.refuse_none();
    until(&cluster, "more output", || outputs.open(&paused) == 1).await;
    engine.stop().await;
}
