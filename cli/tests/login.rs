//! The connection to the relay, with an API server and a relay of the test: the certificate, its cache, and the message
//! if a right is missing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "login/world.rs"]
mod world;

use std::sync::{Arc, Mutex};

use remoteprocess_client::cluster::{Connector, Proxies};
use remoteprocess_client::relay::Way;
use remoteprocess_client::{Dial, DialError, Relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use world::world;

#[tokio::test]
async fn one_certificate_serves_many_calls_of_one_user() {
    let world = world().await;
    for _ in 0..3 {
        let (_, way) = world.relay().connect_by().await.unwrap();
        assert!(matches!(way, Way::Server(_)));
    }
    assert_eq!(world.signed(), 1);
    assert_eq!(std::fs::read_dir(world.folder.path().join("rproc")).unwrap().count(), 1);
    world.fake.lock().unwrap().user = "bob";
    world.relay().dial().await.unwrap();
    assert_eq!(world.signed(), 2);
}

#[tokio::test]
async fn a_certificate_that_is_not_taken_is_replaced() {
    let world = world().await;
    let mut relay = world.relay();
    relay.dial().await.unwrap();
    relay.discredit();
    relay.dial().await.unwrap();
    relay.dial().await.unwrap();
    assert_eq!(world.signed(), 2);
}

#[tokio::test]
async fn a_connected_client_needs_no_api_server() {
    let world = world().await;
    let mut relay = world.relay();
    relay.dial().await.unwrap();
    world.fake.lock().unwrap().forbidden = Some("/");
    relay.dial().await.unwrap();
}

#[tokio::test]
async fn without_a_folder_each_call_gets_a_certificate() {
    let mut world = world().await;
    world.cluster.cache = Some("/proc/none/rproc".into());
    world.relay().dial().await.unwrap();
    world.relay().dial().await.unwrap();
    assert_eq!(world.signed(), 2);
}

#[tokio::test]
async fn a_missing_right_is_named_with_its_rule() {
    for (path, resource) in [
        ("configmaps", "configmaps"),
        ("certificatesigningrequests", "certificatesigningrequests"),
    ] {
        let world = world().await;
        world.fake.lock().unwrap().forbidden = Some(path);
        let Err(DialError::Refused(text)) = world.relay().dial().await else {
            panic!("it is refused")
        };
        assert!(text.contains(&format!("resources: [{resource}]")), "{text}");
        assert!(text.contains("Role remoteprocess-connect"), "{text}");
    }
}

/// An authenticator that is down also answers 401: a follower that was connected keeps trying.
#[tokio::test]
async fn credentials_that_are_renewed_may_be_refused_for_a_while() {
    for is_renewed in [true, false] {
        let mut world = world().await;
        world.cluster.account.is_renewed = is_renewed;
        world.fake.lock().unwrap().is_unknown = true;
        let error = world.relay().dial().await.unwrap_err();
        assert_eq!(matches!(error, DialError::Missing(_)), is_renewed, "{error:?}");
        assert!(error.to_string().contains("does not know you"), "{error}");
    }
}

#[tokio::test]
async fn a_denial_is_final_and_told() {
    let world = world().await;
    world.fake.lock().unwrap().denial = Some("the request names another user");
    let Err(DialError::Refused(text)) = world.relay().dial().await else {
        panic!("it is refused")
    };
    assert!(text.contains("the request names another user"), "{text}");
}

#[tokio::test]
async fn another_authoritys_relay_is_not_talked_to() {
    let (ours, theirs) = (world().await, world().await);
    let mut cluster = ours.cluster.clone();
    cluster.server.clone_from(&theirs.cluster.server);
    let refused = Relay::new(Arc::new(cluster)).dial().await;
    let Err(DialError::Missing(text)) = refused else {
        panic!("it is another server")
    };
    assert!(text.contains("is not the relay of this cluster"), "{text}");
}

#[tokio::test]
async fn a_relay_with_an_unknown_name_is_final() {
    let mut world = world().await;
    world.cluster.server = Some("nosuch.invalid:443".into());
    let Err(DialError::Missing(text)) = world.relay().dial().await else {
        panic!("it is final")
    };
    assert!(text.contains("nosuch.invalid:443 cannot be resolved"), "{text}");
}

/// Grants each CONNECT, to `target`, and records the requests.
async fn connect_proxy(target: String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (target, log) = (target.clone(), log.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                log.lock().unwrap().push(String::from_utf8(head).unwrap());
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, seen)
}

#[tokio::test]
async fn the_relay_is_reached_through_the_proxy_of_the_cluster() {
    let mut world = world().await;
    let (port, seen) = connect_proxy(world.cluster.server.clone().unwrap()).await;
    let config = kube::Config::new("https://cluster".parse().unwrap());
    let proxies = Proxies::new(&format!("http://127.0.0.1:{port}"), &|_| None);
    world.cluster.connector = Connector::new(proxies, &config);
    world.cluster.server = Some("relay.example.com:8443".into());
    world.relay().dial().await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert!(
        seen[0].starts_with("CONNECT relay.example.com:8443 HTTP/1.1\r\n"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_relay_on_this_machine_is_not_behind_the_proxy_of_the_cluster() {
    let mut world = world().await;
    let config = kube::Config::new("https://cluster".parse().unwrap());
    world.cluster.connector = Connector::new(Proxies::new("http://127.0.0.1:1", &|_| None), &config);
    world.relay().dial().await.unwrap();
}
