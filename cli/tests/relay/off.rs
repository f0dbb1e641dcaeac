//! Relays of which a face is switched off: rproc says which Helm value it is, at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use remoteprocess_cli::failure::Failure;
use remoteprocess_cli::output::{Output, Target};
use remoteprocess_client::attach::Writer;
use remoteprocess_client::exec::Exec;
use remoteprocess_client::{Follower, Ledger, Want, control};
use remoteprocess_proto::v1::{ExecOpen, ProcessKey, SignalTarget};
use tokio::time::Instant;
use tonic::Status;
use tonic::service::Routes;

use super::attach::{nobody_leaves, soon, speak};
use super::fragile::Shared;
use super::proxy::serve;
use super::world::{World, world_of};

const HOUR: Duration = Duration::from_secs(3600);
/// How the operator refuses each gRPC call of a user.
const OFF: &str = "gRPC is off at this operator (Helm value faces.grpc: false), and rproc needs it";

/// A relay without gRPC for users, and the number of its refusals.
async fn without_grpc() -> (World, Arc<AtomicUsize>) {
    let refusals = Arc::new(AtomicUsize::new(0));
    let counter = refusals.clone();
    let relay = Router::new().fallback(move || async move {
        counter.fetch_add(1, Ordering::Relaxed);
        Status::failed_precondition(OFF).into_http::<tonic::body::Body>()
    });
    (world_of(Routes::from(relay), HOUR).await, refusals)
}

fn output() -> Output {
    Output::new(Target::plain(Shared::default()), Target::plain(Shared::default()))
}

#[tokio::test]
async fn without_grpc_each_command_names_the_value_after_one_try() {
    let (world, refusals) = without_grpc().await;
    let mut follower = Follower {
        dial: world.relay(),
        ledger: Ledger::new(Want {
            follow: true,
            ..Want::default()
        }),
        sink: output(),
        progress: (),
        unknown_until: Instant::now() + HOUR,
    };
    let followed = Failure::from(soon(follower.run()).await.unwrap_err()).text;
    let mut relay = world.relay();
    let signal = control::signal(&mut relay, ProcessKey::default(), 15, SignalTarget::Main);
    let signaled = Failure::from(soon(signal).await.unwrap_err()).text;
    let mut writer = Writer::new(world.relay(), ProcessKey::default(), false, false);
    let attached = soon(writer.run(speak(Vec::new()), nobody_leaves())).await;
    let mut exec = Exec::new(world.relay(), ExecOpen::default(), output(), ());
    let executed = soon(exec.run(speak(Vec::new()), nobody_leaves())).await;
    let texts = [
        followed,
        signaled,
        attached.unwrap_err().to_string(),
        executed.unwrap_err().to_string(),
    ];
    for text in &texts {
        assert!(text.contains("faces.grpc: false"), "{texts:?}");
    }
    assert_eq!(refusals.load(Ordering::Relaxed), texts.len());
}

#[tokio::test]
async fn without_http_the_proxy_names_the_value() {
    // This is how the gRPC face answers what is not gRPC.
    let relay = Router::new().fallback(|| async { Status::unimplemented("").into_http::<tonic::body::Body>() });
    let served = serve(relay, HOUR).await;
    let answer = served
        .ask("GET /v1/namespaces/default/processes", "Accept: application/json\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    assert!(answer.contains("faces.http"), "{answer}");
}
