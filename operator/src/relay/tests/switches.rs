//! What is left when one of the faces is switched off.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use object_store::memory::InMemory;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{
    GetStateRequest, ListRequest, ProcessKey, SignalRequest, StopRequest, WatchOutputRequest,
};
use remoteprocess_tls::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::http_client::{Ask, PROCESS, connect, get, try_connect};
use super::replica::Replica;
use crate::relay::archive::Archive;
use crate::relay::faces::Switches;
use crate::relay::http::routes::ROUTES;
use crate::relay::live::fake_agent::{FakeAgent, Program};

/// Much longer than a refusal takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(60);

async fn replica(grpc: bool, http: bool) -> Replica {
    let archive = Archive::new(Arc::new(InMemory::new()));
    Replica::start_with(&archive, Switches { grpc, http }).await
}

/// The error of each method that a user calls.
async fn refusals(replica: &Replica) -> Vec<Status> {
    let (protocol, process) = (PROTOCOL, Some(ProcessKey::default()));
    let mut client = replica.client().await;
    let list = ListRequest {
        protocol,
        namespace: "default".to_owned(),
    };
    let output = WatchOutputRequest {
        protocol,
        process: process.clone(),
        ..WatchOutputRequest::default()
    };
    let state = GetStateRequest {
        protocol,
        process: process.clone(),
    };
    let signal = SignalRequest {
        protocol,
        process: process.clone(),
        ..SignalRequest::default()
    };
    let stop = StopRequest {
        protocol,
        process,
        ..StopRequest::default()
    };
    vec![
        client.list(list).await.unwrap_err(),
        client.watch_output(output).await.unwrap_err(),
        client.get_state(state).await.unwrap_err(),
        client.signal(signal).await.unwrap_err(),
        client.stop(stop).await.unwrap_err(),
        client.attach(tokio_stream::empty()).await.unwrap_err(),
        client.exec(tokio_stream::empty()).await.unwrap_err(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_grpc_http_works_and_a_grpc_client_learns_which_value_is_off() {
    let program = Program::new(&[(false, 5000), (true, 70), (false, 9000)]);
    let agent = FakeAgent::serve(&program).await;
    let replica = replica(false, true).await;
    replica.open(&agent);
    for refused in refusals(&replica).await {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("faces.grpc: false"), "{refused}");
    }
    let output = get(format!("{PROCESS}/output?follow=true&stream=stdout"));
    for ask in [get(PROCESS), output] {
        for answer in [ask.http1(replica.address).await, ask.http2(replica.address).await] {
            assert!(answer.status == 200 && answer.is_whole, "{answer:?}");
            assert!(ask.path == PROCESS || answer.body.len() == 14_000, "{answer:?}");
        }
    }
    // Replicas and agents still call each other.
    let mut peer = replica.client_as(&Role::Operator).await;
    let answer = peer.get_state(GetStateRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_http_the_port_speaks_grpc_over_http2_alone() {
    let replica = replica(true, false).await;
    let mut client = replica.client().await;
    let request = ListRequest {
        protocol: PROTOCOL,
        namespace: "default".to_owned(),
    };
    assert_eq!(client.list(request).await.unwrap().into_inner().processes.len(), 1);
    for route in ROUTES {
        let ask = Ask {
            method: route.method.parse::<Method>().unwrap(),
            ..get(route.path.replace(['{', '}'], ""))
        };
        let answer = ask.http2(replica.address).await;
        assert_eq!(answer.header("grpc-status"), "12", "unimplemented: {}", route.path);
        assert!(answer.body.is_empty(), "{answer:?}");
    }
    let refused = try_connect(replica.address, &[b"http/1.1"]).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    let stream = connect(replica.address, &[b"http/1.1", b"h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    // A client that names no protocol gets HTTP/2 as well.
    let mut stream = connect(replica.address, &[]).await;
    let request = format!("GET {PROCESS} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The relay breaks the connection off.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer))
        .await
        .expect("in time");
    assert!(!answer.starts_with(b"HTTP/1"), "{}", String::from_utf8_lossy(&answer));
}
